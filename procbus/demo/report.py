# SPDX-License-Identifier: MIT
"""What the demo prints at its end."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from procbus.demo.store import RankedFunction, Totals, storable

SHOWN = 10  # most complex functions
SHOWN_SKIPPED = 5


@dataclass(frozen=True)
class RunFigures:
    """One run of the handlers over all files.

    Attributes:
        bus: the name of the bus it ran on.
        seconds: from making the bus until the last event was handled.
        events: events handled.
        workers: what handled them, in words.
    """

    bus: str
    seconds: float
    events: int
    workers: str


def print_functions(console: Console, root: Path, functions: Sequence[RankedFunction]) -> None:
    """Print the table of the most complex functions."""
    table = Table(title="The most complex functions")
    table.add_column("complexity", justify="right")
    table.add_column("lines", justify="right")
    table.add_column("nesting", justify="right")
    table.add_column("function", overflow="fold")
    table.add_column("file", overflow="fold")
    for each in functions:
        figures = (f"{each.complexity:,}", f"{each.length:,}", str(each.nesting))
        place = f"{_relative(each.path, root)}:{each.line}"
        table.add_row(*figures, Text(each.name), Text(printable(place)))
    console.print(table)


def print_skipped(
    console: Console, root: Path, count: int, first: Sequence[tuple[str, str]]
) -> None:
    """Print how many files were skipped, and why the first of them were."""
    if not count:
        return
    _line(console, f"{count:,} {_files(count)} could not be read or parsed:")
    for path, reason in first:
        _line(console, f"  {_relative(path, root)}: {reason}")
    if count > len(first):
        _line(console, f"  and {count - len(first):,} more: see the table files in the index")


def print_runs(console: Console, runs: Sequence[RunFigures]) -> None:
    """Print the runs beside each other and, where there are two, how the times compare."""
    table = Table(title="The same handlers on the same files" if len(runs) > 1 else None)
    for column in ("bus", "seconds", "events/s", "workers"):
        table.add_column(column, justify="right" if column in ("seconds", "events/s") else "left")
    for run in runs:
        rate = run.events / run.seconds
        table.add_row(run.bus, f"{run.seconds:.2f}", f"{rate:,.0f}", run.workers)
    console.print(table)
    if len(runs) > 1:
        ours, theirs = runs
        ratio = theirs.seconds / ours.seconds
        _line(console, f"Ratio: {ratio:.2f} ({theirs.bus} ÷ {ours.bus}, in seconds)")


def print_index(console: Console, path: str, totals: Totals) -> None:
    """Print what was indexed, and where the index is."""
    measured = totals.files - totals.skipped
    _line(console, f"{totals.functions:,} functions in {measured:,} {_files(measured)}")
    _line(console, f"The index is an SQLite file: {path}")


def printable(text: str) -> str:
    """Show what a terminal would obey or cannot show, such as escape sequences, as escapes."""
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode("ascii")
        for each in text
    )


def _line(console: Console, text: str) -> None:
    console.print(Text(printable(text)), soft_wrap=True)


def _files(count: int) -> str:
    return "file" if count == 1 else "files"


def _relative(path: str, root: Path) -> str:
    return os.path.relpath(path, storable(str(root)))
