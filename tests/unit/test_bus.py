# SPDX-License-Identifier: MIT
"""The bus as a user meets it: subscribing, publishing, receipts and order, on the io lane."""

import enum
import logging
import sys
import threading
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from procbus import (
    DeliveryState,
    EventBus,
    NoSuchHandler,
    OutcomeKind,
    SubscriptionError,
    subscribe,
)
from procbus.core.errors import HandlerExited
from procbus.testing import InlineBus
from tests.parts import BOUND_S, Held, double


@dataclass
class Event:
    event_type: str


@dataclass(frozen=True)
class Order:
    number: int


class Urgent(Order):
    pass


@pytest.fixture(params=[EventBus, InlineBus])
def bus(request: pytest.FixtureRequest) -> Iterator[EventBus]:
    """The bus, and the one of the testing kit: both must answer alike."""
    with request.param([]) as bus:
        yield bus


@pytest.fixture
def threaded() -> Iterator[EventBus]:
    """Only for a bus with threads."""
    with EventBus([]) as bus:
        yield bus


# Subscribing and routing.


def test_the_script_that_people_start_from_works(bus):
    got: list[Event] = []
    bus.subscribe("order.updated", got.append)
    bus.publish(Event("order.updated")).wait(BOUND_S)
    assert got == [Event("order.updated")]


def test_subscribing_is_a_call_or_a_decorator_and_gives_the_function_back(bus: EventBus):
    assert bus.subscribe("a", double) is double

    @bus.subscribe(kind="io")
    def negate(number: int) -> int:
        return -number

    @bus.subscribe("a")
    def add(number):
        return number + 1

    assert negate(1) == -1
    assert sorted(bus.publish("a", 5).results(BOUND_S)) == [6, 10]
    assert bus.publish(5).result(BOUND_S) == -5


def test_class_takes_instances_of_itself_and_of_subclasses(bus):
    bus.subscribe(Order, lambda e: "order")
    bus.subscribe(Urgent, lambda e: "urgent")
    bus.subscribe(object, lambda e: "object")
    assert bus.publish(Order(1)).results(BOUND_S) == ["order", "object"]
    assert bus.publish(Urgent(1)).results(BOUND_S) == ["order", "urgent", "object"]
    assert bus.publish("text").results(BOUND_S) == ["object"]


def test_an_explicit_topic_alone_decides(bus):
    bus.subscribe(Event, lambda e: "class")
    bus.subscribe("order.*", lambda e: "pattern")
    bus.subscribe("#", lambda e: "all")
    bus.subscribe("other", lambda e: "other")
    assert bus.publish("order.new", Event("other")).results(BOUND_S) == ["pattern", "all"]
    assert bus.publish(Event("other")).results(BOUND_S) == ["class", "all", "other"]
    assert bus.publish(Order(1)).deliveries == ()


def test_several_topics_for_one_handler_give_one_delivery(bus):
    bus.subscribe((Event, "order.*", "#"), lambda e: "once")
    assert bus.publish(Event("order.new")).results(BOUND_S) == ["once"]
    assert bus.publish("order.new", 1).results(BOUND_S) == ["once"]


def test_none_may_be_published_as_a_payload(bus):
    bus.subscribe("nothing", lambda e: [e])
    assert bus.publish("nothing", None).result(BOUND_S) == [None]


def test_the_handler_gets_exactly_the_object(bus):
    bus.subscribe(Order, lambda e: e)
    order = Order(1)
    receipt = bus.publish(order)
    assert receipt.result(BOUND_S) is order
    assert receipt.event is order


def test_event_refused_by_every_where_is_unrouted(bus):
    bus.subscribe(Order, lambda e: "even", where=lambda e: e.number % 2 == 0)
    bus.subscribe(Order, lambda e: "large", where=lambda e: e.number > 10)
    assert bus.publish(Order(2)).results(BOUND_S) == ["even"]
    assert bus.publish(Order(12)).results(BOUND_S) == ["even", "large"]
    assert bus.publish(Order(1)).deliveries == ()
    assert bus.stats().unrouted == 1


@pytest.mark.parametrize("option", ["where", "key"])
def test_error_in_where_or_key_fails_the_delivery_to_that_handler_alone(bus, option, caplog):
    def broken(event: Any) -> Any:
        raise LookupError(event)

    bus.subscribe(Order, lambda e: "healthy", name="healthy")
    bus.subscribe(Order, lambda e: "never", name="broken", **{option: broken})
    receipt = bus.publish(Order(1))
    assert receipt.wait(BOUND_S)
    by_name = {d.handler.name: d for d in receipt.deliveries}
    assert by_name["healthy"].result() == "healthy"
    with pytest.raises(LookupError) as caught:
        by_name["broken"].result()
    assert caught.value.__notes__ == [f"raised by {option}= of broken"]
    with pytest.raises(LookupError):
        receipt.results()
    assert [x.handler for x in bus.dead_letters] == ["broken"]
    assert len(caplog.records) == 1
    bus.drain()
    stats = bus.stats()
    assert stats.pending == 0
    broken_stats = stats.handlers["broken"]
    assert (broken_stats.published, broken_stats.failed, broken_stats.pending) == (1, 1, 0)


def test_a_key_that_cannot_be_hashed_fails_the_delivery(bus):
    bus.subscribe(Order, lambda e: 1, key=lambda e: [e.number])
    with pytest.raises(TypeError, match="unhashable"):
        bus.publish(Order(1)).result(BOUND_S)


def test_an_answer_of_where_without_truth_fails_the_delivery(bus):
    class Unsure:
        def __bool__(self) -> bool:
            raise ValueError("ambiguous")

    bus.subscribe(Order, lambda e: 1, where=lambda e: Unsure())
    with pytest.raises(ValueError, match="ambiguous"):
        bus.publish(Order(1)).result(BOUND_S)


def test_event_without_a_handler_is_logged_once_for_each_topic_and_counted_each_time(bus, caplog):
    for _ in range(3):
        receipt = bus.publish("order.lost", 1)
        assert receipt.done
        assert receipt.deliveries == ()
        assert receipt.results() == []
        bus.publish(Order(1))
    bus.publish("order.other", 1)
    assert bus.stats().unrouted == 7
    messages = [r.getMessage() for r in caplog.records]
    assert messages == [
        "no handler takes events of 'order.lost'; they go nowhere",
        "no handler takes events of class Order; they go nowhere",
        "no handler takes events of 'order.other'; they go nowhere",
    ]
    assert all(r.levelno == logging.WARNING for r in caplog.records)


def test_events_with_an_event_type_are_unrouted_by_that(bus, caplog):
    for topic in ("order.lost", "order.gone", "order.lost"):
        bus.publish(Event(topic))
    assert [r.getMessage() for r in caplog.records] == [
        "no handler takes events of class Event ('order.lost'); they go nowhere",
        "no handler takes events of class Event ('order.gone'); they go nowhere",
    ]


def test_a_text_published_without_payload_gets_a_hint(bus, caplog):
    bus.publish("order.new")
    assert 'publish("topic", payload)' in caplog.text


def test_unsubscribing_takes_a_function_off_all_its_topics(bus):
    bus.subscribe("a", double)
    bus.subscribe("b", double)
    bus.unsubscribe(double)
    assert bus.publish("a", 1).deliveries == bus.publish("b", 1).deliveries == ()
    with pytest.raises(NoSuchHandler, match="double is not subscribed to this bus"):
        bus.unsubscribe(double)
    bus.subscribe("a", double)
    assert bus.publish("a", 1).result(BOUND_S) == 2


def test_a_bound_method_can_be_unsubscribed(bus):
    got: list[int] = []
    bus.subscribe("a", got.append)
    bus.unsubscribe(got.append)
    assert bus.publish("a", 1).deliveries == ()


def test_pending_deliveries_of_an_unsubscribed_handler_still_run(threaded):
    held = Held()
    threaded.subscribe("a", held, concurrency=1)
    receipts = [threaded.publish("a", n) for n in range(3)]
    threaded.unsubscribe(held)
    held.go.set()
    assert [r.result(BOUND_S) for r in receipts] == [0, 1, 2]


def test_several_buses_are_apart():
    with EventBus([]) as one, EventBus([]) as other:
        one.subscribe("a", lambda e: "one")
        other.subscribe("a", lambda e: "other")
        assert one.publish("a", 1).result(BOUND_S) == "one"
        assert other.publish("a", 1).result(BOUND_S) == "other"
        one.close()
        assert other.publish("a", 1).result(BOUND_S) == "other"


@pytest.mark.usefixtures("registry")
def test_the_default_registry_counts_before_and_after_the_bus_is_made():
    @subscribe("before")
    def before(event):
        return "before"

    with EventBus() as bus, EventBus([]) as isolated:

        @subscribe("after")
        def after(event):
            return "after"

        assert bus.publish("before", 1).result(BOUND_S) == "before"
        assert bus.publish("after", 1).result(BOUND_S) == "after"
        assert isolated.publish("before", 1).deliveries == ()
        bus.unsubscribe(before)
        assert bus.publish("before", 1).deliveries == ()
        with EventBus() as second:
            assert second.publish("before", 1).result(BOUND_S) == "before"


@pytest.mark.usefixtures("registry")
def test_bus_of_listed_functions_and_modules_takes_no_others(monkeypatch):
    module = types.ModuleType("shop_handlers")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    source = "from procbus import subscribe\n@subscribe('a')\ndef store(event): return 'module'"
    exec(source, module.__dict__)

    @subscribe("a")
    def listed(event):
        return "function"

    @subscribe("a")
    def other(event):
        return "other"

    with EventBus([listed, module, listed]) as bus:
        assert bus.publish("a", 1).results(BOUND_S) == ["function", "module"]
    with pytest.raises(SubscriptionError, match="not subscribed"):
        EventBus([double])


# Receipts.


def test_receipts_are_numbered_and_have_no_parent_outside_handlers(bus):
    receipts = [bus.publish("a", n) for n in range(3)]
    assert [r.id for r in receipts] == [1, 2, 3]
    assert [r.parent_id for r in receipts] == [None] * 3
    assert receipts[0].topic == "a"
    assert bus.publish(Order(1)).topic is None


def test_handler_that_fails_harms_no_other(threaded):
    def fail(event: object) -> None:
        raise ZeroDivisionError

    threaded.subscribe("a", fail)
    threaded.subscribe("a", lambda e: "fine")
    for _ in range(50):
        receipt = threaded.publish("a", 1)
        with pytest.raises(ZeroDivisionError) as caught:
            receipt.results(BOUND_S)
        assert "fail" in [each.name for each in caught.traceback]
    assert threaded.stats().lanes["io"].workers > 0


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_a_handler_cannot_end_its_thread(threaded, error):
    def leave(event: object) -> None:
        raise error

    threaded.subscribe("a", leave)
    threaded.subscribe("b", lambda e: "fine")
    receipts = [threaded.publish("a", n) for n in range(3)]
    assert all(r.wait(BOUND_S) for r in receipts)
    told = receipts[0].deliveries[0].exception()
    assert isinstance(told, HandlerExited)
    assert told.__cause__ is error
    assert threaded.publish("b", 1).result(BOUND_S) == "fine"


def test_state_and_times_of_a_delivery(threaded):
    held = Held()
    threaded.subscribe("a", held, concurrency=1)
    first, second = threaded.publish("a", 1), threaded.publish("a", 2)
    held.wait_begun()
    states = [first.deliveries[0].state, second.deliveries[0].state]
    assert states == [DeliveryState.RUNNING, DeliveryState.PENDING]
    held.go.set()
    assert threaded.drain(BOUND_S)
    delivery = second.deliveries[0]
    assert delivery.state is DeliveryState.SUCCEEDED
    assert delivery.attempts == 1
    assert delivery.queued_s > 0
    assert delivery.run_s is not None
    assert delivery.run_s >= 0
    assert delivery.worker_pid is not None
    assert delivery.event_id == second.id
    assert delivery.outcome is not None
    assert delivery.outcome.kind is OutcomeKind.SUCCEEDED


# Order.


def test_deliveries_of_a_key_run_in_order_and_keys_run_in_parallel(threaded):
    under_way: dict[str, int] = {}
    order: list[tuple[str, int]] = []
    together = threading.Barrier(3)

    def keyed(event: tuple[str, int]) -> None:
        key, number = event
        assert under_way.setdefault(key, 0) == 0
        under_way[key] = 1
        if number == 0:
            together.wait(BOUND_S)  # passes only if the three keys run at the same time
        order.append(event)
        under_way[key] = 0

    threaded.subscribe("a", keyed, key=lambda e: e[0])
    receipts = [threaded.publish("a", (key, n)) for n in range(50) for key in "xyz"]
    for receipt in receipts:
        receipt.result(BOUND_S)
    for key in "xyz":
        assert [n for k, n in order if k == key] == list(range(50))


def test_no_more_run_at_once_than_the_limit_allows(threaded):
    held = Held()
    threaded.subscribe("a", held, concurrency=2)
    threaded.subscribe("b", lambda e: "not held up")
    receipts = [threaded.publish("a", n) for n in range(6)]
    held.wait_begun(2)
    assert threaded.publish("b", 1).result(BOUND_S) == "not held up"
    assert not held.began.acquire(blocking=False)
    assert threaded.stats().lanes["io"].busy == 2
    held.go.set()
    assert [r.result(BOUND_S) for r in receipts] == list(range(6))


def test_a_larger_priority_overtakes():
    held = Held()
    order: list[str] = []
    with EventBus([], io_workers=1) as bus:
        bus.subscribe("block", held)
        bus.subscribe("low", order.append, priority=-1)
        bus.subscribe("high", order.append, priority=1)
        bus.publish("block", 0)
        held.wait_begun()
        for number in range(3):
            bus.publish("low", f"low {number}")
            bus.publish("high", f"high {number}")
        held.go.set()
    assert order == [f"high {n}" for n in range(3)] + [f"low {n}" for n in range(3)]


class Names(enum.StrEnum):
    ORDER = "order.updated"


class HostileText(str):
    def __eq__(self, other: object) -> bool:
        raise SystemExit

    def __hash__(self) -> int:
        raise SystemExit

    def split(self, *_: object) -> list[str]:
        raise SystemExit


@pytest.mark.parametrize("topic", [Names.ORDER, HostileText("order.updated")])
@pytest.mark.parametrize("kind", ["io", "cpu"])
def test_topic_of_a_string_class_of_the_users_is_its_plain_text(
    kind: Literal["io", "cpu"], topic: str
) -> None:
    with EventBus(handlers=[], cpu_workers=1) as bus:
        bus.subscribe("order.*", identity, kind=kind)
        receipt = bus.publish(topic, 1)

        assert receipt.result() == 1
    assert type(receipt.topic) is str


def identity(event: object) -> object:
    return event
