# SPDX-License-Identifier: MIT
"""The sending end of a worker: its reports and log records, on one pipe.

Reports wait until the parent reads, which it does whenever it waits for a report. Log records wait
only for a short time. Between two batches the parent does not read, and threads that a handler left
behind may log for ever.
"""

from __future__ import annotations

import select
import threading
from collections import deque
from collections.abc import Callable

MessageParts = tuple[bytes | memoryview, ...]

#: Maximum wait of a log record for room in the pipe, in seconds. After a wait in vain, the next
#: records do not wait at all, until the pipe has room again.
RECORD_ROOM_S = 1.0


class Outlet:
    """Sends whole messages into the pipe of a worker, from any thread.

    Args:
        write: writes a message, given in parts; called by one thread at a time.
        fd: the descriptor that it writes to.
        record_room_s: maximum wait of a log record for room in the pipe, in seconds.
    """

    def __init__(
        self, write: Callable[..., object], fd: int, *, record_room_s: float = RECORD_ROOM_S
    ) -> None:
        self._record_room_s = record_room_s
        self._write = write
        self._fd = fd
        #: Guards `_write` and all fields below. Reentrant: a finalizer or a signal handler may log
        #: in the thread that holds the lock, in the middle of a message.
        self._lock = threading.RLock()
        self._writing = False
        #: Records from the thread that was writing, in the middle of its message.
        self._late: deque[MessageParts] = deque()
        #: Present wait for room. Any thread that posts may write it, because it is a guess anyway.
        self._patience_s = record_room_s
        self._closed = False

    def send(self, *parts: bytes | memoryview) -> None:
        """Send a message that has to arrive. Blocks while the parent does not read.

        Raises:
            OSError: the parent is gone.
        """
        with self._lock:
            self._write_all(parts)

    def post(self, *parts: bytes | memoryview) -> bool:
        """Send a message unless the parent does not read, for at most about two `record_room_s`.

        Nothing happens once the parent is gone.

        Returns:
            False when the message was not sent because there was no room.
        """
        if self._closed:
            return True
        patience_s = self._patience_s
        if not self._has_room(patience_s) or not self._lock.acquire(timeout=patience_s):
            self._patience_s = 0.0
            return False
        self._patience_s = self._record_room_s
        try:
            if self._writing:
                self._late.append(parts)
            else:
                self._write_all(parts)
        except OSError:
            self._closed = True
        finally:
            self._lock.release()
        return True

    def _has_room(self, patience_s: float) -> bool:
        """Wait until the pipe has room for a record of the usual size, or is broken.

        Another thread may take the room. In that case the write waits until the parent reads, like
        the write of a report.
        """
        room = select.poll()  # a new one: two threads may not wait on one such object
        room.register(self._fd, select.POLLOUT)
        return bool(room.poll(patience_s * 1e3))

    def _write_all(self, parts: MessageParts) -> None:
        """Write a message, and records posted meanwhile. The lock is held."""
        self._writing = True
        try:
            self._write(*parts)
            while self._late:
                self._write(*self._late.popleft())
        finally:
            self._writing = False
