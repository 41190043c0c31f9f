"""A delayed event runs once and not before its time, wherever the handler runs."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from procbus import DeliveryState, EventBus, JobDone, current
from procbus.testing import InlineBus
from tests.clusters import HAS_DASK, NO_DASK
from tests.waits import BOUND_S, eventually

_DASK = pytest.param("dask", marks=pytest.mark.skipif(not HAS_DASK, reason=NO_DASK))
PLACES = ["io", "async", "cpu", "cpu threads", "inline", "PROCBUS_INLINE", _DASK]
DELAY_S = 0.15
#: Longer than any test.
LONG_S = 3_600.0

word: ContextVar[str] = ContextVar("word", default="")


def now(_: Any) -> float:
    return time.time()


async def now_async(_: Any) -> float:
    return time.time()


def now_of_all(numbers: list[int]) -> list[float]:
    return [time.time()] * len(numbers)


def say_word(_: Any) -> str:
    return word.get()


def publish_later(number: int) -> float:
    current().publish("leaf", number, delay=DELAY_S)
    return time.time()


def fail_first(number: int) -> int:
    if current().attempt == 1:
        raise ValueError(number)
    return number


class Place:
    """A bus whose handlers run in one place."""

    def __init__(self, name: str, address: str) -> None:
        self.kind: Any = "cpu" if name.startswith("cpu") or name == "dask" else "io"
        self.turned = name == "inline"
        cpu: Any = "threads" if name == "cpu threads" else "processes"
        if name == "dask":
            from procbus import DaskPool

            cpu = DaskPool(address)
        self.bus = InlineBus([]) if self.turned else EventBus([], cpu=cpu, cpu_workers=1)
        self.now: Callable[..., Any] = now_async if name == "async" else now

    def subscribe(self, topic: str, handler: Callable[..., Any], **options: Any) -> None:
        self.bus.subscribe(topic, handler, kind=self.kind, **options)

    def stats(self) -> Any:
        [stats] = self.bus.stats().handlers.values()
        return stats


@pytest.fixture(params=PLACES)
def place(
    request: pytest.FixtureRequest, dask_cluster: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Place]:
    if request.param == "PROCBUS_INLINE":
        monkeypatch.setenv("PROCBUS_INLINE", "1")
    place = Place(request.param, dask_cluster)
    with place.bus:
        yield place


def test_delayed_event_runs_at_its_time_and_not_before(place: Place) -> None:
    place.subscribe("n", place.now)
    began = time.time()
    by_delay = place.bus.publish("n", 1, delay=DELAY_S)
    by_time = place.bus.publish("n", 2, at=datetime.now(UTC) + timedelta(seconds=DELAY_S))
    assert place.stats().held == place.stats().pending == 2
    assert place.bus.drain(BOUND_S)

    assert place.stats().succeeded == 2
    if not place.turned:
        assert by_delay.result() >= began + DELAY_S
        assert by_time.result() >= began + DELAY_S
    assert place.stats().held == 0


def test_cancelled_delay_never_runs_and_gives_its_room_back(place: Place) -> None:
    place.subscribe("n", place.now, concurrency=1, key=lambda number: number % 2)
    receipts = [place.bus.publish("n", number, delay=LONG_S) for number in range(6)]
    receipts[0].cancel()
    assert receipts[1].deliveries[0].cancel()
    assert place.bus.cancel(where=lambda number: number < 4) == 2
    assert place.stats().held == 2
    assert place.bus.cancel(topic="n") == 2
    assert place.bus.publish("n", 7).result(BOUND_S)
    states = {receipt.deliveries[0].state for receipt in receipts}
    assert states == {DeliveryState.CANCELLED}
    assert (place.stats().held, place.stats().pending, place.bus.stats().pending) == (0, 0, 0)


def test_delayed_event_holds_no_place_and_takes_its_turn_when_it_is_due(place: Place) -> None:
    place.subscribe("n", place.now, concurrency=1, key=lambda number: "one")
    late = place.bus.publish("n", 1, delay=DELAY_S)
    at_once = place.bus.publish("n", 2)
    assert at_once.wait(BOUND_S)
    assert place.bus.drain(BOUND_S)
    assert late.result() >= at_once.result()


def test_delayed_event_of_a_batch_handler_joins_a_batch_when_it_is_due(place: Place) -> None:
    place.subscribe("n", now_of_all, batch=10)
    began = time.time()
    receipts = [place.bus.publish("n", number, delay=DELAY_S) for number in range(5)]
    assert place.bus.drain(BOUND_S)
    assert [receipt.result() >= began + DELAY_S for receipt in receipts] == [not place.turned] * 5


def test_delayed_event_of_a_handler_with_a_rate_counts_when_it_is_due(place: Place) -> None:
    place.subscribe("n", place.now, rate="1000/s")
    late = place.bus.publish("n", 1, delay=DELAY_S)
    gone = place.bus.publish("n", 2, delay=LONG_S)
    gone.cancel()
    assert place.bus.drain(BOUND_S)
    assert late.result()
    assert place.stats().held == 0


def test_retry_after_a_delay(place: Place) -> None:
    place.subscribe("n", fail_first, retries=1, backoff=0)
    receipt = place.bus.publish("n", 7, delay=DELAY_S)
    assert place.bus.drain(BOUND_S)
    assert receipt.result() == 7


def test_handler_publishes_with_a_delay(place: Place) -> None:
    leaves: list[int] = []
    place.bus.subscribe("leaf", lambda number: leaves.append(number), name="leaf")
    place.subscribe("n", publish_later)
    place.bus.publish("n", 5)
    assert place.bus.drain(BOUND_S)
    assert leaves == [5]


def test_job_owns_a_delayed_event(place: Place) -> None:
    done: list[JobDone] = []
    place.bus.subscribe(JobDone, lambda each: done.append(each))
    place.subscribe("n", publish_later)
    place.subscribe("leaf", place.now)
    with place.bus.job("later") as job:
        place.bus.publish("n", 1, delay=DELAY_S)
        if place.turned:
            place.bus.drain()
    assert (job.succeeded, job.pending) == (2, 0)
    assert place.bus.drain(BOUND_S)
    assert [each.succeeded for each in done] == [2]


def test_context_of_the_publisher_reaches_a_delayed_handler() -> None:
    with EventBus([]) as bus:
        bus.subscribe("n", say_word)
        before = word.set("hello")
        receipt = bus.publish("n", 1, delay=0.01)
        word.reset(before)
        assert receipt.result(BOUND_S) == "hello"


def test_closing_with_a_limit_cancels_what_is_delayed(place: Place) -> None:
    if place.turned:
        pytest.skip("its close goes on to the time of each event")
    place.subscribe("n", place.now)
    receipt = place.bus.publish("n", 1, delay=LONG_S)
    place.bus.close(timeout=0.01)
    assert receipt.deliveries[0].state is DeliveryState.CANCELLED
    assert place.stats().held == 0


def test_publishing_with_a_delay_in_an_event_loop(place: Place) -> None:
    place.subscribe("n", place.now)

    async def main() -> float:
        receipt = await place.bus.apublish("n", 1, delay="0.1 s")
        if place.turned:
            place.bus.drain()
        return float(await receipt)

    began = time.time()
    assert asyncio.run(main()) >= began


def test_delays_of_many_threads_run_once_each() -> None:
    ran: list[int] = []
    with EventBus([]) as bus:
        bus.subscribe("n", ran.append)

        def publish(part: int) -> None:
            for number in range(part, 400, 4):
                receipt = bus.publish("n", number, delay=(number % 7) / 100)
                if number % 5 == 0:
                    receipt.cancel()

        threads = [threading.Thread(target=publish, args=(part,)) for part in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(BOUND_S)
        assert bus.drain(BOUND_S)
        eventually(lambda: bus.stats().pending == 0)
        [stats] = bus.stats().handlers.values()
    assert len(ran) == len(set(ran)) == stats.succeeded
    assert stats.succeeded + stats.cancelled == stats.published == 400
    assert {number for number in range(400) if number % 5} <= set(ran)
