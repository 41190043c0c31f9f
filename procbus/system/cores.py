# SPDX-License-Identifier: MIT
"""The number of cores that this process may use: the smallest of all its limits.

The rules of loky are repeated here, because loky takes long to import. Two rules are added: the
quota of a cgroup above the process's own counts, and `PYTHON_CPU_COUNT` counts before Python 3.13
too.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from math import ceil

from procbus.system import cgroups

#: Environment variables in which users give the number.
_SAID = ("LOKY_MAX_CPU_COUNT", "PYTHON_CPU_COUNT")
#: Maximum of processes that Windows can wait for at once.
_MOST_ON_WINDOWS = 61


def usable_cores(root: str | os.PathLike[str] = "/") -> int:
    """Count the cores that this process may use, one at least.

    Args:
        root: replaces "/" when looking for cgroups, for tests.
    """
    return max(1, min(_limits(root)))


def _limits(root: str | os.PathLike[str]) -> Iterator[int]:
    yield os.cpu_count() or 1  # heeds -X cpu_count
    if hasattr(os, "sched_getaffinity"):
        yield len(os.sched_getaffinity(0))
    if sys.platform == "win32":
        yield _MOST_ON_WINDOWS
    for name in _SAID:
        if (said := os.environ.get(name, "")).isdecimal():
            yield int(said)
    for group in cgroups.find("cpu", root):
        if (quota := _quota(group)) is not None:
            yield quota


def _quota(group: cgroups.Cgroup) -> int | None:
    """The number of cores that a cgroup's quota allows; None if it has no quota."""
    try:
        if group.version == 2:
            most, period = _read(group, "cpu.max").split()
        else:
            most, period = _read(group, "cpu.cfs_quota_us"), _read(group, "cpu.cfs_period_us")
        cores = ceil(int(most) / int(period))
    except (OSError, ValueError, ZeroDivisionError):  # ValueError: the quota is "max"
        return None
    return cores if cores > 0 else None


def _read(group: cgroups.Cgroup, name: str) -> str:
    with open(os.path.join(group.directory, name), encoding="utf-8") as file:
        return file.read()
