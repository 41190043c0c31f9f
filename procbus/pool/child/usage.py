# SPDX-License-Identifier: MIT
"""What a worker's handlers take of the machine, summed up there and told now and then.

Nothing is measured for a single short delivery: the clocks are read where one handler's deliveries
end and another's begin, which for most batches is at their start and end.
"""

from __future__ import annotations

import os
import pickle
import resource
from time import monotonic, process_time
from typing import NamedTuple

#: Deliveries in a row that took less together, in seconds, are not measured.
_LEAST_S = 20e-6
#: A stretch that follows on one that was not measured is not, but once in so many seconds: to read
#: the clocks at its start and its end takes 20 us.
_PATIENCE_S = 4e-3
#: Of so many deliveries of a batch, by their place in it, the reading and writing of one is timed:
#: a prime, so that handlers that take turns are all met.
TIMED = 7
#: The sums are told so often at least, in seconds, while there are new ones; and sooner where what
#: is not told is more than this part of what was: a worker that is killed takes it along.
_TELL_S = 0.05
_UNTOLD = 0.1


class Sums(NamedTuple):
    """What the runs of one handler took, in seconds of all of them together."""

    runs: int
    wall_s: float
    #: CPU time of the worker's process, and of processes that the handler started and waited for.
    cpu_s: float
    children_s: float
    #: Time that the worker could have run and was given no core.
    starved_s: float
    #: Time to read events and to write results, which the times above have as well.
    unpacking_s: float


class Tally:
    """The sums of one worker. It belongs to the worker's main thread."""

    def __init__(self) -> None:
        self._sums: dict[int, Sums] = {}
        #: Of how many of the runs the reading and writing was timed.
        self._timed: dict[int, int] = {}
        self._told_at = monotonic()
        #: Seconds of the runs that were told, and of those in `_sums`.
        self._told_s = self._untold_s = 0.0
        #: The deliveries in a row: their handler, how many of the batch were done before them, and
        #: what the clocks said.
        self._handler: int | None = None
        self._done = 0
        self._began_at = self._cpu_s = self._children_s = self._starved_s = 0.0
        #: Seconds spent on reading events and writing results, added by the worker: of deliveries
        #: whose place in the batch `TIMED` divides.
        self.unpacking_s = 0.0
        self._armed_at = 0.0

    def turn(self, handler: int | None, done: int) -> None:
        """Deliveries of another handler begin, or none any more.

        Args:
            handler: number of the one whose deliveries begin; None at the end of a batch.
            done: deliveries of the batch that have ended.
        """
        now = monotonic()
        measured = self._handler is not None and now - self._began_at > _LEAST_S
        # Where handlers that are short take turns, reading clocks each time would cost too much.
        armed = handler is not None and (measured or now - self._armed_at > _PATIENCE_S)
        if measured or armed:
            before = self._cpu_s, self._children_s, self._starved_s
            self._cpu_s, self._starved_s = process_time(), no_core_s()
            children = resource.getrusage(resource.RUSAGE_CHILDREN)
            self._children_s = children.ru_utime + children.ru_stime
            if measured:
                self._add(done, now - self._began_at, *before)
        if armed:
            self._armed_at = now
        self._handler, self._done, self._began_at = handler if armed else None, done, now
        self.unpacking_s = 0.0

    def begin_anew(self, handler: int, done: int) -> None:
        """A handler was loaded, which took long: measure its deliveries from this one on."""
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
        self._untold_s += wall_s
        timed = (done - 1) // TIMED - (self._done - 1) // TIMED
        self._timed[self._handler] = self._timed.get(self._handler, 0) + timed
        former = self._sums.get(self._handler)
        if former is not None:
            newest = Sums._make(a + b for a, b in zip(former, newest, strict=True))
        self._sums[self._handler] = newest

    def due(self) -> bytes:
        """The sums, ready to travel, if it is time to tell them; they begin anew then."""
        untold_s = self._untold_s
        if untold_s > _UNTOLD * self._told_s or (
            untold_s and monotonic() - self._told_at >= _TELL_S
        ):
            return self.rest()
        return b""

    def rest(self) -> bytes:
        """The sums that were not told, ready to travel; they begin anew."""
        if not self._sums:
            return b""
        told = pickle.dumps(
            {
                handler: (*sums[:-1], sums.unpacking_s * sums.runs / max(1, self._timed[handler]))
                for handler, sums in self._sums.items()
            }
        )
        self._sums.clear()
        self._timed.clear()
        self._told_at = monotonic()
        self._told_s += self._untold_s
        self._untold_s = 0.0
        return told


def no_core_s() -> float:
    """Seconds that this thread could have run, so far, but was given no core; 0 if unknown."""
    try:
        # Not kept open: a child that a handler forks would read its parent's.
        file = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # not on this system
        return 0.0
    try:
        return int(os.read(file, 64).split()[1]) * 1e-9
    finally:
        os.close(file)
