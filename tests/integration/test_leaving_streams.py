# SPDX-License-Identifier: MIT
"""A stream that is left early, or that a failure ends, runs no event that had not begun."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from procbus import (
    Cancelled,
    DeliveryState,
    EventBus,
    NoSuchHandler,
    OptionError,
    Receipt,
    TopicError,
)
from tests.integration.helpers import PATIENCE_S
from tests.waits import eventually

EVENTS = 300


class Held:
    """A handler that waits from event `first` on, until it is let go."""

    def __init__(self, first: int, fails: int | None = None) -> None:
        self.ran: list[int] = []
        self.begun = threading.Semaphore(0)
        self._first = first
        self._fails = fails
        self._go_on = threading.Event()

    def __call__(self, number: int) -> int:
        self.ran.append(number)
        self.begun.release()
        if number == self._fails:
            raise ValueError(number)
        if number >= self._first:
            assert self._go_on.wait(PATIENCE_S)
        return number

    def let_go(self) -> None:
        self._go_on.set()


def run_to_first(bus: EventBus, how: str, held: Held, events: Any) -> None:
    """Leave a stream at its first receipt, with the second event in its handler."""
    ordered = how.endswith("in order")

    def first_of(stream: Iterator[Receipt]) -> None:
        for receipt in stream:
            assert receipt.result() == 0
            assert held.begun.acquire(timeout=PATIENCE_S)
            assert held.begun.acquire(timeout=PATIENCE_S)
            if how.startswith("error"):
                raise KeyError("of the loop")
            break

    async def first_of_async() -> None:
        stream = bus.astream(events, topic="n", ordered=ordered)
        async for receipt in stream:
            assert receipt.result() == 0
            break
        await stream.aclose()  # type: ignore[attr-defined] # it is a generator

    if how.startswith("async"):
        asyncio.run(first_of_async())
    elif how.startswith("error"):
        with pytest.raises(KeyError):
            first_of(bus.stream(events, topic="n", ordered=ordered))
    else:
        first_of(bus.stream(events, topic="n", ordered=ordered))


@pytest.mark.parametrize(
    "how", ["break", "break in order", "error", "async break", "async break in order"]
)
@pytest.mark.parametrize("kind", ["io", "threads"])
def test_leaving_a_stream_early_cancels_what_has_not_begun(how: str, kind: str) -> None:
    held = Held(first=1)
    with EventBus([], cpu="threads", io_workers=1, cpu_workers=1) as bus:
        bus.subscribe("n", held, name="held", kind="io" if kind == "io" else "cpu")
        other = bus.publish("n", 0)
        assert other.result(PATIENCE_S) == 0
        assert held.begun.acquire(timeout=PATIENCE_S)
        run_to_first(bus, how, held, range(EVENTS))
        try:
            eventually(lambda: bus.stats().pending <= 1)
            others = [bus.publish("n", number) for number in (-1, -2)]
        finally:
            held.let_go()
        assert [each.result(PATIENCE_S) for each in others] == [-1, -2]
        assert bus.drain(PATIENCE_S)
        handler = bus.stats().handlers["held"]
        assert handler.failed == 0
        assert handler.cancelled == handler.published - handler.succeeded
        assert sorted(held.ran) == [-2, -1, 0, 0, 1][: len(held.ran)]
        assert not bus.dead_letters


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_failure_ends_a_stream_that_stops_on_error(ordered: bool, asynchronous: bool) -> None:
    held = Held(first=10**9, fails=5)
    with EventBus([], io_workers=2) as bus:
        bus.subscribe("n", held, name="held")
        about: dict[str, Any] = {"topic": "n", "ordered": ordered, "stop_on_error": True}

        async def collect() -> list[Receipt]:
            return [receipt async for receipt in bus.astream(iter(range(10**9)), **about)]

        if asynchronous:
            receipts = asyncio.run(collect())
        else:
            receipts = list(bus.stream(iter(range(10**9)), **about))
        last = receipts[-1]
        assert last.event == 5
        assert last.deliveries[0].state is DeliveryState.FAILED
        assert not any(receipt.has_failure for receipt in receipts[:-1])
        if ordered:
            assert [receipt.event for receipt in receipts] == [*range(6)]
        assert bus.drain(PATIENCE_S)
        assert bus.stats().handlers["held"].failed == 1


def test_stream_without_a_failure_goes_to_its_end() -> None:
    with EventBus([]) as bus:
        bus.subscribe("n", lambda number: number)
        for ordered in (False, True):
            receipts = list(bus.stream(range(10), topic="n", ordered=ordered, stop_on_error=True))
            assert sorted(receipt.result() for receipt in receipts) == [*range(10)]


# bus.cancel.


def is_odd(number: int) -> bool:
    return number % 2 == 1


@pytest.mark.parametrize(
    ("choice", "left"),
    [
        ({}, []),
        ({"handler": "a"}, ["b0", "b1", "b2", "b3"]),
        ({"topic": "b.*"}, ["a0", "a1", "a2", "a3"]),
        ({"topic": int}, ["a0", "a1", "a2", "a3", "b0", "b1", "b2", "b3"]),
        ({"where": is_odd}, ["a0", "a2", "b0", "b2"]),
        ({"handler": "b", "topic": "#", "where": is_odd}, ["a0", "a1", "a2", "a3", "b0", "b2"]),
    ],
)
def test_bus_cancels_the_chosen_deliveries(choice: Any, left: list[str]) -> None:
    held = Held(first=0)
    ran: list[str] = []

    def into(name: str) -> Callable[[int], None]:
        return lambda number: ran.append(f"{name}{number}")

    with EventBus([], io_workers=1) as bus:
        bus.subscribe("held", held, name="held")
        for name in "ab":
            bus.subscribe(
                f"{name}.n", into(name), name=name, concurrency=2 if name == "b" else None
            )
        first = bus.publish("held", 8)
        assert held.begun.acquire(timeout=PATIENCE_S)
        receipts = [bus.publish(f"{name}.n", number) for number in range(4) for name in "ab"]
        if not choice:
            choice = {"where": lambda number: number < 5}
        assert bus.cancel(**choice) == 8 - len(left)
        held.let_go()
        assert bus.drain(PATIENCE_S)
        assert sorted(ran) == left
        assert first.result() == 8
    for receipt in receipts:
        if receipt.deliveries[0].state is DeliveryState.CANCELLED:
            with pytest.raises(Cancelled):
                receipt.result()


async def is_odd_later(number: int) -> bool:
    return is_odd(number)


def test_bus_names_a_handler_that_it_does_not_have() -> None:
    with EventBus([]) as bus:
        bus.subscribe("n", is_odd)
        assert bus.cancel() == 0
        assert bus.cancel(handler=is_odd) == 0
        with pytest.raises(NoSuchHandler, match="run_to_first is not subscribed"):
            bus.cancel(handler=run_to_first)
        with pytest.raises(OptionError, match="where must be a function of the event"):
            bus.cancel(where="even")  # type: ignore[arg-type]
        with pytest.raises(OptionError, match="where is async"):
            bus.cancel(where=is_odd_later)
        with pytest.raises(TopicError):
            bus.cancel(topic="a..b")
