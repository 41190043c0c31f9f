# SPDX-License-Identifier: MIT
"""The demo from start to end: index a tree on procbus, then on what one takes instead; report."""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console

from procbus.demo import DemoError
from procbus.demo.console import print_line
from procbus.demo.files import python_files, standard_library
from procbus.demo.report import (
    print_failures,
    print_functions,
    print_index,
    print_runs,
    print_skipped,
)
from procbus.demo.runs import DemoRun, run_on_procbus, run_on_processes, run_on_thread_bus
from procbus.demo.store import Totals, open_index

_SHOWN_FUNCTIONS = 10
_SHOWN_SKIPPED = 5
_WIDTH_OF_NO_TERMINAL = 120


@dataclass(frozen=True)
class DemoOptions:
    """The options of a run.

    Attributes:
        root: directory to index; None for the standard library.
        output: path of the index; None for a new file in the directory for temporary files.
        limit: index at most this many files; None for all.
        cpu_workers: processes of the cpu lane; None for one for each core.
        compare: whether to run on a thread-pool bus and on a pool of processes too.
    """

    root: Path | None = None
    output: Path | None = None
    limit: int | None = None
    cpu_workers: int | None = None
    compare: bool = True


def run_demo(options: DemoOptions) -> int:
    """Run the demo. Its report goes to standard output, its progress to standard error.

    Returns:
        The exit status: 0, or 1 when a handler failed or the runs disagree.

    Raises:
        DemoError: there is nothing to index, or the index cannot be written.
    """
    report = Console(width=None if sys.stdout.isatty() else _WIDTH_OF_NO_TERMINAL)
    progress = Console(stderr=True)
    root = Path(os.path.abspath(options.root or standard_library()))
    files = _find(root, options.limit, progress)
    with _output(options.output) as path, open_index(path) as index:
        print_line(progress, f"Indexing {len(files):,} Python files of {root}")
        runs = [run_on_procbus(files, index, options.cpu_workers, progress)]
        totals = index.totals()
        agree = True
        # A file that killed a worker process would kill this process if it were measured on a
        # thread.
        measurable = [file for file in files if file not in runs[0].failed_files]
        if options.compare and measurable:
            for run_on in (
                run_on_thread_bus,
                partial(run_on_processes, workers=options.cpu_workers),
            ):
                run, their_totals = _compare(run_on, measurable, progress)
                runs.append(run)
                agree = agree and their_totals == totals
        print_functions(report, root, index.most_complex(_SHOWN_FUNCTIONS))
        print_skipped(report, root, totals.skipped, index.skipped(_SHOWN_SKIPPED))
        print_runs(report, runs)
        for run in runs:
            print_failures(report, run)
        if not agree:
            print_line(report, "The runs found different things: did files change meanwhile?")
        print_index(report, path, totals)
    return 0 if agree and not any(run.failures for run in runs) else 1


def _find(root: Path, limit: int | None, console: Console) -> list[str]:
    def report(error: OSError) -> None:
        print_line(console, f"cannot list {error.filename}: {error.strerror}")

    files = list(itertools.islice(python_files(root, report), limit))
    if not files:
        raise DemoError(f"no Python files in {root}: name a directory that has some")
    return files


def _compare(
    run_on: Callable[..., DemoRun], files: list[str], console: Console
) -> tuple[DemoRun, Totals]:
    """Run elsewhere, into a temporary index."""
    with tempfile.TemporaryDirectory(prefix="procbus-demo-") as directory:
        path = os.path.join(directory, "index.sqlite")
        with open_index(path) as index:
            return run_on(files, index, console=console), index.totals()


@contextmanager
def _output(path: Path | None) -> Iterator[str]:
    """The path for the index: the given one, or a new file that stays only if the run completes."""
    if path is not None:
        yield str(path)
        return
    descriptor, name = tempfile.mkstemp(prefix="procbus-demo-", suffix=".sqlite")
    os.close(descriptor)
    try:
        yield name
    except BaseException:
        os.unlink(name)
        raise
