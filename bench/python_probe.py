"""Threads and processes on the Python that runs this: ``python -m bench.python_probe``.

`bench.pythons` runs it on every interpreter that it finds. It needs the standard library alone, and
measures procbus as well where that can be imported. Prints figures by row, as JSON.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from concurrent import futures
from time import perf_counter, sleep
from typing import Any

LOOP = "loop over a handler of 10 ms"
THREADS = "threads"
PROCESSES = "ProcessPoolExecutor"
INTERPRETERS = "InterpreterPoolExecutor"
LANE_IO, LANE_CPU = "procbus io", "procbus cpu"
CONVOY = "wake-up beside busy threads, p99"

HANDLER_MS = 10
FULL_COUNT = 60
PROBES = 150
PAUSE_S = 0.002


def spin(iterations: int) -> int:
    """Burn cpu in pure Python: the handler of all other questions, here without importing them."""
    x = iterations
    for _ in range(iterations):
        x = (x * 1103515245 + 12345) & 0x7FFFFFFF
    return x


def loop_rate(iterations: int, count: int) -> float:
    """Return calls per second of a plain loop."""
    began = perf_counter()
    for _ in range(count):
        spin(iterations)
    return count / (perf_counter() - began)


def pool_rate(executor: Any, iterations: int, count: int, workers: int) -> float:
    """Return events per second of an executor of `concurrent.futures`, warmed up."""
    with executor(workers) as pool:
        list(pool.map(spin, [iterations] * 2 * workers))
        began = perf_counter()
        for future in [pool.submit(spin, iterations) for _ in range(count)]:
            future.result()
        return count / (perf_counter() - began)


def lane_rate(kind: str, iterations: int, count: int, workers: int) -> float:
    """Return events per second of one of procbus's lanes, warmed up."""
    from procbus import EventBus

    with EventBus([], cpu_workers=workers, io_workers=workers) as bus:
        options: Any = {"kind": kind}
        bus.subscribe(int, spin, **options)
        for receipt in [bus.publish(iterations) for _ in range(2 * workers)]:
            receipt.result()
        began = perf_counter()
        for receipt in [bus.publish(iterations) for _ in range(count)]:
            receipt.result()
        return count / (perf_counter() - began)


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


def main(iterations: int, count: int, probes: int, workers: int) -> dict[str, float]:
    """Measure everything that this interpreter has."""
    ways: dict[str, Callable[[], float]] = {
        THREADS: lambda: pool_rate(futures.ThreadPoolExecutor, iterations, count, workers),
        PROCESSES: lambda: pool_rate(futures.ProcessPoolExecutor, iterations, count, workers),
    }
    if hasattr(futures, INTERPRETERS):  # from 3.14 on
        interpreters = getattr(futures, INTERPRETERS)
        ways[INTERPRETERS] = lambda: pool_rate(interpreters, iterations, count, workers)
    try:
        import cloudpickle  # noqa: F401
        import loky  # noqa: F401
        import psutil  # noqa: F401
    except ImportError as error:  # made for another Python than this one
        print(f"procbus is left out: {error}", file=sys.stderr)
    else:
        ways[LANE_IO] = lambda: lane_rate("io", iterations, count, workers)
        ways[LANE_CPU] = lambda: lane_rate("cpu", iterations, count, workers)
    found = {}
    loops = []
    for name, measure in ways.items():
        loops.append(loop_rate(iterations, count))
        found[name] = measure() / loops[-1]
    found[LOOP] = sum(loops) / len(loops)
    found[CONVOY] = convoy_us(iterations, probes, workers)
    return found


if __name__ == "__main__":
    print(json.dumps(main(*map(int, sys.argv[1:5]))), flush=True)
