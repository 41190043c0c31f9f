"""Three whole jobs that scripts have, each as a good user of each library would write it.

*Thumbnails*: photographs are made small with Pillow, which lets go of the GIL. *Rows*: a CSV file
is parsed and checked, and one writer puts its rows into SQLite. *Log*: a regular expression matches
every line of a log. The start of the workers is in the figures, as it is in your script. The files
are in memory, because they have just been written.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, NamedTuple

from procbus import EventBus

from . import job_work
from .model import LIMIT, PROCBUS, Question, Row, Settings, Target
from .pipelines import seconds_of_shares
from .ways import SERIAL

PROCESSES, JOBLIB = "ProcessPoolExecutor", "joblib"
THUMBNAILS, ROWS, LOG = "thumbnails of 400 photographs", "60 MB of CSV into SQLite", "300 MB of log"
PHOTOS, CSV_MB, LOG_MB = 400, 60, 300
#: Chunks that each process of a pool gets.
CHUNKS = 16


class Job(NamedTuple):
    """A job that is ready to run.

    Attributes:
        parts: its work, in parts.
        work: does one part. Any process may call it.
        keep: takes a result, in the script.
        finished: raises RuntimeError unless all of it is done.
        lane: where procbus does it: threads, if it lets go of the GIL.
    """

    parts: list[Any]
    work: Callable[[Any], Any]
    keep: Callable[[Any], object]
    finished: Callable[[], None]
    lane: Literal["io", "cpu"] = "cpu"


@contextmanager
def thumbnails(settings: Settings) -> Iterator[Job]:
    """Get the photographs ready."""
    with tempfile.TemporaryDirectory(prefix="procbus-bench-") as directory:
        photos = job_work.write_photos(Path(directory), settings.count(PHOTOS, at_least=4))
        made: set[str] = set()

        def check() -> None:
            _check(made == {photo.thumbnail for photo in photos if os.path.exists(photo.thumbnail)})
            _check(len(made) == len(photos))

        yield Job(photos, job_work.make_thumbnail, made.add, check, "io")


@contextmanager
def rows(settings: Settings) -> Iterator[Job]:
    """Get the CSV file and the database ready."""
    with tempfile.TemporaryDirectory(prefix="procbus-bench-") as directory:
        file = Path(directory, "orders.csv")
        job_work.write_csv(file, int(settings.scale * CSV_MB * 1_000_000))
        with closing(sqlite3.connect(Path(directory, "orders.sqlite"))) as database:
            database.execute(
                "CREATE TABLE orders (number INTEGER PRIMARY KEY, at TEXT, customer TEXT,"
                " cents INTEGER, country TEXT)"
            )

            def keep(found: list[job_work.Row]) -> None:
                database.executemany("INSERT INTO orders VALUES (?, ?, ?, ?, ?)", found)

            def check() -> None:
                count = database.execute("SELECT count(*) FROM orders").fetchone()[0]
                _check(count == file.read_bytes().count(b"\n"))

            yield Job(
                list(job_work.blocks(file, job_work.CSV_BLOCK)), job_work.parse_rows, keep, check
            )


@contextmanager
def log(settings: Settings) -> Iterator[Job]:
    """Get the log ready."""
    with tempfile.TemporaryDirectory(prefix="procbus-bench-") as directory:
        file = Path(directory, "server.log")
        job_work.write_log(file, int(settings.scale * LOG_MB * 1_000_000))
        errors: Counter[str] = Counter()

        def check() -> None:
            _check(errors.total() == file.read_bytes().count(b'" 500 '))

        yield Job(
            list(job_work.blocks(file, job_work.LOG_BLOCK)),
            job_work.count_errors,
            errors.update,
            check,
        )


def _check(done: bool) -> None:
    if not done:
        raise RuntimeError("the job is not done: something was lost, or done twice")


def in_a_loop(job: Job, _workers: int) -> None:
    """Do one part after the other."""
    for part in job.parts:
        job.keep(job.work(part))


def on_processes(job: Job, workers: int) -> None:
    """Map the parts over a pool, in chunks."""
    chunk = max(1, len(job.parts) // (CHUNKS * workers))
    with ProcessPoolExecutor(workers) as pool:
        for result in pool.map(job.work, job.parts, chunksize=chunk):
            job.keep(result)


def on_joblib(job: Job, workers: int) -> None:
    """Run the parts in parallel, on threads if they let go of the GIL; joblib sizes the batches."""
    from joblib import Parallel, delayed

    prefer = "threads" if job.lane == "io" else "processes"
    parallel = Parallel(n_jobs=workers, prefer=prefer, return_as="generator")
    for result in parallel(delayed(job.work)(part) for part in job.parts):
        job.keep(result)


def on_procbus(job: Job, workers: int) -> None:
    """Stream the parts through one handler."""
    with EventBus([], io_workers=workers, cpu_workers=workers) as bus:
        bus.subscribe(type(job.parts[0]), job.work, kind=job.lane)
        for receipt in bus.stream(job.parts):
            job.keep(receipt.result())


JOBS: dict[str, Callable[[Settings], Any]] = {ROWS: rows, LOG: log}
if find_spec("PIL"):
    JOBS = {THUMBNAILS: thumbnails, **JOBS}


def seconds(run: Callable[[Job, int], None], settings: Settings) -> dict[str, float]:
    """Run each job once, on workers that start for it."""
    if find_spec("joblib"):
        import joblib  # noqa: F401 - as at the top of a script, before the time counts
    found = {}
    for name, ready in JOBS.items():
        with ready(settings) as job:
            job.work(job.parts[0])  # imports what it needs
            began = perf_counter()
            run(job, settings.workers)
            found[name] = perf_counter() - began
            job.finished()
        end_workers_of_joblib()
    return found


def end_workers_of_joblib() -> None:
    """End the workers that joblib keeps for the next call, so that none does the next job."""
    if loky := sys.modules.get("joblib.externals.loky"):
        loky.get_reusable_executor().shutdown(kill_workers=True)


def limits(settings: Settings) -> dict[str, float]:
    """Measure as many processes as there are cores, each with its share of the parts."""
    found = {}
    for name, ready in JOBS.items():
        with ready(settings) as job:
            found[name] = seconds_of_shares(job.parts, job.work, settings.workers)
    return found


RUNS: dict[str, Callable[[Job, int], None]] = {
    PROCBUS: on_procbus,
    SERIAL: in_a_loop,
    PROCESSES: on_processes,
    JOBLIB: on_joblib,
}
TARGETS = tuple(Target(1, at_least=False, against=name) for name in (PROCESSES, JOBLIB))
QUESTION = Question(
    name="whole_jobs",
    asks="How long do three jobs of scripts take, from the start of the workers to the end?",
    rows=tuple(Row(name, "s", TARGETS) for name in JOBS),
    contenders={name: partial(seconds, run) for name, run in RUNS.items()} | {LIMIT: limits},
    limit="bare processes that have started, a share of the parts each; results are dropped",
    rounds=3,
    not_here=() if THUMBNAILS in JOBS else ("thumbnails (Pillow)",),
)
