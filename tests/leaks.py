"""The leak check: processes, threads, file descriptors and shared memory that a test leaves behind.

Take a `Snapshot` before the test and ask for `leaks_since(snapshot)` after it.
"""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.processes import alive_after, is_alive
from tests.waits import becomes

# Every descendant inherits this, so that one whose parent is gone is still known as the tests' own.
# The value tells this run from another on the same machine.
MARK = "PROCBUS_TEST_RUN"
RUN = f"{os.getpid()}-{time.monotonic_ns()}"

SHARED_MEMORY = Path("/dev/shm")
# Names that tell their owner: names of procbus, of loky, and of joblib.
OWNER = re.compile(r"(?:sem\.(?:loky|procbus)-|joblib_memmapping_folder_)(\d+)[-_]")

# The name that the C library gives a semaphore for some microseconds, before its own. A script that
# is killed just then leaves it behind, whatever made the semaphore. It tells no owner.
UNFINISHED = re.compile(r"sem\.\w{6}")

#: Interval between two looks at descriptors and shared memory, in seconds: nothing tells their end.
LOOK_S = 0.05

#: Maximum wait for the command line of a process, in seconds: a few programs have none for ever.
COMMAND_S = 5.0

DESCRIPTORS = Path("/proc/self/fd")

# Processes of the tests, ended ones included: a name in /dev/shm with the pid of any other process
# belongs to a stranger. Grows in `Snapshot.take` and in `record_children`.
OWN_PIDS = {os.getpid()}
# Processes that were looked at and are not the tests'.
_STRANGERS: set[int] = set()

# How the resource trackers of multiprocessing and loky are started, and multiprocessing's fork
# server: one each, on first use, and they live as long as the process that they serve. From Python
# 3.14 on, the executors and pools of the standard library use the fork server.
TRACKERS = (
    "from multiprocessing.resource_tracker import main",
    "from loky.backend.resource_tracker import main",
    "from multiprocessing.forkserver import main",
    "import sys; from multiprocessing.forkserver import main",
)


@dataclass(frozen=True)
class Snapshot:
    """The resources at one moment, without the trackers."""

    processes: frozenset[psutil.Process]
    threads: frozenset[threading.Thread]
    descriptors: frozenset[tuple[int, str]]
    """Number and what it leads to, so that a number used again counts as new."""
    shared_memory: frozenset[str]

    @classmethod
    def take(cls) -> Snapshot:
        processes = _descendants()
        trackers = {process for process in processes if _is_own_tracker(process)}
        return cls(
            processes=frozenset(processes - trackers),
            threads=frozenset(thread for thread in threading.enumerate() if _may_run(thread)),
            descriptors=frozenset(_descriptors() - _pipes_to(trackers)),
            shared_memory=frozenset(
                name for name in _names(SHARED_MEMORY) if not UNFINISHED.fullmatch(name)
            ),
        )


@dataclass(frozen=True)
class Leaks:
    """The resources that were not there before; false if there are none."""

    processes: frozenset[psutil.Process]
    threads: frozenset[threading.Thread]
    descriptors: frozenset[tuple[int, str]]
    shared_memory: frozenset[str]

    def __bool__(self) -> bool:
        return bool(self.processes or self.threads or self.descriptors or self.shared_memory)

    def __str__(self) -> str:
        lines = [f"process {_describe(process)}" for process in self.processes]
        lines += [f"thread {thread!r}" for thread in self.threads]
        lines += [f"file descriptor {number} -> {target}" for number, target in self.descriptors]
        lines += [f"shared memory {SHARED_MEMORY / name}" for name in self.shared_memory]
        return "\n".join(sorted(lines))

    def kill_processes(self) -> None:
        """End the leaked things, so that one leak does not fail the tests that follow."""
        for process in self.processes:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(self.processes, timeout=60)  # which takes away our own children


def record_children() -> None:
    """Keep the pid of every process that a test starts with `subprocess`. Call it once.

    A script that has ended may have left a semaphore behind, and only its pid says whose that is.
    """
    start = subprocess.Popen.__init__

    def recorded(self: subprocess.Popen[Any], *args: Any, **kwargs: Any) -> None:
        start(self, *args, **kwargs)
        OWN_PIDS.add(self.pid)

    subprocess.Popen.__init__ = recorded  # type: ignore[method-assign]


def leaks_since(before: Snapshot, patience_s: float = 60.0) -> Leaks:
    """Return the resources left since `before`, after waiting for the ones about to end.

    Args:
        before: Taken before the test.
        patience_s: Maximum time for ending threads and processes to end, in seconds.
    """
    deadline = time.monotonic() + patience_s
    # Again until nothing is left: a thread that ends may start another, or a process, before.
    while left := _difference(before, Snapshot.take()):
        if time.monotonic() > deadline:
            break
        # Threads first: one of them may be waiting for a process, to read its exit code.
        for thread in left.threads:
            if _is_stand_in(thread):  # nothing tells its end
                time.sleep(LOOK_S)
                continue
            with suppress(RuntimeError):  # another thread is just starting it: the next look waits
                thread.join(max(0.0, deadline - time.monotonic()))
        alive_after(left.processes, deadline - time.monotonic())
        if not left.threads and not left.processes:
            # An object in a reference cycle closes its resources when the cycle is collected. The
            # tracker of a killed script removes the script's semaphores once it has noticed the
            # kill.
            gc.collect()
            time.sleep(LOOK_S)
    return left


def _difference(before: Snapshot, now: Snapshot) -> Leaks:
    shared_memory = now.shared_memory - before.shared_memory
    return Leaks(
        processes=now.processes - before.processes,
        threads=now.threads - before.threads,
        descriptors=now.descriptors - before.descriptors,
        shared_memory=shared_memory - _of_strangers(shared_memory),
    )


def _is_stand_in(thread: threading.Thread) -> bool:
    """Whether `threading` made the object for a thread that it has not started, or that it forgot.

    The last objects of a thread are freed after `threading` has forgotten it: its context, its
    thread-local variables. If one of their finalizers asks for the current thread, as each log
    record does, then `threading` makes a stand-in, and keeps it although the thread is gone. An
    asyncio future logs there that its exception was never retrieved.
    """
    return type(thread).__name__ == "_DummyThread"


def _may_run(thread: threading.Thread) -> bool:
    """Whether a thread may still run: not the stand-in of one that has ended."""
    return not _is_stand_in(thread) or thread.ident in sys._current_frames()  # noqa: SLF001 - documented so


def _descendants() -> set[psutil.Process]:
    """The children, their descendants, and orphaned ones; not the ones that have ended.

    Each process of the machine is looked at once: a stranger stays one as long as it lives.
    """
    own = os.getpid()
    now = set(psutil.pids()) - {own}
    _STRANGERS.intersection_update(now)
    found: dict[int, psutil.Process] = {}
    unknown = now - _STRANGERS
    # Again until there is nothing new: a child may have a lower pid than its parent.
    while new := {pid: each for pid in unknown if (each := _of_the_tests(pid, {own, *found}))}:
        found |= new
        unknown -= new.keys()
    _STRANGERS.difference_update(found)  # a later round found their parents
    OWN_PIDS.difference_update(_STRANGERS)  # pids are used again, within minutes on a busy machine
    OWN_PIDS.update(found)
    return {process for process in found.values() if is_alive(process)}


def _of_the_tests(pid: int, parents: set[int]) -> psutil.Process | None:
    """The process, if one of these started it or it carries the mark of this run."""
    try:
        process = psutil.Process(pid)
        if process.ppid() in parents:
            return process
        environment = process.environ()
    except psutil.Error:  # it has ended meanwhile, is another user's, or the kernel's
        if _is_foreign(pid):
            _STRANGERS.add(pid)
        return None
    if environment.get(MARK) == RUN:
        return process
    if environment:  # one that is just being executed has none yet
        _STRANGERS.add(pid)
    return None


def _is_foreign(pid: int) -> bool:
    """True for another user's process and for a thread of the kernel, which runs no program."""
    try:
        if os.stat(f"/proc/{pid}").st_uid != os.geteuid():
            return True
    except OSError:  # it has ended
        return False
    try:
        os.readlink(f"/proc/{pid}/exe")
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


def _is_own_tracker(process: psutil.Process) -> bool:
    """Not one that serves a process that a test started: that one has to end with it."""
    try:
        return process.ppid() == os.getpid() and any(
            argument.startswith(TRACKERS) for argument in _command_of(process)
        )
    except psutil.NoSuchProcess:
        return False


def _descriptors() -> set[tuple[int, str]]:
    """The descriptors of this process, but for the file that libffi keeps open."""
    return {
        (int(name), target)
        for name, target in _links(DESCRIPTORS).items()
        if not Path(target).name.startswith("libffi.so")
    }


def _pipes_to(trackers: set[psutil.Process]) -> set[tuple[int, str]]:
    """This process's ends of the pipes by which it talks to its trackers."""
    theirs = {
        target
        for tracker in trackers
        for name, target in _links(Path(f"/proc/{tracker.pid}/fd")).items()
        # Its standard streams may be inherited, and then lead to a pipe that is not its own.
        if int(name) > 2 and target.startswith("pipe:")
    }
    return {(number, target) for number, target in _descriptors() if target in theirs}


def _links(directory: Path) -> dict[str, str]:
    """Name and target of each symbolic link; empty where there is no such directory (not Linux)."""
    links = {}
    for name in _names(directory):
        try:
            links[name] = os.readlink(directory / name)
        except OSError:  # closed meanwhile: the descriptor that listed the directory, for one
            continue
    return links


def _names(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


def _of_strangers(names: frozenset[str]) -> set[str]:
    """The names that belong to a process outside the tests, or are gone by now.

    Shared memory belongs to the machine, not to a process: another program may have made it while
    the test ran, and may have ended since. It belongs to the tests only if its name has the pid of
    one of their processes. A name without a pid is a stranger's while a stranger has it mapped.
    """
    if not names:
        return set()
    strangers = set(psutil.pids()) - {process.pid for process in _descendants()} - {os.getpid()}
    mapped = {inode for pid in strangers for inode in _shared_inodes(pid)}
    theirs = set()
    for name in names:
        owner = OWNER.match(name)
        try:
            inode = (SHARED_MEMORY / name).stat().st_ino
        except FileNotFoundError:
            theirs.add(name)
            continue
        if int(owner[1]) not in OWN_PIDS if owner else inode in mapped:
            theirs.add(name)
    return theirs


def _shared_inodes(pid: int) -> Iterator[int]:
    """Inodes and not names: a semaphore is mapped by one name, and then given another."""
    try:
        maps = Path(f"/proc/{pid}/maps").read_text(errors="replace")
    except OSError:  # it has ended meanwhile, or is another user's
        return
    for line in maps.splitlines():
        if f" {SHARED_MEMORY}/" in line:
            yield int(line.split(maxsplit=5)[4])  # address, permissions, offset, device, inode


def _command_of(process: psutil.Process) -> list[str]:
    """The command line. Wait for it: a process that is just being executed has none yet."""
    becomes(process.cmdline, COMMAND_S)
    return process.cmdline()


def _describe(process: psutil.Process) -> str:
    try:
        return f"{process.pid} ({process.status()}): {' '.join(_command_of(process))}"
    except psutil.NoSuchProcess:
        return f"{process.pid}, ended by now"
