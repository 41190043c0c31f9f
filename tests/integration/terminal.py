"""A script in a terminal of its own, whose screen the test sees."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
from contextlib import suppress
from pathlib import Path
from time import monotonic

from tests.integration.helpers import PATIENCE_S, ROOT

#: Pieces of output: a control sequence, a control character, or text.
_PIECE = re.compile(
    r"\x1b\[(?P<count>[\d;]*)(?P<what>[A-Za-z])|(?P<mark>[\r\n])|(?P<text>[^\x1b\r\n]+)"
)


class Screen:
    """The lines of a terminal, as the sequences that procbus writes change them.

    Args:
        width: number of columns.

    Attributes:
        lines: all lines since the beginning.
        colours: the sequences for colours that it was sent.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self.lines = [""]
        self.colours: list[str] = []
        self._row = self._column = 0

    def feed(self, text: str) -> None:
        """Take output. A sequence that it does not know is an error."""
        at = 0
        for piece in _PIECE.finditer(text):
            assert piece.start() == at, f"unknown output: {text[at : at + 20]!r}"
            at = piece.end()
            match piece["what"], piece["mark"]:
                case None, None:
                    self._put(piece["text"])
                case None, "\r":
                    self._column = 0
                case None, _:
                    self._row += 1
                    if self._row == len(self.lines):
                        self.lines.append("")
                case "J", _:
                    self.lines[self._row] = self.lines[self._row][: self._column]
                    del self.lines[self._row + 1 :]
                case "A", _:
                    self._row -= int(piece["count"] or 1)
                    assert self._row >= 0, "above the first line"
                case "m", _:
                    self.colours.append(piece[0])
                case what, _:
                    raise AssertionError(f"unknown sequence: {piece[0]!r} ({what})")
        assert at == len(text), f"unknown output: {text[at:]!r}"

    def _put(self, text: str) -> None:
        line = self.lines[self._row].ljust(self._column)
        self.lines[self._row] = line[: self._column] + text + line[self._column + len(text) :]
        self._column += len(text)
        assert self._column < self.width, f"the line is as wide as the terminal: {line + text!r}"

    def text(self) -> str:
        """The lines, without spaces at their ends."""
        return "\n".join(line.rstrip() for line in self.lines)


class Terminal:
    """A script that runs in a terminal of its own.

    Args:
        path: the script.
        columns: the width of the terminal.
        environment: further variables, beside the variables of the test.
    """

    def __init__(self, path: Path, columns: int, **environment: str) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        inherited = {
            name: value
            for name, value in os.environ.items()
            if name not in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "PROCBUS_PROGRESS")
        }
        given = {"TERM": "xterm-256color", "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}
        self._popen = subprocess.Popen(
            [sys.executable, str(path)],
            env={**inherited, **given, **environment},
            cwd=path.parent,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        self.pid = self._popen.pid
        self.screen = Screen(columns)
        self._cut = b""

    def until(self, pattern: str) -> str:
        """Wait until the screen shows this; return its text then."""
        end_at = monotonic() + PATIENCE_S
        while not re.search(pattern, self.screen.text()):
            assert monotonic() < end_at, f"no {pattern!r}:\n{self.screen.text()}"
            assert self._read(), f"the script ended without {pattern!r}:\n{self.screen.text()}"
        return self.screen.text()

    def finish(self) -> str:
        """Wait until the script has ended well; return the text of the screen."""
        while self._read():
            pass
        assert self._popen.wait(PATIENCE_S) == 0, self.screen.text()
        return self.screen.text()

    def close(self) -> None:
        """Leave nothing behind, whatever the test did."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, 9)
        self._popen.wait(PATIENCE_S)
        os.close(self._master)

    def _read(self) -> bool:
        """Take the next output; return whether there was some."""
        end_at = monotonic() + PATIENCE_S
        ready, _, _ = select.select([self._master], [], [], max(0.0, end_at - monotonic()))
        assert ready, f"no output for {PATIENCE_S} s:\n{self.screen.text()}"
        try:
            output = os.read(self._master, 65536)
        except OSError:  # the script has ended
            return False
        # A character or a sequence may be cut in two.
        whole, self._cut = _whole(self._cut + output)
        self.screen.feed(whole)
        return bool(output)


def _whole(output: bytes) -> tuple[str, bytes]:
    """Part output into text and the beginning of a sequence or a character at its end."""
    cut = re.search(rb"\x1b(\[[\d;]*)?$|[\xc0-\xff][\x80-\xbf]{0,2}$", output)
    end = len(output)
    if cut is not None:
        with suppress(UnicodeDecodeError):
            if cut[0][:1] != b"\x1b":
                return output.decode(), b""
        end = cut.start()
    return output[:end].decode(), output[end:]
