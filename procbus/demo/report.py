# SPDX-License-Identifier: MIT
"""The report of the demo on its runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from procbus.demo.page import Printout
from procbus.demo.store import RankedFunction, storable
from procbus.demo.ways import DoneJob

_SHOWN_FAILURES = 5
_LAST_COLUMN = "the most complex functions"


def show_functions(page: Printout, root: Path, functions: Sequence[RankedFunction]) -> None:
    """Show the most complex functions, if there are any."""
    if not functions:
        return
    rows = [
        [f"{each.complexity:,}", f"{each.length:,}", _place(each, root)[: page.width - 19]]
        for each in functions
    ]
    page.table(["complexity", "lines", _LAST_COLUMN], rows, left=[_LAST_COLUMN])


def _place(function: RankedFunction, root: Path) -> str:
    return f"{function.name}  {_relative(function.path, root)}:{function.line}"


def show_skipped(page: Printout, root: Path, count: int, first: Sequence[tuple[str, str]]) -> None:
    """Show the number of skipped files, and the reasons for the first ones."""
    if not count:
        return
    page.line(f"{count:,} {noun_of_files(count)} could not be read or parsed:")
    for path, reason in first:
        page.line(f"  {_relative(path, root)}: {reason}")
    if count > len(first):
        page.line(f"  and {count - len(first):,} more")


def show_runs(page: Printout, runs: Sequence[DoneJob], workers: int) -> None:
    """Show the runs beside each other, and explain the figures."""
    rows = [
        [
            run.way.name,
            f"{run.seconds:.2f}",
            "-" if run.cores is None else f"{run.cores / workers:.0%}",
            run.way.a_crash_loses,
        ]
        for run in runs
    ]
    page.table(["", "seconds", "of the cores", "a crash loses"], rows, left=["", "a crash loses"])
    for sentence in explained(runs):
        page.say(sentence)


def explained(runs: Sequence[DoneJob]) -> list[str]:
    """Say which run was the fastest, and why the others were not."""
    by_name = {run.way.name: run for run in runs}
    ours, fastest = by_name["procbus"], min(runs, key=lambda run: run.seconds)
    said = []
    if fastest is not ours:
        more = ours.seconds / fastest.seconds - 1
        said.append(f"{fastest.way.name} was the fastest; procbus took {more:.0%} longer.")
    if fastest.way.name == "ProcessPoolExecutor":
        said.append(
            "The pool forks its processes from this one and sends files in groups. procbus starts "
            "fresh processes and keeps an account of each event, which pays off below."
        )
    if "thread-pool bus" in by_name:
        said.append(
            "The thread-pool bus can only lose here: the GIL lets one of its threads compute at a "
            "time. The same bus is fine for handlers that wait."
            if _has_gil()
            else "This Python has no GIL, so the threads of the thread-pool bus compute side by "
            'side. There procbus can use threads too: EventBus(cpu="threads").'
        )
    return said


def show_failures(page: Printout, run: DoneJob) -> None:
    """Show unexpected failures."""
    for failure in run.failures[:_SHOWN_FAILURES]:
        page.line(f"{run.way.name}: failed: {failure}")
    if len(run.failures) > _SHOWN_FAILURES:
        page.line(f"{run.way.name}: {len(run.failures):,} failures in all")


def noun_of_files(count: int) -> str:
    """The noun for a number of files: "file" or "files"."""
    return "file" if count == 1 else "files"


def _has_gil() -> bool:
    return getattr(sys, "_is_gil_enabled", lambda: True)()


def _relative(path: str, root: Path) -> str:
    return os.path.relpath(path, storable(str(root)))
