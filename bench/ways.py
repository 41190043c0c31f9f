"""The ways in which one script may run its handlers, that the questions about the GIL compare.

Each is a `Contender` for one handler on a number of workers: a plain loop, the thread-pool bus that
scripts start from, and procbus's two lanes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any

from .contenders import Contender, Handler, Opener
from .model import PROCBUS_CPU, PROCBUS_IO, Settings
from .work import nap

SERIAL = "serial"
THREAD_BUS = "thread bus"
WARM_UP = 0.1  # of the events that are measured
WARM_UP_TOPIC = "bench.warm_up"
NAP_S = 0.02  # a worker that has one nap leaves the others to the others
TRIES = 500  # naps in turn before it is given up that all workers come


def serial(handler: Handler, _workers: int) -> Contender:
    """Call the handler in a loop, with no bus and no thread."""

    def run_all(events: Iterable[Any]) -> None:
        for event in events:
            handler(event)

    return Contender(handler, lambda result: result, lambda: None, run_all)


def thread_bus(handler: Handler, workers: int) -> Contender:
    """Open the plain bus with a number of threads; it has no results, so it is drained."""
    from procbus.demo.thread_bus import ThreadBus

    bus = ThreadBus(workers)
    known: set[Any] = set()

    def run_all(events: Iterable[Any]) -> None:
        topic: Any
        for event in events:
            topic = type(event)
            if topic not in known:
                known.add(topic)
                bus.subscribe(topic, handler)
            bus.publish(event)
        bus.drain()
        if bus.failures:
            raise bus.failures[0]

    def submit(event: Any) -> None:
        run_all([event])

    return Contender(submit, lambda result: result, bus.close, run_all)


def procbus_io(handler: Handler, workers: int) -> Contender:
    """Open a bus whose one handler is an io handler, on a number of threads."""
    from procbus import EventBus, Receipt

    bus = EventBus([], io_workers=workers)
    bus.subscribe(object, handler, kind="io")
    return Contender(bus.publish, Receipt.result, bus.close)


def procbus_cpu(handler: Handler, workers: int) -> Contender:
    """Open a bus whose one handler is a cpu handler, and wait until every worker is at work.

    A worker is a fresh interpreter: while it starts, it takes a core from the measured ones.
    """
    from procbus import EventBus, Receipt

    bus = EventBus([], cpu_workers=workers)
    bus.subscribe(object, handler, kind="cpu")
    bus.subscribe(WARM_UP_TOPIC, nap, kind="cpu")
    bus.start()
    at_work: set[int | None] = set()
    for _ in range(TRIES):
        for receipt in [bus.publish(WARM_UP_TOPIC, NAP_S) for _ in range(2 * workers)]:
            receipt.result()
            at_work.add(receipt.deliveries[0].worker_pid)
        if len(at_work) >= workers:
            return Contender(bus.publish, Receipt.result, bus.close)
    bus.close()
    raise RuntimeError(f"{len(at_work)} of {workers} workers were at work")


def one_by_one(handler: Handler, workers: int) -> Contender:
    """Open the cpu lane without its batches: each event travels alone.

    There is no option for that. The figure by which lanes size batches is changed until it is
    closed.
    """
    from procbus.pool.loky import LokyPool

    usual = LokyPool.batch_s

    def close() -> None:
        LokyPool.batch_s = usual
        contender.close()

    LokyPool.batch_s = 0.0
    try:
        contender = procbus_cpu(handler, workers)
    except BaseException:
        LokyPool.batch_s = usual
        raise
    return replace(contender, close=close)


WAYS: dict[str, Opener] = {
    SERIAL: serial,
    THREAD_BUS: thread_bus,
    PROCBUS_IO: procbus_io,
    PROCBUS_CPU: procbus_cpu,
}


def warm_rate(contender: Contender, events: Sequence[Any]) -> float:
    """Run a tenth of the events to warm up, then all; return events per second."""
    contender.run(events[: max(1, round(len(events) * WARM_UP))])
    return rate(lambda: contender.run(events), len(events))


def rate(run: Callable[[], object], count: int) -> float:
    """Return events per second of a function that runs `count` of them."""
    began = perf_counter()
    run()
    return count / (perf_counter() - began)


def serial_rate(handler: Handler, events: Sequence[Any]) -> float:
    """Measure the plain loop, the base of the speed-ups."""
    return warm_rate(serial(handler, 1), events)


def events_of(event: Any, full: int, settings: Settings) -> list[Any]:
    """Return a number of the same event, smaller in a quick run, but some for each worker."""
    return [event] * settings.count(full, at_least=2 * settings.workers)
