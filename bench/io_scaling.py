"""How many handlers that wait can be under way at a time, and what does each way of it cost?

The limit of sleeps and sockets is arithmetic: the number at once, each for at least its wait.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import psutil

from .contenders import Contender, Handler, Opener, stdlib_executor
from .io_work import IO_KINDS, IoKind
from .model import LIMIT, PROCBUS_IO, Question, Row, Settings
from .ways import procbus_io, rate

CONCURRENT = (1, 8, 64, 256)
ASYNC = "procbus io, async def"
FULL_EACH = 15  # events of each of those under way
MOST_EVENTS = 3_000
MEMORY_KIND = "sleep 10 ms"
MEMORY = "memory for {} sleeps at a time"


def row_of(kind: str, concurrent: int) -> str:
    """Name one row."""
    return f"{kind}, {concurrent} at a time"


def procbus_async(coroutine: Handler, concurrent: int) -> Contender:
    """Open a bus whose handler is a coroutine function, with a maximum at once."""
    from procbus import EventBus, Receipt

    bus = EventBus([])
    bus.subscribe(object, coroutine, kind="io", concurrency=concurrent)
    return Contender(bus.publish, Receipt.result, bus.close)


def threads(handler: Handler, concurrent: int) -> Contender:
    """Open `concurrent.futures` with a number of threads."""
    from concurrent.futures import Future

    pool = ThreadPoolExecutor(concurrent)
    return Contender(lambda event: pool.submit(handler, event), Future.result, pool.shutdown)


def bare_asyncio(coroutine: Handler, concurrent: int) -> Contender:
    """Run a number of tasks of one event loop, each awaiting the coroutine again and again."""

    def run_all(events: Any) -> None:
        waiting = iter(events)

        async def work() -> None:
            for event in waiting:
                await coroutine(event)

        async def run() -> None:
            await asyncio.gather(*(work() for _ in range(concurrent)))

        asyncio.run(run())

    return Contender(lambda event: run_all([event]), lambda result: result, lambda: None, run_all)


def memory() -> float:
    """Return the memory of this process and all below it in MB, shared pages counted once."""
    me = psutil.Process()
    found = 0
    for process in [me, *me.children(recursive=True)]:
        info = process.memory_full_info()
        found += getattr(info, "pss", info.uss)
    return found / 1e6


def figures(opener: Opener, is_async: bool, settings: Settings) -> dict[str, float]:
    """Measure one way of waiting: rates, and memory where the most are under way."""
    found = {}
    for name, kind in IO_KINDS.items():
        handler = kind.coroutine if is_async else kind.handler
        if handler is None:
            continue
        with kind.event() as event:
            for concurrent in CONCURRENT:
                before = memory()
                with opener(handler, concurrent) as contender:
                    contender.run([event] * concurrent)  # all threads or processes are there
                    if name == MEMORY_KIND and concurrent == CONCURRENT[-1]:
                        found[MEMORY.format(concurrent)] = memory() - before
                    events = [event] * count_of(concurrent, settings)
                    events_per_second = rate(partial(contender.run, events), len(events))
                    found[row_of(name, concurrent)] = events_per_second
    return found


def count_of(concurrent: int, settings: Settings) -> int:
    """Return how many events to measure with: at least one for each that may be under way."""
    return settings.count(min(MOST_EVENTS, FULL_EACH * concurrent), at_least=concurrent)


def limits(settings: Settings) -> dict[str, float]:
    """Compute the maximum that the waits allow; measure bare threads if there is no such number."""
    found = {}
    for name, kind in IO_KINDS.items():
        for concurrent in CONCURRENT:
            row = row_of(name, concurrent)
            if kind.wait_s is not None:
                found[row] = concurrent / kind.wait_s
            else:
                found[row] = bare_rate(kind, concurrent, settings)
    found[MEMORY.format(CONCURRENT[-1])] = bare_memory(CONCURRENT[-1])
    return found


def bare_memory(concurrent: int) -> float:
    """Return the memory of a number of threads that wait, in MB."""
    before = memory()
    over = threading.Event()
    waiting = [threading.Thread(target=over.wait) for _ in range(concurrent)]
    for thread in waiting:
        thread.start()
    used = memory() - before
    over.set()
    for thread in waiting:
        thread.join()
    return used


def bare_rate(kind: IoKind, concurrent: int, settings: Settings) -> float:
    """Measure a number of threads that only loop over the handler."""
    each = max(1, count_of(concurrent, settings) // concurrent)

    def loop(event: Any) -> None:
        for _ in range(each):
            kind.handler(event)

    with kind.event() as event:
        loops = [threading.Thread(target=loop, args=(event,)) for _ in range(concurrent)]

        def run() -> None:
            for thread in loops:
                thread.start()
            for thread in loops:
                thread.join()

        return rate(run, each * concurrent)


WAITING: dict[str, Callable[[Settings], dict[str, float]]] = {
    PROCBUS_IO: partial(figures, procbus_io, False),
    ASYNC: partial(figures, procbus_async, True),
    "ThreadPoolExecutor": partial(figures, threads, False),
    "asyncio": partial(figures, bare_asyncio, True),
    "ProcessPoolExecutor": partial(figures, stdlib_executor, False),
    LIMIT: limits,
}
QUESTION = Question(
    name="io_scaling",
    asks="How many handlers that wait can be under way at a time, and what does each cost?",
    rows=(
        *(Row(row_of(kind, at), "events/s") for kind in IO_KINDS for at in CONCURRENT),
        Row(MEMORY.format(CONCURRENT[-1]), "MB"),
    ),
    contenders=WAITING,
    limit="those under way / their wait; files and memory: bare threads",
    rounds=3,
)
