# SPDX-License-Identifier: MIT
"""The logbook that a worker process leaves when its Dask worker dies, read on that machine."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

from procbus.pool.logbook import Logbook
from procbus.system.process import Probe

#: Maximum wait for a process to die after its Dask worker, in seconds; because it dies a moment
#: later.
_DYING_S = 2.0
#: Interval between two looks meanwhile, in seconds.
_DYING_LOOK_S = 0.005


#: Age after which an unread logbook is removed, in seconds.
_STALE_S = 3600.0


def new_file(directory: Path) -> Path:
    """Return a new file name for a logbook that this process hosts."""
    return directory / f"procbus-{os.getpid()}-{uuid4().hex}.logbook"


def sweep(directory: Path) -> None:
    """Remove old logbooks of dead hosts that were never read."""
    for file in directory.glob("procbus-*.logbook"):
        with contextlib.suppress(OSError, ValueError):  # another process removes or named it
            old = file.stat().st_mtime < time.time() - _STALE_S
            if old and not Probe(int(file.name.split("-")[1])).alive():
                file.unlink()


def last_page_in(file: str, pid: int | None, dying_s: float = _DYING_S) -> tuple[Any, ...] | None:
    """Read the logbook in a file, and remove the file; None if it does not exist.

    Args:
        file: name of the file.
        pid: the process that writes the logbook, which is read only once that process is dead.
        dying_s: maximum wait for the death of the process, in seconds.
    """
    deadline = time.monotonic() + dying_s
    while pid is not None and Probe(pid).alive():
        if time.monotonic() > deadline:
            return None
        time.sleep(_DYING_LOOK_S)
    try:
        fd = os.open(file, os.O_RDWR)
        os.unlink(file)
    except OSError:
        return None
    logbook = Logbook(fd)
    try:
        return tuple(logbook.read())
    finally:
        logbook.close()
