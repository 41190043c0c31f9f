# SPDX-License-Identifier: MIT
"""With PROCBUS_DEBUG a cpu handler tells once what it changed that only its worker sees."""

import functools
import logging
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from procbus.codec.batch_call import BatchCall
from procbus.codec.encoder import decode, encode_definition
from procbus.codec.watched import WatchedCall
from procbus.core.together import Together

total = 0
seen: dict[int, int] = {}
names: list[str] = ["a"]


class Counter:
    made = 0

    def __init__(self) -> None:
        self.own = 0

    def add(self, event: int) -> None:
        self.own += event

    def __call__(self, event: int) -> None:
        self.own += event


def count(event: int) -> int:
    global total
    total += event
    return event


def remember(event: int) -> None:
    keep(event)


def keep(event: int) -> None:
    seen[len(seen)] = event


def make(event: int) -> None:
    Counter.made += 1


def only_reads(event: int) -> int:
    return total + len(seen) + len(names) + Counter.made + event


def has_a_local_of_the_name(event: int) -> int:
    total = event
    return total + 1


def fails_after(event: int) -> None:
    global total
    total += 1
    raise ValueError("no")


def with_closure() -> Callable[[int], None]:
    count = 0

    def inner(event: int) -> None:
        nonlocal count
        count += event

    return inner


def add(by: int, event: int) -> None:
    names.append(str(by + event))


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.WARNING, "procbus")
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(
    ("function", "changed"),
    [
        (count, "the global variable total"),
        (remember, "the global variable seen["),
        (make, "the class attribute Counter.made"),
        (with_closure(), "the closure variable count"),
        (Counter().add, "self.own"),
        (Counter(), "self.own"),
        (functools.partial(add, 1), "the global variable names["),
    ],
    ids=["global", "item", "class", "closure", "method", "object", "partial"],
)
def test_a_change_is_told_once(
    function: Callable[[int], Any], changed: str, told: Callable[[], list[str]]
) -> None:
    watched = WatchedCall(function, "shop.count", "t")
    watched(1)
    watched(2)
    (text,) = told()
    assert text.startswith("PROCBUS_DEBUG: shop.count changed ")
    assert changed in text
    assert "@resource" in text
    assert 'kind="io"' in text


@pytest.mark.parametrize("function", [only_reads, has_a_local_of_the_name, len])
def test_a_handler_that_changes_nothing_is_not_told(
    function: Callable[[Any], Any], told: Callable[[], list[str]]
) -> None:
    WatchedCall(function, "shop.read", "t")([1] if function is len else 1)
    assert told() == []


def test_a_result_or_error_comes_through(told: Callable[[], list[str]]) -> None:
    assert WatchedCall(count, "shop.count", "t")(3) == 3
    with pytest.raises(ValueError, match="no"):
        WatchedCall(fails_after, "shop.fails", "t")(3)
    assert len(told()) == 2


def test_a_changed_event_is_told(told: Callable[[], list[str]]) -> None:
    def sort(event: list[int]) -> None:
        event.sort()

    WatchedCall(sort, "shop.sort", "t")([2, 1])
    (text,) = told()
    assert "shop.sort changed its event (event[0], event[1])" in text


def test_a_changed_event_of_a_batch_is_told(told: Callable[[], list[str]]) -> None:
    def sort(events: list[list[int]]) -> None:
        for event in events:
            event.sort()

    call = BatchCall(sort, "shop.sort", is_async=False)
    WatchedCall(call, "shop.sort", "t")(Together([4, 5], [[2, 1], [1]]))
    (text,) = told()
    assert "changed its event (event[0])" in text


def test_it_travels_by_value_and_shares_the_globals_there() -> None:
    namespace: dict[str, Any] = {"__name__": "__main__", "n": 0}
    exec("def f(event):\n    global n\n    n += event\n    return n", namespace)
    watched = decode(encode_definition(WatchedCall(namespace["f"], "f", "t")))
    assert (watched(2), watched(3)) == (2, 5)
    assert pickle.loads(pickle.dumps(WatchedCall(count, "c", "t"))).function is count
