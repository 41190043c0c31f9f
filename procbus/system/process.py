# SPDX-License-Identifier: MIT
"""Readings of other processes, and signals to them: the only module that imports psutil.

A process may end at any moment, even between two lines of this module. So for a process that is
gone, a function returns an empty answer, and never raises. Any thread may call these functions.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import psutil

from procbus.system import procfs
from procbus.system.cooperative import Task

#: `Details.status` of a process that a signal has halted.
STOPPED = psutil.STATUS_STOPPED
#: Maximum wait of `Probe.stop` for the kernel, in seconds.
SIGSTOP_S = 0.020
#: Interval between two looks of `Probe.kill_tree`, in seconds.
_KILL_LOOK_S = 0.0005
#: Interval between two looks of `end_all`, in seconds.
_END_LOOK_S = 0.010
#: Maximum number of searches of `Probe.kill_tree` for descendants; because a fork bomb would keep
#: it busy for ever.
_ROUNDS = 5
# If a process vanishes between the opening and the reading of a file, psutil lets the reader's
# error through: OSError, or RuntimeError and ValueError for an empty file.
_UNANSWERED = (psutil.Error, OSError, RuntimeError, ValueError)

_Answer = TypeVar("_Answer")


class Sample(NamedTuple):
    """The cheap readings of a process."""

    #: Time of the reading, in seconds of `time.monotonic()`.
    at: float
    #: Resident memory in bytes.
    rss: int
    #: CPU seconds of all its threads, without its children.
    cpu_s: float
    #: Bytes read and written by system calls so far; 0 if not requested, or not counted.
    io_bytes: int
    #: Whether its main thread runs, or waits only for a core; False if not requested.
    runnable: bool = False


class Details(NamedTuple):
    """The readings of a process that take longer."""

    #: The status by psutil's names, such as `STOPPED`.
    status: str
    #: Resident memory in bytes, and the part that no other process shares; None if not allowed.
    rss: int
    uss: int | None
    cpu_s: float
    #: Number of its descendants; None if not asked for.
    children: int | None
    #: Open file descriptors; None if not allowed.
    open_files: int | None
    #: Seconds since it started, by the system's clock.
    age_s: float


class Memory(NamedTuple):
    """Memory of the whole machine, in bytes."""

    total: int
    available: int


class Probe:
    """Reads one worker process, and sends it signals. Thread-safe.

    Signals, and the answer of `alive`, are never for another process that got the same pid. The
    other readings do not check the pid, because the check would double their cost. The system uses
    a worker's pid again only after the worker was reaped, and its probe is dropped soon after that.

    Args:
        pid: process id of the worker. If there is no such process, it counts as gone.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._process = _process(pid)

    def sample(self, *, closer: bool = False) -> Sample | None:
        """Take a sample; None when the process is gone or a zombie.

        Args:
            closer: also count the bytes of its input and output, and tell whether it wants a core.
                That doubles the cost.
        """
        if self._process is None:
            return None
        if procfs.READABLE:  # the fast way, because this is the most frequent reading
            stat = procfs.read_stat(self.pid)
            if stat is None or not stat.rss:  # a zombie has no memory
                return None
            io_bytes = (procfs.read_io_bytes(self.pid) or 0) if closer else 0
            return Sample(time.monotonic(), stat.rss, stat.cpu_s, io_bytes, stat.state == "R")
        try:
            times = self._process.cpu_times()
            rss = self._process.memory_info().rss
        except _UNANSWERED:
            return None
        runnable = closer and self._status() == psutil.STATUS_RUNNING
        cpu_s = times.user + times.system
        return Sample(time.monotonic(), rss, cpu_s, 0, runnable) if rss else None

    def own_bytes(self) -> int | None:
        """Resident memory that it does not share; None when the process is gone or a zombie.

        Libraries and the large events of the bus are shared memory. Only Linux tells shared memory
        apart.
        """
        return None if self._process is None else own_bytes(self.pid)

    def alive(self) -> bool:
        """Whether it exists and is not a zombie."""
        if self._process is None:
            return False
        try:
            return _is_alive(self._process)
        except _UNANSWERED as error:
            return _no_file_left(error) and _is_living_child(self.pid)

    def exit_code(self) -> int | None:
        """Exit code of a child that is a zombie, as in `subprocess`; the child stays a zombie."""
        if not hasattr(os, "waitid"):  # Windows and old macOS
            return None
        try:
            ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except OSError:  # it was reaped
            return None
        if ended is None:
            return None
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

    def stopped(self) -> bool:
        """Whether a signal has halted it."""
        return self._status() == STOPPED

    def _status(self) -> str | None:
        return self._ask(lambda process: process.status(), None)

    def details(self, *, brief: bool = False) -> Details | None:
        """Take the slow readings, in some 0.1 ms, or more with GBs of memory. None if it is dead.

        Args:
            brief: leave out the unshared memory, the children and the open files.
        """
        sample = self.sample()
        status = self._status()
        if sample is None or status is None or status in _DEAD:
            return None
        return Details(
            status,
            sample.rss,
            None if brief else self._ask(lambda process: process.memory_full_info().uss, None),
            sample.cpu_s,
            None if brief else len(self.children()),
            None if brief else self._ask(lambda process: process.num_fds(), None),
            self._ask(lambda process: max(0.0, time.time() - process.create_time()), 0.0),
        )

    def children(self, *, any_thread: bool = True) -> list[int]:
        """Pids of all its descendants; empty when it is gone.

        Args:
            any_thread: include processes started by other threads than its main one, for four times
                the cost. If the kernel does not list children, they are always included.
        """
        if procfs.LISTS_CHILDREN:
            # This takes some 10 us; psutil looks at every process of the machine, which takes ms.
            # The list may miss a child if another one ends at that moment.
            pid, known = self.pid, self._process is not None
            return procfs.descendants(pid, any_thread=any_thread) if known else []
        nobody: list[psutil.Process] = []
        found = self._ask(lambda process: process.children(recursive=True), nobody)
        return [child.pid for child in found]

    def family(self) -> list[Probe]:
        """Its descendants, except those with their own session, which are meant to live on."""
        own = _session(self.pid)
        return [Probe(pid) for pid in self.children() if _session(pid) == own]

    def tree_cpu_s(self) -> float:
        """CPU seconds of it, its descendants, and ended children it waited for; 0 when it is gone.

        With this figure the supervisor tells a handler that waits for a busy subprocess from a
        stalled one. The sum only grows, with one exception: a descendant whose parent has ended no
        longer counts.
        """
        return sum(_family_cpu_s(pid) for pid in (self.pid, *self.children()))

    def send_signal(self, number: int) -> bool:
        """Send it a signal; False when it is gone."""
        return self._process is not None and _send(self._process, number)

    def stop(self) -> Task[bool]:
        """Halt it, and wait until its main thread, which runs the handlers, is halted.

        The wait is bounded by `SIGSTOP_S`: the kernel may be busy for the process, or have no core
        for it. When the process has a core again, the signal arrives before any of its code runs.

        Returns:
            False when it is gone. After True it runs nothing until `resume`.
        """
        deadline = time.monotonic() + SIGSTOP_S
        if not self.send_signal(signal.SIGSTOP):
            return False
        while not self.stopped() and time.monotonic() < deadline:
            yield
        return self.alive()

    def resume(self) -> None:
        """Let it go on after `stop`, even if it is not halted yet."""
        self.send_signal(signal.SIGCONT)

    def kill_tree(self) -> None:
        """Kill it and all its descendants with SIGKILL. Idempotent.

        A descendant whose own parent has ended is not found, because it is no longer in the tree.
        """
        # The processes are halted first, from the top down. A halted process starts no children. A
        # child whose parent is killed before the child is found would never be found.
        self.send_signal(signal.SIGSTOP)
        family: dict[int, psutil.Process] = {}
        deadline = time.monotonic() + SIGSTOP_S
        rounds = 0
        while rounds < _ROUNDS:
            # Checked before the search, because halted processes neither start children nor end. A
            # signal takes a moment to arrive, and in that moment a process may start a child. The
            # kernel's list may also miss a child if another child ends at that moment.
            halted = all(map(_is_halted, (self.pid, *family)))
            more = [pid for pid in self.children() if pid not in family]
            if not more and (halted or time.monotonic() >= deadline):
                break
            if not more:
                time.sleep(_KILL_LOOK_S)
                continue
            for pid in more:
                if (process := _process(pid)) is not None:
                    family[pid] = process
                    _send(process, signal.SIGSTOP)
            rounds += 1
            deadline = time.monotonic() + SIGSTOP_S
        for process in family.values():
            _send(process, signal.SIGKILL)
        self.send_signal(signal.SIGKILL)  # the root last: when it is dead, all the others are

    def _ask(self, question: Callable[[psutil.Process], _Answer], otherwise: _Answer) -> _Answer:
        if self._process is None:
            return otherwise
        try:
            return question(self._process)
        except _UNANSWERED:
            return otherwise


def end_all(probes: Sequence[Probe], patience_s: float) -> None:
    """End processes: send SIGTERM, and kill those still alive after `patience_s` seconds."""
    for probe in probes:
        probe.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + patience_s
    left = [probe for probe in probes if probe.alive()]
    while left and time.monotonic() < deadline:
        time.sleep(_END_LOOK_S)
        left = [probe for probe in left if probe.alive()]
    for probe in left:
        probe.kill_tree()


def own_bytes(pid: int) -> int | None:
    """The reading of `Probe.own_bytes`, for any process."""
    if procfs.READABLE:
        return procfs.read_own_bytes(pid) or None
    try:
        return psutil.Process(pid).memory_info().rss or None
    except _UNANSWERED:
        return None


def fair_bytes(pid: int) -> int | None:
    """Like `own_bytes`, but of a page that several processes have, each counts only its share.

    A forked process and its parent have their pages in common, until one of the two writes to a
    page. The kernel looks at every page for this figure, which takes some ms for each GB. None if
    the kernel does not offer the figure.
    """
    own = own_bytes(pid)
    if own is None:
        return None
    try:
        proportional = getattr(psutil.Process(pid).memory_full_info(), "pss", None)
    except _UNANSWERED:
        return None
    return None if proportional is None else min(own, proportional)


def machine_memory() -> Memory:
    """Memory of the machine, regardless of the limits of this process."""
    memory = psutil.virtual_memory()
    return Memory(memory.total, memory.available)


def thread_cpu_s() -> dict[int, float]:
    """CPU seconds of each thread of this process by its native id; empty if not allowed."""
    try:
        return {t.id: t.user_time + t.system_time for t in psutil.Process().threads()}
    except _UNANSWERED:
        return {}


_DEAD = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)


def _process(pid: int) -> psutil.Process | None:
    try:
        return psutil.Process(pid)
    except _UNANSWERED:
        return None


def _is_alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() not in _DEAD


def _is_halted(pid: int) -> bool:
    """Whether a process's main thread runs no code, because it is halted by a signal, or dead."""
    if procfs.READABLE:
        stat = procfs.read_stat(pid)
        return stat is None or stat.state in "TtZX"
    try:
        return psutil.Process(pid).status() in (STOPPED, *_DEAD)
    except _UNANSWERED:
        return True


def _session(pid: int) -> int:
    """Number of its session; 0 if the system has no sessions, or the process is gone."""
    try:
        return os.getsid(pid)
    except (AttributeError, OSError):
        return 0


def _send(process: psutil.Process, number: int) -> bool:
    try:
        process.send_signal(number)
    except _UNANSWERED as error:
        if not (_no_file_left(error) and _is_living_child(process.pid)):
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)
    return True


def _no_file_left(error: BaseException) -> bool:
    """Whether the answer is missing because this process has no file descriptor left."""
    return isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)


def _is_living_child(pid: int) -> bool:
    """Whether this is a living child of ours. Needs no file; never answers for another's pid."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    except (OSError, AttributeError):  # not a child, or reaped; Windows has no such call
        return False


def _family_cpu_s(pid: int) -> float:
    """CPU seconds of a process and of the children that it has waited for."""
    if procfs.READABLE:
        stat = procfs.read_stat(pid)
        return 0.0 if stat is None else stat.cpu_s + stat.children_cpu_s
    try:
        times = psutil.Process(pid).cpu_times()
    except _UNANSWERED:
        return 0.0
    return times.user + times.system + times.children_user + times.children_system
