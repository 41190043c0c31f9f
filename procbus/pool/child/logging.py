# SPDX-License-Identifier: MIT
"""Log records, warnings and prints on their way out of a worker. They never hold it up for long.

Records and warnings go to the parent, at a limited rate. Prints go straight to the stdout and
stderr that the worker shares with the script.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
import warnings
from collections.abc import Callable
from math import inf
from time import monotonic
from typing import Any

from procbus.core.flood import Flood, describe_left_out
from procbus.core.log import pool_log as log
from procbus.core.log_origin import Origin, origin_here
from procbus.pool.child.outbox import Outlet
from procbus.pool.forwarding import pack_record, pack_warning
from procbus.pool.wire import Tag

#: Errors of a write that are not the writer's fault.
_NO_READER = (errno.EPIPE, errno.EIO, errno.ENOSPC, errno.EDQUOT)


def forward_logging(outlet: Outlet, levels: dict[str, int]) -> Forward:
    """Send every record and warning to the parent, from here on.

    Args:
        outlet: the sending end of the worker.
        levels: the levels of the parent's loggers, so that the worker makes no records which the
            parent would drop. The root logger's name is "".
    """
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    forward = Forward(outlet)
    logging.getLogger().handlers[:] = [forward]
    warnings.showwarning = forward.show_warning
    return forward


def print_by_line() -> None:
    """Have each printed line written at once, and in one piece.

    So a line is visible even if the worker dies next, and lines of other processes do not tear it.
    (In a pipe this holds for lines of up to 4 KB, the most that the system writes in one piece.)
    """
    sys.stdout = _by_line(sys.stdout)
    sys.stderr = _by_line(sys.stderr)


def _by_line(stream: Any) -> Any:
    if not isinstance(stream, io.TextIOWrapper):  # None if the script's stream is closed
        return stream
    raw = _Output(stream.fileno(), stream.name)
    # Not with the stream's own buffering: with PYTHONUNBUFFERED each piece would be a write.
    return io.TextIOWrapper(
        io.BufferedWriter(raw), stream.encoding, stream.errors, line_buffering=True
    )


class _Output(io.FileIO):
    """The stdout or stderr of a worker. After a failed write, output is dropped, with one warning.

    Lines are written at once, so a failed write would raise in the handler. A script without
    workers would go on in such a case, such as `job.py | head` or a full disk.
    """

    def __init__(self, fd: int, name: str) -> None:
        super().__init__(fd, "wb", closefd=False)
        self.name = name
        self._warned = False

    def write(self, data: Any) -> int:
        """Write, or drop the data."""
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in _NO_READER:
                raise
            if not self._warned:
                self._warned = True
                log.warning(
                    "prints of handlers are lost, because %s cannot be written: %s",
                    self.name,
                    error,
                )
            return len(memoryview(data).cast("B"))


class Forward(logging.Handler):
    """The log handler of a worker: sends records to the parent, or counts them.

    The lock of the log handler guards `_flood`, and is never held while a message is sent. (It is
    reentrant, because a finalizer may log at any moment. `logging` makes it free in a forked
    child.)

    Args:
        outlet: the sending end of the worker.
    """

    def __init__(self, outlet: Outlet) -> None:
        super().__init__()
        self._outlet = outlet
        self._flood = Flood()
        self._pid = os.getpid()
        self._show_as_before = warnings.showwarning

    def leave(self) -> None:
        """Log to stderr from now on, because the pipe is useless: in a forked child, at the end."""
        to_stderr = logging.StreamHandler()
        to_stderr.setFormatter(logging.Formatter("%(levelname)s:%(name)s:%(process)d:%(message)s"))
        handlers = logging.getLogger().handlers
        handlers[:] = [to_stderr if handler is self else handler for handler in handlers]
        if warnings.showwarning == self.show_warning:
            warnings.showwarning = self._show_as_before

    def handle(self, record: logging.LogRecord) -> bool:
        """Handle a record without the lock, so that a thread which waits holds up no other."""
        wanted: bool | logging.LogRecord = self.filter(record)
        if wanted:
            self.emit(wanted if isinstance(wanted, logging.LogRecord) else record)
        return bool(wanted)

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record, or count it."""
        try:
            self._let_out(record.levelno, Tag.LOG, lambda origin: pack_record(record, origin))
        except Exception:  # noqa: BLE001 - handled as in every log handler
            self.handleError(record)

    def show_warning(
        self,
        message: Any,
        category: type[Warning],
        filename: str,
        lineno: int,
        *_: Any,
        **__: Any,
    ) -> None:
        """Stand in for `warnings.showwarning`: send a warning, or count it."""
        self._let_out(
            logging.WARNING,
            Tag.WARNING,
            lambda origin: pack_warning(str(message), category, filename, lineno, origin),
        )

    def report(self, *parts: bytes | memoryview) -> None:
        """Send a report of the worker; ahead of it the number of records left out, if it is due."""
        if self._flood.left_out:
            self._tell_left_out(monotonic())
        self._outlet.send(*parts)

    def tell_the_rest(self) -> None:
        """Send the number of records left out and not reported yet, because the worker ends."""
        self._tell_left_out(inf)

    def _tell_left_out(self, now: float, *, midway: bool = False) -> None:
        """Send one record with the number of records left out, if there are any and it is time."""
        self.acquire()
        try:
            left_out = self._flood.take_left_out(now, midway=midway)
        finally:
            self.release()
        if not left_out:
            return
        text = describe_left_out(left_out, self._pid)
        record = logging.LogRecord(log.logger.name, logging.WARNING, __file__, 0, text, None, None)
        handler = next(iter(left_out)) if len(left_out) == 1 else None
        origin = Origin(self._pid, handler)
        if not self._outlet.post(Tag.LOG.value, pack_record(record, origin)):
            self._count(left_out)

    def _let_out(self, level: int, tag: Tag, pack: Callable[[Origin], bytes]) -> None:
        origin = origin_here(self._pid)
        self.acquire()
        try:
            admitted = self._flood.admits(level, origin.handler, monotonic())
        finally:
            self.release()
        if not admitted:  # in a flood most records end here, and are never formatted
            return
        if self._flood.left_out:
            self._tell_left_out(monotonic(), midway=True)
        if not self._outlet.post(tag.value, pack(origin)):
            self._count({origin.handler: 1})

    def _count(self, left_out: dict[str | None, int]) -> None:
        self.acquire()
        try:
            self._flood.leave_out(left_out, monotonic())
        finally:
            self.release()
