# SPDX-License-Identifier: MIT
"""The thread-pool bus that the demo compares with."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from procbus.demo.thread_bus import ThreadBus


@pytest.fixture
def bus() -> Iterator[ThreadBus]:
    bus = ThreadBus()
    yield bus
    bus.close()


@dataclass
class Event:
    event_type: str
    number: int = 0


def test_handlers_take_the_events_of_their_event_type(bus: ThreadBus) -> None:
    taken: list[Event] = []
    bus.subscribe("order.updated", taken.append)
    bus.publish(Event("order.updated", 1))
    bus.publish(Event("order.deleted", 2))
    assert bus.drain(timeout=60)
    assert taken == [Event("order.updated", 1)]


def test_handlers_take_the_events_of_their_class(bus: ThreadBus) -> None:
    taken: list[int] = []
    bus.subscribe(int, taken.append)
    bus.publish(1)
    bus.publish("1")
    assert bus.drain(timeout=60)
    assert taken == [1]


def test_every_handler_of_a_topic_takes_the_event(bus: ThreadBus) -> None:
    first: list[int] = []
    second: list[int] = []
    bus.subscribe(int, first.append)
    bus.subscribe(int, second.append)
    bus.publish(7)
    assert bus.drain(timeout=60)
    assert (first, second) == ([7], [7])
    assert bus.handled == 2


def test_drain_waits_for_events_of_handlers(bus: ThreadBus) -> None:
    last: list[int] = []

    def count_down(number: int) -> None:
        if number:
            bus.publish(number - 1)
        else:
            last.append(number)

    bus.subscribe(int, count_down)
    for _ in range(20):
        bus.publish(50)
    assert bus.drain(timeout=60)
    assert last == [0] * 20
    assert bus.handled == 20 * 51


def test_drain_says_when_time_is_up_and_can_be_called_again(bus: ThreadBus) -> None:
    release = threading.Event()
    bus.subscribe(int, lambda _: release.wait(60))
    bus.publish(1)
    try:
        assert not bus.drain(timeout=0)
        assert bus.handled == 0
    finally:
        release.set()
    assert bus.drain(timeout=60)
    assert bus.handled == 1


def test_failure_is_kept_and_harms_no_other_event(bus: ThreadBus) -> None:
    taken: list[int] = []
    error = RuntimeError("no")

    def fail(_: int) -> None:
        raise error

    bus.subscribe(int, fail)
    bus.subscribe(int, taken.append)
    bus.publish(1)
    bus.publish(2)
    assert bus.drain(timeout=60)
    assert bus.failures == [error, error]
    assert sorted(taken) == [1, 2]


def test_closing_with_cancel_runs_nothing_that_has_not_begun() -> None:
    bus = ThreadBus(workers=1)
    begun, release, ran = threading.Event(), threading.Event(), []

    def hold(number: int) -> None:
        ran.append(number)
        begun.set()
        release.wait(60)

    bus.subscribe(int, hold)
    for number in range(10):
        bus.publish(number)
    assert begun.wait(60)
    bus.close(cancel=True)
    release.set()
    bus.close()  # waits for the thread
    assert ran == [0]
