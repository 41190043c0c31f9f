# SPDX-License-Identifier: MIT
"""The memory left for this process: on the machine, and within the limits of its cgroups.

In a container the machine's figures mislead: the kernel kills at the container's limit. Any thread
may call these functions. For tests, `root` replaces "/" in each of them, and `machine` replaces the
reading of the machine's memory.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import cache, partial
from math import inf
from typing import NamedTuple

from procbus.system import cgroups
from procbus.system.process import Memory, machine_memory

_MIB = 1 << 20
_ROOT = "/"


class _Version(NamedTuple):
    """Names of the files and fields of one version of cgroups."""

    limit: str
    used: str
    #: Key in `memory.stat` of the cache that the kernel gives back first, children included.
    cache: str
    #: File with the number of its processes that the kernel killed for lack of memory.
    events: str


_V1 = _Version(
    "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file", "memory.oom_control"
)
_V2 = _Version("memory.max", "memory.current", "inactive_file", "memory.events")


class _Group:
    """A cgroup that limits this process: its own one in a hierarchy, or one above it."""

    def __init__(self, version: _Version, directory: str, *, own: bool) -> None:
        self.own = own
        self.events = os.path.join(directory, version.events)
        # Strings, and made once: joining paths takes as long as reading the files.
        self._limit = os.path.join(directory, version.limit)
        self._used = os.path.join(directory, version.used)
        self._stat = os.path.join(directory, "memory.stat")
        self._cache = version.cache

    def limit(self) -> float:
        """The limit in bytes; infinite if there is none."""
        text = _read(self._limit).strip()
        return int(text) if text.isdigit() else inf  # "max", or the file does not exist

    def left(self) -> float:
        """Bytes until the limit; memory that the kernel can give back at once counts as left."""
        limit = self.limit()
        used = _read(self._used).strip() if limit < _NO_LIMIT else ""
        if not used.isdigit():
            return inf
        cached = _field(self._stat, self._cache) or 0
        return max(0.0, limit - (int(used) - cached))


#: Threshold above which a limit of version 1 means "unlimited", in bytes; because the kernel writes
#: a number near 2**63 for it.
_NO_LIMIT = 1 << 60


def available_bytes(
    root: str | os.PathLike[str] = _ROOT, machine: Callable[[], Memory] = machine_memory
) -> int:
    """Return how many more bytes may be used before the machine swaps or the kernel kills."""
    return int(min([machine().available, *(group.left() for group in _groups(os.fspath(root)))]))


def total_bytes(
    root: str | os.PathLike[str] = _ROOT, machine: Callable[[], Memory] = machine_memory
) -> int:
    """Return the maximum that this process and its neighbours in its cgroup may use, in bytes."""
    return int(min([machine().total, *(group.limit() for group in _groups(os.fspath(root)))]))


def oom_kills(root: str | os.PathLike[str] = _ROOT) -> int:
    """Count the processes that the kernel killed for lack of memory; only a rise has a meaning.

    The kernel counts a kill in the victim's own cgroup, whichever limit was reached. The cgroups
    above that one are not read, since they count other programs too. Without cgroups the result is
    the count of the whole machine.
    """
    groups = [group for group in _groups(os.fspath(root)) if group.own]
    counts = [_field(group.events, "oom_kill") for group in groups]
    known = [count for count in counts if count is not None]
    return sum(known) if known else _field(os.path.join(root, "proc/vmstat"), "oom_kill") or 0


class MemoryWatch:
    """Tells whether memory is short. Once short, it stays so until enough is free. Thread-safe.

    Two threads that ask at the same moment may get different answers, as if one had asked later.

    Args:
        total: maximum that may be used, in bytes; None for `total_bytes(root)`.
        root: replaces "/" when looking for cgroups.
        available: measures free memory, in bytes; None for `available_bytes(root)`.
    """

    def __init__(
        self,
        total: int | None = None,
        root: str | os.PathLike[str] = _ROOT,
        *,
        available: Callable[[], int] | None = None,
    ) -> None:
        if total is None:
            total = total_bytes(root)
        self._available = partial(available_bytes, root) if available is None else available
        #: Threshold of free memory below which memory is short, in bytes: 5 %, and at least 128
        #: MiB, because one more worker with a large library needs that. The threshold is at most
        #: 10 %, because otherwise memory would always be short in a small container.
        self.short_below = max(total // 20, min(128 * _MIB, total // 10))
        #: Threshold of free memory above which memory is no longer short, in bytes.
        self.enough_above = self.short_below * 3 // 2
        self._short = False

    def short(self, now_available: int | None = None) -> bool:
        """Return whether memory is short.

        Args:
            now_available: free memory in bytes; None to measure it.
        """
        if now_available is None:
            now_available = self._available()
        if now_available < self.short_below:
            self._short = True
        elif now_available > self.enough_above:
            self._short = False
        return self._short


@cache
def _groups(root: str) -> tuple[_Group, ...]:
    """The memory cgroups of this process, looked up only once: processes are rarely moved."""
    return tuple(_find_groups(root))


def _find_groups(root: str) -> Iterator[_Group]:
    for group in cgroups.find("memory", root):
        yield _Group(_V2 if group.version == 2 else _V1, group.directory, own=group.own)


def _field(file: str, key: str) -> int | None:
    """The number behind a key, in a file with one key and number on each line."""
    for line in _read(file).splitlines():
        name, _, value = line.partition(" ")
        if name == key and value.isdigit():
            return int(value)
    return None


def _read(file: str) -> str:
    try:
        with open(file, encoding="utf-8", errors="replace") as opened:
            return opened.read()
    except OSError:  # no such file here, or no permission
        return ""


# Whether the kernel's out-of-memory killer ended a worker.


class OomWatch:
    """Compares the kernel's counter of out-of-memory kills with an earlier reading. Thread-safe.

    The supervisor notes the counter now and then. The reading before the last one is kept: a rise
    since that reading happened within the last second. Several workers may be killed at once, and
    each of them is compared with the same reading.

    Args:
        count: returns the counter.
    """

    def __init__(self, count: Callable[[], int] = oom_kills) -> None:
        self._count = count
        self._before = self._last = count()

    def note(self) -> None:
        """Note the counter."""
        self._before, self._last = self._last, self._count()

    def struck(self) -> bool:
        """Whether the counter has risen in the last second."""
        return self._count() > self._before
