# SPDX-License-Identifier: MIT
"""A full bus, and events that handlers publish."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from procbus import (
    BusClosed,
    DeliveryState,
    EventBus,
    ProcbusError,
    QueueFull,
    current,
)
from tests.parts import BOUND_S, Held, close_with_only, double, in_thread
from tests.waits import eventually


@dataclass
class Event:
    event_type: str


@pytest.fixture
def bus() -> Iterator[EventBus]:
    with EventBus([]) as bus:
        yield bus


# A full bus.


def test_a_full_bus_that_raises_recovers():
    held = Held()
    with EventBus([], max_pending=2, on_full="raise") as bus:
        bus.subscribe("a", held)
        receipts = [bus.publish("a", n) for n in range(2)]
        with pytest.raises(QueueFull, match="max_pending=2"):
            bus.publish("a", 3)
        assert bus.publish("nobody", 1).done
        held.go.set()
        assert [r.result(BOUND_S) for r in receipts] == [0, 1]
        assert bus.drain(BOUND_S)
        assert bus.publish("a", 4).result(BOUND_S) == 4


def test_a_full_bus_blocks_the_publisher_until_there_is_room():
    held = Held()
    with EventBus([], max_pending=1) as bus:
        bus.subscribe("a", held)
        bus.publish("a", 1)
        published = threading.Event()

        def publish() -> None:
            bus.publish("a", 2)
            published.set()

        thread = in_thread(publish)
        held.wait_begun()
        assert not published.is_set()
        held.go.set()
        assert published.wait(BOUND_S)
        thread.join(BOUND_S)
    assert held.events == [1, 2]


def test_closing_lets_a_blocked_publisher_go():
    held = Held()
    bus = EventBus([], max_pending=1)
    bus.subscribe("a", held)
    bus.publish("a", 1)
    held.wait_begun()
    refused: list[ProcbusError] = []

    def publish() -> None:
        try:
            bus.publish("a", 2)
        except BusClosed as error:
            refused.append(error)

    thread = in_thread(publish)
    closer = in_thread(bus.close)
    thread.join(BOUND_S)
    assert len(refused) == 1
    held.go.set()
    closer.join(BOUND_S)
    assert held.events == [1]


@pytest.mark.parametrize("io_workers", [1, 4])
def test_handlers_that_publish_into_a_full_bus_do_not_deadlock_it(io_workers):
    counted: list[int] = []
    with EventBus([], max_pending=2, io_workers=io_workers) as bus:

        def fan_out(number: int) -> None:
            for _ in range(3):
                current().publish("leaf", number)

        bus.subscribe("root", fan_out)
        bus.subscribe("leaf", counted.append)
        for number in range(50):
            bus.publish("root", number)
        assert bus.drain(BOUND_S)
    assert sorted(counted) == sorted(list(range(50)) * 3)


def test_a_handler_may_use_the_bus_itself_and_async_handlers_too():
    with EventBus([], max_pending=1) as bus:

        async def root(number: int) -> None:
            bus.publish("leaf", number)
            await bus.apublish("leaf", number)

        bus.subscribe("root", root)
        bus.subscribe("leaf", double)
        bus.publish("root", 1)
        assert bus.drain(BOUND_S)
        assert bus.stats().handlers["tests.parts.double"].succeeded == 2


# Events published inside handlers.


def test_drain_waits_for_all_descendants_and_each_event_knows_its_parent(bus):
    seen: list[tuple[int, int, int | None]] = []

    def count_down(number: int) -> None:
        at = current()
        seen.append((number, at.event_id, at.parent_id))
        if number:
            at.publish("count", number - 1)

    bus.subscribe("count", count_down)
    receipt = bus.publish("count", 20)
    assert bus.drain(BOUND_S)
    assert [number for number, _, _ in seen] == list(range(20, -1, -1))
    assert [parent for _, _, parent in seen] == [None, *(own for _, own, _ in seen[:-1])]
    assert seen[0][1] == receipt.id


def test_leaving_the_block_waits_for_all_descendants():
    leaves: list[int] = []
    with EventBus([]) as bus:

        def split(number: int) -> None:
            if number < 64:
                current().publish("n", 2 * number)
                current().publish("n", 2 * number + 1)
            else:
                leaves.append(number)

        bus.subscribe("n", split)
        bus.publish("n", 1)
    assert sorted(leaves) == list(range(64, 128))


def test_an_event_of_another_bus_has_no_parent_here(bus):
    with EventBus([]) as other:
        other.subscribe("a", lambda e: current().parent_id)
        bus.subscribe("a", lambda e: other.publish("a", e).result(BOUND_S))
        bus.publish("a", 0)
        assert bus.publish("a", 1).result(BOUND_S) is None


def test_a_handler_in_a_bus_that_is_closing_may_still_publish():
    held = Held()
    got: list[int] = []
    bus = EventBus([])

    def root(event: int) -> None:
        held(event)
        current().publish("leaf", event)

    bus.subscribe("root", root)
    bus.subscribe("leaf", got.append)
    bus.publish("root", 7)
    held.wait_begun()
    closer = in_thread(bus.close)
    eventually(lambda: bus._parts.admission._refusing)  # noqa: SLF001 - nothing else tells
    with pytest.raises(BusClosed):
        bus.publish("leaf", 1)
    held.go.set()
    closer.join(BOUND_S)
    assert got == [7]


@pytest.mark.parametrize("options", [{"key": lambda e: e}, {"concurrency": 1}, {}])
@pytest.mark.parametrize("is_async", [False, True])
def test_events_published_while_the_bus_is_cancelled_are_cancelled(options, is_async):
    held = Held()
    bus = EventBus([])

    def root(event: int) -> None:
        held(event)
        current().publish("leaf", event)

    async def aleaf(event: int) -> None:
        raise AssertionError("this never runs")

    def leaf(event: int) -> None:
        raise AssertionError("this never runs")

    def fail(event: int) -> None:
        raise ValueError(event)

    bus.subscribe("root", root)
    bus.subscribe("leaf", aleaf if is_async else leaf, name="leaf", **options)
    bus.subscribe("again", fail, retries=1, backoff=3_600.0)
    bus.publish("again", 1)
    receipt = bus.publish("root", 7)
    held.wait_begun()
    eventually(lambda: bus.stats().retrying)
    closer = close_with_only(1, bus)  # so every lane is cancelled by now
    held.go.set()
    closer.join(BOUND_S)
    assert not closer.is_alive()
    assert receipt.deliveries[0].state is DeliveryState.SUCCEEDED
    assert bus.stats().handlers["leaf"].cancelled == 1
    assert bus.stats().pending == 0


def test_a_thread_that_a_handler_left_behind_cannot_publish_once_the_bus_is_closed():
    go = threading.Event()
    errors: list[BaseException] = []
    threads: list[threading.Thread] = []
    with EventBus([]) as bus:
        bus.subscribe("leaf", double)

        def root(event: int) -> None:
            at = current()

            def later() -> None:
                assert go.wait(BOUND_S)
                try:
                    at.publish("leaf", event)
                except ProcbusError as error:
                    errors.append(error)

            threads.append(in_thread(later))

        bus.subscribe("root", root)
        bus.publish("root", 1)
    go.set()
    threads[0].join(BOUND_S)
    assert [type(error) for error in errors] == [BusClosed]


def test_a_thread_of_a_handler_publishes_as_the_handler_does():
    parents: list[int | None] = []
    with EventBus([], max_pending=1) as bus:

        def root(event: int) -> None:
            at = current()
            in_thread(lambda: at.publish("leaf", event)).join(BOUND_S)  # into a full bus

        bus.subscribe("leaf", lambda e: parents.append(current().parent_id))
        bus.subscribe("root", root)
        receipt = bus.publish("root", 1)
    assert parents == [receipt.id]
