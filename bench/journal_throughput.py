"""How many events per second pass a journal, with tiny io handlers?

They are published alone, published and run to the end, and streamed.

Beside procbus stand a task queue on SQLite, huey, and an SQLite queue that is acknowledged,
persist-queue. Both commit once for each event, as their users have it. huey runs an event
at most once: if it dies, the event that it was running is lost.
"""

from __future__ import annotations

import os
import tempfile
import threading
from time import perf_counter
from typing import Any

from .model import PROCBUS, Question, Row, Settings, Target
from .work import tiny

PUBLISH = "publish, journalled"
END_TO_END = "publish to the last result, journalled"
STREAM = "stream, journalled"
FULL_COUNT = 100_000
#: The peers commit for each event, so that a tenth says as much.
PEER_COUNT = 5_000
WARM_UP = 500


def procbus_rates(settings: Settings) -> dict[str, float]:
    """Publish one by one, ask every receipt for its result; then stream as many."""
    with tempfile.TemporaryDirectory() as directory:
        return rates(settings, journal=os.path.join(directory, "run.db"))


def plain_rates(settings: Settings) -> dict[str, float]:
    """The same without a journal, for scale."""
    return rates(settings, journal=None)


def rates(settings: Settings, journal: str | None) -> dict[str, float]:
    from procbus import EventBus

    count = settings.count(FULL_COUNT)
    with EventBus([], journal=journal) as bus:
        bus.subscribe(int, tiny, kind="io")
        for receipt in [bus.publish(number) for number in range(WARM_UP)]:
            receipt.result()
        began = perf_counter()
        receipts = [bus.publish(number) for number in range(count)]
        published = perf_counter()
        for receipt in receipts:
            receipt.result()
        ended = perf_counter()
        del receipts
        streamed = sum(1 for _ in bus.stream(range(count)))
        stream_s = perf_counter() - ended
    assert streamed == count
    return {
        PUBLISH: count / (published - began),
        END_TO_END: count / (ended - began),
        STREAM: count / stream_s,
    }


def huey_rates(settings: Settings) -> dict[str, float]:
    """Enqueue in huey's SQLite store; then a consumer of four threads executes it all."""
    from huey import SqliteHuey

    count = settings.count(PEER_COUNT)
    with tempfile.TemporaryDirectory() as directory:
        huey: Any = SqliteHuey(filename=os.path.join(directory, "huey.db"), results=False)
        done = threading.Event()
        left = [count]
        lock = threading.Lock()

        @huey.task()  # type: ignore[untyped-decorator, unused-ignore] # huey has no types
        def work(number: int) -> None:
            tiny(number)
            with lock:
                left[0] -= 1
                if not left[0]:
                    done.set()

        consumer = huey.create_consumer(
            workers=4, initial_delay=0.001, max_delay=0.01, periodic=False
        )
        consumer.start()
        began = perf_counter()
        for number in range(count):
            work(number)
        published = perf_counter()
        if not done.wait(60):
            raise TimeoutError(f"huey has {left[0]} of {count} left")
        ended = perf_counter()
        consumer.stop(graceful=True)
    return {PUBLISH: count / (published - began), END_TO_END: count / (ended - began)}


def persist_queue_rates(settings: Settings) -> dict[str, float]:
    """Put into persist-queue's acknowledged SQLite queue; a thread gets, runs and acknowledges."""
    from persistqueue import SQLiteAckQueue

    count = settings.count(PEER_COUNT)
    with tempfile.TemporaryDirectory() as directory:
        queue: Any = SQLiteAckQueue(directory, multithreading=True, auto_commit=True)

        def consume() -> None:
            for _ in range(count):
                item = queue.get()
                tiny(item)
                queue.ack(item)

        consumer = threading.Thread(target=consume)
        consumer.start()
        began = perf_counter()
        for number in range(count):
            queue.put(number)
        published = perf_counter()
        consumer.join()
        ended = perf_counter()
        queue.close()
    return {PUBLISH: count / (published - began), END_TO_END: count / (ended - began)}


QUESTION = Question(
    name="journal_throughput",
    asks="How many tiny events per second go through a bus with a journal?",
    rows=(
        Row(PUBLISH, "events/s", (Target(40_000, at_least=True, unit="events/s"),)),
        Row(
            END_TO_END,
            "events/s",
            (
                Target(25_000, at_least=True, unit="events/s"),
                Target(10, at_least=True, against="huey"),
            ),
        ),
        Row(STREAM, "events/s", (Target(50_000, at_least=True, unit="events/s"),)),
    ),
    contenders={
        PROCBUS: procbus_rates,
        "no journal": plain_rates,
        "huey": huey_rates,
        "persistqueue": persist_queue_rates,
    },
)
