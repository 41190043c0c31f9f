"""The demo's job in one call, and a handler made of such a call. Workers import it: it is light."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from procbus import current
from procbus.demo import handlers
from procbus.demo.handlers import FileFound, FileMeasured, FileSkipped, SourceRead


def read_and_measure(found: FileFound) -> FileMeasured | FileSkipped:
    """Do all of the demo's job but store."""
    published: list[Any] = []
    handlers.read(found, published.append)
    if isinstance(published[0], SourceRead):
        handlers.measure(published.pop(), published.append)
    result: FileMeasured | FileSkipped = published[0]
    return result


def publish_result(whole: Callable[[Any], Any], event: Any) -> None:
    """Handle an event by a call, and publish the result."""
    current().publish(whole(event))
