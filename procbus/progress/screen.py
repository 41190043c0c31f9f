# SPDX-License-Identifier: MIT
"""The last lines of a terminal, which are drawn again and again, below all other text.

While these lines are there, text for stdout and stderr goes through this module, so that the text
appears whole above the lines. Text of log handlers that write to these streams goes through this
module too. Text of other processes goes to the terminal directly.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, TextIO

#: Erases the line of the cursor and all below it.
_ERASE = "\r\x1b[J"


class LastLines:
    """The drawn lines. Thread-safe: the lock `_lock` guards the fields, and the terminal.

    The cursor rests at the beginning of the first drawn line. A process that is killed leaves a
    terminal that works: no cursor is hidden, and no mode is set.

    Args:
        stream: writes to the terminal.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self._lock = threading.RLock()
        self._frame = ""
        #: Whether the last text of others has no line end yet: then nothing is drawn.
        self._midline = False
        self._taken: list[_Above] = []

    def draw(self, lines: Sequence[str]) -> None:
        """Draw lines in place of the drawn ones. Each must be narrower than the terminal."""
        with self._lock:
            self._take_streams()
            up = f"\x1b[{len(lines) - 1}A" if len(lines) > 1 else ""
            self._frame = _ERASE + "\n".join(lines) + up + "\r" if lines else ""
            if not self._midline:
                self.stream.write(self._frame or _ERASE)
                self.stream.flush()

    def leave(self, lines: Sequence[str]) -> None:
        """Write lines that stay, in place of the drawn lines."""
        text = "".join(f"{line}\n" for line in lines)
        with self._lock:
            self.write(self.stream, f"\n{text}" if self._midline else text, again=False)

    def release(self) -> None:
        """Erase the drawn lines, and leave the streams as they were before."""
        with self._lock:
            self.write(self.stream, "", again=False)
            for above in self._taken:
                if getattr(sys, above.name) is above:
                    setattr(sys, above.name, above.stream)
                for handler in _log_handlers():
                    if handler.stream is above:
                        handler.stream = above.stream
            self._taken.clear()
            self._midline = False

    def write(self, stream: TextIO, text: str, *, again: bool = True) -> int:
        """Write text of other code to stdout or stderr, above the drawn lines.

        Args:
            stream: stdout or stderr.
            text: the text.
            again: whether to draw the lines again below the text.
        """
        with self._lock:
            if self._frame and not self._midline:
                self.stream.write(_ERASE)
                self.stream.flush()
            if not again:
                self._frame = ""
            written = stream.write(text)
            if text:
                self._midline = not text.endswith("\n")
            if self._frame and not self._midline:
                stream.flush()
                self.stream.write(self._frame)
                self.stream.flush()
            return written

    # Under the lock.

    def _take_streams(self) -> None:
        if self._taken:
            return
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if stream is not None and not isinstance(stream, _Above) and _same(stream, self.stream):
                above = _Above(name, stream, self)
                self._taken.append(above)
                setattr(sys, name, above)
                for handler in _log_handlers():
                    if handler.stream is stream:
                        handler.stream = above


class _Above:
    """Stands for a standard stream. Its text appears above the drawn lines, while there are any."""

    def __init__(self, name: str, stream: TextIO, screen: LastLines) -> None:
        self.name = name
        self.stream = stream
        self._screen = screen
        self._pid = os.getpid()

    def write(self, text: str) -> int:
        """Write text."""
        if self._pid != os.getpid():  # a forked child: another thread may have held the lock
            return self.stream.write(text)
        return self._screen.write(self.stream, text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write lines."""
        for line in lines:
            self.write(line)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the stream, which is not readable."""
        return iter(self.stream)

    def __getattr__(self, name: str) -> Any:
        """Give any other attribute of the stream."""
        return getattr(self.stream, name)


def beneath(stream: Any) -> Any:
    """The real stream that an `_Above` stands for; any other object is returned as given."""
    return stream.stream if isinstance(stream, _Above) else stream


def _same(stream: TextIO, other: TextIO) -> bool:
    """Whether both streams write to the same terminal."""
    with suppress(OSError, ValueError, AttributeError):
        return stream.isatty() and os.path.sameopenfile(stream.fileno(), other.fileno())
    return False


def _log_handlers() -> list[Any]:
    """The handlers of all loggers that write to a stream."""
    loggers = [logging.getLogger(), *map(logging.getLogger, list(logging.root.manager.loggerDict))]
    found = {id(handler): handler for logger in loggers for handler in logger.handlers}
    return [each for each in found.values() if isinstance(each, logging.StreamHandler)]
