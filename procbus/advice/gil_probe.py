# SPDX-License-Identifier: MIT
"""Finds out which threads compute with the GIL, which without it, and which of them wait.

Python does not tell which thread holds the GIL. So the probe sleeps for a moment, and measures how
late it gets the GIL afterwards. If it is late, another thread held the GIL: a thread whose CPU
clock went on meanwhile (the idea of gilknocker and gil_load). Then the probe keeps the GIL for a
tenth of a millisecond. A thread whose clock goes on now computes without the GIL. For a thread that
waits, the kernel tells in which of its functions the thread waits.

Linux only, because it reads the clocks of other threads, and /proc.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Sequence
from time import clock_gettime, monotonic
from typing import Any, Protocol, TypeVar

from procbus.core.gil import gil_is_on
from procbus.core.meter import Doing

#: Duration of the probe's sleep, and of its holding the GIL, in seconds.
_NAP_S = 0.0005
_HOLD_S = 0.0001
#: Delay after which another thread may have had the GIL in turn, in seconds; because Python takes
#: the GIL away after 5 ms.
_HELD_NO_MORE_S = 0.003
#: Minimum delay that counts as a held GIL, in seconds; because waking up alone takes 0.1 ms.
_LATE_S = 0.0003
#: Minimum share of the time without the GIL that a computing thread's clock went on.
_WENT_ON = 0.6
#: Interval after which Python takes the GIL away, in seconds; and maximum number of such intervals
#: that one look counts for.
_SLICE_S = 0.005
_MOST_SLICES = 8.0
#: Share of a time that counts as nearly all of it.
_ALL = 0.8
#: Minimum share of a time that a process with enough cores ran for.
_SERVED = 0.5
#: Maximum share of the time between two looks that a process at rest ran for.
_AT_REST = 0.2
#: The kernel's answer for a thread that waits in no function: it runs, or is ready to run.
_READY = "0"

Subject = TypeVar("Subject", covariant=True)


class ProbedThread(Protocol[Subject]):
    """A thread that the probe looks at."""

    @property
    def native_id(self) -> int | None:
        """The thread's id for the kernel."""

    def subject(self) -> Subject | None:
        """The handler that the thread runs now; None if it runs none."""

    def finished(self, since: float) -> Subject | None:
        """The handler that the thread ran last, if it ended after `since` (`time.monotonic()`)."""


def is_available() -> bool:
    """Whether this system offers the facts that a look needs."""
    if not sys.platform.startswith("linux"):
        return False
    if not gil_is_on():
        return False
    try:
        clock_gettime(_clock(os.getpid()))  # the main thread's
    except OSError:
        return False
    return True


class GilProbe:
    """Looks at threads. The probe belongs to one thread, which sleeps in `look`."""

    def __init__(self) -> None:
        # PyDLL keeps the GIL while it calls; Python's own file functions would release it.
        self._libc = ctypes.PyDLL(None)
        self._buffer = ctypes.create_string_buffer(128)
        #: Time when the probe last had the GIL, and the CPU seconds of the process then.
        self._last = monotonic(), time.process_time()

    def look(
        self, threads: Sequence[ProbedThread[Subject]]
    ) -> list[tuple[Subject, dict[Doing, float]]]:
        """Look at threads, a moment from now; return findings for each thread that runs a handler.

        Returns:
            The handler, and the likelihood of each activity, see `doing`, times the weight of the
            look.
        """
        began_at = monotonic()
        began_cpu = [_cpu_s(thread) for thread in threads]
        began_all = time.process_time()
        no_core_s = self._no_core_s()
        due_at = monotonic() + _NAP_S
        time.sleep(_NAP_S)
        got_at = monotonic()  # it has the GIL now
        at = [thread.subject() for thread in threads]
        got_cpu = [_cpu_s(thread) for thread in threads]
        got_all = time.process_time()
        while monotonic() < got_at + _HOLD_S:
            pass
        held_cpu = [_cpu_s(thread) for thread in threads]
        held_s = monotonic() - got_at
        if held_s > _HELD_NO_MORE_S:
            return []
        late_s = got_at - due_at - (self._no_core_s() - no_core_s)
        ran = [got - began for got, began in zip(got_cpu, began_cpu, strict=True)]
        # CPU time of all threads, including the ones that are not looked at.
        ran_all_s = got_all - began_all
        blocked_in = [self._blocked_in(thread.native_id or 0) for thread in threads]
        at_rest = (
            got_all - self._last[1] < _AT_REST * (got_at - self._last[0])
            and _READY not in blocked_in
            and self._blocked_in(os.getpid()) != _READY  # the main thread
        )
        self._last = got_at, got_all
        seen: list[tuple[Subject, dict[Doing, float]]] = []
        for index, thread in enumerate(threads):
            went_on = held_cpu[index] - got_cpu[index] > _WENT_ON * held_s
            found = doing(late_s, ran[index], ran_all_s, went_on, blocked_in[index], at_rest)
            # A delay of several GIL slices is worth as much as several looks.
            weight = min(_MOST_SLICES, max(1.0, late_s / _SLICE_S))
            found = {doing: weight * likely for doing, likely in found.items()}
            subject, former = at[index], thread.finished(began_at)
            if former is not None and former is not subject:
                # The GIL is most often free because a run ended: that run held it until then.
                seen.append((former, {Doing.HOLDS: found.pop(Doing.HOLDS, 0.0)}))
            if subject is not None:
                seen.append((subject, found))
        return seen

    def _no_core_s(self) -> float:
        """Seconds in which this thread was ready to run but had no core, so far."""
        fields = self._read(b"/proc/thread-self/schedstat").split()
        return int(fields[1]) * 1e-9 if len(fields) > 1 else 0.0

    def _blocked_in(self, thread: int) -> str:
        """The kernel function in which a thread waits; `_READY` if it does not wait, "" if unknown.

        Args:
            thread: the native id of the thread.
        """
        return self._read(b"/proc/self/task/%d/wchan" % thread)

    def _read(self, path: bytes) -> str:
        libc, buffer = self._libc, self._buffer
        file = libc.open(path, os.O_RDONLY | os.O_CLOEXEC)
        if file < 0:
            return ""
        size = libc.read(file, buffer, len(buffer))
        libc.close(file)
        return buffer.raw[: max(0, size)].decode("ascii", "replace")


def doing(
    late_s: float,
    ran_s: float,
    ran_all_s: float,
    went_on: bool,
    blocked_in: str,
    at_rest: bool = False,
) -> dict[Doing, float]:
    """Infer the activity of a thread at the moment when the probe wanted the GIL.

    Args:
        late_s: delay until the probe got the GIL.
        ran_s: CPU seconds of the thread meanwhile.
        ran_all_s: CPU seconds of the whole process meanwhile.
        went_on: whether the thread computed afterwards, while the probe held the GIL.
        blocked_in: the function in which the thread waited then, see `GilProbe._blocked_in`.
        at_rest: whether the process hardly ran lately, and not for want of a core.

    Returns:
        The likelihood of each activity. The likelihoods add up to 1, or to less if the facts are
        not clear.
    """
    futex = "futex" in blocked_in
    if late_s <= _LATE_S:  # no thread held it
        if went_on:
            return {Doing.FREE: 1.0}
        if blocked_in in ("", _READY):  # it is ready to run, without a core: with the GIL or not?
            return {}
        # A thread waits in a futex for the GIL, or for a lock. In a process at rest it cannot wait
        # for the GIL. In a process that has no core it can: the next thread to have the GIL is
        # ready to run, and the other threads wait for the GIL.
        return {Doing.WAITS: 1.0} if not futex or at_rest else {}
    if not went_on and blocked_in in ("", _READY):
        return {}  # ready to run, without a core; a holder of the GIL waits for it again by now
    if ran_all_s < _SERVED * late_s and not went_on:
        return {}  # the GIL's holder had no core: the machine made the probe late
    # The running threads had the GIL in turn, each for a part proportional to its run time. The GIL
    # gives one second in each second: any further time they ran without the GIL. The bounds matter
    # when a thread ended meanwhile, so that its clock reads zero. They also matter because the
    # clocks of threads and process are not read at the same moment.
    share = min(1.0, max(0.0, ran_s / max(ran_all_s, 1e-9)))
    cores = max(0.0, ran_all_s / (_NAP_S + late_s))
    held = share * min(1.0, cores)
    free = min(1.0 - held, share * max(0.0, cores - 1.0))
    if went_on:
        # It may have held the GIL until a moment ago, if that explains the whole delay.
        held = held if ran_s > _ALL * late_s else 0.0
        return {Doing.HOLDS: held, Doing.FREE: 1.0 - held}
    rest = Doing.QUEUES if futex else Doing.WAITS
    return {Doing.HOLDS: held, Doing.FREE: free, rest: 1.0 - held - free}


def _clock(thread: int) -> int:
    """The CPU clock of a thread, by its native id.

    The number is computed as in glibc's `pthread_getcpuclockid`. That function takes the address of
    a thread, and crashes if the thread has ended; reading this clock only raises an error.
    """
    return (~thread << 3) | 6


def _cpu_s(thread: ProbedThread[Any]) -> float:
    try:
        return clock_gettime(_clock(thread.native_id or 0))
    except OSError:  # the thread has ended
        return 0.0
