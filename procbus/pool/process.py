# SPDX-License-Identifier: MIT
"""What a worker process does about itself: it ends with its parent, and knows how large it is."""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import sys
import threading
import time
import traceback

_LINUX_PR_SET_PDEATHSIG = 1

_statm: int | None = None


def told(error: BaseException) -> tuple[object, str, str]:
    """Of an exception of the user's: its attribute `name`, its traceback, and a line of summary."""
    # The first entry is this module's own call of the user's function.
    inner = error.__traceback__.tb_next if error.__traceback__ is not None else None
    text = "".join(traceback.format_exception(type(error), error, inner))
    summary, missing = type(error).__name__, None
    with contextlib.suppress(BaseException):  # these run the user's code, if it wrote them
        if said := str(error):
            summary += f": {said}"
        missing = getattr(error, "name", None)
    return missing, text, summary


def resident_bytes() -> int:
    """Memory of this process that it shares with nobody; 0 where that cannot be had quickly.

    It takes 2 us. What is shared are libraries, and the large events of the bus.
    """
    global _statm  # open for good, since it is read again and again
    if _statm is None:
        there = os.path.exists("/proc/self/statm")
        _statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC) if there else -1
    if _statm < 0:
        return 0
    _, resident, shared, *_ = os.pread(_statm, 128, 0).split()
    return (int(resident) - int(shared)) * mmap.PAGESIZE


def end_with_parent(parent_pid: int) -> None:
    """See to it that this process dies with its parent, even in the middle of a handler."""
    if sys.platform == "linux":
        import ctypes

        # The kernel does it, so that it works while C code holds the GIL. "Parent" is the thread
        # that spawned this process: the companion, which lives as long as its worker.
        ctypes.CDLL(None).prctl(_LINUX_PR_SET_PDEATHSIG, signal.SIGKILL)
    else:  # untested
        threading.Thread(target=_watch_parent, args=(parent_pid,), daemon=True).start()
    if os.getppid() != parent_pid:  # it died before we asked
        os._exit(1)


def _watch_parent(parent_pid: int) -> None:
    while os.getppid() == parent_pid:
        time.sleep(1)
    os._exit(1)
