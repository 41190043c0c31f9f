# SPDX-License-Identifier: MIT
"""The window of a stream: the number of events that may be open at once, by their size."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from procbus.core.handler import Handler
from procbus.core.receipt import Receipt
from procbus.core.rough_size import rough_size
from procbus.core.stats import SharedMemoryStats

#: Memory that the open events of a stream and their results may take in the script, in bytes.
WINDOW_BYTES = 64_000_000
#: Maximum share of the shared memory's limit that a stream's events may take in the script; because
#: their copies for workers take as much again for a moment.
_SHARE = 0.5
#: Interval between two looks at the sizes, in seconds; and minimum time between two looks, as a
#: multiple of the last look's length; because looks should take little of the stream's time.
WINDOW_LOOK_S = 0.002
_RARE = 100
#: Maximum of open receipts before the first is settled, and growth with each settled one; because
#: the size of results is not known before.
_FIRST = 256
_GROWTH = 16
#: Number of samples that a mean size is taken over.
_SAMPLES = 16


class _Mean:
    """The mean of the last samples, roughly."""

    def __init__(self) -> None:
        self.value = 0.0
        self._count = 0

    def add(self, value: float) -> None:
        """Add a sample."""
        self._count = min(self._count + 1, _SAMPLES)
        self.value += (value - self.value) / self._count


class Window:
    """The number of receipts that one stream may have open. Belongs to the stream's thread.

    A stream of small events may have `most` open receipts. With large events or large results, as
    many may be open as take `WINDOW_BYTES` in the script. The stream passes a sample of events and
    results to this window, one every few ms. Large buffers in progress may also take no more than
    `_SHARE` of the shared memory's limit.

    Args:
        most: maximum of open receipts, for events of any size.
        needs: returns the number of open events that keeps the given handlers busy. This number may
            always be open, whatever the size of the events.
        shared_memory: returns the bytes copied so far, and their limit.
        holds: an object that is kept alive with this one.
        begins_small: returns whether few receipts may be open before the first results are known;
            it is asked after the first event, which has its lanes made.
        look_s: interval between two looks at the sizes, in seconds.
        clock: replaces `monotonic`.

    Attributes:
        wants_event: whether the next published receipt should be given to `weigh_event`.
        wants_result: whether the next settled receipt should be given to `weigh_result`.
    """

    def __init__(
        self,
        most: int,
        needs: Callable[[list[Handler]], int],
        shared_memory: Callable[[], SharedMemoryStats],
        holds: object = None,
        *,
        begins_small: Callable[[], bool] = lambda: False,
        look_s: float = WINDOW_LOOK_S,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._holds = holds
        self._look_s = look_s
        self._clock = clock
        self._most = most
        self._needs = needs
        self._least = 1
        self._shared_memory = shared_memory
        self._before = shared_memory().sent
        self._size = most
        self._look_at = 0.0
        self._begins_small = begins_small
        #: Number of settled events after which the window is as large as their sizes allow; None
        #: before the first event.
        self._full_at: int | None = None
        self._settled = 0
        self._event, self._result = _Mean(), _Mean()
        self.wants_event = self.wants_result = True

    def size(self, settled: int) -> int:
        """The maximum of open receipts, after `settled` events of the stream are settled."""
        now = self._clock()
        if now >= self._look_at:
            self._look_at = now + self._look_s
            self.wants_event = self.wants_result = True
            self._settled = settled
            self._size = self._fitting()
        if self._full_at and settled < self._full_at:
            return min(self._size, _FIRST + _GROWTH * settled)
        return self._size

    def weigh_event(self, receipt: Receipt) -> None:
        """Look at the size of an event that was published just now."""
        self.wants_event = False
        if self._full_at is None:
            self._full_at = (self._most - _FIRST) // _GROWTH if self._begins_small() else 0
        needed = self._needs([each.handler for each in receipt.deliveries])
        self._least = max(self._least, needed)
        self._weigh(self._event, receipt.event)

    def weigh_result(self, receipt: Receipt) -> None:
        """Look at the size of the results of an event that is settled."""
        self.wants_result = False
        results = [each.value for each in receipt.deliveries if each.failure is None]
        self._weigh(self._result, *results)

    def _weigh(self, mean: _Mean, *objects: object) -> None:
        began = self._clock()
        mean.add(sum([rough_size(each) for each in objects]))
        self._size = self._fitting()
        self._look_at = max(self._look_at, began + _RARE * (self._clock() - began))

    def _fitting(self) -> int:
        """The maximum of open receipts, by the sizes known so far."""
        most: float = self._most
        if (size := self._event.value + self._result.value) * most > WINDOW_BYTES:
            most = WINDOW_BYTES / size
        memory = self._shared_memory()
        if sent := memory.sent - self._before:
            most = min(most, _SHARE * memory.limit * max(1, self._settled) / sent)
        if most >= self._most:
            return self._most
        return min(self._most, max(self._least, int(most)))
