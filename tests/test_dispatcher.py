# SPDX-License-Identifier: MIT
"""From an event to deliveries: what is chosen, queued, failed at once, and counted."""

from dataclasses import dataclass
from typing import Any

import pytest

from procbus.admission import Admission, OnFull
from procbus.context import running
from procbus.delivery import DeliveryState
from procbus.dispatcher import Dispatcher
from procbus.errors import BusClosed, ProcbusError, QueueFull, TopicError
from procbus.handler import make_handler
from procbus.router import Router
from procbus.subscription import Subscription
from tests.parts import FakeLane, delivery_to, handle, settlement_for, succeeded


class Parts:
    """A dispatcher with a lane that only keeps what it is given."""

    def __init__(self, max_pending: int = 100, on_full: OnFull = "raise") -> None:
        self.lane = FakeLane()
        self.admission = Admission(max_pending, on_full)
        self.settlement = settlement_for(self.admission)
        self.subscriptions: list[Subscription] = []
        self.dispatcher = Dispatcher(
            self.admission,
            self.settlement,
            lambda: Router([(s, s.handler.topics) for s in self.subscriptions]),
            lambda: None,
            lambda: self.subscriptions,
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


def test_ids_grow_whether_or_not_anybody_takes_the_event():
    parts = Parts()
    parts.subscribe(int)
    ids = [parts.dispatcher.publish(event, None).id for event in (1, "nobody", 2)]
    assert ids == [1, 2, 3]
    assert parts.dispatcher.unrouted == 1


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
    assert receipt is not None
    assert parts.dispatcher.try_publish(2, None, lambda: called.append(2)) is None
    assert called == []
    parts.settlement.settle([(receipt.deliveries[0], succeeded())])
    assert called == [2]


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
        assert parts.dispatcher.try_publish(4, None, lambda: None) is not None
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
    assert parts.dispatcher.publish_children(parent, [(None, 1), ("leaf", "x")]) is None
    receipts = [d.receipt for d in parts.lane.queued]
    assert [(r.event, r.topic, r.parent_id) for r in receipts if r] == [
        (1, None, 77),
        ("x", "leaf", 77),
    ]


@pytest.mark.parametrize(
    ("bad", "error"), [(("a..b", 1), TopicError), ((None, Odd()), RuntimeError)]
)
def test_children_of_which_one_is_wrong_are_published_not_at_all(bad, error):
    parts = Parts()
    parts.subscribe((int, "#"))
    parent = delivery_to(parts.subscriptions[0])
    found = parts.dispatcher.publish_children(parent, [(None, 1), bad, (None, 2)])
    assert isinstance(found, error)
    assert parts.lane.queued == []
    assert parts.admission.pending == 0


def test_children_that_find_no_room_are_an_error_of_their_parent():
    parts = Parts(max_pending=1)
    parts.subscribe(int)
    parts.dispatcher.publish(1, None)
    parent = delivery_to(parts.subscriptions[0])
    found = parts.dispatcher.publish_children(parent, [(None, 1)])
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
    assert parts.dispatcher.unrouted == 1_200
    assert len(caplog.records) == 1_000
