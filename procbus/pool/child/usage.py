# SPDX-License-Identifier: MIT
"""The handlers' use of the machine, summed up in the worker and sent to the parent now and then.

A single short delivery is not measured. The clocks are read when the next delivery has another
handler than the one before: in most batches only at the start and the end.
"""

from __future__ import annotations

import resource
from collections.abc import Callable
from time import monotonic, process_time
from typing import NamedTuple

from procbus.system.procfs import no_core_s

#: Maximum duration of a run of deliveries that is not measured, in seconds.
_LEAST_S = 20e-6
#: Minimum interval between two measurements that follow on an unmeasured run, in seconds; because
#: reading the clocks at both ends takes 20 us.
_PATIENCE_S = 4e-3
#: Of this many deliveries in a row, one has the reading of its event and the writing of its result
#: timed. The number is a prime, so that each of several handlers which take turns is timed.
TIMED = 7
#: Maximum interval between two reports of the sums, in seconds. The sums are sent sooner if the
#: unsent part exceeds this share of the sent part, because a killed worker loses the unsent part.
_REPORT_S = 0.05
_UNREPORTED = 0.1


class Sums(NamedTuple):
    """The cost of one handler's runs: the seconds of all runs together."""

    runs: int
    wall_s: float
    #: CPU time of the worker's process, and of processes that the handler started and waited for.
    cpu_s: float
    children_s: float
    #: Time in which the worker was ready to run but had no core.
    starved_s: float
    #: Time for reading events and writing results; it is part of the times above.
    unpacking_s: float


def _children_s() -> float:
    """CPU seconds so far of processes that this one started and waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return children.ru_utime + children.ru_stime


class Tally:
    """The sums of one worker. The sums belong to the worker's main thread.

    Args:
        least_s: maximum duration of a run of deliveries that is not measured, in seconds.
        patience_s: minimum interval between two measurements that follow on an unmeasured run, in
            seconds.
        report_s: maximum interval between two reports of the sums, in seconds.
        clock: replaces `time.monotonic`.
        cpu_s: returns the CPU seconds of the worker so far.
        children_s: returns the CPU seconds of processes that the worker started and waited for.
    """

    def __init__(
        self,
        *,
        least_s: float = _LEAST_S,
        patience_s: float = _PATIENCE_S,
        report_s: float = _REPORT_S,
        clock: Callable[[], float] = monotonic,
        cpu_s: Callable[[], float] = process_time,
        children_s: Callable[[], float] = _children_s,
    ) -> None:
        self._read_cpu_s, self._read_children_s = cpu_s, children_s
        self._least_s = least_s
        self._patience_s = patience_s
        self._report_s = report_s
        self._clock = clock
        self._sums: dict[int, Sums] = {}
        #: Number of runs whose reading and writing was timed, by handler.
        self._timed: dict[int, int] = {}
        self._reported_at = self._clock()
        #: Seconds of the runs that were reported, and of the runs in `_sums`.
        self._reported_s = self._unreported_s = 0.0
        #: The present run of deliveries: their handler, the deliveries of the batch done before it,
        #: and the readings of the clocks.
        self._handler: int | None = None
        self._done = 0
        self._began_at = self._cpu_s = self._children_s = self._starved_s = 0.0
        #: Seconds of reading events and writing results, added by the worker for deliveries whose
        #: place in the batch `TIMED` divides.
        self.unpacking_s = 0.0
        self._armed_at = 0.0

    def turn(self, handler: int | None, done: int) -> None:
        """Note that deliveries of another handler begin, or that the batch has ended.

        Args:
            handler: number of that handler; None at the end of a batch.
            done: deliveries of the batch that have ended.
        """
        now = self._clock()
        ran = self._handler is not None and done > self._done
        measured = ran and now - self._began_at > self._least_s
        # When short handlers take turns, reading the clocks each time would cost too much.
        armed = handler is not None and (measured or now - self._armed_at > self._patience_s)
        if measured or armed:
            before = self._cpu_s, self._children_s, self._starved_s
            self._cpu_s, self._starved_s = self._read_cpu_s(), no_core_s()
            self._children_s = self._read_children_s()
            if measured:
                self._add(done, now - self._began_at, *before)
        if armed:
            self._armed_at = now
        self._handler, self._done, self._began_at = handler if armed else None, done, now
        self.unpacking_s = 0.0

    def begin_anew(self, handler: int, done: int) -> None:
        """Measure a handler's deliveries anew from this one on, because loading it took long."""
        self._handler, self._armed_at = None, 0.0
        self.turn(handler, done)

    def _add(
        self, done: int, wall_s: float, cpu_s: float, children_s: float, starved_s: float
    ) -> None:
        assert self._handler is not None
        newest = Sums(
            done - self._done,
            wall_s,
            self._cpu_s - cpu_s,
            self._children_s - children_s,
            self._starved_s - starved_s,
            self.unpacking_s,
        )
        self._unreported_s += wall_s
        timed = (done - 1) // TIMED - (self._done - 1) // TIMED
        self._timed[self._handler] = self._timed.get(self._handler, 0) + timed
        former = self._sums.get(self._handler)
        if former is not None:
            newest = Sums._make(a + b for a, b in zip(former, newest, strict=True))
        self._sums[self._handler] = newest

    def due(self) -> dict[int, tuple[float, ...]]:
        """Return the sums of each handler if a report is due; then they begin anew."""
        unreported_s = self._unreported_s
        if unreported_s > _UNREPORTED * self._reported_s or (
            unreported_s and self._clock() - self._reported_at >= self._report_s
        ):
            return self.rest()
        return {}

    def rest(self) -> dict[int, tuple[float, ...]]:
        """Return the unreported sums of each handler; they begin anew."""
        report: dict[int, tuple[float, ...]] = {
            handler: (*sums[:-1], sums.unpacking_s * sums.runs / max(1, self._timed[handler]))
            for handler, sums in self._sums.items()
        }
        self._sums.clear()
        self._timed.clear()
        self._reported_at = self._clock()
        self._reported_s += self._unreported_s
        self._unreported_s = 0.0
        return report
