# SPDX-License-Identifier: MIT
"""How many events a stream may have under way: fewer where they are large."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from procbus.stats import SharedMemoryStats

#: The share of the limit of shared memory that the events of a stream may take in the script: what
#: is on its way to workers takes as much again there, for a moment.
_SHARE = 0.5
#: How often it is asked what was copied in, in seconds.
_LOOK_S = 0.002


class Window:
    """How many receipts one stream may have open. Belongs to the thread that runs the stream.

    A stream of small events has `most`. Where events turn out to be large, those under way are to
    take no more memory in the script than `_SHARE` of what may be shared with workers: so many as
    that is by the mean of those that are settled. Before any is copied in nothing is known.

    Args:
        most: receipts that may be open, whatever their events are.
        workers: how many there are for what is large: that many may be at work, and as many be on
            their way, however large they are.
        shared_memory: tells how much has been copied in so far, and how much there may be.
        holds: is kept alive with this.
    """

    def __init__(
        self,
        most: int,
        workers: Callable[[], int],
        shared_memory: Callable[[], SharedMemoryStats],
        holds: object = None,
    ) -> None:
        self._holds = holds
        self._most = most
        self._workers = workers
        self._shared_memory = shared_memory
        self._before = shared_memory().sent
        self._size = most
        self._look_at = 0.0

    def size(self, settled: int) -> int:
        """How many may be open, after so many of the stream are settled."""
        now = monotonic()
        if now >= self._look_at:
            self._look_at = now + _LOOK_S
            self._size = self._look(settled)
        return self._size

    def _look(self, settled: int) -> int:
        memory = self._shared_memory()
        sent = memory.sent - self._before
        if not sent:
            return self._most
        mean = sent / max(1, settled)
        return min(self._most, max(2 * self._workers(), int(_SHARE * memory.limit / mean)))
