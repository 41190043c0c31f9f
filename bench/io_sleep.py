"""Do 64 io workers, whose handlers sleep 10 ms, handle 6,400 events per second?"""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from time import perf_counter

from .model import LIMIT, PROCBUS, Question, Row, Settings, Target
from .work import nap

WORKERS = 64
NAP_S = 0.01
IDEAL_RATE = WORKERS / NAP_S
ROW = "64 io workers, handler sleeps 10 ms"
FULL_COUNT = 9_600  # 1.5 s


def share(count: int, began: float) -> dict[str, float]:
    """Return the rate since `began` in % of what 64 perfect sleepers do."""
    return {ROW: 100 * count / (perf_counter() - began) / IDEAL_RATE}


def procbus_share(settings: Settings) -> dict[str, float]:
    """Publish one by one, then ask every receipt for its result."""
    from procbus import EventBus

    count = settings.count(FULL_COUNT, at_least=2 * WORKERS)
    with EventBus([], io_workers=WORKERS) as bus:
        bus.subscribe(float, nap, kind="io")
        for receipt in [bus.publish(NAP_S) for _ in range(WORKERS)]:
            receipt.result()
        began = perf_counter()
        for receipt in [bus.publish(NAP_S) for _ in range(count)]:
            receipt.result()
        return share(count, began)


def thread_bus_share(settings: Settings) -> dict[str, float]:
    """Give the plain bus 64 threads."""
    from procbus.demo.thread_bus import ThreadBus

    count = settings.count(FULL_COUNT, at_least=2 * WORKERS)
    bus = ThreadBus(WORKERS)
    bus.subscribe(float, nap)
    for _ in range(WORKERS):
        bus.publish(NAP_S)
    bus.drain()
    began = perf_counter()
    for _ in range(count):
        bus.publish(NAP_S)
    bus.drain()
    figures = share(count, began)
    bus.close()
    return figures


def executor_share(settings: Settings) -> dict[str, float]:
    """Submit one by one to 64 threads of `concurrent.futures`, with no bus around them."""
    count = settings.count(FULL_COUNT, at_least=2 * WORKERS)
    with ThreadPoolExecutor(WORKERS) as pool:
        for future in [pool.submit(nap, NAP_S) for _ in range(WORKERS)]:
            future.result()
        began = perf_counter()
        futures: list[Future[None]] = [pool.submit(nap, NAP_S) for _ in range(count)]
        for future in futures:
            future.result()
        return share(count, began)


def bare_share(settings: Settings) -> dict[str, float]:
    """Measure 64 threads that only loop over the handler: a sleep takes longer than it says."""
    each = settings.count(FULL_COUNT, at_least=2 * WORKERS) // WORKERS
    ready = threading.Barrier(WORKERS + 1)

    def loop() -> None:
        ready.wait()
        for _ in range(each):
            nap(NAP_S)

    threads = [threading.Thread(target=loop) for _ in range(WORKERS)]
    for thread in threads:
        thread.start()
    ready.wait()
    began = perf_counter()
    for thread in threads:
        thread.join()
    return share(each * WORKERS, began)


QUESTION = Question(
    name="io_sleep",
    asks="Do 64 io workers, whose handlers sleep 10 ms, handle 6,400 events per second?",
    rows=(Row(ROW, "% of 6,400/s", (Target(95, at_least=True, unit="%"),)),),
    contenders={
        PROCBUS: procbus_share,
        LIMIT: bare_share,
        "thread bus": thread_bus_share,
        "ThreadPoolExecutor": executor_share,
    },
    limit="64 threads looping over the handler",
)
