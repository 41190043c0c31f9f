"""Stands for the parts of rich that the report uses, where rich is not installed: plain text."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import zip_longest

from procbus.core.text import table

_MARKUP = re.compile(r"\[/?[a-z]*\]")


class Table:
    """A table whose cells may have several lines. See `rich.table.Table`."""

    def __init__(self, title: str, **_: object) -> None:
        self.title = title
        self.caption = ""
        self.caption_justify = "left"
        self._heads: list[str] = []
        self._lines: list[list[str]] = []

    def add_column(self, head: str, **_: object) -> None:
        """Add a column."""
        self._heads.append(head)

    def add_row(self, *cells: str) -> None:
        """Add a row, on as many lines as its highest cell has."""
        columns = [cell.split("\n") for cell in cells]
        self._lines += [list(line) for line in zip_longest(*columns, fillvalue="")]

    def __str__(self) -> str:
        """The title, the cells under each other, and the caption."""
        lines = [[_MARKUP.sub("", cell) for cell in line] for line in self._lines]
        return "\n".join(filter(None, (self.title, table(self._heads, lines), self.caption)))


class Status:
    """Says what goes on, on one line of a terminal."""

    def update(self, text: str) -> None:
        """Replace the line."""
        if sys.stderr.isatty():
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


class Console:
    """Prints. See `rich.console.Console`."""

    is_terminal = False

    def __init__(self, **_: object) -> None:
        pass

    def print(self, *shown: object, **_: object) -> None:
        """Print text or a table."""
        print(*shown)

    @contextmanager
    def status(self, text: str) -> Iterator[Status]:
        """Say what goes on while the block runs."""
        status = Status()
        try:
            yield status
        finally:
            status.update(text)
