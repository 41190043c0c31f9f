# SPDX-License-Identifier: MIT
"""The memory of a worker and of the processes that its handlers started, as `max_memory` counts it.

Only resident memory that a process does not share counts. Libraries and the large events of the bus
are shared, so they do not count. Pages that a forked child shares with its parent count once.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from procbus.core.validation import format_size

if TYPE_CHECKING:
    from procbus.system.process import Probe

#: Minimum and maximum interval between two measurements of a worker, in seconds; the interval is
#: shorter the nearer the worker is to its limit. Then the fastest rate at which a handler fills
#: memory, in bytes a second.
LEAST_S, MOST_S = 0.05, 0.25
_FILLED_S = 4 << 30
#: Interval between two searches for processes that a handler started, in seconds.
CHILDREN_S = 0.2
#: One search in this many also finds processes that other threads than the main one started.
_ANY_THREAD = 5
#: Maximum share of the time that precise measurements may take.
_CLOSER_SHARE = 0.05


class Footprint(NamedTuple):
    """Memory in bytes that counts towards a limit."""

    #: Memory of the worker itself.
    worker: int
    #: Memory and number of the processes that its handlers started.
    others: int = 0
    processes: int = 0

    @property
    def total(self) -> int:
        """The sum of both."""
        return self.worker + self.others

    def __str__(self) -> str:
        """The sum and its parts, with units."""
        if not self.processes:
            return format_size(self.total)
        those = "a process" if self.processes == 1 else f"{self.processes} processes"
        return (
            f"{format_size(self.total)} ({format_size(self.worker)} in its worker and "
            f"{format_size(self.others)} in {those} that it started)"
        )


def _own_bytes(pid: int) -> int | None:
    from procbus.system.process import own_bytes  # only now: it imports psutil

    return own_bytes(pid)


def _fair_bytes(pid: int) -> int | None:
    from procbus.system.process import fair_bytes  # only now: it imports psutil

    return fair_bytes(pid)


class FootprintMeter:
    """Measures one worker repeatedly. Not thread-safe: it belongs to the supervisor or a host.

    A worker without children costs one reading. Children are searched for less often, and measured
    precisely only once the rough measurement is above the limit.

    Args:
        clock: replaces `time.monotonic`.
        own_bytes: measures a process roughly.
        fair_bytes: measures it precisely.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = monotonic,
        own_bytes: Callable[[int], int | None] = _own_bytes,
        fair_bytes: Callable[[int], int | None] = _fair_bytes,
    ) -> None:
        self._clock = clock
        self._own_bytes = own_bytes
        self._fair_bytes = fair_bytes
        self._children: set[int] = set()
        self._measured_at = -inf
        self._total = 0
        self._looked_at = -inf
        self._looks = 0
        self._closer_at = -inf

    def due_at(self, limit: int) -> float:
        """Return the time of the next measurement, in seconds of `time.monotonic()`.

        Args:
            limit: the limit in bytes.
        """
        room_s = (limit - self._total) / _FILLED_S
        return self._measured_at + min(MOST_S, max(LEAST_S, room_s))

    def measure(self, probe: Probe, limit: int) -> Footprint | None:
        """Return the memory of the worker and its children; None when the worker is gone.

        Args:
            probe: probe of the worker.
            limit: the limit in bytes. An amount above the limit is returned only once it has been
                measured precisely; until then the answer is None.
        """
        now = self._measured_at = self._clock()
        own = probe.own_bytes()
        if own is None:
            return None
        footprint = self._measure(probe, own, limit, now)
        self._total = limit if footprint is None else footprint.total
        return footprint

    def _measure(self, probe: Probe, own: int, limit: int, now: float) -> Footprint | None:
        if now - self._looked_at >= CHILDREN_S:
            self._looked_at = now
            self._look_for_children(probe)
        if not self._children:
            return Footprint(own)
        found = {pid: bytes_ for pid in self._children if (bytes_ := self._own_bytes(pid))}
        rough = Footprint(own, sum(found.values()), len(found))
        if rough.total <= limit or own > limit or not found:
            return rough
        return self._look_closely(probe.pid, rough, found, now)

    def _look_for_children(self, probe: Probe) -> None:
        every_thread = self._looks % _ANY_THREAD == 0
        self._looks += 1
        found = probe.children(any_thread=every_thread)
        if every_thread:
            self._children = set(found)
        else:
            self._children.update(found)

    def _look_closely(
        self, pid: int, rough: Footprint, found: dict[int, int], now: float
    ) -> Footprint | None:
        """Count shared pages of forked processes once: this takes some ms if they have GBs."""
        if now < self._closer_at:
            return None
        own = self._fair_bytes(pid)
        others = [self._fair_bytes(child) or bytes_ for child, bytes_ in found.items()]
        took_s = self._clock() - now
        self._closer_at = now + took_s / _CLOSER_SHARE
        return Footprint(rough.worker if own is None else own, sum(others), len(others))
