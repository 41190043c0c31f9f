# SPDX-License-Identifier: MIT
"""A fork whose parent is the parent of the process that forks.

A process that is ready to be a worker forks more workers in this way. All of them are children of
the script: the script waits for them, and they end with the script. The system's C library has no
function for such a fork. So this module makes the system call that `fork` of the C library makes,
with one more flag.
"""

from __future__ import annotations

import os
import sys
from typing import NamedTuple


class _Calls(NamedTuple):
    """Numbers of system calls on one kind of machine."""

    clone: int
    get_robust_list: int
    set_robust_list: int
    #: Whether the address of the thread's id is the last argument of `clone`, or the one before.
    id_is_last: bool


_CALLS = {
    "x86_64": _Calls(56, 274, 273, id_is_last=False),
    "aarch64": _Calls(220, 100, 99, id_is_last=True),  # untested
}
_CLONE_PARENT, _CLONE_CHILD_CLEARTID, _CLONE_CHILD_SETTID = 0x8000, 0x200000, 0x1000000
_SIGCHLD = 17
_PR_GET_TID_ADDRESS = 40


def fork_sibling() -> int:
    """Fork this process, which must have a single thread. The copy has the same parent as this one.

    Returns:
        The pid of the copy; 0 in the copy.

    Raises:
        OSError: the system cannot, or this process has other threads.
    """
    calls = _CALLS.get(os.uname().machine) if sys.platform == "linux" else None
    if calls is None or sys.maxsize < 1 << 32 or len(os.listdir("/proc/self/task")) > 1:
        raise OSError("this process cannot fork a sibling")
    import ctypes

    python = ctypes.PyDLL(None, use_errno=True)  # such a call keeps the GIL
    python.syscall.restype = ctypes.c_long
    word, pointer = ctypes.c_long, ctypes.c_void_p
    # The C library keeps the thread's id there, and compares it with the owner of a mutex.
    own_id = pointer()
    nothing = word(0)
    if python.prctl(_PR_GET_TID_ADDRESS, ctypes.byref(own_id), nothing, nothing, nothing):
        raise OSError(ctypes.get_errno(), "the address of the thread's id is unknown")
    # The kernel releases mutexes in this list when the process dies. A copy has to name its own.
    robust, size = pointer(), ctypes.c_size_t()
    python.syscall(word(calls.get_robust_list), nothing, ctypes.byref(robust), ctypes.byref(size))
    flags = word(_CLONE_PARENT | _CLONE_CHILD_CLEARTID | _CLONE_CHILD_SETTID | _SIGCHLD)
    last = (nothing, own_id) if calls.id_is_last else (own_id, nothing)
    api = ctypes.pythonapi
    api.PyOS_BeforeFork()
    pid: int = python.syscall(word(calls.clone), flags, nothing, nothing, *last)
    if not pid:
        python.syscall(word(calls.set_robust_list), robust, size)
        api.PyOS_AfterFork_Child()
        return 0
    error = ctypes.get_errno()
    api.PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(error, os.strerror(error))
    return pid
