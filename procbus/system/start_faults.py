# SPDX-License-Identifier: MIT
"""Reasons for which the operating system starts no process, with a remedy for each."""

from __future__ import annotations

import errno
import os
import sys

#: Directory in which glibc keeps the named semaphores of processes.
_SEMAPHORES = "/dev/shm"  # noqa: S108 - only looked at

_REMEDIES = {
    errno.EMFILE: "Raise the limit of open files, with `ulimit -n 1024` for example, or use fewer "
    "cpu_workers",
    errno.EAGAIN: "Raise the limit of processes, see `ulimit -u`, or use fewer cpu_workers",
    errno.ENOMEM: "Use fewer cpu_workers, or give the script more memory",
}


def remedy_for(error: BaseException | None) -> str:
    """Say what to do about an error that the start of a process raised; "" if that is unknown.

    Args:
        error: the error.
    """
    if not isinstance(error, OSError):
        return ""
    if error.errno in _REMEDIES:
        return _REMEDIES[error.errno]
    if sys.platform == "linux" and not os.access(_SEMAPHORES, os.W_OK):
        return (
            f"Python keeps the semaphores of processes in {_SEMAPHORES}, where this script cannot "
            'write. Mount it, or make the bus with cpu="threads"'
        )
    return ""
