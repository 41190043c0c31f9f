# SPDX-License-Identifier: MIT
"""Facts about a process from its files under /proc, read directly; Linux only.

psutil reads the same files, but takes three times as long: too long for readings of every worker
several times a second. See proc(5) for the contents. On other systems, and for a process that is
gone, the answer is None or an empty list. Thread-safe.
"""

from __future__ import annotations

import os
import sys
from typing import NamedTuple

#: Whether these files exist.
READABLE = sys.platform == "linux" and os.path.exists("/proc/self/stat")
#: Whether the kernel lists the children of each thread; a few kernels are built without the list.
LISTS_CHILDREN = os.path.exists("/proc/thread-self/children")

if READABLE:
    _TICK_S = 1 / os.sysconf("SC_CLK_TCK")
    _PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
#: Maximum that the kernel returns of such a file at once, in bytes.
_CHUNK_BYTES = 4096


class Stat(NamedTuple):
    """The facts that one read tells about a process."""

    #: Its main thread, by one letter: R(unning), S(leeping), T (halted), Z(ombie), and so on.
    state: str
    #: CPU seconds of all its threads, and of the children that it has waited for.
    cpu_s: float
    children_cpu_s: float
    #: Resident memory in bytes.
    rss: int


def can_read() -> bool:
    """Whether this process has a file descriptor left for reading about others."""
    try:
        with open(os.devnull, "rb"):
            return True
    except OSError:
        return False


def read_stat(pid: int) -> Stat | None:
    """The state of a process, and its use of CPU and memory."""
    data = _read(f"/proc/{pid}/stat")
    if not data:
        return None
    # The name in brackets may hold blanks and brackets. Fields are counted from 1 in proc(5): 3 is
    # the state; 14 and 15 are user and system time; 16 and 17 the same for children; 24 is resident
    # memory.
    fields = data[data.rfind(b")") + 2 :].split(None, 22)
    return Stat(
        fields[0].decode(),
        (int(fields[11]) + int(fields[12])) * _TICK_S,
        (int(fields[13]) + int(fields[14])) * _TICK_S,
        int(fields[21]) * _PAGE_BYTES,
    )


def read_io_bytes(pid: int) -> int | None:
    """Bytes read and written by system calls, from caches and pipes too."""
    data = _read(f"/proc/{pid}/io")
    if not data:
        return None
    fields = data.split(None, 4)  # rchar: 1 wchar: 2 and more
    return int(fields[1]) + int(fields[3])


def read_own_bytes(pid: int) -> int | None:
    """Resident memory that is backed neither by files nor by shared memory."""
    data = _read(f"/proc/{pid}/statm")
    return own_bytes_in(data) if data else None


def own_bytes_in(statm: bytes) -> int:
    """Get the result of `read_own_bytes` from the text of an open file `statm`."""
    _, resident, shared, *_ = statm.split()
    return (int(resident) - int(shared)) * _PAGE_BYTES


def no_core_s() -> float:
    """Seconds so far in which the calling thread was ready but had no core; 0 if unknown."""
    # Opened each time: a child that a handler forks would read its parent's file.
    data = _read("/proc/thread-self/schedstat")
    return int(data.split()[1]) * 1e-9 if data else 0.0


def descendants(pid: int, *, any_thread: bool = True) -> list[int]:
    """Pids of the children of a process, and of their children.

    The list may miss a process if another one ends at that moment.

    Args:
        pid: pid of the process.
        any_thread: include processes started by other threads than its main one: four times the
            cost.
    """
    family = [pid]
    for parent in family:  # the list grows meanwhile
        threads = _threads(parent) if any_thread or parent != pid else [str(parent)]
        family += [child for child in _children(parent, threads) if child not in family]
    return family[1:]


def _threads(pid: int) -> list[str]:
    try:
        return os.listdir(f"/proc/{pid}/task")
    except OSError:  # it has ended
        return []


def _children(pid: int, threads: list[str]) -> list[int]:
    found: list[int] = []
    for thread in threads:
        data = _read(f"/proc/{pid}/task/{thread}/children", long=True)
        if data:  # otherwise the thread has ended, or has no children
            found += map(int, data.split())
    return found


def _read(file: str, *, long: bool = False) -> bytes | None:
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # the process has ended
        return None
    try:
        data = chunk = os.read(descriptor, _CHUNK_BYTES)
        while chunk and long:
            chunk = os.read(descriptor, _CHUNK_BYTES)
            data += chunk
    except OSError:  # it ended just now
        return None
    finally:
        os.close(descriptor)
    return data
