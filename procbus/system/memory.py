# SPDX-License-Identifier: MIT
"""How much memory is left for this process: on the machine, and by the limits of its cgroups.

In a container the machine's figures mislead: the kernel kills at the container's limit. All of
this may be called from any thread. `root` stands for "/" everywhere, for tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from math import inf
from pathlib import Path
from typing import NamedTuple

from procbus.system import cgroups
from procbus.system.process import machine_memory

_MIB = 1 << 20
_ROOT = Path("/")


class _Version(NamedTuple):
    """Where one version of cgroups keeps what."""

    limit: str
    used: str
    #: Key in `memory.stat` of the cache that the kernel gives back first, with that of children.
    cache: str
    #: Has the number of processes in it that the kernel killed for want of memory.
    events: str


_V1 = _Version(
    "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file", "memory.oom_control"
)
_V2 = _Version("memory.max", "memory.current", "inactive_file", "memory.events")


class _Group:
    """A cgroup that this process is in: its own of a hierarchy, or one above it."""

    def __init__(self, version: _Version, directory: Path, *, own: bool) -> None:
        self.own = own
        self.events = str(directory / version.events)
        # Strings and made once: to join paths takes as long as to read them.
        self._limit = str(directory / version.limit)
        self._used = str(directory / version.used)
        self._stat = str(directory / "memory.stat")
        self._cache = version.cache

    def limit(self) -> float:
        """Its limit in bytes; infinite if it has none."""
        text = _read(self._limit).strip()
        return int(text) if text.isdigit() else inf  # "max", or there is no such file

    def left(self) -> float:
        """Bytes until its limit; what the kernel can give back at once counts as left."""
        limit = self.limit()
        used = _read(self._used).strip() if limit < _NO_LIMIT else ""
        if not used.isdigit():
            return inf
        cached = _field(self._stat, self._cache) or 0
        return max(0.0, limit - (int(used) - cached))


#: Version 1 says "unlimited" by a number near 2**63.
_NO_LIMIT = 1 << 60


def available_bytes(root: Path = _ROOT) -> int:
    """Bytes that may still be used before the machine swaps or the kernel kills."""
    return int(min([machine_memory().available, *(group.left() for group in _groups(root))]))


def total_bytes(root: Path = _ROOT) -> int:
    """Bytes that this process and its neighbours in its cgroup may use at most."""
    return int(min([machine_memory().total, *(group.limit() for group in _groups(root))]))


def oom_kills(root: Path = _ROOT) -> int:
    """How often the kernel killed a process for want of memory; only an increase says something.

    The kernel counts a kill in the victim's own cgroup, whatever limit was reached, so that those
    above are not asked: they count strangers too. Without cgroups it is the whole machine's count.
    """
    groups = [group for group in _groups(root) if group.own]
    counts = [_field(group.events, "oom_kill") for group in groups]
    known = [count for count in counts if count is not None]
    return sum(known) if known else _field(str(root / "proc/vmstat"), "oom_kill") or 0


class MemoryWatch:
    """Whether memory is short: it is until there is clearly enough again. Thread-safe.

    Two threads that ask at the same moment may get different answers, as if one had asked later.

    Args:
        total: bytes that may be used at most; None for `total_bytes(root)`.
        root: where the cgroups are looked for.
    """

    def __init__(self, total: int | None = None, root: Path = _ROOT) -> None:
        if total is None:
            total = total_bytes(root)
        self._root = root
        #: Below so many bytes memory is short: 5 %, and at least 128 MiB, for one more worker with
        #: a big library in it. But never above 10 %: a small container would be short for ever.
        self.short_below = max(total // 20, min(128 * _MIB, total // 10))
        #: Above so many bytes it is short no longer.
        self.enough_above = self.short_below * 3 // 2
        self._short = False

    def short(self, now_available: int | None = None) -> bool:
        """Look, and say whether memory is short.

        Args:
            now_available: bytes that may still be used; None for `available_bytes(root)`.
        """
        if now_available is None:
            now_available = available_bytes(self._root)
        if now_available < self.short_below:
            self._short = True
        elif now_available > self.enough_above:
            self._short = False
        return self._short


@cache
def _groups(root: Path) -> tuple[_Group, ...]:
    """The memory cgroups that this process is in. Looked up once: processes are hardly moved."""
    return tuple(_find_groups(root))


def _find_groups(root: Path) -> Iterator[_Group]:
    for group in cgroups.find("memory", root):
        yield _Group(_V2 if group.version == 2 else _V1, group.directory, own=group.own)


def _field(file: str, key: str) -> int | None:
    """The number behind a key in a file that has one of each on a line."""
    for line in _read(file).splitlines():
        name, _, value = line.partition(" ")
        if name == key and value.isdigit():
            return int(value)
    return None


def _read(file: str) -> str:
    try:
        with open(file, encoding="utf-8", errors="replace") as opened:
            return opened.read()
    except OSError:  # no such file here, or not for us
        return ""


# Whether it was the kernel's out-of-memory killer that struck.


class OomWatch:
    """Compares the kernel's counter of such kills with what it was. Thread-safe.

    The supervisor notes it now and then. What has risen since the last note but one rose within
    the last second: several workers may be killed at once, and each is to be told so.

    Args:
        count: gives the counter.
    """

    def __init__(self, count: Callable[[], int] = oom_kills) -> None:
        self._count = count
        self._before = self._last = count()

    def note(self) -> None:
        """Note the counter."""
        self._before, self._last = self._last, self._count()

    def struck(self) -> bool:
        """Whether it has risen just now."""
        return self._count() > self._before
