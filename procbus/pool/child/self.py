# SPDX-License-Identifier: MIT
"""A worker process's dealings with itself: it ends with its parent, and knows its size."""

from __future__ import annotations

import os
import signal
import struct
import sys
import threading
import time

from procbus.core.frames import users_part
from procbus.core.user_objects import attribute, named, text_of, traceback_of
from procbus.system.procfs import own_bytes_in, read_own_bytes

_LINUX_PR_SET_PDEATHSIG = 1
#: Numbers of the system call `sched_setattr`, which only recent C libraries wrap.
_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274, "riscv64": 274, "loongarch64": 274}
#: Length of a turn on a core that a worker asks for, in nanoseconds; the most that Linux gives.
_TURN_NS = 100_000_000

_statm: int | None = None
_children: int | None = None


def described(error: BaseException) -> tuple[object, str, str]:
    """Of an exception of the user's: its attribute `name`, its traceback, and a summary line."""
    where = users_part(traceback_of(error))
    return attribute(error, "name"), text_of(error, where), named(error)


def resident_bytes() -> int:
    """Unshared memory of this process and its children, in bytes; 0 if not had quickly.

    The reading takes 4 us, and 10 us more for each child. Only children that the calling thread has
    started count. Libraries and the large events of the bus are shared memory.
    """
    global _statm, _children  # kept open, because they are read often
    if _statm is None or _children is None:
        try:
            _statm, _children = _open("/proc/self/statm"), _open("/proc/thread-self/children")
        except OSError:  # the user's handlers use up all file descriptors
            return 0
    if _statm < 0:
        return 0
    own = own_bytes_in(os.pread(_statm, 128, 0))
    if _children < 0 or not (children := os.pread(_children, 4096, 0)):
        return own
    return own + sum(read_own_bytes(int(pid)) or 0 for pid in children.split())


def _open(file: str) -> int:
    return os.open(file, os.O_RDONLY | os.O_CLOEXEC) if os.path.exists(file) else -1


def end_with_parent(parent_pid: int) -> None:
    """Have this process die with its parent, even in the middle of a handler."""
    if sys.platform == "linux":
        import ctypes

        # The kernel kills, so that this works while C code holds the GIL. To the kernel, the parent
        # is the thread that spawned this process: the companion, which lives as long as its worker.
        ctypes.CDLL(None).prctl(_LINUX_PR_SET_PDEATHSIG, signal.SIGKILL)
    else:  # untested
        threading.Thread(target=_watch_parent, args=(parent_pid,), daemon=True).start()
    if os.getppid() != parent_pid:  # the parent died before the call above
        os._exit(1)


def take_long_turns() -> None:
    """Ask for long turns on a core, so that a thread with shorter turns gets the core on waking.

    The script feeds all workers and runs the io handlers. With long turns of the workers, the
    script need not wait until a worker has used up its turn. The worker keeps its fair share of the
    core. Linux heeds the request from version 6.12 on.
    """
    number = _SCHED_SETATTR.get(os.uname().machine) if sys.platform == "linux" else None
    if number is None or os.sched_getscheduler(0) != os.SCHED_OTHER:
        return
    import ctypes

    nice = os.getpriority(os.PRIO_PROCESS, 0)
    # struct sched_attr: size, policy, flags, nice, priority, runtime, and unused fields.
    attributes = struct.pack("=IIQiIQQQII", 56, os.SCHED_OTHER, 0, nice, 0, _TURN_NS, 0, 0, 0, 0)
    ctypes.CDLL(None).syscall(number, 0, attributes, 0)  # a refusal does no harm


def _watch_parent(parent_pid: int) -> None:
    while os.getppid() == parent_pid:
        time.sleep(1)
    os._exit(1)


def flush_output() -> None:
    """Write out buffered prints."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except Exception:  # noqa: BLE001, S110 - closed, or replaced by something odd
        pass
