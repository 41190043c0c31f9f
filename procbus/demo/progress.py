# SPDX-License-Identifier: MIT
"""Progress of a run: a bar on a terminal, and a line at each quarter elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from procbus.demo.console import print_line


class ShowDone(Protocol):
    """Takes the number of files done so far. Called from one thread."""

    def __call__(self, done: int) -> None:
        """Show that `done` files are done."""


@contextmanager
def showing_progress(console: Console, what: str, total: int) -> Iterator[ShowDone]:
    """Show progress while the block runs.

    Args:
        console: the console to write to. If it is no terminal, it gets whole lines only.
        what: name of the run.
        total: number of files in the run.
    """
    if not console.is_terminal:
        yield _line_at_each_quarter(console, what, total)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("files"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(what, total=total)

        def show(done: int) -> None:
            progress.update(task, completed=done)

        yield show


def _line_at_each_quarter(console: Console, what: str, total: int) -> ShowDone:
    shown = 0

    def show(done: int) -> None:
        nonlocal shown
        quarter = 4 * done // total
        if quarter > shown:
            shown = quarter
            print_line(console, f"{what}: {done:,} of {total:,} files")

    return show
