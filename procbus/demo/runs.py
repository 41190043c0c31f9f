# SPDX-License-Identifier: MIT
"""The same job over the same files: on procbus, on a pool of processes, on a thread-pool bus."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context

from rich.console import Console

from procbus import EventBus
from procbus.demo import handlers
from procbus.demo.console import print_line
from procbus.demo.handlers import FileFound, FileMeasured, FileSkipped, SourceRead
from procbus.demo.progress import ShowDone, showing_progress
from procbus.demo.store import Index
from procbus.demo.thread_bus import ThreadBus
from procbus.system.cores import usable_cores

_MAX_PENDING = 1_000  # files on their way at once: their texts are in memory
_GLANCE_S = 0.1  # how often the main thread looks at the progress, in seconds
_CHUNK = 4  # files that a process of the pool takes at once


@dataclass(frozen=True)
class DemoRun:
    """One run of the handlers over all files.

    Attributes:
        bus: name of the bus, or of the pool, that it ran on.
        seconds: from making the bus, its workers included, until the last file was stored.
        files: number of files.
        workers: the workers that handled them, in words.
        failures: errors and deaths in handlers, of which there should be none: a line each.
        failed_files: the files at which they happened, as far as known.
    """

    bus: str
    seconds: float
    files: int
    workers: str
    failures: tuple[str, ...] = ()
    failed_files: frozenset[str] = frozenset()


def run_on_procbus(
    files: Sequence[str], index: Index, cpu_workers: int | None, console: Console
) -> DemoRun:
    """Run the handlers on procbus: reading and storing on threads, measuring on processes."""
    started = time.perf_counter()
    with (
        _running("procbus", files, index, console) as show,
        EventBus([handlers], cpu_workers=cpu_workers, max_pending=_MAX_PENDING) as bus,
    ):
        for path in files:
            bus.publish(FileFound(path, index.path))
            show(index.files)
        while not bus.drain(timeout=_GLANCE_S):
            show(index.files)
        seconds = time.perf_counter() - started
        show(index.files)
        stats = bus.stats()
        letters = bus.dead_letters
    workers = {kind: lane.workers for kind, lane in stats.lanes.items()}
    return DemoRun(
        "procbus",
        seconds,
        len(files),
        f"{workers['cpu']} cpu (processes), {workers['io']} io (threads)",
        failures=tuple(f"{letter.event.path}: {letter.outcome.error!r}" for letter in letters),
        failed_files=frozenset(letter.event.path for letter in letters),
    )


def run_on_processes(
    files: Sequence[str], index: Index, workers: int | None, console: Console
) -> DemoRun:
    """Read and measure each file in a process of a pool, and store the results here."""
    started = time.perf_counter()
    name = ProcessPoolExecutor.__name__
    workers = workers or usable_cores()
    failures: tuple[str, ...] = ()
    with _process_pool(workers) as pool:
        # The processes are forked here: before there is a thread that shows the progress.
        found = [FileFound(path, index.path) for path in files]
        results = pool.map(handlers.read_and_measure, found, chunksize=_CHUNK)
        with _running(name, files, index, console) as show:
            try:
                for result in results:
                    handlers.store(result)
                    show(index.files)
            except Exception as error:  # noqa: BLE001 - reported as any failure of a handler
                failures = (f"{type(error).__name__}: {error}",)
    seconds = time.perf_counter() - started
    return DemoRun(name, seconds, len(files), f"{workers} (processes)", failures)


@contextmanager
def _process_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    # Forked, as by default before Python 3.14, because that starts soonest. With a fork server, the
    # default since then, the pool hangs after SIGTERM to the whole process group.
    context = get_context("fork") if sys.platform == "linux" else None
    pool = ProcessPoolExecutor(workers, context, initializer=_leave_signals_to_the_script)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _leave_signals_to_the_script() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def run_on_thread_bus(files: Sequence[str], index: Index, console: Console) -> DemoRun:
    """Run the handlers on the thread-pool bus: all of them on its four threads."""
    started = time.perf_counter()
    with _running("thread-pool bus", files, index, console) as show, _thread_bus() as bus:
        bus.subscribe(FileFound, partial(handlers.read, publish=bus.publish))
        bus.subscribe(SourceRead, partial(handlers.measure, publish=bus.publish))
        bus.subscribe(FileMeasured, handlers.store)
        bus.subscribe(FileSkipped, handlers.store)
        for path in files:
            bus.publish(FileFound(path, index.path))
        # It handles events in the order of publishing, so all files are stored at the very end. The
        # progress shown is a third of its events.
        while not bus.drain(timeout=_GLANCE_S):
            show(min(bus.handled // 3, len(files)))
        seconds = time.perf_counter() - started
        show(len(files))
        failures = tuple(f"{type(error).__name__}: {error}" for error in bus.failures)
        return DemoRun("thread-pool bus", seconds, len(files), f"{bus.workers} (threads)", failures)


@contextmanager
def _thread_bus() -> Iterator[ThreadBus]:
    bus = ThreadBus()
    try:
        yield bus
    except BaseException:
        bus.close(cancel=True)
        raise
    bus.close()


@contextmanager
def _running(bus: str, files: Sequence[str], index: Index, console: Console) -> Iterator[ShowDone]:
    """Show the progress of a run; if it is stopped, print how many files were not indexed."""
    try:
        with showing_progress(console, bus, len(files)) as show:
            yield show
    except (KeyboardInterrupt, SystemExit):
        left = len(files) - index.files
        print_line(console, f"{bus}: stopped; {left:,} of {len(files):,} files were not indexed")
        raise
