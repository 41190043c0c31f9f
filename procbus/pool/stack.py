# SPDX-License-Identifier: MIT
"""The Python stack of a worker, read from outside, even while C code holds its GIL.

`faulthandler` writes the stack from a C signal handler, into memory that the parent reads. The
worker's Python code need not run for this. So you see the stack even of a handler that hangs in a
regular expression.
"""

from __future__ import annotations

import faulthandler
import linecache
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.reduction import DupFd
from typing import Any, Self

from procbus.pool.logbook import anonymous_file
from procbus.system.cooperative import Task

#: A real-time signal that no other code uses; SIGUSR2 on macOS (untested). None on Windows.
SIGNAL: int | None = None
if hasattr(signal, "SIGRTMAX"):
    SIGNAL = signal.SIGRTMAX - 3
elif hasattr(signal, "SIGUSR2"):
    SIGNAL = signal.SIGUSR2

#: Name of the memory that a worker writes to.
STACK_FILE = "procbus-stack"

#: Maximum wait for the worker to write, in seconds; because it may have to wait for a core.
PATIENCE_S = 0.100
#: Number of looks in a row without a change after which the stack counts as complete.
_STEADY = 3
_MOST_BYTES = 1 << 16

_FRAME = r'  File "(?P<file>.*)", line (?P<line>\d+) in (?P<name>.*)'
#: Joined without pathlib, which takes time to import.
_WORKER = os.path.join(os.path.dirname(__file__), "child", "loop.py")


class StackPage:
    """Memory for the stack of one worker, as either process sees it.

    Args:
        fd: descriptor of its file.
        number: number of the signal; None if the system has none.
    """

    def __init__(self, fd: int, number: int | None = SIGNAL) -> None:
        self._fd = fd
        self._number = number
        #: Held while the parent asks (`PATIENCE_S` at most) or reads, so that the file stays open.
        #: If the file were closed, its descriptor's number might belong to another file, and that
        #: file would be truncated.
        self._in_use = threading.Lock()

    @classmethod
    def create(cls, number: int | None = SIGNAL) -> Self:
        """Make an empty page."""
        return cls(anonymous_file(STACK_FILE), number)

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to a worker that is being spawned: it gets the file descriptor."""
        return _attach, (DupFd(self._fd),)

    def fileno(self) -> int:
        """The descriptor of its file."""
        return self._fd

    def listen(self) -> None:
        """Have the stack written to this page whenever the signal comes; called in the worker."""
        if self._number is not None:
            faulthandler.register(self._number, file=self._fd, all_threads=True)

    def ask(self, send: Callable[[int], bool], *, patience_s: float | None = None) -> Task[None]:
        """In the parent: have the worker write its stack, and wait until it has.

        Thread-safe, as `close` is.

        Args:
            send: sends the worker a signal; returns False if it is gone.
            patience_s: maximum wait, in seconds; None for `PATIENCE_S`.
        """
        with self._in_use:
            if self._number is None or self._fd < 0:
                return
            os.ftruncate(self._fd, 0)
            os.lseek(self._fd, 0, os.SEEK_SET)  # the offset is shared with the worker
            if not send(self._number):
                return
            deadline = time.monotonic() + (PATIENCE_S if patience_s is None else patience_s)
            size, steady = 0, 0
            while steady < _STEADY and time.monotonic() < deadline:
                yield
                now = os.fstat(self._fd).st_size
                steady = steady + 1 if now and now == size else 0
                size = now

    def read(self) -> str:
        """The stack in readable form; empty if none was written. Thread-safe."""
        with self._in_use:
            written = b"" if self._fd < 0 else os.pread(self._fd, _MOST_BYTES, 0)
        return handler_stack(written.decode(errors="replace"))

    def close(self) -> None:
        """Release the memory. Idempotent."""
        with self._in_use:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1


def _attach(duplicate: Any) -> StackPage:
    return StackPage(duplicate.detach())


def handler_stack(dump: str) -> str:
    """Format a dump of faulthandler: the handler's thread like a traceback, then other threads.

    The frames that called the handler (procbus, loky) are left out.
    """
    own: list[str] = []
    others: list[str] = []
    for block in filter(None, re.split(r"\n(?=\S)", dump.strip("\n"))):
        title, *lines = block.splitlines()
        frames: list[str] = []
        runs_handler = False
        for line in lines:
            frame = re.fullmatch(_FRAME, line)
            if frame is None:
                continue
            if frame["file"] == _WORKER:
                runs_handler = True
                break
            source = linecache.getline(frame["file"], int(frame["line"])).strip()
            text = f'  File "{frame["file"]}", line {frame["line"]}, in {frame["name"]}'
            frames.append(text + (f"\n    {source}" if source else ""))
        if runs_handler:
            own = frames[::-1]
        elif frames:
            others += [title.replace("most recent call first", "most recent call last")]
            others += frames[::-1]
    if own:
        own.insert(0, "Stack (most recent call last):")
    return "\n".join(own + others)
