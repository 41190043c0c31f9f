# SPDX-License-Identifier: MIT
"""From an event to deliveries: chosen, queued, failed at once, and counted."""

import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Never

import pytest

from procbus.core.context import running
from procbus.core.dead_letter import letter_of
from procbus.core.delivery import Delivery, DeliveryState
from procbus.core.errors import BusClosed, CircuitOpen, ProcbusError, QueueFull, TopicError
from procbus.core.handler import as_kind, make_handler
from procbus.core.locks import Tangled
from procbus.core.receipt import Receipt, SoleReceipt
from procbus.core.subscription import Subscription
from procbus.dispatch.admission import Admission, OnFull, Reserved
from procbus.dispatch.dispatcher import Dispatcher
from procbus.routing.router import Router
from tests.parts import (
    BOUND_S,
    FakeLane,
    delivery_to,
    handle,
    in_thread,
    raised,
    receipt_for,
    settlement_for,
    succeeded,
)
from tests.waits import eventually


class Parts:
    """A dispatcher with a lane that only keeps its deliveries."""

    def __init__(
        self,
        max_pending: int = 100,
        on_full: OnFull = "raise",
        make_admission: Callable[[int, OnFull], Admission] = Admission,
    ) -> None:
        self.lane = FakeLane()
        self.admission = make_admission(max_pending, on_full)
        self.settlement = settlement_for(self.admission)
        self.subscriptions: list[Subscription] = []
        self.dispatcher = self.make_dispatcher()

    def make_dispatcher(
        self, get_ready: Callable[[], None] = lambda: None, **about: Any
    ) -> Dispatcher:
        """Make a dispatcher of these parts.

        Args:
            get_ready: called before the first event.
            **about: see `Dispatcher`.
        """
        return Dispatcher(
            self.admission,
            self.settlement,
            lambda: Router([(s, s.handler.topics) for s in self.subscriptions]),
            get_ready,
            lambda: self.subscriptions,
            **about,
        )

    def subscribe(self, topic: Any, **options: Any) -> Subscription:
        subscription = Subscription(make_handler(handle, topic, **options), self.lane)
        self.subscriptions.append(subscription)
        return subscription


def test_an_event_becomes_one_delivery_for_each_handler():
    parts = Parts()
    first, second = parts.subscribe(int), parts.subscribe(object, key=lambda e: e % 10)
    receipt = parts.dispatcher.publish(42, None)
    assert [d.subscription for d in receipt.deliveries] == [first, second]
    assert parts.lane.queued == list(receipt.deliveries)
    assert [d.key for d in receipt.deliveries] == [None, 2]
    assert receipt.left == 2
    assert parts.admission.pending == 2


def test_ids_grow_with_or_without_handlers():
    parts = Parts()
    parts.subscribe(int)
    ids = [parts.dispatcher.publish(event, None).id for event in (1, "nobody", 2)]
    assert ids == [1, 2, 3]
    assert parts.dispatcher.unrouted.count == 1


def test_a_broken_predicate_fails_at_once_and_holds_no_room(caplog):
    parts = Parts()
    healthy = parts.subscribe(int)
    broken = parts.subscribe(int, where=lambda e: 1 // 0, name="broken")
    receipt = parts.dispatcher.publish(1, None)
    assert [d.subscription for d in parts.lane.queued] == [healthy]
    by_subscription = {d.subscription: d for d in receipt.deliveries}
    assert by_subscription[broken].state is DeliveryState.FAILED
    assert by_subscription[healthy].state is DeliveryState.PENDING
    assert parts.admission.pending == 1
    parts.settlement.settle([(by_subscription[healthy], succeeded())])
    assert receipt.done
    assert parts.lane.released == []
    assert len(caplog.records) == 1


def test_a_full_bus_takes_nothing_of_the_event():
    parts = Parts(max_pending=1)
    parts.subscribe(int)
    parts.dispatcher.publish(1, None)
    with pytest.raises(QueueFull):
        parts.dispatcher.publish(2, None)
    assert len(parts.lane.queued) == 1
    assert parts.admission.pending == 1


def test_trying_to_publish_without_room_publishes_nothing_and_calls_back():
    parts = Parts(max_pending=1, on_full="block")
    parts.subscribe(int)
    called: list[int] = []
    receipt = parts.dispatcher.try_publish(1, None, lambda: called.append(1))
    assert isinstance(receipt, Receipt)
    waiting = parts.dispatcher.try_publish(2, None, lambda: called.append(2))
    assert isinstance(waiting, Reserved)
    assert called == []
    parts.settlement.settle([(receipt.deliveries[0], succeeded())])
    assert called == [2]
    published = waiting.publish()
    assert published is not None
    assert published.event == 2
    assert parts.admission.pending == 1


def test_inside_a_handler_an_event_gets_its_parent():
    parts = Parts(max_pending=1, on_full="block")
    parts.subscribe(int)
    parent = parts.dispatcher.publish(1, None)
    context = parts.dispatcher.context_of(parent.deliveries[0], parent)
    assert (context.event_id, context.parent_id, context.attempt) == (parent.id, None, 1)
    context.publish(2)  # into a full bus
    child = parts.lane.queued[-1].receipt
    assert child is not None
    assert child.parent_id == parent.id
    assert running.get() is None
    other = Parts()
    other.subscribe(int)
    before = running.set(context)
    try:
        assert other.dispatcher.publish(3, None).parent_id is None
        assert isinstance(parts.dispatcher.try_publish(4, None, lambda: None), Receipt)
    finally:
        running.reset(before)


@dataclass
class Odd:
    @property
    def event_type(self) -> str:
        raise RuntimeError("odd")


def test_children_are_published_all_with_their_parent():
    parts = Parts()
    parts.subscribe(int)
    parts.subscribe("leaf")
    parent = delivery_to(parts.subscriptions[0], event_id=77)
    published = [(None, 1), ("leaf", "x")]
    assert parts.dispatcher.publish_children(parent, succeeded(), published) is None
    receipts = [d.receipt for d in parts.lane.queued]
    assert [(r.event, r.topic, r.parent_id) for r in receipts if r] == [
        (1, None, 77),
        ("x", "leaf", 77),
    ]


@pytest.mark.parametrize(
    ("bad", "error"), [(("a..b", 1), TopicError), ((None, Odd()), RuntimeError)]
)
def test_children_are_not_published_if_one_is_wrong(bad, error):
    parts = Parts()
    parts.subscribe((int, "#"))
    parent = delivery_to(parts.subscriptions[0])
    found = parts.dispatcher.publish_children(parent, succeeded(), [(None, 1), bad, (None, 2)])
    assert isinstance(found, error)
    assert parts.lane.queued == []
    assert parts.admission.pending == 0


def test_children_that_find_no_room_are_an_error_of_their_parent():
    parts = Parts(max_pending=1)
    parts.subscribe(int)
    parts.dispatcher.publish(1, None)
    parent = delivery_to(parts.subscriptions[0])
    found = parts.dispatcher.publish_children(parent, succeeded(), [(None, 1)])
    assert isinstance(found, QueueFull)
    assert isinstance(found, ProcbusError)


def test_a_closed_bus_publishes_nothing():
    parts = Parts()
    parts.subscribe(int)
    parts.admission.refuse()
    with pytest.raises(BusClosed):
        parts.dispatcher.publish(1, None)
    assert parts.lane.queued == []


def test_topics_without_handlers_are_remembered_within_bounds(caplog):
    parts = Parts()
    for number in range(1_200):
        parts.dispatcher.publish(1, f"topic.n{number}")
    assert parts.dispatcher.unrouted.count == 1_200
    assert len(caplog.records) == 1_000


# While workers die and die.


def open_circuit() -> CircuitOpen:
    return CircuitOpen("workers die")


#: Circuits of a lane that refuses events, and of one that takes them.
OPEN = SimpleNamespace(refusal=open_circuit)
CLOSED = SimpleNamespace(refusal=None)


def test_while_it_is_guarded_nothing_is_published_for_cpu_handlers():
    parts = Parts()
    parts.subscribe(int, kind="cpu")
    parts.subscribe((int, str))
    parts.dispatcher.guard(OPEN)
    with pytest.raises(CircuitOpen):
        parts.dispatcher.publish(1, None)
    with pytest.raises(CircuitOpen):
        parts.dispatcher.try_publish(1, None, lambda: None)
    assert parts.lane.queued == []
    assert parts.admission.pending == 0
    assert len(parts.dispatcher.publish("for io alone", None).deliveries) == 1
    assert parts.dispatcher.publish(b"nobody's", None).done

    parts.dispatcher.guard(CLOSED)
    assert len(parts.dispatcher.publish(1, None).deliveries) == 2


def test_guard_of_processes_lets_handlers_on_threads_have_their_events():
    parts = Parts()
    parts.subscribe(int, kind="cpu")
    subscription = parts.subscribe(str, kind="cpu")
    subscription.handler = as_kind(subscription.handler, "cpu", on_threads=True)
    parts.dispatcher.guard(OPEN)
    with pytest.raises(CircuitOpen):
        parts.dispatcher.publish(1, None)
    assert len(parts.dispatcher.publish("x", None).deliveries) == 1


def test_event_of_a_cpu_handler_is_refused_with_the_error_of_the_guard():
    parts = Parts()
    parts.subscribe(int, kind="cpu")
    parent = delivery_to(parts.subscriptions[0])
    parts.dispatcher.guard(OPEN)
    refused = parts.dispatcher.publish_children(parent, succeeded(), [(None, 1)])
    assert isinstance(refused, CircuitOpen)
    assert parts.dispatcher.publish_children(parent, succeeded(), [(None, "x")]) is None
    assert parts.lane.queued == []


def test_each_publisher_gets_an_error_of_its_own():
    parts = Parts()
    parts.subscribe(int, kind="cpu")
    parts.dispatcher.guard(OPEN)
    errors = []
    for _ in range(2):
        with pytest.raises(CircuitOpen) as caught:
            parts.dispatcher.publish(1, None)
        errors.append(caught.value)
    assert errors[0] is not errors[1]


def in_the_way(parts: Parts, happen: Callable[[], object]) -> None:
    """Have something happen after the next routing, before the publisher waits for room."""
    routes = parts.dispatcher._routes  # noqa: SLF001 - there is no other way in between

    def routes_and_then() -> Any:
        found = routes()
        parts.dispatcher._routes = routes  # noqa: SLF001
        happen()
        return found

    parts.dispatcher._routes = routes_and_then  # noqa: SLF001


def publisher(publish: Callable[[], object]) -> tuple[threading.Thread, list[Any]]:
    """Publish in a thread; the result or the error is in the list."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(publish())
        except ProcbusError as error:
            outcome.append(error)

    return in_thread(run), outcome


@pytest.mark.parametrize("replayed", [False, True])
@pytest.mark.parametrize("just_before", [False, True])
def test_publishers_that_wait_for_room_are_refused_too(replayed, just_before):
    parts = Parts(max_pending=1, on_full="block")
    subscription = parts.subscribe(int, kind="cpu")
    receipt = parts.dispatcher.publish(1, None)
    (delivery,) = receipt.deliveries
    letter = letter_of(delivery, receipt, (raised(ValueError()),), False)
    routed = threading.Event()
    in_the_way(parts, lambda: parts.dispatcher.guard(OPEN) if just_before else routed.set())
    thread, outcome = publisher(
        lambda: (
            parts.dispatcher.redeliver(letter) if replayed else parts.dispatcher.publish(2, None)
        )
    )
    if not just_before:
        assert routed.wait(BOUND_S)
        parts.dispatcher.guard(OPEN)

    thread.join(BOUND_S)
    assert [type(each) for each in outcome] == [CircuitOpen]
    assert parts.admission.pending == 1
    assert subscription.published == 0


def test_publishers_for_others_wait_on_however_often_they_are_disturbed():
    parts = Parts(max_pending=1, on_full="block")
    parts.subscribe(int)
    first = parts.dispatcher.publish(1, None)
    thread, outcome = publisher(lambda: parts.dispatcher.publish(2, None))
    for _ in range(2 * sys.getrecursionlimit()):
        parts.dispatcher.guard(OPEN)
    assert outcome == []
    parts.settlement.settle([(first.deliveries[0], succeeded())])

    thread.join(BOUND_S)
    (receipt,) = outcome
    assert receipt.event == 2
    assert parts.admission.pending == 1


@pytest.mark.parametrize("just_before", [False, True])
def test_publisher_that_waits_without_blocking_is_called_to_look_again(just_before):
    parts = Parts(max_pending=1, on_full="block")
    parts.subscribe(int, kind="cpu")
    parts.dispatcher.publish(1, None)
    called: list[int] = []
    if just_before:
        in_the_way(parts, lambda: parts.dispatcher.guard(OPEN))
    waiting = parts.dispatcher.try_publish(2, None, lambda: called.append(2))
    assert isinstance(waiting, Reserved)
    if not just_before:
        assert called == []
        parts.dispatcher.guard(OPEN)
    assert called == [2]
    assert waiting.publish() is None
    assert parts.admission.blocked == 0
    with pytest.raises(CircuitOpen):
        parts.dispatcher.try_publish(2, None, lambda: None)


def test_a_forked_child_refuses_whatever_the_guard_does():
    def refuse() -> Never:
        raise ProcbusError("forked")

    parts = Parts()
    parts.subscribe(int)
    parts.dispatcher.refuse(refuse)
    parts.dispatcher.guard(OPEN)
    parts.dispatcher.guard(CLOSED)
    with pytest.raises(ProcbusError, match="forked"):
        parts.dispatcher.publish(1, None)


# Dead letters.


def test_a_letter_is_published_again_for_its_handler_alone():
    parts = Parts()
    mine = parts.subscribe(int, name="mine", where=lambda event: event != 1, key=lambda e: e)
    parts.subscribe(int, name="other")
    receipt = parts.dispatcher.publish(1, None)
    letter = letter_of(
        delivery_to(mine, 1), receipt_for(mine, event=1), (raised(ValueError()),), False
    )
    parts.lane.queued.clear()

    again = parts.dispatcher.redeliver(letter)

    (delivery,) = again.deliveries
    assert delivery.subscription is mine
    assert delivery.key == 1
    assert again.id > receipt.id
    assert parts.lane.queued == [delivery]
    assert parts.admission.pending == 2


def test_a_bus_gets_ready_once_even_where_it_was_guarded_before_its_first_event():
    parts = Parts()
    ready: list[str] = []
    parts.dispatcher = parts.make_dispatcher(lambda: ready.append("ready"))
    parts.subscribe(int)
    parts.dispatcher.guard(OPEN)
    parts.dispatcher.publish(1, None)
    parts.dispatcher.guard(CLOSED)
    parts.dispatcher.publish(2, None)
    assert ready == ["ready"]


def test_a_guard_that_ends_before_the_first_event_leaves_the_bus_to_get_ready():
    ready: list[str] = []
    parts = Parts()
    parts.dispatcher = parts.make_dispatcher(lambda: ready.append("ready"))
    parts.dispatcher.guard(OPEN)
    parts.dispatcher.guard(CLOSED)
    assert ready == []
    parts.dispatcher.publish(1, None)
    assert ready == ["ready"]


# With a journal.


class AcceptingJournal:
    """A journal that takes all events, and has nothing from runs before."""

    def __init__(self) -> None:
        self.resumed_for: object = None
        self.accepted: list[Receipt] = []

    def accept(
        self,
        receipt: Receipt,
        deliveries: Any,
        *,
        wait: bool = True,
        due_at: float = 0.0,
        beside: bytes = b"",
    ) -> None:
        self.accepted.append(receipt)

    def resume(self) -> None:
        """There is nothing to be fed."""


class TangledAtFirst(Admission):
    """The first publisher interrupts another one in the middle of it."""

    is_first = True

    def enter(self, *about: Any) -> None:
        if self.is_first:
            self.is_first = False
            raise Tangled
        super().enter(*about)


@pytest.mark.parametrize("handlers", [1, 2])
def test_an_event_whose_publisher_is_tangled_up_is_in_the_journal_at_once(handlers):
    parts = Parts(make_admission=TangledAtFirst)
    journal: Any = AcceptingJournal()
    dispatcher = parts.make_dispatcher(journal=journal)
    for number in range(handlers):
        parts.subscribe(int, name=f"handler {number}")
    receipt = dispatcher.publish(1, None)
    assert journal.accepted == [receipt]
    eventually(lambda: len(parts.lane.queued) == handlers)
    assert {each.event_id for each in parts.lane.queued} == {receipt.id}
    assert parts.admission.pending == handlers


class TakesMany(FakeLane):
    """A lane that queues several deliveries at once."""

    def __init__(self) -> None:
        super().__init__()
        self.runs: list[int] = []

    def put_all(self, deliveries: Sequence[Delivery]) -> None:
        self.runs.append(len(deliveries))
        self.queued += deliveries


def many(parts: Parts) -> TakesMany:
    """Give the parts a lane that takes several deliveries at once."""
    parts.lane = lane = TakesMany()
    return lane


def test_events_for_the_same_handler_are_published_in_one_run():
    parts = Parts()
    lane = many(parts)
    parts.subscribe(int)
    parts.subscribe(str)
    told: list[Receipt] = []
    publish = parts.dispatcher.publish_run
    parts.dispatcher.publish(0, None)  # gets the bus ready

    receipts = publish([1, 2, 3, "text", 4], None, (told.append,))

    assert [receipt.event for receipt in receipts] == [1, 2, 3]
    assert [receipt.id for receipt in receipts] == [2, 3, 4]
    assert lane.runs == [3]
    assert parts.admission.pending == 4
    parts.settlement.settle([(delivery, succeeded()) for delivery in lane.queued])
    assert told == list(receipts)


@pytest.mark.parametrize(
    "options", [{"key": hash}, {"where": bool}, {"once": True}, {"concurrency": 1}]
)
def test_event_that_needs_more_than_queueing_is_published_alone(options):
    parts = Parts()
    lane = many(parts)
    parts.subscribe(int, **options)
    parts.subscribe(str)
    parts.dispatcher.publish("text", None)
    told: list[Receipt] = []

    receipts = parts.dispatcher.publish_run([1, 2, 3], None, (told.append,))

    assert [receipt.event for receipt in receipts] == [1]
    assert lane.runs == []
    parts.settlement.settle([(delivery, succeeded()) for delivery in lane.queued])
    assert told == list(receipts)


def test_a_run_takes_no_more_than_the_room_on_the_bus():
    parts = Parts(max_pending=5)
    many(parts)
    parts.subscribe(int)
    parts.dispatcher.publish(0, None)
    events = list(range(1, 10))

    assert len(parts.dispatcher.publish_run(events, None, None)) == 4
    with pytest.raises(QueueFull):
        parts.dispatcher.publish_run(events, None, None)
    assert parts.admission.pending == 5


def test_a_run_ends_before_an_event_that_cannot_be_routed():
    @dataclass
    class Named:
        event_type: str

    parts = Parts()
    many(parts)
    parts.subscribe("good")
    parts.dispatcher.publish(Named("good"), None)
    events = [Named("good"), Named("good"), Named("bad..")]

    assert len(parts.dispatcher.publish_run(events, None, None)) == 2
    with pytest.raises(TopicError):
        parts.dispatcher.publish_run(events[2:], None, None)


def test_a_run_that_cannot_be_queued_is_cancelled_and_leaves_no_room_taken():
    class Interrupted(TakesMany):
        def put_all(self, deliveries: Sequence[Delivery]) -> None:
            raise KeyboardInterrupt

    parts = Parts()
    parts.lane = Interrupted()
    parts.subscribe(int)
    parts.dispatcher.publish(0, None)
    told: list[Receipt] = []

    with pytest.raises(KeyboardInterrupt):
        parts.dispatcher.publish_run([1, 2, 3], None, (told.append,))

    assert [receipt.deliveries[0].state for receipt in told] == [DeliveryState.CANCELLED] * 3
    assert parts.admission.pending == 1


def test_event_for_nobody_is_told_at_once():
    parts = Parts()
    told: list[Receipt] = []
    receipt = parts.dispatcher.publish(1, None, (told.append,))
    assert told == [receipt]


# A signal handler or a `__del__` that interrupts publishing.


class InterruptedMaker:
    """Makes receipts. It is interrupted before the last of some, whose room is taken by then.

    Args:
        last: number of the receipt.
        interrupt: the signal handler.
    """

    def __init__(self, last: int, interrupt: Callable[[], object]) -> None:
        self._left, self._interrupt = last, interrupt

    def __call__(self, *about: Any) -> SoleReceipt:
        self._left -= 1
        if self._left == 0:
            self._interrupt()
        return SoleReceipt(*about)


def interrupted_parts(
    max_pending: int, last: int, interrupt: Callable[[Parts], object]
) -> tuple[Parts, TakesMany]:
    parts = Parts(max_pending, "block")
    lane = many(parts)
    parts.dispatcher = parts.make_dispatcher(sole=InterruptedMaker(last, lambda: interrupt(parts)))
    parts.subscribe(int)
    return parts, lane


def events_of(lane: FakeLane) -> list[Any]:
    return [delivery.receipt and delivery.receipt.event for delivery in lane.queued]


def test_a_signal_handler_publishes_although_the_event_that_it_interrupts_has_the_last_room():
    parts, lane = interrupted_parts(1, 1, lambda parts: parts.dispatcher.publish(2, None))

    parts.dispatcher.publish(1, None)

    assert events_of(lane) == [2, 1]
    assert parts.admission.pending == 2


def test_a_signal_handler_publishes_although_the_run_that_it_interrupts_has_all_the_room():
    parts, lane = interrupted_parts(5, 4, lambda parts: parts.dispatcher.publish(9, None))
    parts.dispatcher.publish(0, None)  # gets the bus ready

    receipts = parts.dispatcher.publish_run([1, 2, 3, 4, 5], None, None)

    assert [receipt.event for receipt in receipts] == [1, 2, 3, 4]
    assert events_of(lane) == [0, 9, 1, 2, 3, 4]
    assert parts.admission.pending == 6


def test_a_signal_handler_may_not_wait_for_the_events_that_it_interrupts():
    parts, lane = interrupted_parts(5, 3, lambda parts: parts.admission.wait_empty(None))
    parts.dispatcher.publish(0, None)

    with pytest.raises(ProcbusError, match="publish there, and wait in ordinary code"):
        parts.dispatcher.publish_run([1, 2, 3], None, None)

    assert events_of(lane) == [0]
    assert parts.admission.pending == 1
