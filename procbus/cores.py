# SPDX-License-Identifier: MIT
"""How many cores this process may use: by its affinity, and by the quota of its container."""

from __future__ import annotations

import os
from math import ceil
from pathlib import Path

_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def usable_cores(quota: Path = _QUOTA) -> int:
    """Count the cores that this process may use, as loky does, which takes long to import.

    Args:
        quota: the file with the quota, for tests.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    try:
        most, _, period = quota.read_text().partition(" ")
        if most != "max":
            cores = min(cores, ceil(int(most) / int(period)))
    except (OSError, ValueError, ZeroDivisionError):
        pass  # no such quota here
    return max(1, cores)
