# SPDX-License-Identifier: MIT
"""`bus.map` and `bus.call`: results of one handler, in order, whatever the handler's options."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from procbus import (
    BusClosed,
    EventBus,
    HandlerTimeout,
    NoSuchHandler,
    OptionError,
    ProcbusError,
    QueueFull,
    SerializationError,
    WorkerDied,
    current,
)
from procbus.testing import InlineBus
from tests.waits import BOUND_S, eventually


def increased(number: int) -> int:
    if number == 777:
        raise ValueError(number)
    return number + 1


async def increased_later(number: int) -> int:
    return increased(number)


def all_increased(numbers: list[int]) -> list[int]:
    return [number + 1 for number in numbers]


def die_at_777(number: int) -> int:
    if number == 777:
        os._exit(3)
    return number


def size_of(event: list[object]) -> int:
    return len(event)


def published_too(number: int) -> int:
    current().publish("seen", number)
    return number


@pytest.mark.parametrize(
    ("function", "options"),
    [
        (increased, {"kind": "cpu"}),
        (increased, {"kind": "cpu", "retries": 1, "backoff": 0}),
        (increased, {"kind": "cpu", "key": lambda number: number % 3}),
        (increased, {}),
        (increased_later, {"timeout": BOUND_S}),
        (all_increased, {"batch": 20, "batch_wait": 0.05}),
        (all_increased, {"batch": 20, "kind": "cpu"}),
    ],
)
def test_results_come_in_order(function: Any, options: Any) -> None:
    with EventBus([], cpu_workers=2) as bus:
        bus.subscribe("number", function, **options)
        assert list(bus.map(function, iter(range(300)))) == list(range(1, 301))
        assert list(bus.map(function, [])) == []
        assert bus.call(function, 1).result(BOUND_S) == 2


@pytest.mark.parametrize("pickling", [False, True])
def test_map_works_inline(pickling: bool) -> None:
    with InlineBus([], pickling=pickling) as bus:
        bus.subscribe("number", increased, kind="cpu")
        assert list(bus.map(increased, range(100))) == list(range(1, 101))


@pytest.mark.parametrize("kind", ["io", "cpu"])
def test_exception_comes_after_the_results_before_it(kind: Any) -> None:
    got: list[int] = []
    with EventBus([], cpu_workers=2) as bus:
        bus.subscribe("number", increased, kind=kind)
        with pytest.raises(ValueError, match="777"):
            got.extend(bus.map(increased, range(2_000)))
    assert got == list(range(1, 778))


def test_worker_that_dies_loses_its_event_alone() -> None:
    got: list[int] = []
    with EventBus([], cpu_workers=2) as bus:
        bus.subscribe("number", die_at_777, kind="cpu")
        with pytest.raises(WorkerDied):
            got.extend(bus.map(die_at_777, range(2_000)))
    assert got == list(range(777))


def test_event_that_cannot_travel_is_told_after_the_results_before_it() -> None:
    got: list[int] = []
    with EventBus([], cpu_workers=1) as bus:
        bus.subscribe("list", size_of, kind="cpu")
        events: list[list[object]] = [[each] for each in (*range(40), threading.Lock())]
        with pytest.raises(SerializationError):
            got.extend(bus.map(size_of, events))
    assert got == [1] * 40


def test_time_limit_is_one_of_each_event() -> None:
    def hang(number: int) -> int:
        while number == 5:
            pass
        return number

    got: list[int] = []
    with EventBus([], cpu_workers=1) as bus:
        bus.subscribe("number", hang, kind="cpu", timeout=0.5)
        with pytest.raises(HandlerTimeout):
            got.extend(bus.map(hang, range(10)))
    assert got == list(range(5))


@pytest.mark.parametrize("kind", ["io", "cpu"])
def test_endless_source_is_read_as_results_are_taken(kind: Any) -> None:
    source = itertools.count()
    with EventBus([], cpu_workers=1) as bus:
        bus.subscribe("number", abs, kind=kind)
        results = bus.map(abs, source)
        assert [next(results) for _ in range(10)] == list(range(10))
        results.close()  # type: ignore[attr-defined] # it is a generator
        assert bus.drain(BOUND_S)
        assert next(source) < 5_000


def test_events_that_a_mapped_handler_publishes_are_published() -> None:
    seen: list[int] = []
    with EventBus([], cpu_workers=1) as bus:
        bus.subscribe("number", published_too, kind="cpu")
        bus.subscribe("seen", seen.append)
        assert list(bus.map(published_too, range(50))) == list(range(50))
        eventually(lambda: len(seen) == 50)
    assert sorted(seen) == list(range(50))


def test_function_that_is_not_subscribed_is_refused() -> None:
    with EventBus([]) as bus:
        with pytest.raises(NoSuchHandler, match=r"subscribe it first, or use bus\.executor"):
            bus.map(increased, [1])
        with pytest.raises(NoSuchHandler):
            bus.call(increased, 1)


def lock_at_777(number: int) -> Any:
    return threading.Lock() if number == 777 else number


def test_result_that_cannot_travel_is_raised_behind_all_results_before_it() -> None:
    taken: list[int] = []
    with EventBus([], cpu_workers=1) as bus:
        bus.subscribe("number", lock_at_777, kind="cpu")
        with pytest.raises(SerializationError, match=r"lock_at_777 for the event 777 cannot"):
            taken.extend(bus.map(lock_at_777, range(2_000)))
    assert taken == list(range(777))


@pytest.mark.parametrize("kind", ["io", "cpu"])
@pytest.mark.parametrize("count", [0, 5, 3_000])
def test_error_of_the_source_comes_behind_the_results_of_all_events_before_it(
    kind: Any, count: int
) -> None:
    def source() -> Iterator[int]:
        yield from range(-count, 0)
        raise KeyError("the source")

    taken: list[int] = []
    with EventBus([], cpu_workers=1) as bus:
        bus.subscribe("number", increased, kind=kind)
        results = bus.map(increased, source())
        with pytest.raises(KeyError, match="the source"):
            taken.extend(results)
        assert list(results) == [], "it has ended"
    assert taken == list(range(1 - count, 1))


@pytest.mark.parametrize("kind", ["io", "cpu"])
def test_full_bus_that_raises_does_not_end_a_map(kind: Any) -> None:
    with EventBus([], cpu_workers=1, max_pending=3, on_full="raise") as bus:
        bus.subscribe("number", increased, kind=kind)
        assert list(bus.map(increased, range(200))) == list(range(1, 201))


def test_map_that_finds_the_bus_full_of_other_events_raises_that() -> None:
    go_on = threading.Event()
    with EventBus([], max_pending=1, on_full="raise") as bus:
        bus.subscribe("wait", lambda _: go_on.wait(BOUND_S))
        bus.subscribe("number", increased)
        bus.publish("wait", None)
        with pytest.raises(QueueFull):
            list(bus.map(increased, range(3)))
        go_on.set()


@pytest.mark.parametrize("kind", ["io", "cpu"])
def test_bus_that_is_closed_during_a_map_gives_the_results_so_far(kind: Any) -> None:
    with EventBus([], cpu_workers=1) as bus:
        bus.subscribe("number", increased, kind=kind)
        results = bus.map(increased, iter(range(1_000, 100_000)))
        taken = [next(results)]
    with pytest.raises(BusClosed):
        taken.extend(results)
    assert len(taken) > 1
    assert taken == list(range(1_001, 1_001 + len(taken)))


def test_async_handler_that_goes_through_a_map_is_told_what_to_do_instead() -> None:
    with EventBus([]) as bus:
        bus.subscribe("number", increased)

        async def total(count: int) -> int:
            return sum(bus.map(increased, range(count)))

        bus.subscribe("count", total)
        with pytest.raises(ProcbusError, match=r"go through bus\.astream\(\), or await bus\.call"):
            bus.publish("count", 3).result(BOUND_S)


def test_asynchronous_source_of_a_stream_is_told_what_takes_it() -> None:
    async def source() -> AsyncIterator[int]:
        yield 1

    with EventBus([]) as bus, pytest.raises(TypeError, match=r"use bus\.astream\(events\)"):
        bus.stream(source())  # type: ignore[arg-type] # the mistake


@pytest.mark.parametrize("batch", [None, 5])
def test_event_that_cannot_travel_is_named_as_the_user_knows_it(batch: int | None) -> None:
    def first(events: list[Any]) -> list[Any]:
        return [None] * len(events)

    with EventBus([], cpu_workers=1) as bus:
        bus.subscribe("any", first, kind="cpu", batch=batch)
        with pytest.raises(SerializationError, match=r"\(dict\) .* because of event\['lock'\]"):
            list(bus.map(first, [{}, {"lock": threading.Lock()}, {}]))


def test_map_of_a_batch_handler_keeps_its_batches_full() -> None:
    sizes: list[int] = []

    def note(numbers: list[int]) -> list[int]:
        sizes.append(len(numbers))
        return numbers

    with EventBus([]) as bus:
        bus.subscribe("number", note, batch=600, batch_wait=3_600.0)
        assert list(bus.map(note, range(6_100))) == list(range(6_100))
    assert sorted(sizes) == [100] + 10 * [600]


def test_topic_in_place_of_a_handler_is_told_what_takes_topics() -> None:
    with EventBus([]) as bus:
        bus.subscribe("number", increased)
        for call in (bus.map, bus.call):
            with pytest.raises(NoSuchHandler, match=r"'number' is a topic, .*bus\.publish\('num"):
                call("number", [1])  # type: ignore[call-overload] # the mistake


def test_partial_that_is_another_object_is_told_from_the_one_that_is_subscribed() -> None:
    subscribed = partial(pow, 2)
    with EventBus([]) as bus:
        bus.subscribe("number", subscribed)
        assert list(bus.map(subscribed, [3])) == [8]
        assert list(bus.map(partial(pow, 2), [3])) == [8], "it binds the very same objects"
        with pytest.raises(NoSuchHandler, match=r"another object with that name is: give the very"):
            bus.map(partial(pow, 3), [3])


def test_map_on_a_bus_with_a_journal_journals_each_event(tmp_path: Path) -> None:
    with EventBus([], cpu_workers=1, journal=tmp_path / "bus.db") as bus:
        bus.subscribe("number", increased, kind="cpu")
        assert list(bus.map(increased, range(10))) == list(range(1, 11))
        assert bus.stats().handlers[increased.__module__ + ".increased"].succeeded == 10


def test_call_reaches_one_handler_whatever_its_topics() -> None:
    others: list[int] = []
    with EventBus([]) as bus:
        bus.subscribe("number", increased, where=lambda _: False)
        bus.subscribe("number", others.append)
        receipt = bus.call(increased, 1)
        assert receipt.result(BOUND_S) == 2
    assert len(receipt.deliveries) == 1
    assert others == []


@pytest.mark.parametrize("options", [{"kind": "cpu"}, {"kind": "io"}, {"kind": "io", "retries": 1}])
def test_map_shows_how_many_results_were_taken(
    options: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with EventBus([], cpu_workers=1) as bus:
        bus.subscribe(int, increased, **options)
        assert list(bus.map(increased, range(50), progress=True)) == list(range(1, 51))
        some = bus.map(increased, (number for number in range(10_000)), progress=True, total=10_000)
        assert [next(some), next(some)] == [1, 2]
        some.close()  # type: ignore[attr-defined] # it is a generator
        assert bus.drain(timeout=BOUND_S)
    out, shown = capsys.readouterr()
    assert out == ""
    assert "test_map.increased: " in shown
    assert "50 of 50 (100%)" in shown
    assert "2 of 10,000" in shown


def test_map_refuses_a_progress_that_makes_no_sense() -> None:
    with EventBus([]) as bus:
        bus.subscribe(int, increased)
        with pytest.raises(OptionError, match="progress must be True, False or a callable"):
            bus.map(increased, [1], progress="yes")  # type: ignore[call-overload]
        with pytest.raises(OptionError, match="total must be a whole number"):
            bus.map(increased, [1], progress=True, total=-1)
