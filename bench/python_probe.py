"""Threads and processes on the Python that runs this: ``python -m bench.python_probe``.

`bench.pythons` runs it on every interpreter that it finds. It needs the standard library alone, and
measures procbus as well where that can be imported. Prints figures by row, as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from contextlib import suppress
from pathlib import Path
from statistics import median
from time import perf_counter, sleep
from typing import Any, NamedTuple

THREADS = "threads"
PROCESSES = "ProcessPoolExecutor"
INTERPRETERS = "InterpreterPoolExecutor"
LANE_IO, LANE_CPU = "procbus io", "procbus cpu"
LANE_THREADS, LANE_AUTO = "procbus cpu on threads", "procbus cpu auto"
WAYS = (THREADS, PROCESSES, INTERPRETERS, LANE_IO, LANE_CPU, LANE_THREADS, LANE_AUTO)
#: The ways that are measured with two threads that submit, too.
WAYS_FROM_TWO = (THREADS, LANE_IO, LANE_CPU, LANE_THREADS)

#: Lengths of the handlers of pure Python, by name, in ms.
LENGTHS_MS = {"10 µs": 0.01, "100 µs": 0.1, "1 ms": 1.0}
#: The length that is measured with other numbers of workers too, and these numbers; the ways.
SCALED = "1 ms"
ALONE, CROWDED = f"{SCALED}, 1 worker", f"{SCALED}, twice as many workers"
WAYS_SCALED = tuple(way for way in WAYS if way != LANE_AUTO)  # which runs like one of two others
#: Tiny handlers: events from one thread, from two; calls of publish or submit alone.
TINY, TINY_TWO = "tiny", "tiny, from 2 threads"
CALLS, CALLS_TWO = "tiny, calls alone", "tiny, calls alone, from 2 threads"
ARRAY = "100 MB"
START, MEMORY = "start", "memory"
LOOP = "loop over a handler of 1 ms"
CONVOY = "wake-up beside busy threads, p99"

#: Lengths of samples, in seconds: of the plain loop; of one way; of the events that warm it up.
LOOP_S = 0.08
CALLS_AT_A_TIME = 20  # in the loop, between two looks at the clock
SAMPLE_S = 0.15
WARM_UP_S = 0.3
MOST_EVENTS = 20_000  # in one sample
FEW_S = 0.3  # as many arrays as arrive in this time, but at least `ARRAYS`
ARRAYS = 2
ARRAY_BYTES = 100_000_000
PROBES = 150
PAUSE_S = 0.002


def row_of(way: str, what: str) -> str:
    """Name a row.

    >>> row_of(THREADS, "1 ms")
    'threads, 1 ms'
    """
    return f"{way}, {what}"


def spin(iterations: int) -> float:
    """Burn cpu in pure Python: the handler of all other questions, here without importing them."""
    x = 0.37
    for _ in range(iterations):
        x = 3.9 * x * (1.0 - x)
    return x


def tiny(event: Any) -> None:
    """Do nothing."""


def size(array: bytes) -> int:
    """Take an array, and look at it hardly."""
    return len(array)


class Pool(NamedTuple):
    """One way of running the three functions.

    Attributes:
        submit: takes a function and its event; gives what has a method `result`.
        close: ends all of it.
    """

    submit: Callable[[Callable[..., Any], Any], Any]
    close: Callable[[], object]

    def run(self, function: Callable[..., Any], event: Any, count: int) -> float:
        """Return the seconds from the first submit to the last result."""
        return self.run_from(1, function, event, count)[1]

    def run_from(
        self, threads: int, function: Callable[..., Any], event: Any, count: int
    ) -> tuple[float, float]:
        """Return the seconds from the first submit to the last one, and to the last result.

        Args:
            threads: number of threads that submit, each its share.
            function: the function that is called.
            event: its argument.
            count: number of calls.
        """
        pending: list[list[Any]] = [[] for _ in range(threads)]
        meet = threading.Barrier(threads)

        def submit_share(mine: list[Any]) -> None:
            meet.wait()
            mine += [self.submit(function, event) for _ in range(count // threads)]

        others = [threading.Thread(target=submit_share, args=(each,)) for each in pending[1:]]
        for thread in others:
            thread.start()
        began = perf_counter()
        submit_share(pending[0])
        for thread in others:
            thread.join()
        submitted_s = perf_counter() - began
        for each in pending:
            for one in each:
                one.result()
        return submitted_s, perf_counter() - began

    def count_for(
        self, seconds: float, function: Callable[..., Any], event: Any, at_least: int
    ) -> int:
        """Warm up with one function, and say how many of its calls take that long."""
        began, done = perf_counter(), 0
        while (took := perf_counter() - began) < seconds / 10:
            done += at_least
            self.run(function, event, at_least)
        return max(at_least, min(MOST_EVENTS, round(done * seconds / took)))


def executor(make: Callable[[int], Any]) -> Callable[[int], Pool]:
    """Open an executor of `concurrent.futures`."""

    def opened(workers: int) -> Pool:
        made = make(workers)
        return Pool(made.submit, made.shutdown)

    return opened


def lane(kind: str, **options: Any) -> Callable[[int], Pool]:
    """Open one of procbus's lanes, with a topic for each function."""

    def opened(workers: int) -> Pool:
        from procbus import EventBus

        bus = EventBus([], cpu_workers=workers, io_workers=workers, **options)
        given: Any = {"kind": kind}
        for function in (spin, tiny, size):
            bus.subscribe(function.__name__, function, **given)
        if kind == "cpu":
            bus.start()
        return Pool(lambda function, event: bus.publish(function.__name__, event), bus.close)

    return opened


def ways() -> Iterator[tuple[str, Callable[[int], Pool]]]:
    """The ways that this interpreter has."""
    yield THREADS, executor(futures.ThreadPoolExecutor)
    yield PROCESSES, executor(futures.ProcessPoolExecutor)
    if hasattr(futures, INTERPRETERS):  # from 3.14 on
        yield INTERPRETERS, executor(getattr(futures, INTERPRETERS))
    try:
        import cloudpickle  # noqa: F401
        import loky  # noqa: F401
        import psutil  # noqa: F401
    except ImportError as error:  # made for another Python than this one
        print(f"procbus is left out: {error}", file=sys.stderr)
        return
    once = lane("cpu")(1)  # imports what a bus imports on first use
    once.run(tiny, 0, 1)
    once.close()
    yield LANE_IO, lane("io")
    yield LANE_CPU, lane("cpu")
    yield LANE_THREADS, lane("cpu", cpu="threads")
    yield LANE_AUTO, lane("cpu", cpu="auto")


def private_bytes() -> int:
    """Memory that this process and its descendants share with no other; 0 if unknown."""
    pids, total = [os.getpid()], 0
    for pid in pids:  # grows meanwhile
        with suppress(OSError):  # it has ended, or this is not Linux
            for task in Path(f"/proc/{pid}/task").iterdir():
                pids += map(int, (task / "children").read_text().split())
            fields = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += sum(
                int(field.split()[1]) * 1024 for field in fields if field.startswith("Private_")
            )
    return total


def figures_of(
    way: str, opened: Callable[[int], Pool], spins_per_ms: int, workers: int, scale: float
) -> Iterator[tuple[str, float]]:
    """Measure one way."""
    before, began = private_bytes(), perf_counter()
    pool = opened(workers)
    try:
        pool.submit(tiny, 0).result()
        yield row_of(way, START), (perf_counter() - began) * 1e3
        warm_up(pool, spins_per_ms, workers, scale)
        if before:
            yield row_of(way, MEMORY), max(0.0, private_bytes() - before) / workers / 1e6
        for name, length_ms in LENGTHS_MS.items():
            iterations = max(1, round(spins_per_ms * length_ms))
            yield row_of(way, name), speed_up(pool, iterations, 2 * workers, scale)
        yield from rates_of(way, pool, 2 * workers, scale)
        array = bytes(max(1, round(ARRAY_BYTES * min(1.0, scale))))
        pool.run(size, array, 1)
        times: list[float] = []
        while len(times) < ARRAYS or sum(times) < FEW_S * scale:
            times.append(pool.run(size, array, 1))
        yield row_of(way, ARRAY), median(times) * 1e3
    finally:
        pool.close()


def scaled_figures_of(
    way: str, opened: Callable[[int], Pool], spins_per_ms: int, workers: int, scale: float
) -> Iterator[tuple[str, float]]:
    """Measure one way with other numbers of workers."""
    iterations = max(1, round(spins_per_ms * LENGTHS_MS[SCALED]))
    for what, count in ((ALONE, 1), (CROWDED, 2 * workers)):
        pool = opened(count)
        try:
            warm_up(pool, spins_per_ms, count, scale / 2)
            yield row_of(way, what), speed_up(pool, iterations, 2 * count, scale)
        finally:
            pool.close()


def warm_up(pool: Pool, spins_per_ms: int, workers: int, scale: float) -> None:
    """Give a pool long calls, long enough for all its workers to start."""
    iterations = max(1, round(spins_per_ms * 20 * min(1.0, scale)))
    until = perf_counter() + WARM_UP_S * min(1.0, scale)
    pool.run(spin, iterations, 4 * workers)
    while perf_counter() < until:
        pool.run(spin, iterations, 4 * workers)


def speed_up(pool: Pool, iterations: int, at_least: int, scale: float) -> float:
    """Return how many times as fast as a loop, just before, a pool is."""
    count = pool.count_for(SAMPLE_S * scale, spin, iterations, at_least)
    alone_s = loop_s(iterations, scale)
    return alone_s * count / pool.run(spin, iterations, count)


def rates_of(way: str, pool: Pool, at_least: int, scale: float) -> Iterator[tuple[str, float]]:
    """Measure how many events a second go to handlers that do nothing."""
    count = pool.count_for(SAMPLE_S * scale, tiny, 0, at_least)
    count -= count % 2
    submitted_s, done_s = pool.run_from(1, tiny, 0, count)
    yield row_of(way, TINY), count / done_s
    if way in WAYS_FROM_TWO:
        yield row_of(way, CALLS), count / submitted_s
        submitted_s, done_s = pool.run_from(2, tiny, 0, count)
        yield row_of(way, TINY_TWO), count / done_s
        yield row_of(way, CALLS_TWO), count / submitted_s


def loop_s(iterations: int, scale: float) -> float:
    """Return the seconds of one call in a plain loop."""
    began, done = perf_counter(), 0
    while (took := perf_counter() - began) < LOOP_S * scale or not done:
        for _ in range(CALLS_AT_A_TIME):
            spin(iterations)
        done += CALLS_AT_A_TIME
    return took / done


def convoy_us(iterations: int, probes: int, workers: int) -> float:
    """Return how late a thread wakes up from a short sleep while others compute: p99 in µs."""
    stopping = threading.Event()

    def burn() -> None:
        while not stopping.is_set():
            spin(iterations)

    threads = [threading.Thread(target=burn) for _ in range(workers)]
    for thread in threads:
        thread.start()
    late = []
    for _ in range(probes):
        began = perf_counter()
        sleep(PAUSE_S)
        late.append(perf_counter() - began - PAUSE_S)
    stopping.set()
    for thread in threads:
        thread.join()
    late.sort()
    return late[min(len(late) - 1, round(0.99 * len(late)))] * 1e6


def main(arguments: Sequence[str]) -> dict[str, float]:
    """Measure everything that this interpreter has.

    Args:
        arguments: iterations of `spin` in a ms, the number of workers, and the scale of the run.
    """
    spins_per_ms, workers, scale = int(arguments[0]), int(arguments[1]), float(arguments[2])
    found: dict[str, float] = {}
    for way, opened in ways():
        found.update(figures_of(way, opened, spins_per_ms, workers, scale))
        if way in WAYS_SCALED:
            found.update(scaled_figures_of(way, opened, spins_per_ms, workers, scale))
    found[LOOP] = 1 / loop_s(spins_per_ms, scale)
    probes = max(10, round(PROBES * scale))
    found[CONVOY] = convoy_us(10 * spins_per_ms, probes, workers)
    return found


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1:])), flush=True)
