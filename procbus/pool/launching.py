# SPDX-License-Identifier: MIT
"""What has to be seen to before a worker process is started."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection

_THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)


def thread_caps(cores: int, workers: int) -> dict[str, str]:
    """Environment that caps the threads of numeric libraries, unless the user has set them.

    By environment, since that works before such a library is loaded, and costs no import.
    """
    threads = str(max(1, cores // workers))
    return {name: threads for name in _THREADS if name not in os.environ}


def buffer_size(pipe: Connection) -> int:
    """How many bytes the sending side of a pipe holds when nobody reads."""
    if sys.platform == "win32":  # untested
        return 8192
    with socket.socket(fileno=os.dup(pipe.fileno())) as end:
        return end.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)


@contextlib.contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Keep Ctrl-C from a process that is being born: the signal mask of this thread is inherited.

    The worker unblocks it once it has said what an interrupt means there (nothing).
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
