"""Waiting for one event."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from procbus import (
    BusClosed,
    EventBus,
    ExpectTimeout,
    OptionError,
    ProcbusError,
    TopicError,
    current,
)
from procbus.testing import InlineBus
from tests.parts import BOUND_S


def pay(order: int) -> None:
    current().publish("order.paid", order)


@pytest.mark.parametrize("kind", ["io", "cpu"])
def test_block_waits_for_an_event_of_a_handler(kind: Any) -> None:
    with EventBus([], cpu_workers=1) as bus:
        bus.subscribe("order", pay, kind=kind)
        with bus.expect("order.*", timeout=BOUND_S) as paid:
            bus.publish("order", 7)
        assert paid.done
        assert paid.result() == 7
        assert bus.handlers("order.paid") == ()


def test_inline_bus_expects_too() -> None:
    bus = InlineBus([])
    bus.subscribe("order", pay)
    with bus.expect("order.paid") as paid:
        bus.publish("order", 7)
    assert paid.result() == 7


def test_first_wanted_event_counts() -> None:
    bus = InlineBus([])
    expected = bus.expect(int, where=lambda number: number > 1)
    for number in (1, 2, 3):
        bus.publish(number)
    assert expected.result() == 2


def test_event_is_awaited_in_a_loop() -> None:
    async def main() -> int:
        async with EventBus([]) as bus:
            bus.subscribe("order", pay)
            expected = bus.expect("order.paid", timeout=BOUND_S)
            await bus.apublish("order", 7)
            found: int = await expected
            with pytest.raises(ExpectTimeout):
                await bus.expect("order.paid", timeout=0.01)
            return found

    assert asyncio.run(main()) == 7


def test_wait_ends_when_another_thread_publishes() -> None:
    bus = InlineBus([])
    expected = bus.expect("word")
    thread = threading.Thread(target=bus.publish, args=("word", "hello"))
    thread.start()
    assert expected.result(BOUND_S) == "hello"
    thread.join(BOUND_S)


def test_timeout_is_a_timeout_error_of_procbus() -> None:
    expected = InlineBus([]).expect("word", timeout=0.01)
    with pytest.raises(TimeoutError, match="'word' that is wanted was published within"):
        expected.result()
    assert issubclass(ExpectTimeout, ProcbusError)


def test_error_of_where_is_raised_to_the_waiter() -> None:
    bus = InlineBus([])
    bus.subscribe("number", abs)
    expected = bus.expect("number", where=lambda number: 1 / number)
    assert bus.publish("number", 0).result() == 0
    with pytest.raises(ZeroDivisionError):
        expected.result()


def test_exception_in_the_block_is_not_waited_for() -> None:
    bus = InlineBus([])
    with pytest.raises(KeyError), bus.expect("word"):
        raise KeyError
    assert bus.handlers() == ()


def test_dropped_expectation_leaves_the_bus() -> None:
    bus = InlineBus([])
    expected = bus.expect("word")
    assert len(bus.handlers("word")) == 1
    del expected
    assert bus.handlers("word") == ()


def test_journal_records_nothing_for_an_expectation(tmp_path: Path) -> None:
    path = str(tmp_path / "j.db")
    with EventBus([], journal=path) as bus:
        with bus.expect("word") as expected:
            bus.publish("word", "hello")
        assert expected.result() == "hello"
    with EventBus([], journal=path) as bus:
        expected = bus.expect("word")
        bus.publish("other", 1)
        assert not expected.done


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((None,), OptionError),
        (("word", 7), OptionError),
        (("word", None, -1), OptionError),
        (("word", None, "soon"), OptionError),
        (("a..b",), TopicError),
    ],
)
def test_bad_arguments_are_refused(arguments: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        InlineBus([]).expect(*arguments)


def test_wait_ends_when_the_bus_is_closed() -> None:
    bus = EventBus([])
    expected = bus.expect("never")
    closing = threading.Timer(0.05, bus.close)
    closing.start()
    with pytest.raises(BusClosed, match="before an event of 'never' that is wanted was published"):
        expected.result()
    closing.join()
    with pytest.raises(BusClosed, match="make a new one"):
        bus.expect("never")


def test_wait_in_a_loop_ends_when_the_bus_is_closed() -> None:
    async def main() -> None:
        bus = EventBus([])
        closing = threading.Timer(0.05, bus.close)
        closing.start()
        with pytest.raises(BusClosed, match="before an event"):
            await bus.expect("never")
        closing.join()

    asyncio.run(main())


def test_async_block_waits_without_blocking_its_loop() -> None:
    async def main() -> None:
        async with EventBus([]) as bus:

            async def later() -> None:
                await bus.apublish("word", "hello")

            async with bus.expect("word", timeout=BOUND_S) as expected:
                task = asyncio.create_task(later())  # it runs only while the block waits
            assert expected.result() == "hello"
            await task
            with pytest.raises(KeyError):
                async with bus.expect("never"):
                    raise KeyError
            with pytest.raises(ExpectTimeout):
                async with bus.expect("never", timeout=0.01):
                    pass

    asyncio.run(main())
