# SPDX-License-Identifier: MIT
"""The report that the demo prints at its end."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from procbus.core.text import printable
from procbus.demo.console import print_line
from procbus.demo.runs import DemoRun
from procbus.demo.store import RankedFunction, Totals, storable

_SHOWN_FAILURES = 5


def print_functions(console: Console, root: Path, functions: Sequence[RankedFunction]) -> None:
    """Print the table of the most complex functions, if there are any."""
    if not functions:
        return
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
    """Print the number of skipped files, and the reasons for the first ones."""
    if not count:
        return
    print_line(console, f"{count:,} {_files(count)} could not be read or parsed:")
    for path, reason in first:
        print_line(console, f"  {_relative(path, root)}: {reason}")
    if count > len(first):
        print_line(console, f"  and {count - len(first):,} more: see the table files in the index")


def print_runs(console: Console, runs: Sequence[DemoRun]) -> None:
    """Print the runs beside each other, and the ratio of each other one's time to the first's."""
    table = Table(title="The same job on the same files" if len(runs) > 1 else None)
    for column in ("bus", "seconds", "files/s", "workers"):
        table.add_column(column, justify="right" if column in ("seconds", "files/s") else "left")
    for run in runs:
        rate = run.files / run.seconds
        table.add_row(run.bus, f"{run.seconds:.2f}", f"{rate:,.0f}", run.workers)
    console.print(table)
    ours, *others = runs
    for other in others:
        what = f"{other.bus} ÷ {ours.bus}, in seconds, the start of its workers included"
        print_line(console, f"Ratio: {other.seconds / ours.seconds:.2f} ({what})")


def print_failures(console: Console, run: DemoRun) -> None:
    """Print unexpected failures."""
    for failure in run.failures[:_SHOWN_FAILURES]:
        print_line(console, f"{run.bus}: failed: {failure}")
    if len(run.failures) > _SHOWN_FAILURES:
        print_line(console, f"{run.bus}: {len(run.failures):,} failures in all")


def print_index(console: Console, path: str, totals: Totals) -> None:
    """Print the numbers of indexed functions and files, and the path of the index."""
    measured = totals.files - totals.skipped
    print_line(console, f"{totals.functions:,} functions in {measured:,} {_files(measured)}")
    print_line(console, f"The index is an SQLite file: {path}")


def _files(count: int) -> str:
    return "file" if count == 1 else "files"


def _relative(path: str, root: Path) -> str:
    return os.path.relpath(path, storable(str(root)))
