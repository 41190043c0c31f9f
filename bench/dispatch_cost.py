"""What does one event cost the parent, and so how many cores can one bus feed?

The workers sleep for 0.1, 1 or 10 ms where real handlers would burn a core each, because 64 cores
are rarely at hand; the parent does the same work for them. The cost is the cpu time, user and
system, of all the parent's threads, from the first publish until the last event is settled. As the
parent's Python runs on one core, 1 s of it over the cost is the most events per second, and that
times the handler's length is the most cores that one bus keeps busy.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from time import perf_counter, process_time

from .model import PROCBUS, Question, Row, Settings, Target
from .work import nap

WORKER_COUNTS = (2, 8, 32, 64)
NAPS_MS = (0.1, 1.0, 10.0)
MOST_WORKERS = WORKER_COUNTS[-1]
FULL_SECONDS = 0.3  # for workers that never wait
SHARE_SECONDS = 1.0  # the same where the rate counts too
MOST_EVENTS = 6_400
SHARE_ROW = "64 cpu workers, handler sleeps 10 ms"
IDEAL_RATE = MOST_WORKERS / (NAPS_MS[-1] / 1e3)


def cost_row(workers: int, nap_ms: float) -> str:
    """Name the row of one figure."""
    return f"parent cpu per event, {workers} workers, {nap_ms:g} ms"


def cores_row(nap_ms: float) -> str:
    """Name the row of the conclusion."""
    return f"cores that one bus can feed, {nap_ms:g} ms"


@dataclass(frozen=True)
class Engine:
    """A way to measure.

    Attributes:
        run: runs a number of events, whose handler sleeps for a number of ms, to their end.
        close: ends the workers.
    """

    run: Callable[[int, float], object]
    close: Callable[[], object]


def open_procbus(workers: int) -> Engine:
    """Open a bus; `drain` waits without touching each receipt, which would be the caller's cost."""
    from procbus import EventBus

    bus = EventBus([], cpu_workers=workers)
    for nap_ms in NAPS_MS:  # a handler each: batches are sized by the handler's own average
        bus.subscribe(f"nap.{nap_ms}", nap, kind="cpu", name=f"nap_{nap_ms}_ms")
    bus.start()

    def run(count: int, nap_ms: float) -> None:
        topic, seconds = f"nap.{nap_ms}", nap_ms / 1e3
        receipts = [bus.publish(topic, seconds) for _ in range(count)]
        bus.drain()
        receipts[-1].result()

    return Engine(run, bus.close)


def open_executor(workers: int) -> Engine:
    """Open the standard library's executor."""
    pool = ProcessPoolExecutor(workers)

    def run(count: int, nap_ms: float) -> None:
        seconds = nap_ms / 1e3
        futures: list[Future[None]] = [pool.submit(nap, seconds) for _ in range(count)]
        wait(futures)
        futures[-1].result()

    return Engine(run, pool.shutdown)


def figures(open_engine: Callable[[int], Engine], settings: Settings) -> dict[str, float]:
    """Measure every count of workers with every length of handler."""
    found: dict[str, float] = {}
    for workers in WORKER_COUNTS:
        engine = open_engine(workers)
        for nap_ms in NAPS_MS:
            full_s = SHARE_SECONDS if workers == MOST_WORKERS else FULL_SECONDS
            full = min(MOST_EVENTS, round(full_s * 1e3 / nap_ms * workers))
            count = settings.count(full, at_least=2 * workers)
            engine.run(2 * workers, nap_ms)
            began, began_cpu = perf_counter(), process_time()
            engine.run(count, nap_ms)
            cpu, seconds = process_time() - began_cpu, perf_counter() - began
            found[cost_row(workers, nap_ms)] = cpu / count * 1e6
            if workers == MOST_WORKERS:
                found[cores_row(nap_ms)] = nap_ms / 1e3 / (cpu / count)
                if nap_ms == NAPS_MS[-1]:
                    found[SHARE_ROW] = 100 * count / seconds / IDEAL_RATE
        engine.close()
    return found


QUESTION = Question(
    name="dispatch_cost",
    asks="What does one event cost the parent, and so how many cores can one bus feed?",
    rows=(
        *(Row(cost_row(workers, ms), "µs") for ms in NAPS_MS for workers in WORKER_COUNTS),
        *(Row(cores_row(ms), "cores") for ms in NAPS_MS),
        Row(SHARE_ROW, "% of 6,400/s", (Target(95, at_least=True, unit="%"),)),
    ),
    contenders={
        PROCBUS: lambda settings: figures(open_procbus, settings),
        "ProcessPoolExecutor": lambda settings: figures(open_executor, settings),
    },
)
