# SPDX-License-Identifier: MIT
"""One job, four ways: a plain loop, a ProcessPoolExecutor, a thread-pool bus and procbus.

Each way calls the same functions on the same files: `measure_file` parses a file, which takes
the time, and `Index.store` writes the result to an SQLite file of this process.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context

from procbus import EventBus
from procbus.demo.job import FileFound, FileMeasured, measure, measure_file
from procbus.demo.page import ShowDone
from procbus.demo.store import Index
from procbus.demo.thread_bus import ThreadBus

_MAX_PENDING = 1_000  # files on their way at once
_GLANCE_S = 0.1  # how often the main thread looks at the progress, in seconds
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_CHUNK = 4  # files that a process of the pool takes at once


def plain_loop(files: Sequence[str], index: Index, _workers: int, show: ShowDone) -> list[str]:
    """Measure and store one file after the other."""
    for path in files:
        index.store(measure_file(path))
        show(index.files)
    return []


def process_pool(files: Sequence[str], index: Index, workers: int, show: ShowDone) -> list[str]:
    """Measure in the processes of a pool, and store here."""
    with own_process_pool(workers) as pool:
        for measured in pool.map(measure_file, files, chunksize=_CHUNK):
            index.store(measured)
            show(index.files)
    return []


def thread_bus(files: Sequence[str], index: Index, _workers: int, show: ShowDone) -> list[str]:
    """Measure and store with two handlers on a bus of four threads."""
    with _thread_bus() as bus:
        bus.subscribe(FileFound, lambda found: bus.publish(measure_file(found.path)))
        bus.subscribe(FileMeasured, index.store)
        for path in files:
            bus.publish(FileFound(path))
        # It handles events in the order of publishing, so all files are stored at the very
        # end: half of its events stands for the files done.
        while not bus.drain(timeout=_GLANCE_S):
            show(bus.handled // 2)
        return [f"{type(error).__name__}: {error}" for error in bus.failures]


def on_procbus(files: Sequence[str], index: Index, workers: int, show: ShowDone) -> list[str]:
    """Measure and store with two handlers on procbus: one in processes, one on threads."""
    with EventBus([], cpu_workers=workers, max_pending=_MAX_PENDING) as bus:
        bus.subscribe(FileFound, measure, kind="cpu")
        bus.subscribe(FileMeasured, index.store, kind="io", name="store")
        for path in files:
            bus.publish(FileFound(path))
            show(index.files)
        while not bus.drain(timeout=_GLANCE_S):
            show(index.files)
        return [f"{letter.event.path}: {letter.outcome.error}" for letter in bus.dead_letters]


@dataclass(frozen=True)
class Way:
    """A way to do the job.

    Attributes:
        name: the name of the way in the table.
        do: does the job, and returns its failures, a line each.
        a_crash_loses: the loss if the code that measures a file crashes its process.
    """

    name: str
    do: Callable[[Sequence[str], Index, int, ShowDone], list[str]]
    a_crash_loses: str


WAYS = (
    Way("plain loop", plain_loop, "the script"),
    Way("ProcessPoolExecutor", process_pool, "the pool"),
    Way("thread-pool bus", thread_bus, "the script"),
    Way("procbus", on_procbus, "one file"),
)


@dataclass(frozen=True)
class DoneJob:
    """One run of the job.

    Attributes:
        way: the way in which the job was done.
        seconds: from making the pool or bus until its end, its workers' start included.
        cores: cores that were busy on average; None where the system does not tell.
        failures: errors and deaths, of which there should be none: a line each.
    """

    way: Way
    seconds: float
    cores: float | None
    failures: list[str]


def run(way: Way, files: Sequence[str], index: Index, workers: int, show: ShowDone) -> DoneJob:
    """Do the job one way, and measure it."""
    cpu_s, began_at = _cpu_s(), time.perf_counter()
    failures = way.do(files, index, workers, show)
    seconds = time.perf_counter() - began_at
    # Windows tells nothing of processes that have ended.
    cores = None if sys.platform == "win32" else (_cpu_s() - cpu_s) / seconds
    return DoneJob(way, seconds, cores, failures)


def _cpu_s() -> float:
    """CPU time of this process, and of its processes that have ended, in seconds."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


@contextmanager
def own_process_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """A pool that ends with the block, and leaves signals to the script."""
    # Forked, as by default before Python 3.14, because that starts soonest. With a fork server, the
    # default since then, the pool hangs after SIGTERM to the whole process group.
    context = get_context("fork") if sys.platform == "linux" else None
    pool = ProcessPoolExecutor(workers, context, initializer=_take_signals_as_a_worker)
    try:
        with _signals_later():
            pool.submit(int).result()  # now its processes have started
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _signals_later() -> Iterator[None]:
    """Hold signals back: amid a fork, one may leave a lock of Python locked for ever."""
    if sys.platform == "win32":
        yield
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def _take_signals_as_a_worker() -> None:
    """Leave Ctrl-C to the script; end at SIGTERM, by which a pool ends its other processes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


@contextmanager
def _thread_bus() -> Iterator[ThreadBus]:
    bus = ThreadBus()
    try:
        yield bus
    except BaseException:
        bus.close(cancel=True)
        raise
    bus.close()
