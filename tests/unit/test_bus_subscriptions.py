# SPDX-License-Identifier: MIT
"""Subscribing a function more than once, for a while or for one event, and taking it off topics."""

import contextlib
import functools
import itertools
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from procbus import EventBus, NoSuchHandler, QueueFull, SubscriptionError, TopicError, current
from procbus import subscribe as subscribe_by_default
from procbus.testing import InlineBus
from tests.matrix import quick_first
from tests.parts import BOUND_S, Held, double


@pytest.fixture(params=[EventBus, InlineBus])
def bus(request: pytest.FixtureRequest) -> Iterator[EventBus]:
    with request.param([]) as bus:
        yield bus


def results(bus: EventBus, *event: Any) -> list[Any]:
    return bus.publish(*event).results(3 * BOUND_S)


class Base:
    pass


class Derived(Base):
    event_type = "derived.made"


class Store:
    def take(self, event: Any) -> str:
        return "taken"

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("not to be compared")

    __hash__ = None  # type: ignore[assignment]

    def __call__(self, event: Any) -> str:
        return "called"


# One function, several subscriptions.


@pytest.mark.parametrize("options", [{}, {"retries": 2}, {"priority": 3}])
def test_a_function_subscribed_twice_to_a_topic_gets_each_event_once(bus, options):
    bus.subscribe("a", double)
    bus.subscribe("a", double, **options)
    assert results(bus, "a", 1) == [2]
    assert [h.retries for h in bus.handlers("a")] == [options.get("retries", 0)]


def test_a_function_whose_topics_overlap_gets_each_event_once_with_the_options_of_the_last(bus):
    bus.subscribe("order.*", double)
    bus.subscribe("order.paid", double, priority=1)
    bus.subscribe(int, double)
    receipt = bus.publish("order.paid", 1)
    assert receipt.results(BOUND_S) == [2]
    assert receipt.deliveries[0].handler.priority == 1
    assert results(bus, "order.new", 1) == results(bus, 1) == [2]


def test_each_subscription_of_a_function_has_its_own_where(bus):
    bus.subscribe("n", double, where=lambda n: n > 10)
    bus.subscribe("n", double, where=lambda n: n % 2 == 0)
    assert [results(bus, "n", n) for n in (11, 2, 12, 1)] == [[22], [4], [24], []]
    bus.subscribe("n", double)
    assert [results(bus, "n", n) for n in (12, 1)] == [[24], [2]]


def test_subscription_without_where_takes_the_events_that_the_last_one_leaves(bus):
    bus.subscribe("n", double, priority=1)
    bus.subscribe("n", double, where=lambda n: n > 10, priority=2)
    assert [
        [each.handler.priority for each in bus.publish("n", n).deliveries] for n in (11, 1)
    ] == [[2], [1]]


def test_the_same_function_under_two_names_is_two_handlers(bus):
    bus.subscribe("a", double, name="one")
    bus.subscribe("a", double, name="two")
    assert results(bus, "a", 1) == [2, 2]


def test_methods_and_partials_are_identified_by_their_bound_objects(bus):
    store, other, base = Store(), Store(), {"base": 2}
    for _ in range(2):
        bus.subscribe("a", store.take)
        bus.subscribe("a", functools.partial(int, **base))
    bus.subscribe("a", other.take)
    assert results(bus, "a", "10") == ["taken", 2, "taken"]
    bus.unsubscribe(store.take)
    bus.unsubscribe(functools.partial(int, **base))
    assert results(bus, "a", "10") == ["taken"]
    with pytest.raises(NoSuchHandler):
        bus.unsubscribe(Store().take)


class Odd:
    """Raises on every access except a call."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        raise SystemExit

    def __bool__(self) -> bool:
        raise SystemExit

    def __len__(self) -> int:
        raise SystemExit

    def __repr__(self) -> str:
        raise RuntimeError

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)

    def __call__(self, event: Any) -> str:
        return "called"


class OddSignature:
    @property
    def __signature__(self) -> Any:
        raise RuntimeError

    @property
    def __wrapped__(self) -> Any:
        raise RuntimeError

    def __call__(self, event: Any) -> str:
        return "called"


def wraps_itself(event: Any) -> str:
    return "called"


wraps_itself.__wrapped__ = wraps_itself  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["io", "cpu"])
@pytest.mark.parametrize(
    "make", quick_first([Odd, OddSignature, lambda: wraps_itself, lambda: Odd().__call__], 2)
)
def test_callable_that_refuses_inspection_may_be_a_handler(bus, make, kind):
    function = make()
    bus.subscribe("a", function, kind=kind)
    bus.subscribe("a", double, where=lambda n: True)
    assert results(bus, "a", 1) == ["called", 2]
    assert len(bus.handlers("a")) == 2
    bus.unsubscribe(function)
    assert results(bus, "a", 1) == [2]


def test_handlers_that_cannot_be_compared_nor_hashed_are_handlers_as_others(bus):
    store, other = Store(), Store()
    bus.subscribe("a", store)
    bus.subscribe("a", store)
    bus.subscribe("a", other)
    bus.subscribe("a", double)
    assert results(bus, "a", 1) == ["called", "called", 2]
    bus.unsubscribe(double)
    bus.unsubscribe(store)
    assert results(bus, "a", 1) == ["called"]
    assert next(h.function for h in bus.handlers()) is other


@pytest.mark.usefixtures("registry")
def test_a_function_of_the_default_registry_is_not_run_again_for_the_bus_alone():
    subscribe_by_default("a")(double)
    with EventBus() as bus:
        bus.subscribe("a", double, priority=5)
        receipt = bus.publish("a", 1)
        assert receipt.results(BOUND_S) == [2]
        assert receipt.deliveries[0].handler.priority == 5


# Off one topic.


def test_a_function_leaves_one_topic_and_keeps_the_others(bus):
    def take(event: object) -> None: ...

    bus.subscribe(["a", "b", Base], take)
    bus.subscribe("c", take)
    bus.unsubscribe(take, "b")
    bus.unsubscribe(take, topic=[Base, "c"])
    assert [len(results(bus, topic, 1)) for topic in "abc"] == [1, 0, 0]
    assert [h.topics for h in bus.handlers()] == [("a",)]
    bus.unsubscribe(take, "a")
    assert bus.handlers() == ()


def test_leaving_a_topic_that_it_is_not_on_is_refused_and_changes_nothing(bus):
    bus.subscribe(["order.*", "b"], double)
    with pytest.raises(NoSuchHandler, match=r"not subscribed to 'order.paid' on this bus, but to"):
        bus.unsubscribe(double, ["b", "order.paid"])
    assert len(results(bus, "b", 1)) == 1
    with pytest.raises(TopicError):
        bus.unsubscribe(double, "..")


def test_counters_and_the_order_of_a_key_go_on_when_a_topic_is_left():
    with EventBus([]) as bus:
        held = Held()
        bus.subscribe(["a", "b"], held, key=lambda n: 1, name="held")
        first = bus.publish("a", 1)
        held.wait_begun()
        bus.unsubscribe(held, "b")
        second = bus.publish("a", 2)
        held.go.set()
        assert [first.result(BOUND_S), second.result(BOUND_S)] == [1, 2]
        assert bus.stats().handlers["held"].succeeded == 2


@pytest.mark.usefixtures("registry")
def test_a_topic_of_a_shared_handler_is_left_by_one_bus_alone():
    subscribe_by_default(["a", "b"])(double)
    with EventBus() as one, EventBus() as other:
        one.unsubscribe(double, "a")
        assert [len(results(one, t, 1)) for t in "ab"] == [0, 1]
        assert [len(results(other, t, 1)) for t in "ab"] == [1, 1]
        one.unsubscribe(double)
        assert double not in [handler.function for handler in one.handlers()]
        with pytest.raises(NoSuchHandler):
            one.unsubscribe(double, "a")
        one.subscribe("a", double)
        assert [len(results(one, t, 1)) for t in "ab"] == [1, 0]


def test_handler_may_unsubscribe_itself_and_its_pending_deliveries_run():
    with EventBus([]) as bus:
        ran: list[int] = []

        @bus.subscribe("a", concurrency=1)
        def handler(event: int) -> None:
            if not ran:
                published.wait(BOUND_S)
                bus.unsubscribe(handler)
            ran.append(event)

        published = threading.Event()
        receipts = [bus.publish("a", n) for n in range(3)]
        published.set()
        assert all(receipt.wait(BOUND_S) for receipt in receipts)
        assert ran == [0, 1, 2]
        assert bus.publish("a", 3).deliveries == ()


def test_threads_that_subscribe_and_leave_disturb_no_other():
    stop = threading.Event()
    with EventBus([]) as bus, ThreadPoolExecutor(4) as pool:

        def come_and_go(number: int) -> int:
            rounds = 0
            while not stop.is_set():

                def passing(event: int) -> int:
                    return event

                bus.subscribe("a", passing, once=rounds % 2 == 0)
                bus.subscribe(f"b.{number}", passing)
                with bus.subscribed("a", passing, priority=number):
                    assert len(bus.handlers(f"b.{number}")) == 1
                bus.unsubscribe(passing, f"b.{number}")
                with contextlib.suppress(NoSuchHandler):  # once was once
                    bus.unsubscribe(passing)
                rounds += 1
            return rounds

        bus.subscribe("a", double, name="stays")
        threads = [pool.submit(come_and_go, number) for number in range(4)]
        try:
            for number in range(300):
                receipt = bus.publish("a", number)
                assert receipt.wait(BOUND_S)
                stayed = [d for d in receipt.deliveries if d.handler.name == "stays"]
                assert [d.result() for d in stayed] == [2 * number]
        finally:
            stop.set()
        assert all(thread.result(BOUND_S) for thread in threads)
        assert [h.name for h in bus.handlers()] == ["stays"]
        assert bus.stats().handlers["stays"].succeeded == 300


# For a while.


def test_a_handler_is_subscribed_for_the_length_of_a_block(bus):
    with bus.subscribed("a", double) as handler:
        assert handler is double
        assert results(bus, "a", 1) == [2]
    assert results(bus, "a", 1) == []


def test_after_the_block_the_earlier_subscription_is_back(bus):
    bus.subscribe(["a", "b"], double, priority=1)
    for _ in range(2):
        with bus.subscribed("a", double, priority=2), bus.subscribed("c", double):
            found = [bus.publish(topic, 1).deliveries for topic in "abc"]
            assert [[d.handler.priority for d in each] for each in found] == [[2], [1], [0]]
        assert [len(results(bus, topic, 1)) for topic in "abc"] == [1, 1, 0]
    assert [h.priority for h in bus.handlers("a")] == [1]


def test_an_error_ends_the_block_as_well_and_blocks_may_end_in_any_order(bus):
    with pytest.raises(ZeroDivisionError), bus.subscribed("a", double):
        raise ZeroDivisionError
    first, second = bus.subscribed("a", double), bus.subscribed("a", double)
    first.__enter__()
    second.__enter__()
    assert results(bus, "a", 1) == [2]
    first.__exit__(None, None, None)
    assert results(bus, "a", 1) == [2]
    second.__exit__(None, None, None)
    assert results(bus, "a", 1) == []


def test_unsubscribing_and_subscribing_for_good_within_the_block_hold_after_it(bus):
    with bus.subscribed("a", double):
        bus.unsubscribe(double)
        assert results(bus, "a", 1) == []
    with bus.subscribed("a", double):
        bus.subscribe("a", double)
        assert results(bus, "a", 1) == [2]
    assert results(bus, "a", 1) == [2]


def test_handler_that_cannot_be_subscribed_is_refused_at_the_block(bus):
    with pytest.raises(SubscriptionError), bus.subscribed("a", double, retries=-1):
        raise AssertionError("not reached")
    assert bus.handlers() == ()


@pytest.mark.usefixtures("registry")
def test_the_block_comes_before_the_default_registry():
    subscribe_by_default("a", priority=1)(double)
    with EventBus() as bus:
        with bus.subscribed("a", double, priority=2):
            assert [h.priority for h in bus.handlers("a")] == [2]
        assert [h.priority for h in bus.handlers("a")] == [1]


# Once.


def test_once_takes_the_first_event_of_any_topic_and_no_other(bus):
    bus.subscribe(["a", "b"], double, once=True)
    assert len(bus.handlers("a")) == 1
    assert [results(bus, topic, 1) for topic in "baab"] == [[2], [], [], []]
    assert bus.handlers() == bus.handlers("a") == ()
    with pytest.raises(NoSuchHandler):
        bus.unsubscribe(double)


def test_once_runs_once_however_many_publish():
    publishers, rounds = 6, 40
    with EventBus([]) as bus, ThreadPoolExecutor(publishers) as pool:
        for _ in range(rounds):
            bus.subscribe("a", double, once=True)
            together = threading.Barrier(publishers, timeout=BOUND_S)

            def publish(n: int, together: threading.Barrier = together) -> int:
                together.wait()
                return len(results(bus, "a", n))

            assert sum(pool.map(publish, range(publishers))) == 1


def test_once_tries_its_one_delivery_again(bus):
    attempts = []

    @bus.subscribe("a", once=True, retries=2, backoff=0)
    def fails_at_first(event):
        attempts.append(current().attempt)
        if len(attempts) < 3:
            raise ValueError
        return event

    receipt = bus.publish("a", 7)
    assert bus.publish("a", 8).deliveries == ()
    assert receipt.result(BOUND_S) == 7
    assert attempts == [1, 2, 3]


def test_once_waits_for_an_event_that_its_where_takes(bus):
    bus.subscribe("n", double, once=True, where=lambda n: n > 10)
    assert [results(bus, "n", n) for n in (1, 11, 12)] == [[], [22], []]


def test_once_may_be_subscribed_again_and_beside_itself(bus):
    for _ in range(2):
        bus.subscribe("a", double, once=True)
        assert [results(bus, "a", 1) for _ in range(2)] == [[2], []]
    bus.subscribe("a", double, once=True)
    bus.subscribe("a", double, once=True)
    assert [results(bus, "a", 1) for _ in range(3)] == [[2], [2], []]


def test_an_event_that_was_not_published_leaves_once_for_the_next():
    with EventBus([], max_pending=1, on_full="raise") as bus:
        held = Held()
        bus.subscribe("fill", held)
        bus.subscribe("a", double, once=True)
        filling = bus.publish("fill", 1)
        with pytest.raises(QueueFull):
            bus.publish("a", 1)
        held.go.set()
        assert filling.result(BOUND_S) == 1
        assert results(bus, "a", 2) == [4]


@pytest.mark.usefixtures("registry")
def test_once_of_the_default_registry_counts_for_each_bus():
    subscribe_by_default("a", once=True)(double)
    with EventBus() as one, EventBus() as other:
        assert [results(each, "a", 1) for each in (one, other, one, other)] == [[2], [2], [], []]
        one.subscribe("b", double)  # whatever was over is cleared away meanwhile
        assert results(one, "a", 1) == []


def test_once_takes_an_event_of_a_cpu_handler():
    with EventBus([], cpu_workers=1) as bus:
        ran: list[int] = []

        @bus.subscribe("start", kind="cpu")
        def start(event: int) -> None:
            assert current().publish("made", 1) is None
            current().publish("made", 2)

        bus.subscribe("made", ran.append, once=True)
        bus.publish("start", 0).result(55)
        bus.drain(55)
        assert ran == [1]


@pytest.mark.parametrize("options", [{"once": 1}, {"once": None}, {"once": True, "kind": "auto"}])
def test_once_is_true_or_false_and_not_for_auto(bus, options):
    with pytest.raises(SubscriptionError, match="once"):
        bus.subscribe("a", double, **options)


# Handlers that an event would reach.


def test_handlers_lists_the_handlers_of_an_event_in_order(bus):
    def take(event: object) -> None: ...

    bus.subscribe("derived.*", take, name="by pattern")
    bus.subscribe(Base, take, name="by base")
    bus.subscribe("other", take, name="other")
    assert [h.name for h in bus.handlers()] == ["by pattern", "by base", "other"]
    assert [h.name for h in bus.handlers("derived.made")] == ["by pattern"]
    assert [h.name for h in bus.handlers(Base)] == ["by base"]
    assert [h.name for h in bus.handlers(Derived)] == ["by pattern", "by base"]
    assert [d.handler.name for d in bus.publish(Derived()).deliveries] == ["by pattern", "by base"]
    assert bus.handlers(int) == bus.handlers("nobody") == ()
    assert bus.handlers("other")[0].function is take


@pytest.mark.parametrize("topic", ["a.*", "", 5, ["a"]])
def test_handlers_refuses_an_object_that_is_no_topic(bus, topic):
    with pytest.raises(TopicError):
        bus.handlers(topic)


def test_publishing_in_an_io_handler_gives_the_receipt(bus):
    bus.subscribe("made", double)
    got: list[Any] = []
    bus.subscribe("start", lambda n: got.append(current().publish("made", n)))
    bus.publish("start", 4).result(BOUND_S)
    assert got[0].result(BOUND_S) == 8


def test_a_class_whose_metaclass_cannot_be_hashed_is_routed(bus):
    class Meta(type):
        __hash__ = None  # type: ignore[assignment]

        def __eq__(cls, other: object) -> bool:
            return cls is other

    class Odd(metaclass=Meta):
        pass

    bus.subscribe(object, lambda event: "got", name="all")
    assert results(bus, Odd()) == results(bus, Odd()) == ["got"]


def test_a_signal_handler_may_subscribe_in_the_middle_of_subscribing_and_publishing():
    with EventBus([]) as bus:
        rung = itertools.count()
        rings: list[Any] = []

        def ring(*_: Any) -> None:
            number = next(rung)
            bus.subscribe(f"signal.{number}", double, name=f"signal {number}")
            rings.append(bus.publish(f"signal.{number}", number))
            bus.unsubscribe(double, f"signal.{number}")
            signal.setitimer(
                signal.ITIMER_REAL, 0.002
            )  # only now: they do not interrupt each other

        before = signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, 0.002)
        try:
            for number in range(600):
                with bus.subscribed("work", double, name=f"work {number}"):
                    bus.subscribe("other", wraps_itself, priority=number)
                    assert results(bus, "work", number) == [2 * number]
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert [each.result(BOUND_S) for each in rings] == [2 * n for n in range(next(rung))]
        assert [h.priority for h in bus.handlers()] == [599]
