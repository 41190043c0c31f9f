"""Which way of running a whole job is the fastest: two lanes, all threads, all processes?

Two jobs. *Index*: Python files of the standard library are read (from memory, once the
first run has read them), parsed and stored. *Logs*: logs are fetched from a server that answers
after 10 ms, parsed and stored. Storing is always in the parent: one SQLite file, one writer.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing, contextmanager
from functools import partial
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, NamedTuple

from procbus import EventBus
from procbus.demo.files import python_files, standard_library
from procbus.demo.thread_bus import ThreadBus

from . import index_job as handlers
from . import log_job, log_set
from .index_job import FileFound, FileMeasured, FileSkipped, SourceRead
from .limit import bare_processes
from .log_job import LogCounted, LogFetched, LogListed
from .model import LIMIT, PROCBUS, PROCBUS_CPU, PROCBUS_IO, Question, Row, Settings
from .one_call import publish_result
from .open_indexes import open_index
from .ways import THREAD_BUS

INDEX, LOGS = "index 200 files of source", "fetch and count 200 logs"
FULL_COUNT = 200
Lane = Literal["io", "cpu"]


class Step(NamedTuple):
    """One handler of a job: its topics, itself, and where it belongs."""

    topics: tuple[type, ...]
    handler: Callable[..., object]
    lane: Lane
    publishes: bool


class Job(NamedTuple):
    """A job that is ready to run: its first events, its steps, and all but the last as one call."""

    events: list[Any]
    steps: list[Step]
    whole: Callable[[Any], Any]
    finished: Callable[[], None]


@contextmanager
def index_job(count: int) -> Iterator[Job]:
    """Get the index of source ready for a number of files."""
    with (
        tempfile.TemporaryDirectory(prefix="procbus-bench-") as directory,
        open_index(str(Path(directory, "index.sqlite"))) as index,
    ):
        files = list(islice(python_files(standard_library(), lambda _: None), count))

        def check() -> None:
            if index.totals().files != len(files):
                raise RuntimeError(f"{index.totals()} for {len(files)} files")

        yield Job(
            [FileFound(path, index.path) for path in files],
            [
                Step((FileFound,), handlers.read, "io", publishes=True),
                Step((SourceRead,), handlers.measure, "cpu", publishes=True),
                Step((FileMeasured, FileSkipped), handlers.store, "io", publishes=False),
            ],
            handlers.read_and_measure,
            check,
        )


@contextmanager
def logs_job(count: int) -> Iterator[Job]:
    """Get the job with logs ready."""
    with (
        log_set.log_server() as port,
        tempfile.TemporaryDirectory(prefix="procbus-bench-") as directory,
        closing(log_set.Store(str(Path(directory, "totals.sqlite")))) as store,
    ):

        def check() -> None:
            if store.requests() != count * log_set.LINES:
                raise RuntimeError(f"{store.requests()} requests in {count} logs")

        yield Job(
            [LogListed(port, number) for number in range(count)],
            [
                Step((LogListed,), log_job.fetch_log, "io", publishes=True),
                Step((LogFetched,), log_job.parse_log, "cpu", publishes=True),
                Step((LogCounted,), store.store_log, "io", publishes=False),
            ],
            log_job.fetch_and_count,
            check,
        )


JOBS = {INDEX: index_job, LOGS: logs_job}


def on_procbus(job: Job, settings: Settings, lane: Lane | None) -> None:
    """Run every step on its own lane, or all but the last on one: in a process as a single step."""
    *steps, last = job.steps
    if lane == "cpu":
        whole = partial(publish_result, job.whole)
        steps = [Step(steps[0].topics, whole, "cpu", publishes=True)]
    with EventBus([], cpu_workers=settings.workers, max_pending=1_000) as bus:
        for step in (*steps, last):
            kind = lane if lane and step.publishes else step.lane
            for topic in step.topics:
                bus.subscribe(topic, step.handler, kind=kind, name=topic.__name__)
        for event in job.events:
            bus.publish(event)
        bus.drain()
        if bus.dead_letters:
            raise RuntimeError(f"{bus.dead_letters[0]}")


def on_thread_bus(job: Job, settings: Settings) -> None:
    """Run every step on the four threads of the plain bus, or two for each core."""
    bus = ThreadBus(max(4, 2 * settings.workers))
    for step in job.steps:
        handler = partial(step.handler, publish=bus.publish) if step.publishes else step.handler
        for topic in step.topics:
            bus.subscribe(topic, handler)
    for event in job.events:
        bus.publish(event)
    bus.drain()
    bus.close()
    if bus.failures:
        raise bus.failures[0]


def on_processes(job: Job, settings: Settings) -> None:
    """Run all but the last step of an event in one process of a pool; store here."""
    store = job.steps[-1].handler
    with ProcessPoolExecutor(settings.workers) as pool:
        for future in as_completed([pool.submit(job.whole, event) for event in job.events]):
            store(future.result())


def work_on_share(pipe: Connection, whole: Callable[[Any], Any]) -> None:
    """Process body: take a share of the events, and do all but store."""
    events = pipe.recv()
    pipe.send("ready")
    pipe.recv()
    for event in events:
        whole(event)
    pipe.send("done")
    pipe.recv()  # the kill ends this wait


def seconds_of_shares(parts: Sequence[Any], work: Callable[[Any], Any], workers: int) -> float:
    """Return how long bare processes take over their shares, with no result sent or kept."""
    work(parts[0])  # imports what it needs, for all
    with bare_processes(workers, work_on_share, work) as pipes:
        for number, pipe in enumerate(pipes):
            pipe.send(parts[number::workers])
        for pipe in pipes:
            pipe.recv()
        began = perf_counter()
        for pipe in pipes:
            pipe.send("go")
        for pipe in pipes:
            pipe.recv()
        return perf_counter() - began


def seconds(run: Callable[[Job, Settings], None], settings: Settings) -> dict[str, float]:
    """Run each job once to read its files and to warm up, then once for the figure."""
    found = {}
    count = settings.count(FULL_COUNT, at_least=8)
    for name, ready in JOBS.items():
        with ready(min(count, 8)) as job:
            run(job, settings)
        with ready(count) as job:
            began = perf_counter()
            run(job, settings)
            found[name] = perf_counter() - began
            job.finished()
    return found


def limits(settings: Settings) -> dict[str, float]:
    """Measure as many processes as there are cores; waiting for the server is left out."""
    found = {}
    count = settings.count(FULL_COUNT, at_least=8)
    with index_job(count) as job:
        found[INDEX] = seconds_of_shares(job.events, job.whole, settings.workers)
    with logs_job(count) as job:
        fetched = [
            LogFetched(number, log_set.make_log(number % log_job.KINDS)) for number in range(count)
        ]
        found[LOGS] = seconds_of_shares(fetched, log_job.counted, settings.workers)
    return found


CONTENDERS: dict[str, Callable[[Job, Settings], None]] = {
    PROCBUS: partial(on_procbus, lane=None),
    PROCBUS_IO: partial(on_procbus, lane="io"),
    PROCBUS_CPU: partial(on_procbus, lane="cpu"),
    THREAD_BUS: on_thread_bus,
    "ProcessPoolExecutor": on_processes,
}
QUESTION = Question(
    name="pipelines",
    asks="Which way of running a whole job is the fastest: two lanes, threads, processes?",
    rows=(Row(INDEX, "s"), Row(LOGS, "s")),
    contenders={name: partial(seconds, run) for name, run in CONTENDERS.items()} | {LIMIT: limits},
    limit="bare processes: the cpu work alone, nothing fetched late, nothing stored",
    rounds=3,
)
