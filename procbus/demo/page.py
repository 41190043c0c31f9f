# SPDX-License-Identifier: MIT
"""The page that the demo writes: plain text for any terminal, file or pipe."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager

from procbus.core.text import printable, table
from procbus.system.terminal import moves_cursor

_WIDTH = 76  # columns where there is no terminal, and the most that text takes on a wide one
_REDRAW_S = 0.1  # interval between two drawings of a counter, in seconds


#: Takes the number of files done so far. Called from one thread.
ShowDone = Callable[[int], None]


class Printout:
    """Writes the report to stdout, and counters to stderr.

    Heads are bold on a terminal, unless NO_COLOR is set or TERM is "dumb". On a terminal a counter
    is drawn in place; elsewhere it is a line at each quarter.
    """

    def __init__(self) -> None:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else _WIDTH
        self.width = max(40, min(width, _WIDTH))
        self._bold = moves_cursor(sys.stdout) and not os.environ.get("NO_COLOR")
        self._redraws = moves_cursor(sys.stderr)

    def head(self, text: str) -> None:
        """Write the head of a section."""
        text = printable(text)
        rule = "-" * min(len(text), self.width)
        print(f"\n\x1b[1m{text}\x1b[0m" if self._bold else f"\n{text}\n{rule}", flush=True)

    def say(self, text: str, indent: str = "") -> None:
        """Write a paragraph, wrapped to the width."""
        lines = textwrap.wrap(
            printable(text),
            self.width,
            initial_indent=indent,
            subsequent_indent=indent,
            break_on_hyphens=False,
        )
        print("\n".join(lines), flush=True)

    def line(self, text: str = "") -> None:
        """Write one line as it is, such as a command or a path that a reader copies."""
        print(printable(text), flush=True)

    def table(
        self, head: Sequence[str], rows: Sequence[Sequence[str]], left: Collection[str]
    ) -> None:
        """Write a table. Columns not named in `left` are aligned to the right."""
        rows = [[printable(cell) for cell in row] for row in rows]
        print("\n" + table(head, rows, left) + "\n", flush=True)

    @contextmanager
    def counting(self, what: str, total: int) -> Iterator[ShowDone]:
        """Show the number of files that are done, while the block runs.

        If the block is stopped, a line says how many files were not done.
        """
        done = 0
        draw = self._drawing(what, total) if self._redraws else _line_at_each_quarter(what, total)

        def show(count: int) -> None:
            nonlocal done
            done = count
            draw(count)

        try:
            yield show
        except (KeyboardInterrupt, SystemExit):
            self._erase()
            left = f"{total - done:,} of {total:,} files"
            print(f"{what}: stopped; {left} were not measured", file=sys.stderr)
            raise
        self._erase()

    def _drawing(self, what: str, total: int) -> ShowDone:
        drawn_at = 0.0

        def draw(done: int) -> None:
            nonlocal drawn_at
            if time.monotonic() - drawn_at >= _REDRAW_S:
                drawn_at = time.monotonic()
                text = f"{what}: {done:,} of {total:,} files"
                _write(f"\r{text[: self.width - 1].ljust(self.width - 1)}")

        return draw

    def _erase(self) -> None:
        if self._redraws:
            _write(f"\r{' ' * (self.width - 1)}\r")


def _line_at_each_quarter(what: str, total: int) -> ShowDone:
    shown = 0

    def show(done: int) -> None:
        nonlocal shown
        quarter = 4 * done // total
        if quarter > shown:
            shown = quarter
            _write(f"{what}: {done:,} of {total:,} files\n")

    return show


def _write(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()
