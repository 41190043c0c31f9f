# SPDX-License-Identifier: MIT
"""The lock of a journal: one live bus for each, and a dead owner's lock is free.

It is the kernel's lock of a record of the intake (POSIX `fcntl`), which belongs to a process and
ends with it, however that ends; a child that was forked does not have it. Within one process it
does not tell two owners apart, so those are listed here. The owner's pid stands in the file as
well, only to be named: nobody trusts it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import threading

from procbus.errors import JournalError
from procbus.journal.ground import cannot_write

_lock = threading.Lock()
#: Intakes that this process has locked, by device and inode. Guarded by `_lock`. The lock of a file
#: is lost when any descriptor of it is closed, so none may even be opened a second time.
_ours: dict[tuple[int, int], int] = {}

#: The pid in the file: where, and how. The intake leaves these bytes alone.
PID_AT = 40
_PID = struct.Struct("<q")


class Lock:
    """The lock of the journal at `path`; `fd` is the intake, open and locked.

    Raises:
        JournalError: another bus has it; the message gives its pid.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.name = path + "-intake"
        self.fd, self._key = self._open()
        #: Whether the intake was made just now.
        self.fresh = os.fstat(self.fd).st_size <= PID_AT + _PID.size

    def _open(self) -> tuple[int, tuple[int, int]]:
        while True:
            with _lock:
                if _is_ours(self.name):
                    raise _refused(self.path, os.getpid())
                try:
                    fd = os.open(self.name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
                except OSError as error:
                    raise cannot_write(self.name, error) from error
                try:
                    fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError as error:
                    pid = _owner(fd)
                    os.close(fd)
                    if isinstance(error, BlockingIOError | PermissionError):
                        raise _refused(self.path, pid) from None
                    raise JournalError(
                        f"the journal {self.path} cannot be locked ({error.strerror}): put it on a "
                        "local disk"
                    ) from error
                status = os.fstat(fd)
                key = status.st_dev, status.st_ino
                try:
                    there = os.stat(self.name)
                except FileNotFoundError:
                    there = None
                if there is None or (there.st_dev, there.st_ino) != key:
                    os.close(fd)  # its last owner took it away in this moment
                    continue
                _ours[key] = os.getpid()
            with contextlib.suppress(OSError):  # a full disk; it is only for people
                os.pwrite(fd, _PID.pack(os.getpid()), PID_AT)
            return fd, key

    def release(self, *, remove: bool) -> None:
        """Let another have the journal. Idempotent.

        Args:
            remove: take the intake away: there is nothing in it.
        """
        with _lock:
            if _ours.pop(self._key, None) is None:
                return
            if remove:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.name)
            os.close(self.fd)


def refuse_second(path: str) -> None:
    """Refuse a journal that another bus of this process has, and open none of its files.

    Neither the intake nor the database: SQLite's locks are of the same kind.

    Raises:
        JournalError: another bus has it.
    """
    with _lock:
        if _is_ours(path + "-intake"):
            raise _refused(path, os.getpid())


def _is_ours(name: str) -> bool:
    try:
        status = os.stat(name)
    except FileNotFoundError:
        return False
    return _ours.get((status.st_dev, status.st_ino)) == os.getpid()


def owner_of(path: str) -> int | None:
    """The pid of the bus that has a journal; None where none has it, 0 where it did not say.

    Raises:
        JournalError: it is one of this process.
    """
    refuse_second(path)
    try:
        fd = os.open(path + "-intake", os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return _owner(fd) or 0
    finally:
        os.close(fd)
    return None


def _owner(fd: int) -> int | None:
    data = os.pread(fd, _PID.size, PID_AT)
    return _PID.unpack(data)[0] or None if len(data) == _PID.size else None


def _refused(path: str, pid: int | None) -> JournalError:
    who = "another process" if pid is None else f"process {pid}"
    if pid == os.getpid():
        who = f"another bus in this process ({pid})"
    return JournalError(
        f"the journal {path} belongs to {who}, which is running: one bus at a time has it. Wait "
        "for that, or give this bus a journal of its own"
    )
