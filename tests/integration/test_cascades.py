"""Events that cpu handlers publish: they leave with success, and are dropped with failure."""

import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from procbus import EventBus, QueueFull, SerializationError, TopicError, WorkerDied, current
from tests.integration.helpers import PATIENCE_S


@pytest.fixture
def bus() -> Iterator[EventBus]:
    with EventBus([], cpu_workers=2, max_pending=100) as bus:
        yield bus


def test_published_events_carry_the_id_of_their_parent(bus: EventBus) -> None:
    seen: list[tuple[Any, ...]] = []

    def first(n: int) -> None:
        current().publish("second", n)

    def second(n: int) -> int:
        current().publish("third", (n, current().event_id, current().parent_id))
        return n

    bus.subscribe("first", first, kind="cpu")
    bus.subscribe("second", second, kind="cpu")

    @bus.subscribe("third")
    def third(event):
        n, second_id, first_id = event
        seen.append((n, second_id, first_id, current().parent_id, current().topic))

    receipts = [bus.publish("first", n) for n in range(10)]
    assert bus.drain(PATIENCE_S)
    assert sorted(seen) == [
        (n, second_id, r.id, second_id, "third")
        for (n, r), second_id in zip(enumerate(receipts), [s[1] for s in sorted(seen)], strict=True)
    ]


def test_events_of_a_handler_that_fails_are_dropped_and_counted(bus: EventBus) -> None:
    arrived: list[int] = []

    def fail(n: int) -> None:
        for i in range(n):
            current().publish("child", i)
        raise ValueError(n)

    bus.subscribe("fail", fail, kind="cpu")
    bus.subscribe("child", arrived.append)
    receipt = bus.publish("fail", 3)
    assert bus.drain(PATIENCE_S)
    outcome = receipt.deliveries[0].outcome
    assert outcome is not None
    assert outcome.dropped_events == 3
    assert arrived == []
    assert bus.dead_letters[0].outcome.dropped_events == 3


def test_events_of_a_handler_that_dies_never_leave_its_worker(bus: EventBus) -> None:
    arrived: list[int] = []

    def die(n: int) -> None:
        current().publish("child", n)
        os._exit(1)

    bus.subscribe("die", die, kind="cpu")
    bus.subscribe("child", arrived.append)
    receipt = bus.publish("die", 3)
    assert bus.drain(PATIENCE_S)
    assert isinstance(receipt.deliveries[0].exception(), WorkerDied)
    assert arrived == []


def test_an_event_that_cannot_travel_fails_its_handler_and_drops_all(bus: EventBus) -> None:
    arrived: list[int] = []

    def publish_two(n: int) -> int:
        current().publish("child", n)
        current().publish("child", [threading.Lock()])
        return n

    bus.subscribe("two", publish_two, kind="cpu")
    bus.subscribe("child", arrived.append)
    receipt = bus.publish("two", 1)
    assert bus.drain(PATIENCE_S)
    error = receipt.deliveries[0].exception()
    assert isinstance(error, SerializationError)
    assert error.path == "published[1][0]"
    outcome = receipt.deliveries[0].outcome
    assert outcome is not None
    assert outcome.dropped_events == 2
    assert arrived == []


def test_a_malformed_topic_is_raised_in_the_handler(bus: EventBus) -> None:
    def publish(topic: str) -> None:
        current().publish(topic, 1)

    bus.subscribe("to", publish, kind="cpu")
    with pytest.raises(TopicError):
        bus.publish("to", "a..b").result(PATIENCE_S)


def test_a_fan_out_into_a_full_bus_does_not_deadlock(bus: EventBus) -> None:
    arrived: list[int] = []

    def fan_out(n: int) -> None:
        for i in range(20):
            current().publish("leaf", 100 * n + i)

    def leaf(n: int) -> None:
        current().publish("end", n)

    bus.subscribe("fan", fan_out, kind="cpu")
    bus.subscribe("leaf", leaf, kind="cpu")
    bus.subscribe("end", arrived.append)
    for n in range(30):
        bus.publish("fan", n)
    assert bus.drain(PATIENCE_S)
    assert sorted(arrived) == sorted(100 * n + i for n in range(30) for i in range(20))


def test_an_avalanche_fails_the_delivery_that_makes_it(bus: EventBus) -> None:
    hold = threading.Event()

    def fan_out(n: int) -> None:
        for i in range(n):
            current().publish("held", i)

    bus.subscribe("fan", fan_out, kind="cpu")
    bus.subscribe("held", lambda _: hold.wait(PATIENCE_S), concurrency=1)
    try:
        first = bus.publish("fan", 1_100)
        assert first.wait(PATIENCE_S)
        assert first.deliveries[0].exception() is None
        with EventBus([]) as other:  # from outside the handlers of the full bus it would wait
            assert other.stats().pending == 0
        bus.subscribe("again", fan_out, kind="cpu")
        failed = []
        publisher = threading.Thread(target=lambda: failed.append(bus.publish("again", 1)))
        publisher.start()
    finally:
        hold.set()
    publisher.join(PATIENCE_S)
    assert bus.drain(PATIENCE_S)
    assert failed[0].deliveries[0].exception() is None


def test_an_avalanche_of_a_running_handler_is_refused(bus: EventBus) -> None:
    def endless(n: int) -> None:
        for _ in range(2):
            current().publish("endless", n)

    bus.subscribe("endless", endless, kind="cpu")
    bus.publish("endless", 0)
    # Each event makes two: without a limit this never ends, and with it some are refused.
    for _ in range(1_000):
        if any(isinstance(letter.outcome.error, QueueFull) for letter in bus.dead_letters):
            break
        bus.drain(0.02)
    assert any(isinstance(letter.outcome.error, QueueFull) for letter in bus.dead_letters)
    bus.unsubscribe(endless)
    assert bus.drain(PATIENCE_S)


def test_drain_waits_for_a_long_chain(bus: EventBus) -> None:
    ends: list[int] = []

    def step(n: int) -> None:
        if n:
            current().publish("step", n - 1)
        else:
            current().publish("end", os.getpid())

    bus.subscribe("step", step, kind="cpu")
    bus.subscribe("end", ends.append)
    bus.publish("step", 200)
    assert bus.drain(PATIENCE_S)
    assert len(ends) == 1
    assert ends != [os.getpid()]


def test_classes_that_a_handler_makes_travel_to_the_parent_and_on(bus: EventBus) -> None:
    def make(n: int):
        class Made:
            def __init__(self, n: int) -> None:
                self.n = n

        current().publish("made", Made(n))
        return Made(n)

    bus.subscribe("make", make, kind="cpu")
    bus.subscribe("made", lambda made: current().publish("end", made.n), kind="cpu")
    ends: list[int] = []
    bus.subscribe("end", ends.append)
    receipts = [bus.publish("make", n) for n in range(10)]
    assert bus.drain(PATIENCE_S)
    assert [r.result().n for r in receipts] == [*range(10)]
    assert sorted(ends) == [*range(10)]
