"""The conditions of a figure besides the code: machine, versions, date, command."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import monotonic

import psutil

#: Time to look before a machine is called quiet, in seconds, and maximum share of all its cores in
#: use then.
LOOK_S = 0.25
QUIET_PERCENT = 15

LIBRARIES = (
    *("procbus", "loky", "cloudpickle", "numpy"),
    *("joblib", "mpire", "pebble", "distributed", "ray"),
    *("blinker", "bubus", "huey", "pyee"),
)


def facts(workers: int) -> dict[str, object]:
    """Return the facts as plain data.

    Args:
        workers: cpu workers of every contender.
    """
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python -m bench", *sys.argv[1:]]),
        "system": f"{platform.system()} {platform.release()}",
        "processor": processor(),
        "cores": os.cpu_count(),
        "workers": workers,
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "load_before": os.getloadavg()[0],
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "libraries": {name: library_version(name) for name in LIBRARIES},
    }


def wait_until_quiet(
    patience_s: float, cpu_percent: Callable[[float], float] = psutil.cpu_percent
) -> bool:
    """Wait until no other program uses the cores; tell whether that happened in time.

    Args:
        patience_s: maximum wait, in seconds.
        cpu_percent: measures the use of the cores, for a time in seconds.
    """
    end = monotonic() + patience_s
    while cpu_percent(LOOK_S) > QUIET_PERCENT:
        if monotonic() > end:
            return False
    return True


def processor() -> str:
    """Return the processor's name; the architecture where the system does not tell."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def library_version(name: str) -> str | None:
    """Return the installed version; None where it is run from its source or not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
