"""kind="auto": handlers that find their lane by themselves.

The judgements are the test's: beside busy programs the true ones take their time. The true ones are
tested in test_advice.py.
"""

import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import pytest

from procbus import EventBus, SubscriptionError
from procbus.advice.advisor import Advisor
from procbus.advice.judge import Judgement
from procbus.assembly import Makers
from tests.parts import BOUND_S, BusWith


def where(_event: Any) -> int:
    """Take long enough to be measured each time; tell where it ran."""
    time.sleep(0.005)
    return os.getpid()


def number_of(event: Any) -> int:
    return int(event % 3)


@dataclass
class Suiting:
    """The kind that is judged to suit each handler."""

    kind: Literal["io", "cpu"]

    def bus(self) -> EventBus:
        advisor = partial(Advisor, judge=lambda *_: Judgement(self.kind, 2.0))
        return BusWith(Makers(advisor=advisor), cpu_workers=2, io_workers=4)


@pytest.fixture
def suiting() -> Suiting:
    return Suiting("io")


def run_until(bus: EventBus, there: Callable[[], bool]) -> list[Any]:
    """Keep the bus busy until it is so; give the receipts."""
    deadline = time.monotonic() + BOUND_S
    room, receipts = threading.Semaphore(16), []
    while not there():
        assert time.monotonic() < deadline, f"it never came to that:\n{bus.advice()}"
        for number in range(16):
            room.acquire()
            receipt = bus.publish("event", number)
            receipt.when_done(lambda _: room.release())
            receipts.append(receipt)
    return receipts


def lane_of(bus: EventBus) -> str:
    return bus.stats().handlers["it"].kind


def test_handler_moves_to_the_lane_that_suits_it_and_back(suiting: Suiting):
    with suiting.bus() as bus:
        bus.subscribe("event", where, kind="auto", name="it")
        suiting.kind = "cpu"
        receipts = run_until(bus, lambda: lane_of(bus) == "cpu")
        assert "declare it cpu" in bus.stats().handlers["it"].decided
        assert receipts[0].result() == os.getpid()
        assert bus.publish("event", 0).result() != os.getpid()

        suiting.kind = "io"
        run_until(bus, lambda: lane_of(bus) == "io")
        assert "declare it io" in bus.stats().handlers["it"].decided
        assert bus.publish("event", 0).result() == os.getpid()
        bus.drain()
        stats = bus.stats().handlers["it"]
        assert stats.published == stats.succeeded
        assert stats.pending == 0


def test_the_order_of_each_key_is_kept_across_the_move(suiting: Suiting):
    suiting.kind = "cpu"
    with suiting.bus() as bus:
        bus.subscribe("event", where, kind="auto", name="it", key=number_of)
        receipts = run_until(bus, lambda: lane_of(bus) == "cpu")
        receipts += [bus.publish("event", number) for number in range(60)]
        bus.drain()
    ends: dict[int, float] = defaultdict(float)
    pids = []
    for receipt in receipts:
        [delivery] = receipt.deliveries
        outcome, key = delivery.outcome, number_of(receipt.event)
        assert outcome is not None
        assert outcome.started_at >= ends[key], "the one before it had not ended"
        ends[key] = outcome.ended_at
        pids.append(delivery.worker_pid == os.getpid())
    assert pids[0]
    assert not pids[-1]
    assert pids == sorted(pids, reverse=True), "none begins here once one has begun there"


def test_closing_with_held_deliveries_loses_none():
    with EventBus(handlers=[], cpu_workers=1, io_workers=4) as bus:
        bus.subscribe("event", where, kind="auto", name="it", concurrency=1)
        [switch] = bus._parts.subscriptions.switches()  # noqa: SLF001 - to move it at once
        receipts = [bus.publish("event", number) for number in range(5)]
        switch.move("for a test")
        bus._parts.subscriptions.reroute()  # noqa: SLF001
        receipts += [bus.publish("event", number) for number in range(5)]
    assert all(isinstance(receipt.result(), int) for receipt in receipts)
    assert len({receipt.result() for receipt in receipts}) == 2


def test_cancelling_with_held_deliveries_settles_all():
    bus = EventBus(handlers=[], cpu_workers=1, io_workers=1)
    bus.subscribe("event", where, kind="auto", name="it", concurrency=1)
    [switch] = bus._parts.subscriptions.switches()  # noqa: SLF001 - to move it at once
    receipts = [bus.publish("event", number) for number in range(20)]
    switch.move("for a test")
    bus._parts.subscriptions.reroute()  # noqa: SLF001
    receipts += [bus.publish("event", number) for number in range(20)]
    bus.close(cancel=True)
    assert all(receipt.done for receipt in receipts)


def test_held_delivery_that_is_cancelled_is_counted():
    go = threading.Event()

    def wait(_event: Any) -> None:
        go.wait(BOUND_S)

    with EventBus(handlers=[], cpu_workers=1, io_workers=1) as bus:
        bus.subscribe("event", wait, kind="auto", name="it", concurrency=1)
        [switch] = bus._parts.subscriptions.switches()  # noqa: SLF001 - to move it at once
        bus.publish("event", 0)
        switch.move("for a test")
        bus._parts.subscriptions.reroute()  # noqa: SLF001
        held = bus.publish("event", 1)
        held.cancel()
        assert held.done
        assert bus.stats().handlers["it"].cancelled == 1
        assert [side.left for side in switch.sides()] == [0, 1]
        go.set()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"max_memory": "1 GiB"}, 'max_memory is for kind="cpu" only'),
        ({"writable": True}, 'writable is for kind="cpu" only'),
        ({"max_crashes": 3}, 'max_crashes is for kind="cpu" only'),
    ],
)
def test_limits_that_one_lane_alone_can_keep_need_that_kind(options: Any, why: str):
    bus = EventBus(handlers=[])
    with pytest.raises(SubscriptionError, match=why):
        bus.subscribe("event", where, kind="auto", **options)


def test_an_async_handler_has_one_lane_only():
    async def handle(event: Any) -> None: ...

    with pytest.raises(SubscriptionError, match="an async handler can only be kind='io'"):
        EventBus(handlers=[]).subscribe("event", handle, kind="auto")
