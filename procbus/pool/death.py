# SPDX-License-Identifier: MIT
"""Whether a worker is dead, and by what: the kernel knows it first, loky some 0.1 s later."""

from __future__ import annotations

import os
import re
import socket
import sys
import threading
from multiprocessing.connection import Connection
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from procbus.processes import Probe

#: How often it is looked whether a process is dead whose pipe is broken, in seconds.
_LOOK_S = 0.001


def wait_dead(probe: Probe | None, ended: threading.Event, deadline: float) -> int | None:
    """Wait until a process is dead or loky says so; the exit code, if the kernel gives it.

    Args:
        probe: the process; None where it is not known.
        ended: is set once loky says so.
        deadline: in seconds of `time.monotonic()`; then it is waited for no longer.
    """
    while probe is not None and monotonic() < deadline:
        exit_code = probe.exit_code()
        if exit_code is not None or ended.wait(_LOOK_S):
            return exit_code
    ended.wait(max(0.0, deadline - monotonic()))
    return None


def break_pipe(pipe: Connection) -> None:
    """Have who reads from a pipe find its end, whoever else holds the other side open."""
    if not pipe.closed and sys.platform != "win32":
        with socket.socket(fileno=os.dup(pipe.fileno())) as end:
            end.shutdown(socket.SHUT_RDWR)


def exit_code_in(error: BaseException | None) -> int | None:
    """The exit code that loky gives in the text of an error, and only there."""
    found = re.search(r"exit codes of the workers are \{\w*\((-?\d+)\)", str(error))
    return int(found[1]) if found else None
