# SPDX-License-Identifier: MIT
"""On the machine of a dead Dask worker: what its process was at, by the logbook that it left."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

from procbus.pool.logbook import Logbook
from procbus.system.process import Probe

#: A process dies with its Dask worker, but a moment later: it is waited for so long, in seconds.
_DYING_S = 2.0
_LOOK_S = 0.005


#: A logbook that nobody asked for is removed after so long, in seconds.
_STALE_S = 3600.0


def new_file(directory: Path) -> Path:
    """A name for a logbook that this process is to host."""
    return directory / f"procbus-{os.getpid()}-{uuid4().hex}.logbook"


def sweep(directory: Path) -> None:
    """Remove what hosts that died long ago left, and nobody asked for."""
    for file in directory.glob("procbus-*.logbook"):
        with contextlib.suppress(OSError, ValueError):  # somebody else removes it, or named it
            old = file.stat().st_mtime < time.time() - _STALE_S
            if old and not Probe(int(file.name.split("-")[1])).alive():
                file.unlink()


def last_page_in(file: str, pid: int | None) -> tuple[Any, ...] | None:
    """Read the logbook in a file, and remove it; None when it is not there.

    Args:
        file: of the logbook.
        pid: process that writes it; nothing is read before that is dead.
    """
    deadline = time.monotonic() + _DYING_S
    while pid is not None and Probe(pid).alive():
        if time.monotonic() > deadline:
            return None
        time.sleep(_LOOK_S)
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
