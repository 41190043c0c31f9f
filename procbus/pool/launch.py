# SPDX-License-Identifier: MIT
"""Preparing the start of a worker process: environment, niceness, interpreter flags, streams.

The process must inherit the right settings from its first moment, and no interrupt may reach it
before it can handle one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from collections.abc import Iterator
from multiprocessing import current_process
from typing import TYPE_CHECKING, Any

from procbus.core.errors import ProcbusError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

_THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "POLARS_MAX_THREADS",
    "RAYON_NUM_THREADS",
)


def thread_caps(cores: int, workers: int) -> dict[str, str]:
    """Environment variables that cap the threads of numeric libraries, unless the user set them.

    Variables, because they work before such a library is loaded, and cost no import.
    """
    threads = str(max(1, cores // workers))
    return {name: threads for name in _THREADS if name not in os.environ}


def nice_of_workers(more: int) -> int | None:
    """Niceness of workers that are `more` nicer than this process; None for the same."""
    if not more or not hasattr(os, "getpriority"):
        return None
    return os.getpriority(os.PRIO_PROCESS, 0) + more


def check_may_launch() -> None:
    """Refuse to go on if no worker process can be started, or be of use.

    Raises:
        ProcbusError: the message gives the reason, and the remedy.
    """
    if current_process().daemon:
        raise ProcbusError(
            f"{current_process().name} is a daemonic process of multiprocessing, which may start "
            "no others: make it with daemon=False, or use concurrent.futures.ProcessPoolExecutor, "
            "whose processes may have a bus with cpu handlers"
        )
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("threading"):
        raise ProcbusError(
            "gevent has patched threading, and the threads that feed worker processes must be real "
            "ones: call patch_all(thread=False), or have no handlers of kind='cpu' in this process"
        )


class _NoDescriptor:
    """A stream without a descriptor: `multiprocessing` goes on if `fileno` raises."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def fileno(self) -> int:
        raise OSError("this stream has no descriptor")


@contextlib.contextmanager
def stderr_with_descriptor() -> Iterator[None]:
    """For a moment, have `sys.stderr.fileno()` return an open descriptor, or raise.

    The trackers of `multiprocessing` and loky pass it on to their processes. A stream of the user's
    may return any number. Other writers to the stream do not notice the exchange.
    """
    stream = sys.stderr
    try:
        os.fstat(stream.fileno())
        odd = False
    except AttributeError:  # for example None
        odd = False
    except Exception:  # noqa: BLE001 - the user's object
        odd = stream is not None
    if not odd:
        yield
        return
    stand_in: Any = _NoDescriptor(stream)
    sys.stderr = stand_in
    try:
        yield
    finally:
        if sys.stderr is stand_in:
            sys.stderr = stream


def buffer_size(pipe: Connection) -> int:
    """Number of bytes that a pipe holds when the other side does not read."""
    if sys.platform == "win32":  # untested
        return 8192
    with socket.socket(fileno=os.dup(pipe.fileno())) as end:
        return end.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)


@contextlib.contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Keep Ctrl-C and SIGTERM from a process that is being started: it inherits this thread's mask.

    The worker unblocks them once it has set its own signal handlers.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
