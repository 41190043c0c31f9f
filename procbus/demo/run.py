# SPDX-License-Identifier: MIT
"""The demo from start to end: one job four ways, then four accidents."""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from procbus import EventBus
from procbus.core.text import printable
from procbus.demo import DemoError
from procbus.demo.files import python_files, standard_library
from procbus.demo.page import Printout
from procbus.demo.report import (
    noun_of_files,
    show_failures,
    show_functions,
    show_runs,
    show_skipped,
)
from procbus.demo.scenes import hang, killed, resume, wrong_kind
from procbus.demo.store import Index
from procbus.demo.ways import WAYS, DoneJob, Way, run

_SCENES = (
    ("A worker is killed in the middle", killed.play),
    ("A handler hangs", hang.play),
    ("kill -9 of the whole script", resume.play),
    ("A handler of the wrong kind", wrong_kind.play),
)
_SHOWN_FUNCTIONS = 5
_SHOWN_SKIPPED = 3
_TESTS = frozenset({"idle_test", "test", "tests"})


@dataclass(frozen=True)
class DemoOptions:
    """The options of a run.

    Attributes:
        root: directory to measure; None for the standard library without its tests, and then the
            accidents.
        output: path of the index; None to keep no index.
        limit: measure at most this many files; None for all.
        cpu_workers: processes of procbus and of the pool; None for one for each core.
        compare: whether to do the job in three other ways too, and not on procbus alone.
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
        DemoError: there is nothing to measure, or the index cannot be written.
    """
    page = Printout()
    workers = options.cpu_workers or _usable_cores()
    scenes = list(_SCENES) if options.root is None and options.compare else []
    try:
        status = _do_the_job(page, options, workers)
        for number, (title, play) in enumerate(_SCENES[: len(scenes)], 2):
            page.head(f"{number}. {title}")
            play(page, workers)
            del scenes[0]
    except (KeyboardInterrupt, SystemExit):
        if scenes:
            titles = "; ".join(title for title, _ in scenes)
            print(f"procbus demo: stopped; not shown to the end: {titles}", file=sys.stderr)
        raise
    _say_how_to_go_on(page)
    return status


def _do_the_job(page: Printout, options: DemoOptions, workers: int) -> int:
    root = Path(os.path.abspath(options.root or standard_library()))
    files = _find(root, options)
    ways = [way for way in WAYS if options.compare or way.name == "procbus"]
    kept = str(options.output) if options.output else None
    with tempfile.TemporaryDirectory(prefix="procbus-demo-") as folder:
        if kept:
            Index(kept).close()  # refused before the work if it cannot be written
        page.head(f"1. One job, {len(ways)} ways" if len(ways) > 1 else "1. One job")
        page.say(
            f"Parse {len(files):,} Python {noun_of_files(len(files))} of {root}, measure each "
            f"function, and store that in SQLite. Cores: {workers}."
        )
        page.line()
        runs, totals = [], set()
        for way in ways:
            path = kept if kept and way.name == "procbus" else f"{folder}/{way.name}.sqlite"
            with closing(Index(path)) as index:
                done = _run(page, way, files, index, workers)
                runs.append(done)
                totals.add(index.totals())
                if way.name == "procbus":
                    functions = index.most_complex(_SHOWN_FUNCTIONS)
                    skipped = index.skipped(_SHOWN_SKIPPED)
                    of_procbus = index.totals()
    show_functions(page, root, functions)
    show_skipped(page, root, of_procbus.skipped, skipped)
    if len(runs) > 1:
        show_runs(page, runs, workers)
    for each in runs:
        show_failures(page, each)
    if len(totals) > 1:
        page.say("The ways found different things: did files change meanwhile?")
    if kept:
        page.line(f"The functions are in an SQLite file: {kept}")
    return 0 if len(totals) == 1 and not any(each.failures for each in runs) else 1


def _run(page: Printout, way: Way, files: list[str], index: Index, workers: int) -> DoneJob:
    with page.counting(way.name, len(files)) as show:
        done = run(way, files, index, workers, show)
    page.line(f"{way.name}: {done.seconds:.2f} s")
    return done


def _find(root: Path, options: DemoOptions) -> list[str]:
    def report(error: OSError) -> None:
        print(printable(f"cannot list {error.filename}: {error.strerror}"), file=sys.stderr)

    found = python_files(root, report)
    if options.root is None:
        found = (path for path in found if _TESTS.isdisjoint(Path(path).parts))
    files = list(itertools.islice(found, options.limit))
    if not files:
        raise DemoError(f"no Python files in {root}: name a directory that has some")
    return files


def _usable_cores() -> int:
    """The number of cores that this process may use, as a bus counts them. Starts no worker."""
    with EventBus([]) as bus:
        bus.start()
        return bus.stats().lanes["cpu"].workers


def _say_how_to_go_on(page: Printout) -> None:
    page.head("How to go on")
    page.line("pip install procbus        then docs/tutorial.md")
    page.line("procbus demo DIR           the same job on your own code")
    page.line("procbus profile SCRIPT.py  which kind suits your handlers")
