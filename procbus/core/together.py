# SPDX-License-Identifier: MIT
"""The events of one call of a batch handler, on their way to a worker.

A module of its own, because a worker imports it in its first call: it is light.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple


class Together(NamedTuple):
    """The events of one call of a batch handler, as they reach a worker."""

    #: The id of each event: a range if they follow each other, as most do.
    ids: Sequence[int]
    events: list[Any]
