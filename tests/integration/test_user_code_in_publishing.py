"""Predicates, keys and callbacks of the user's that raise whatever they like."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest

from procbus import EventBus
from procbus.core.receipt import Receipt
from tests.integration.helpers import PATIENCE_S
from tests.matrix import quick_first

ERRORS = [SystemExit, ValueError, GeneratorExit, BaseException]
LANES = ["io", "cpu"]


def returns(event: Any) -> Any:
    return event


def settles(receipt: Receipt) -> BaseException | None:
    assert receipt.wait(PATIENCE_S)
    (delivery,) = receipt.deliveries
    return delivery.exception()


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("error", quick_first(ERRORS))
@pytest.mark.parametrize("option", ["key", "where"])
def test_a_predicate_or_key_that_raises_fails_its_delivery_alone(option, error, lane):
    def raises_for_two(event: int) -> int:
        if event == 2:
            raise error("of the user's")
        return 1

    with EventBus(handlers=[], cpu_workers=1) as bus:
        options: dict[str, Any] = {option: raises_for_two}
        bus.subscribe(int, returns, kind=lane, **options)
        receipts = [bus.publish(n) for n in (1, 2, 3)]
        found = [settles(receipt) for receipt in receipts]
        assert [type(each) for each in found] == [type(None), error, type(None)]
        assert f"raised by {option}= of" in "".join(found[1].__notes__)  # type: ignore[union-attr]
        assert bus.stats().pending == 0


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("option", ["key", "where"])
def test_ctrl_c_in_a_predicate_or_key_reaches_the_publisher_and_takes_no_room(option, lane):
    def interrupted(event: int) -> int:
        if event == 2:
            raise KeyboardInterrupt
        return 1

    with EventBus(handlers=[], cpu_workers=1) as bus:
        options: dict[str, Any] = {option: interrupted}
        bus.subscribe(int, returns, kind=lane, **options)
        with pytest.raises(KeyboardInterrupt):
            bus.publish(2)
        assert bus.publish(1).result(PATIENCE_S) == 1
        assert bus.drain(PATIENCE_S)


class Odd:
    """A key whose special methods raise."""

    def __init__(self, number: int, raising: str, error: type[BaseException]) -> None:
        self.number, self.raising, self.error = number, raising, error

    def __hash__(self) -> int:
        if self.raising == "hash":
            raise self.error
        return 7

    def __eq__(self, other: object) -> bool:
        if self.raising == "eq":
            raise self.error
        return isinstance(other, Odd) and other.number == self.number


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("error", quick_first(ERRORS))
@pytest.mark.parametrize("raising", ["hash", "eq"])
def test_key_whose_special_methods_raise_harms_no_other_delivery(raising, error, lane):
    with EventBus(handlers=[], cpu_workers=1) as bus:
        bus.subscribe("odd", returns, kind=lane, key=lambda n: Odd(n % 3, raising, error))
        bus.subscribe("even", returns, kind=lane, key=lambda n: n % 3)
        odd = [bus.publish("odd", n) for n in range(12)]
        even = [bus.publish("even", n) for n in range(12)]
        wanted = error if raising == "hash" else type(None)
        assert {type(settles(receipt)) for receipt in odd} == {wanted}
        assert {type(settles(receipt)) for receipt in even} == {type(None)}


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("error", quick_first([*ERRORS, KeyboardInterrupt]))
def test_callback_that_raises_is_logged_and_delays_no_waiter(lane, error, caplog):
    told = threading.Semaphore(0)

    def raises(receipt: Receipt) -> None:
        raise error("of the user's")

    with EventBus(handlers=[], cpu_workers=1, io_workers=1) as bus:
        bus.subscribe(int, returns, kind=lane)
        with caplog.at_level(logging.ERROR, "procbus"):
            for n in range(5):
                receipt = bus.publish(n)
                receipt.when_done(raises)
                receipt.when_done(lambda _: told.release())
                assert receipt.result(PATIENCE_S) == n
            for _ in range(5):
                assert told.acquire(timeout=PATIENCE_S)
        assert sum("a callback for event" in text for text in caplog.messages) == 5
        assert bus.publish(6).result(PATIENCE_S) == 6


@pytest.mark.parametrize("lane", LANES)
def test_log_handler_that_raises_delays_no_waiter(lane):
    class Raising(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            raise SystemExit("of the user's")

    def fails(event: int) -> None:
        raise ValueError(event)

    raising = Raising()
    logging.getLogger("procbus").addFilter(raising)
    try:
        with EventBus(handlers=[], cpu_workers=1, io_workers=1) as bus:
            bus.subscribe(int, fails, kind=lane)
            bus.subscribe(str, returns, kind=lane)
            for n in range(3):
                receipt = bus.publish(n)
                receipt.when_done(lambda _: fails(0))
                assert isinstance(settles(receipt), ValueError)
            assert bus.publish("next").result(PATIENCE_S) == "next"
            assert bus.drain(PATIENCE_S)
    finally:
        logging.getLogger("procbus").removeFilter(raising)
