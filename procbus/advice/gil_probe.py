# SPDX-License-Identifier: MIT
"""Looks at threads: who computes with the GIL, who without it, who waits for it or for the world.

Python does not say who holds the GIL. So a thread sleeps for a moment and sees how late it gets
the GIL after that: if somebody held it, that is a thread whose CPU clock went on meanwhile (the
idea of gilknocker and gil_load). Once it has the GIL it keeps it for a tenth of a millisecond: a
thread whose clock goes on now computes without it, and one that waits says in what.

Linux only: it needs the clocks of other threads, and /proc.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Sequence
from time import clock_gettime, monotonic
from typing import Any, Protocol, TypeVar

from procbus.core.meter import Doing

#: How long it sleeps, and how long it keeps the GIL, in seconds.
_NAP_S = 0.0005
_HOLD_S = 0.0001
#: Somebody else may have had the GIL after so long: Python takes it away after 5 ms.
_HELD_NO_MORE_S = 0.003
#: Who gets the GIL later than this found it held; waking up takes 0.1 ms.
_LATE_S = 0.0003
#: A thread whose clock went on for this part of the time that it could not have the GIL computed.
_WENT_ON = 0.6
#: Python takes the GIL away after so long; and a look counts for so many such slices at most.
_SLICE_S = 0.005
_MOST_SLICES = 8.0
#: This part of a time is nearly all of it.
_ALL = 0.8
#: A process that ran for less than this part of a time was not given the cores that it wanted.
_SERVED = 0.5
#: A process that ran for less than this part of the time between two looks was at rest.
_AT_REST = 0.2

Subject = TypeVar("Subject", covariant=True)


class Watched(Protocol[Subject]):
    """A thread to be looked at."""

    @property
    def native_id(self) -> int | None:
        """Its id for the kernel."""

    def subject(self) -> Subject | None:
        """What it is at just now."""

    def finished(self, since: float) -> Subject | None:
        """What it was at last, if that ended after this moment (`time.monotonic()`)."""


def is_available() -> bool:
    """Whether this system tells what a look needs."""
    if not sys.platform.startswith("linux"):
        return False
    if not getattr(sys, "_is_gil_enabled", lambda: True)():  # a free-threaded build
        return False
    try:
        clock_gettime(_clock(os.getpid()))  # the main thread's
    except OSError:
        return False
    return True


class GilProbe:
    """Looks at threads. It belongs to one thread, which sleeps in `look`."""

    def __init__(self) -> None:
        # PyDLL keeps the GIL while it calls: reading files in the usual way would let go of it.
        self._libc = ctypes.PyDLL(None)
        self._buffer = ctypes.create_string_buffer(128)
        #: When it had the GIL the last time, and the CPU seconds of the process then.
        self._last = monotonic(), time.process_time()

    def look(self, threads: Sequence[Watched[Subject]]) -> list[tuple[Subject, dict[Doing, float]]]:
        """See what threads are doing at a moment a little later: for each that does something.

        Returns:
            What it is at, and what it is doing: see `doing`, times what the look counts for.
        """
        began_at = monotonic()
        began_cpu = [_cpu_s(thread) for thread in threads]
        began_all = time.process_time()
        no_core_s = self._no_core_s()
        due_at = monotonic() + _NAP_S
        time.sleep(_NAP_S)
        got_at = monotonic()  # the GIL, that is
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
        # Of all threads, also those that nobody looks at.
        ran_all_s = got_all - began_all
        at_rest = got_all - self._last[1] < _AT_REST * (got_at - self._last[0])
        self._last = got_at, got_all
        seen: list[tuple[Subject, dict[Doing, float]]] = []
        for index, thread in enumerate(threads):
            went_on = held_cpu[index] - got_cpu[index] > _WENT_ON * held_s
            blocked_in = self._blocked_in(thread)
            found = doing(late_s, ran[index], ran_all_s, went_on, blocked_in, at_rest)
            # One that several slices of the GIL held up saw as much as several looks.
            weight = min(_MOST_SLICES, max(1.0, late_s / _SLICE_S))
            found = {doing: weight * likely for doing, likely in found.items()}
            subject, former = at[index], thread.finished(began_at)
            if former is not None and former is not subject:
                # The GIL is free most often when a run ends: it is that which had it until then.
                seen.append((former, {Doing.HOLDS: found.pop(Doing.HOLDS, 0.0)}))
            if subject is not None:
                seen.append((subject, found))
        return seen

    def _no_core_s(self) -> float:
        """Seconds that this thread could have run, so far, but was given no core."""
        fields = self._read(b"/proc/thread-self/schedstat").split()
        return int(fields[1]) * 1e-9 if len(fields) > 1 else 0.0

    def _blocked_in(self, thread: Watched[Any]) -> str:
        """The function of the kernel that a thread waits in; "0" when in none, "" if unknown."""
        return self._read(b"/proc/self/task/%d/wchan" % (thread.native_id or 0))

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
    """What a thread was doing when somebody wanted the GIL.

    Args:
        late_s: how long that took.
        ran_s: CPU seconds of the thread meanwhile.
        ran_all_s: those of the whole process.
        went_on: whether it computed after that, while it could not have the GIL.
        blocked_in: what it waited in then, see `GilProbe._blocked_in`.
        at_rest: whether hardly anybody ran lately.

    Returns:
        How likely it was doing what: all together 1, or less where it does not show.
    """
    futex = "futex" in blocked_in
    if late_s <= _LATE_S:  # nobody had it
        if went_on:
            return {Doing.FREE: 1.0}
        if blocked_in in ("", "0"):  # it could run and has no core: with the GIL or without?
            return {}
        # A futex is how a thread waits for the GIL, or for a lock. Nobody can have to wait for the
        # GIL where hardly anybody runs.
        return {Doing.WAITS: 1.0} if not futex or at_rest else {}
    if not went_on and blocked_in in ("", "0"):
        return {}  # it could run and has no core; one that had the GIL waits for it again by now
    if ran_all_s < _SERVED * late_s and not went_on:
        return {}  # whoever had it was given no core: it is the machine that made this late
    # One of those that ran had it, and now another, for as long as each of them ran. A second has
    # one second of the GIL: what they ran together beyond that, they ran without it.
    # Within bounds also where a thread ended meanwhile, whose clock reads nothing then; and the
    # clocks of threads and of the process are not read at the same moment.
    share = min(1.0, max(0.0, ran_s / max(ran_all_s, 1e-9)))
    cores = max(0.0, ran_all_s / (_NAP_S + late_s))
    held = share * min(1.0, cores)
    free = min(1.0 - held, share * max(0.0, cores - 1.0))
    if went_on:
        # It may have had it until a moment ago, if that accounts for all the time.
        held = held if ran_s > _ALL * late_s else 0.0
        return {Doing.HOLDS: held, Doing.FREE: 1.0 - held}
    rest = Doing.QUEUES if futex else Doing.WAITS
    return {Doing.HOLDS: held, Doing.FREE: free, rest: 1.0 - held - free}


def _clock(thread: int) -> int:
    """The CPU clock of a thread, by its native id.

    As glibc's `pthread_getcpuclockid` makes it. That takes the address of a thread, and crashes if
    the thread has ended; this one gives an error.
    """
    return (~thread << 3) | 6


def _cpu_s(thread: Watched[Any]) -> float:
    try:
        return clock_gettime(_clock(thread.native_id or 0))
    except OSError:  # it has ended
        return 0.0
