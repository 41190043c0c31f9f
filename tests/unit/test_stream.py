# SPDX-License-Identifier: MIT
"""Streams: lazy, bounded, in order when asked, and complete."""

import contextlib
import threading
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procbus import EventBus, QueueFull, TopicError, current
from procbus.core.errors import ProcbusError
from procbus.core.receipt import Callbacks, Receipt
from procbus.core.stats import SharedMemoryStats
from procbus.dispatch.window import Window
from procbus.stream import Feed, Leaving, as_settled, in_order
from tests.matrix import quick_first
from tests.parts import (
    BOUND_S,
    Held,
    double,
    in_thread,
    raised,
    receipt_for,
    settlement_with_room,
    subscription_of,
    succeeded,
)
from tests.waits import eventually

#: Of streams that are read to their end.
STAY = Leaving(lambda _: None)


def safe() -> None:
    """Without a journal everything published is as safe as it will be."""


def told(receipt: Receipt, tell: Callbacks | None) -> Receipt:
    """Publishing has the stream told of the receipt."""
    for callback in tell or ():
        receipt.when_done(callback)
    return receipt


#: The topic of the streams here.
TOPIC = "number"

#: Sources that hold all their events, and sources whose next event may be long in coming.
SOURCES: list[Any] = [list, tuple, deque, iter, lambda events: (event for event in events)]


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("max_pending", [1, 3, 10_000])
@pytest.mark.parametrize("on_full", ["block", "raise"])
@pytest.mark.parametrize("source", quick_first(SOURCES, 4))
def test_every_event_comes_back_once(ordered, max_pending, on_full, source):
    with EventBus([], max_pending=max_pending, on_full=on_full) as bus:
        bus.subscribe(int, double)
        receipts = list(bus.stream(source(range(500)), ordered=ordered))
        assert all(r.done for r in receipts)
        results = [r.result(0) for r in receipts]
        expected = [2 * n for n in range(500)]
        assert (results if ordered else sorted(results)) == expected


@pytest.mark.parametrize("ordered", [False, True])
def test_events_with_several_handlers_or_none_come_back_too(ordered):
    with EventBus([], max_pending=4, on_full="raise") as bus:
        bus.subscribe(int, double)
        bus.subscribe(object, lambda e: e)
        receipts = list(bus.stream([1, "text", 2, 3], ordered=ordered))
        assert sorted(len(r.deliveries) for r in receipts) == [1, 2, 2, 2]
        bus.unsubscribe(double)
        assert len(list(bus.stream(range(100), ordered=ordered))) == 100


@pytest.mark.parametrize("ordered", [False, True])
def test_events_for_nobody_come_back_at_once(ordered):
    with EventBus([]) as bus:
        receipts = list(bus.stream(range(100), ordered=ordered))
        assert [r.event for r in receipts] == list(range(100))
        assert all(r.done and not r.deliveries for r in receipts)


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("topic", [None, "numbers"])
def test_events_of_a_list_go_to_the_handlers_that_take_each(ordered, topic):
    with EventBus([]) as bus:
        bus.subscribe([int, "numbers"], double, name="numbers")
        bus.subscribe(str, str.upper, name="words")
        bus.subscribe(float, double, name="some", where=lambda number: number > 1)
        bus.subscribe(bytes, len, name="limited", concurrency=1)
        events = [1, 2, "a", "b", 3, 0.5, 2.5, b"four", b"", 4] * 30
        receipts = list(bus.stream(events, ordered=ordered, topic=topic))
        names = {r.event: [d.handler.name for d in r.deliveries] for r in receipts}
    assert len(receipts) == len(events)
    if topic is not None:
        assert all(name == ["numbers"] for name in names.values())
        return
    expected: dict[Any, list[str]] = {
        **{number: ["numbers"] for number in (1, 2, 3, 4)},
        **{word: ["words"] for word in "ab"},
        0.5: [],
        2.5: ["some"],
        **{content: ["limited"] for content in (b"four", b"")},
    }
    assert names == expected


@pytest.mark.parametrize("ordered", [False, True])
def test_a_list_fills_the_bus_no_further_than_its_maximum(ordered):
    held = Held()
    with EventBus([], max_pending=10, io_workers=1) as bus:
        bus.subscribe(int, held)
        stream = bus.stream(list(range(200)), ordered=ordered)
        thread = in_thread(lambda: next(stream))
        held.wait_begun(1)
        eventually(lambda: bus.stats().pending == 10)
        held.go.set()
        thread.join(BOUND_S)
        for _ in stream:
            assert bus.stats().pending <= 10


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("lane", ["io", "async"])
def test_each_event_of_a_list_runs_in_the_context_of_its_publisher(ordered, lane):
    variable: ContextVar[str] = ContextVar("variable")

    def seen(_: int) -> str:
        before = variable.get()
        variable.set("the handler's own")
        return before

    async def seen_in_loop(_: int) -> str:
        return seen(0)

    with EventBus([]) as bus:
        bus.subscribe(int, seen if lane == "io" else seen_in_loop)
        variable.set("the publisher's")
        results = {r.result(0) for r in bus.stream(list(range(100)), ordered=ordered)}
    assert results == {"the publisher's"}


def test_a_topic_takes_each_event_as_its_payload():
    with EventBus([]) as bus:
        bus.subscribe("numbers.*", double)
        receipts = list(bus.stream([1, 2], topic="numbers.new", ordered=True))
        assert [(r.topic, r.event, r.result(0)) for r in receipts] == [
            ("numbers.new", 1, 2),
            ("numbers.new", 2, 4),
        ]


@pytest.mark.parametrize("ordered", [False, True])
def test_source_is_not_read_before_the_first_receipt_is_wanted(ordered):
    taken: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(3):
            taken.append(number)
            yield number

    with EventBus([]) as bus:
        bus.subscribe(int, double)
        stream = bus.stream(numbers(), ordered=ordered)
        assert taken == []
        assert len(list(stream)) == 3


@pytest.mark.parametrize("ordered", [False, True])
def test_no_more_is_taken_than_there_is_room_for(ordered):
    taken: list[int] = []
    held = Held()

    def numbers() -> Iterator[int]:
        number = 0
        while True:
            taken.append(number)
            yield number
            number += 1

    with EventBus([], max_pending=5) as bus:
        bus.subscribe(int, held)
        stream = bus.stream(numbers(), ordered=ordered)
        got: list[Any] = []
        thread = in_thread(lambda: got.append(next(stream)))
        held.wait_begun(5)
        assert len(taken) <= 6
        held.go.set()
        thread.join(BOUND_S)
        assert len(got) == 1
        for _ in range(100):
            assert next(stream).done
        assert len(taken) <= 101 + 6
        stream.close()  # type: ignore[attr-defined] # it is a generator
        assert bus.drain(BOUND_S)


@pytest.mark.parametrize("ordered", [False, True])
def test_a_slow_consumer_holds_the_source_back(ordered):
    taken: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(1000):
            taken.append(number)
            yield number

    with EventBus([], max_pending=10) as bus:
        bus.subscribe(int, double)
        for count, receipt in enumerate(bus.stream(numbers(), ordered=ordered), 1):
            receipt.wait(BOUND_S)
            assert len(taken) <= count + 11


@pytest.mark.parametrize("ordered", quick_first([False, True]))
@pytest.mark.parametrize("kind", ["io", "cpu"])
@pytest.mark.parametrize(
    ("last", "error"),
    [(ZeroDivisionError("of the source"), ZeroDivisionError), ("event_type..", TopicError)],
)
def test_an_error_comes_after_the_receipts_of_all_that_was_published(ordered, kind, last, error):
    class Event:
        def __init__(self, event_type: str) -> None:
            self.event_type = event_type

    def numbers() -> Iterator[Any]:
        yield from range(20)
        if isinstance(last, Exception):
            raise last
        yield Event(last)

    with EventBus([], cpu_workers=1, max_pending=7) as bus:
        bus.subscribe([int, "unused"], double, kind=kind)
        got: list[int] = []
        stream = bus.stream(numbers(), ordered=ordered)
        with pytest.raises(error):
            got.extend(receipt.result(0) for receipt in stream)
        assert (got if ordered else sorted(got)) == [2 * n for n in range(20)]


@pytest.mark.parametrize("ordered", [False, True])
def test_an_event_of_a_list_that_cannot_be_routed_ends_the_stream_in_its_turn(ordered):
    class Event:
        def __init__(self, event_type: str) -> None:
            self.event_type = event_type

    with EventBus([]) as bus:
        bus.subscribe(["good", "unused"], lambda event: event.event_type)
        got: list[str] = []
        events = [Event("good")] * 100 + [Event("bad..")] + [Event("good")] * 100
        with pytest.raises(TopicError):
            got.extend(r.result(0) for r in bus.stream(events, ordered=ordered))
        assert got == ["good"] * 100
        assert bus.stats().handlers[next(iter(bus.stats().handlers))].published == 100


@pytest.mark.parametrize("ordered", [False, True])
def test_exception_that_ends_a_script_leaves_the_source_at_once(ordered):
    held = Held()

    def numbers() -> Iterator[int]:
        yield 1
        raise KeyboardInterrupt

    with EventBus([]) as bus:
        bus.subscribe(int, held)
        with pytest.raises(KeyboardInterrupt):
            list(bus.stream(numbers(), ordered=ordered))
        held.go.set()


def test_an_error_of_the_source_is_let_go_with_its_frames():
    def numbers() -> Iterator[int]:
        yield 1
        raise ZeroDivisionError

    with EventBus([]) as bus:
        bus.subscribe(int, double)
        stream = bus.stream(numbers())
        gone = weakref.ref(stream)
        with pytest.raises(ZeroDivisionError):
            list(stream)
        del stream
        assert gone() is None


@pytest.mark.parametrize("ordered", [False, True])
def test_error_of_the_source_comes_through_and_published_events_run(ordered):
    ran: list[int] = []

    def numbers() -> Iterator[int]:
        yield 1
        yield 2
        raise ZeroDivisionError

    with EventBus([]) as bus:
        bus.subscribe(int, ran.append)
        with pytest.raises(ZeroDivisionError):
            list(bus.stream(numbers(), ordered=ordered))
    assert sorted(ran) == [1, 2]


def test_failed_events_come_back_like_the_others():
    def fail(number: int) -> int:
        return 1 // number

    with EventBus([]) as bus:
        bus.subscribe(int, fail)
        first, second = bus.stream([0, 1], ordered=True)
        assert isinstance(first.deliveries[0].exception(), ZeroDivisionError)
        assert second.result() == 1


def test_receipts_come_as_they_settle_unless_ordered():
    go = threading.Event()

    def slow_first(number: int) -> int:
        if number == 0:
            assert go.wait(BOUND_S)
        return number

    with EventBus([]) as bus:
        bus.subscribe(int, slow_first)
        stream = bus.stream([0, 1])
        assert next(stream).result() == 1
        go.set()
        assert [r.result() for r in stream] == [0]


def test_settled_receipts_do_not_wait_for_a_slow_source():
    now = 0.0
    subscription = subscription_of()
    settlement, admission = settlement_with_room(10_000)
    taken = 0

    def source(slow_from: int) -> Iterator[int]:
        nonlocal now, taken
        for number in range(2000):
            taken += 1
            now += 1.0 if number >= slow_from else 0.0
            yield number

    def publish(event: int, topic: str | None, tell: Callbacks | None, wait: bool) -> Receipt:
        assert topic == TOPIC
        assert not wait
        admission.enter(1, False)
        receipt = receipt_for(subscription, event=event, lock=settlement.lock)
        settlement.settle([(receipt.deliveries[0], succeeded())])
        return told(receipt, tell)

    window = Window(1000, lambda _: 2, SharedMemoryStats)

    def stream(slow_from: int) -> Iterator[Any]:
        return as_settled(
            Feed(source(slow_from), TOPIC, publish, clock=lambda: now), window, safe, STAY
        )

    for number, receipt in enumerate(stream(0), 1):
        assert receipt.done
        assert taken == number
    ahead = 0
    taken = 0
    for number, _ in enumerate(stream(1000), 1):
        ahead = max(ahead, taken - number)
        if taken > 1300:
            assert taken == number
    assert 16 < ahead < 300


def test_a_bus_that_others_fill_and_that_raises_says_so():
    held = Held()
    with EventBus([], max_pending=1, on_full="raise") as bus:
        bus.subscribe("a", held)
        bus.subscribe(int, double)
        bus.publish("a", 1)
        for ordered in (False, True):
            with pytest.raises(QueueFull):
                next(bus.stream([1], ordered=ordered))
        held.go.set()


def test_a_handler_may_stream():
    with EventBus([], max_pending=2) as bus:
        bus.subscribe("all", lambda n: sum(r.result() for r in bus.stream(range(n))))
        bus.subscribe(int, double)
        assert bus.publish("all", 20).result(BOUND_S) == 380
        bus.subscribe("child", lambda e: current().parent_id)


@pytest.mark.parametrize("ordered", [False, True])
def test_a_handler_that_streams_to_its_own_gate_is_refused(ordered):
    def outer(number: int) -> int:
        events = range(number)  # none for the first one, which ends
        return sum(receipt.result() for receipt in bus.stream(events, topic="n", ordered=ordered))

    with EventBus([]) as bus:
        bus.subscribe("n", outer, concurrency=1)
        assert bus.publish("n", 0).result(BOUND_S) == 0
        with pytest.raises(ProcbusError, match="which would never begin"):
            bus.publish("n", 2).result(BOUND_S)


@pytest.mark.parametrize("topic", ["a..b", "a.*", 5])
def test_a_malformed_topic_is_refused_by_the_call(topic):
    with EventBus([]) as bus, pytest.raises(TopicError):
        bus.stream([1], topic=topic)


@pytest.mark.parametrize("events", [5, None, double])
def test_object_that_cannot_be_iterated_is_refused_by_the_call(events):
    with EventBus([]) as bus, pytest.raises(TypeError, match="iterable"):
        bus.stream(events)


@pytest.mark.parametrize("events", [[1, 0, 2], iter([1, 0, 2])])
def test_progress_is_shown_on_stderr_and_changes_nothing(events, capsys):
    with EventBus([]) as bus:
        bus.subscribe(int, lambda n: 1 // n)
        assert len(list(bus.stream(events, progress=True))) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert "events" in err
    assert "1 failed" in err


@given(
    st.integers(0, 30),
    st.integers(1, 5),
    st.booleans(),
    st.lists(st.booleans(), max_size=60),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_each_event_comes_back_once_in_any_order_of_refusals(
    count, window, ordered, refusals, whole, random
):
    settlement, admission = settlement_with_room(1000)
    refusals = list(refusals)
    open_receipts: list[Any] = []
    outside = 0
    most = 0

    def settle_some() -> None:
        random.shuffle(open_receipts)
        for _ in range(random.randint(0, len(open_receipts))):
            receipt = open_receipts.pop()
            outcome = succeeded() if random.random() < 0.5 else raised(ProcbusError())
            settlement.settle([(receipt.deliveries[0], outcome)])

    def publish(event: int, topic: str | None, tell: Callbacks | None, wait: bool) -> Receipt:
        assert topic == TOPIC
        assert not wait
        nonlocal outside, most
        if outside and refusals and refusals.pop():
            settle_all()
            raise QueueFull
        admission.enter(1, False)
        receipt = receipt_for(subscription_of(), event=event, lock=settlement.lock)
        open_receipts.append(told(receipt, tell))
        outside += 1
        most = max(most, outside)
        settle_some()
        if outside >= window or (whole and event == count - 1):
            settle_all()
        return receipt

    def publish_run(
        events: Sequence[int], topic: str | None, tell: Callbacks | None
    ) -> list[Receipt]:
        published = [publish(events[0], topic, tell, False)]
        with contextlib.suppress(QueueFull):
            for event in events[1 : random.randint(1, len(events))]:
                published.append(publish(event, topic, tell, False))
        return published

    def settle_all() -> None:
        while open_receipts:
            receipt = open_receipts.pop()
            settlement.settle([(receipt.deliveries[0], succeeded())])

    def source() -> Iterator[int]:
        yield from range(count)
        settle_all()

    events: list[int] = []
    import logging

    logging.disable(logging.CRITICAL)
    # With a real clock no run is like another, and hypothesis would raise an error in `publish`.
    run: Any = in_order if ordered else as_settled
    feed = Feed(range(count) if whole else source(), TOPIC, publish, publish_run, clock=lambda: 0.0)
    try:
        for receipt in run(feed, Window(window, lambda _: 2, SharedMemoryStats), safe, STAY):
            outside -= 1
            assert receipt.done
            events.append(receipt.event)
    finally:
        logging.disable(logging.NOTSET)
    assert (events if ordered else sorted(events)) == list(range(count))
    assert most <= window


@pytest.mark.parametrize("ordered", [False, True])
def test_every_receipt_was_made_safe_after_it_was_settled(ordered):
    settled: list[Any] = []
    made_safe: set[int] = set()
    settlement, admission = settlement_with_room(100)
    subscription = subscription_of()

    def publish(event: int, topic: str | None, tell: Callbacks | None, wait: bool) -> Receipt:
        assert topic == TOPIC
        assert not wait
        admission.enter(1, False)
        receipt = receipt_for(subscription, event=event, lock=settlement.lock)
        settlement.settle([(receipt.deliveries[0], succeeded())])
        settled.append(receipt)
        return told(receipt, tell)

    def make_safe() -> None:
        made_safe.update(receipt.event for receipt in settled)

    window = Window(50, lambda _: 2, SharedMemoryStats)
    feed = Feed(iter(range(500)), TOPIC, publish)
    stream = (in_order if ordered else as_settled)(feed, window, make_safe, STAY)
    count = 0
    for receipt in stream:
        assert receipt.event in made_safe
        count += 1
    assert count == 500
