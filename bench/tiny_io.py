"""How many tiny events per second go through an io handler, end to end?"""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue
from time import perf_counter
from typing import Any

from .contenders import Opener
from .in_process import IN_PROCESS
from .model import LIMIT, PROCBUS, PROCBUS_IO, Question, Row, Settings, Target
from .peers import SLOW
from .work import tiny

ROW = "tiny io handler"
FULL_COUNT = 100_000
WARM_UP = 500


def procbus_rate(settings: Settings) -> dict[str, float]:
    """Publish one by one on a bus with its defaults, then ask every receipt for its result."""
    from procbus import EventBus

    count = settings.count(FULL_COUNT)
    with EventBus([]) as bus:
        bus.subscribe(int, tiny, kind="io")
        for receipt in [bus.publish(number) for number in range(WARM_UP)]:
            receipt.result()
        began = perf_counter()
        for receipt in [bus.publish(number) for number in range(count)]:
            receipt.result()
        return {ROW: count / (perf_counter() - began)}


def thread_bus_rate(settings: Settings) -> dict[str, float]:
    """Publish one by one on the plain bus of four threads, then drain it."""
    from procbus.demo.thread_bus import ThreadBus

    count = settings.count(FULL_COUNT)
    bus = ThreadBus()
    bus.subscribe(int, tiny)
    for number in range(WARM_UP):
        bus.publish(number)
    bus.drain()
    began = perf_counter()
    for number in range(count):
        bus.publish(number)
    bus.drain()
    rate = count / (perf_counter() - began)
    bus.close()
    return {ROW: rate}


def executor_rate(settings: Settings) -> dict[str, float]:
    """Submit one by one to four threads of `concurrent.futures`, with no bus around them."""
    count = settings.count(FULL_COUNT)
    with ThreadPoolExecutor(4) as pool:
        began = perf_counter()
        futures: list[Future[None]] = [pool.submit(tiny, number) for number in range(count)]
        for future in futures:
            future.result()
        return {ROW: count / (perf_counter() - began)}


def peer_rate(opener: Opener, full: int, settings: Settings) -> dict[str, float]:
    """Submit one by one to a peer that runs handlers in this process."""
    with opener(tiny, 4) as contender:
        contender.run(range(WARM_UP))
        events = range(settings.count(full))
        began = perf_counter()
        contender.run(events)
        return {ROW: len(events) / (perf_counter() - began)}


def take_and_call(queue: SimpleQueue[Any]) -> None:
    """Call the handler on each item of the queue, until None comes."""
    while (event := queue.get()) is not None:
        tiny(event)


def queue_rate(settings: Settings) -> dict[str, float]:
    """Measure one queue and one thread, without results."""
    count = settings.count(FULL_COUNT)
    queue: SimpleQueue[Any] = SimpleQueue()
    thread = threading.Thread(target=partial(take_and_call, queue))
    thread.start()
    began = perf_counter()
    for number in range(count):
        queue.put(number)
    queue.put(None)
    thread.join()
    return {ROW: count / (perf_counter() - began)}


QUESTION = Question(
    name="tiny_io",
    asks="How many tiny events per second go through an io handler, end to end?",
    rows=(Row(ROW, "events/s", (Target(1.5, at_least=True, against="thread bus"),)),),
    contenders={
        PROCBUS: procbus_rate,
        LIMIT: queue_rate,
        "thread bus": thread_bus_rate,
        "ThreadPoolExecutor": executor_rate,
        **{
            name: partial(peer_rate, opener, SLOW.get(name, FULL_COUNT))
            for name, opener in IN_PROCESS.items()
            if name != PROCBUS_IO
        },
    },
    limit="one queue and one thread, no results",
)
