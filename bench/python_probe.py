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
LANE_IO, LANE_CPU, LANE_THREADS = "procbus io", "procbus cpu", "procbus cpu on threads"
WAYS = (THREADS, PROCESSES, INTERPRETERS, LANE_IO, LANE_CPU, LANE_THREADS)

#: Lengths of the handlers of pure Python, by name, in ms.
LENGTHS_MS = {"10 µs": 0.01, "100 µs": 0.1, "1 ms": 1.0}
TINY, ARRAY = "tiny", "100 MB"
START, MEMORY = "start", "memory"
LOOP = "loop over a handler of 1 ms"
CONVOY = "wake-up beside busy threads, p99"

SAMPLE_S = 0.3  # of the plain loop, for each length
MOST_EVENTS = 5_000
WARM_UP_S = 1.0
ARRAY_BYTES = 100_000_000
ARRAYS = 5
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
        began = perf_counter()
        for pending in [self.submit(function, event) for _ in range(count)]:
            pending.result()
        return perf_counter() - began


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
        warm = max(1, round(spins_per_ms * 20 * min(1.0, scale)))
        warm_until = perf_counter() + WARM_UP_S * min(1.0, scale)
        pool.run(spin, warm, 4 * workers)
        while perf_counter() < warm_until:  # long enough for all to start
            pool.run(spin, warm, 4 * workers)
        if before:
            yield row_of(way, MEMORY), max(0.0, private_bytes() - before) / workers / 1e6
        for name, length_ms in LENGTHS_MS.items():
            iterations = max(1, round(spins_per_ms * length_ms))
            count = counted(min(MOST_EVENTS, SAMPLE_S * 1e3 / length_ms), scale, 4 * workers)
            pool.run(spin, iterations, max(1, count // 10))
            alone_s = loop_s(iterations, count)
            yield row_of(way, name), alone_s / pool.run(spin, iterations, count)
        count = counted(MOST_EVENTS, scale, 4 * workers)
        pool.run(tiny, 0, max(1, count // 10))
        yield row_of(way, TINY), count / pool.run(tiny, 0, count)
        array = bytes(max(1, round(ARRAY_BYTES * min(1.0, scale))))
        pool.run(size, array, 1)
        times = [pool.run(size, array, 1) for _ in range(ARRAYS)]
        yield row_of(way, ARRAY), median(times) * 1e3
    finally:
        pool.close()


def counted(full: float, scale: float, at_least: int) -> int:
    """Scale a number of events to this run."""
    return max(at_least, round(full * scale))


def loop_s(iterations: int, count: int) -> float:
    """Return the seconds of a plain loop."""
    began = perf_counter()
    for _ in range(count):
        spin(iterations)
    return perf_counter() - began


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
    count = counted(SAMPLE_S * 1e3, scale, 4 * workers)
    found[LOOP] = count / loop_s(spins_per_ms, count)
    found[CONVOY] = convoy_us(10 * spins_per_ms, counted(PROBES, scale, 10), workers)
    return found


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1:])), flush=True)
