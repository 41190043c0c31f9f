# SPDX-License-Identifier: MIT
"""The lock of a journal: one living bus has it at a time, and the death of its owner frees it.

It is a kernel lock on the intake, by `flock`. Such a lock belongs to one opening of the file, and
ends with the process, however that ends. A script that opens and closes the intake, to copy it for
example, does not lose this lock, as it would lose a lock by `lockf`. A forked child would share the
lock, so it closes its copy at once. The owner's pid in the file is only for messages, and is never
trusted.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import threading

from procbus.core.errors import JournalError
from procbus.journal.storage.files import cannot_write
from procbus.system.files import check_ours

#: Guards `_held`. This lock is held over a fork, so that the child knows all locks. A thread can
#: take it again, because a signal handler may fork in the thread that holds it.
_lock = threading.RLock()
#: Descriptors that hold locks, or are about to hold one.
_held: set[int] = set()

#: Offset and format of the pid in the file. The intake leaves these bytes alone.
PID_AT = 48
_PID = struct.Struct("<q")


class JournalTaken(JournalError):
    """Another bus has the journal.

    Attributes:
        pid: process id of that bus; 0 if not known.
    """

    def __init__(self, message: str, pid: int) -> None:
        super().__init__(message)
        self.pid = pid


class JournalLock:
    """The lock of the journal at `path`; `fd` is the intake, open, and may be mapped.

    Raises:
        JournalTaken: another bus has the journal; the message gives the pid of that bus.
        JournalError: the journal cannot be locked, or belongs to another user.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.name = path + "-intake"
        # The file is opened twice, because a mapping keeps its own opening alive, even in a forked
        # child.
        self._opening, self.fd = self._open()
        #: Whether the intake was created just now.
        self.fresh = os.fstat(self.fd).st_size <= PID_AT + _PID.size
        with contextlib.suppress(OSError):  # the disk is full; the pid is only for people
            os.pwrite(self.fd, _PID.pack(os.getpid()), PID_AT)

    def _open(self) -> tuple[int, int]:
        while True:
            opening = self._locked()
            try:
                fd = os.open(self.name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
            except OSError:
                _close(opening)  # the last owner removed the file at this moment
                continue
            if os.path.sameopenfile(opening, fd):
                return opening, fd
            os.close(fd)
            _close(opening)

    def _locked(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        with _lock:
            try:
                opening = os.open(self.name, flags, 0o600)
            except OSError as error:
                raise cannot_write(self.name, error) from error
            _held.add(opening)
        try:
            fcntl.flock(opening, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            # The owner may not have written its pid yet, because it took the lock just now.
            pid = _owner(opening) or (os.getpid() if _is_opened_here_too(opening) else 0)
            _close(opening)
            if isinstance(error, BlockingIOError | PermissionError):
                raise _taken(self.path, pid) from None
            raise JournalError(
                f"the journal {self.path} cannot be locked ({error.strerror}): put it on a "
                "local disk"
            ) from error
        try:  # by the open file: its owner may remove the name before it is checked
            check_ours(self.name, os.fstat(opening), JournalError)
        except JournalError:
            _close(opening)
            raise
        return opening

    def release(self, *, remove: bool) -> None:
        """Release the journal for another bus. Idempotent.

        Args:
            remove: whether to remove the intake, because it is empty.
        """
        with _lock:
            if self._opening not in _held:
                return
            if remove and _is_mine(self.fd):
                with contextlib.suppress(OSError):
                    os.unlink(self.name)
            os.close(self.fd)
            _close(self._opening)


def _is_opened_here_too(opening: int) -> bool:
    """Whether another bus of this process has this file open, or is about to open it."""
    with _lock:
        return any(each != opening and os.path.sameopenfile(each, opening) for each in _held)


def _close(opening: int) -> None:
    with _lock:
        _held.discard(opening)
        os.close(opening)


def _after_fork_in_child() -> None:
    """Close the locks, which are the parent's, so that its death frees them."""
    for opening in _held:
        os.close(opening)
    _held.clear()
    _lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_lock.acquire,
        after_in_parent=_lock.release,
        after_in_child=_after_fork_in_child,
    )


def _is_mine(fd: int) -> bool:
    return not hasattr(os, "geteuid") or os.fstat(fd).st_uid == os.geteuid()


def _owner(fd: int) -> int:
    data = os.pread(fd, _PID.size, PID_AT)
    return int(_PID.unpack(data)[0]) if len(data) == _PID.size else 0


def _taken(path: str, pid: int) -> JournalTaken:
    who = f"process {pid}" if pid else "another process"
    if pid == os.getpid():
        who = f"another bus in this process ({pid})"
    return JournalTaken(
        f"the journal {path} belongs to {who}, which is running, and a journal belongs to one "
        "bus at a time: wait until that bus has ended, or give this bus a journal of its own",
        pid,
    )
