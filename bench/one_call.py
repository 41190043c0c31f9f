"""A handler for jobs that are one call. Workers import this module, so it is light."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from procbus import current


def publish_result(whole: Callable[[Any], Any], event: Any) -> None:
    """Handle an event by a call, and publish the result."""
    current().publish(whole(event))
