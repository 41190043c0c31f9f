# SPDX-License-Identifier: MIT
"""The queue of a lane: order, gates, batches, waiting takers, and the end."""

import gc
import threading
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from procbus.core.delivery import Delivery
from procbus.core.outcome import Outcome, OutcomeKind
from procbus.core.subscription import Subscription
from procbus.core.user_key import UserKey
from procbus.lanes.gate import Gate
from procbus.lanes.queue import LOOKOUT_S, LaneQueue
from tests.parts import BOUND_S, delivery_to, in_thread, subscription_of
from tests.waits import eventually


def key_of(event: tuple[str, int]) -> str:
    return event[0]


def put(queue: LaneQueue, subscription: Subscription, *events: Any) -> list[Delivery]:
    deliveries = [delivery_to(subscription, event) for event in events]
    for delivery in deliveries:
        assert queue.put(delivery)
    return deliveries


def take_all(queue: LaneQueue) -> list[Delivery]:
    with queue.lock:
        return list(iter(queue.locked_take, None))


def test_first_in_first_out():
    queue = LaneQueue()
    deliveries = put(queue, subscription_of(), 1, 2, 3)
    assert take_all(queue) == deliveries


def test_the_larger_priority_goes_first_and_equal_ones_in_order():
    queue = LaneQueue()
    low = put(queue, subscription_of(priority=-5), 1, 2)
    normal = put(queue, subscription_of(), 1, 2)
    high = put(queue, subscription_of(priority=10**30), 1, 2)
    normal += put(queue, subscription_of(priority=0), 3)
    assert take_all(queue) == high + normal + low


def test_delivery_at_the_gate_is_not_ready_but_counts_in_the_depth():
    queue = LaneQueue()
    subscription = subscription_of(key=key_of)
    first, second, other = put(queue, subscription, ("a", 1), ("a", 2), ("b", 1))
    assert queue.depth() == 3
    with queue.lock:
        assert queue.locked_ready() == 2
    assert take_all(queue) == [first, other]
    assert queue.depth() == 1
    assert queue.release(first) == 1
    assert take_all(queue) == [second]


def test_release_without_a_gate_frees_no_delivery():
    queue = LaneQueue()
    (delivery,) = put(queue, subscription_of(), 1)
    assert queue.release(delivery) == 0


def test_put_back_goes_to_the_front_in_the_old_order():
    queue = LaneQueue()
    deliveries = put(queue, subscription_of(), 1, 2, 3, 4)
    urgent = put(queue, subscription_of(priority=1), 5, 6)
    taken = take_all(queue)
    later = put(queue, deliveries[0].subscription, 7)
    with queue.lock:
        queue.locked_put_back(taken[1:])
    assert take_all(queue) == urgent[1:] + deliveries + later


def test_a_taker_waits_for_a_delivery():
    queue = LaneQueue()
    taken: list[Delivery | None] = []
    thread = in_thread(lambda: taken.append(queue.take()))
    deliveries = put(queue, subscription_of(), 1)
    thread.join(BOUND_S)
    assert taken == deliveries


def test_each_waiting_taker_is_woken_by_put_put_back_or_release():
    queue = LaneQueue()
    subscription = subscription_of(key=key_of)
    first, second = put(queue, subscription, ("a", 1), ("a", 2))
    assert queue.take() is first
    took = threading.Semaphore(0)
    taken: list[Delivery | None] = []

    def taker() -> None:
        taken.append(queue.take())
        took.release()

    threads = [in_thread(taker) for _ in range(3)]
    queue.release(first)
    assert took.acquire(timeout=BOUND_S)
    assert taken == [second]
    (third,) = put(queue, subscription, ("b", 1))
    assert took.acquire(timeout=BOUND_S)
    assert taken == [second, third]
    with queue.lock:
        queue.locked_put_back([second])
    assert took.acquire(timeout=BOUND_S)
    assert taken == [second, third, second]
    for thread in threads:
        thread.join(BOUND_S)


def test_closed_queue_gives_out_its_deliveries_and_then_releases_takers():
    queue = LaneQueue()
    deliveries = put(queue, subscription_of(), 1, 2)
    queue.close()
    queue.close()
    assert [queue.take(), queue.take(), queue.take()] == [*deliveries, None]


def test_closing_wakes_all_takers():
    queue = LaneQueue()
    taken: list[Delivery | None] = []
    threads = [in_thread(lambda: taken.append(queue.take())) for _ in range(4)]
    queue.close()
    for thread in threads:
        thread.join(BOUND_S)
    assert taken == [None] * 4


def test_clearing_gives_out_everything_ready_or_not_and_takes_nothing_more():
    queue = LaneQueue()
    keyed, limited, plain = (
        subscription_of(key=key_of),
        subscription_of(concurrency=1),
        subscription_of(priority=3),
    )
    waiting = put(queue, keyed, ("a", 1), ("a", 2)) + put(queue, limited, 1, 2)
    waiting += put(queue, plain, 1)
    running = put(queue, subscription_of(concurrency=1, priority=9), 1, 2)
    assert queue.take() is running[0]
    out = queue.clear()
    assert len(out) == len(waiting) + 1
    assert set(out) == {*waiting, running[1]}
    assert queue.depth() == 0
    for delivery in [*out, running[0]]:
        assert queue.release(delivery) == 0
    assert not queue.put(delivery_to(plain))
    assert queue.clear() == []


def test_delivery_refused_by_a_cleared_queue_opens_no_gate():
    # A handler that is still running may publish to a handler that never had a delivery.
    queue = LaneQueue()
    queue.clear()
    for subscription in (subscription_of(key=key_of), subscription_of(concurrency=1)):
        delivery = delivery_to(subscription, ("a", 1))
        assert not queue.put(delivery)
        assert queue.release(delivery) == 0


def test_clearing_ready_deliveries_leaves_the_ones_at_the_gate():
    queue = LaneQueue()
    first, second = put(queue, subscription_of(key=key_of), ("a", 1), ("a", 2))
    assert queue.clear_ready() == [first]
    assert queue.release(first) == 1
    assert queue.clear_ready() == [second]


def test_each_delivery_put_is_counted():
    queue = LaneQueue()
    subscription = subscription_of(concurrency=1)
    put(queue, subscription, 1, 2, 3)
    assert subscription.published == 3


def test_a_handler_that_never_ran_goes_alone():
    queue = LaneQueue()
    first, second = put(queue, subscription_of(), 1, 2)
    with queue.lock:
        assert queue.locked_take_batch(0.005, 100) == [first]
        assert queue.locked_take_batch(0.005, 100) == [second]
        assert queue.locked_take_batch(0.005, 100) == []


def test_a_batch_takes_as_many_as_should_fit_the_time():
    queue = LaneQueue()
    subscription = subscription_of()
    subscription.note_run(0.001)
    deliveries = put(queue, subscription, *range(20))
    with queue.lock:
        batch = queue.locked_take_batch(0.0051, 100)
    assert batch == deliveries[:5]


def test_a_batch_takes_as_many_as_are_encoded_in_a_given_time():
    queue = LaneQueue()
    subscription = subscription_of()
    subscription.note_run(0.0)
    subscription.before_s = 0.001
    deliveries = put(queue, subscription, *range(20))
    with queue.lock:
        assert queue.locked_take_batch(1.0, 100, 0.0035) == deliveries[:3]
        assert queue.locked_take_batch(1.0, 100, 0.0005) == deliveries[3:4]
        assert queue.locked_take_batch(1.0, 100) == deliveries[4:]


def test_a_batch_is_no_longer_than_the_share():
    queue = LaneQueue()
    subscription = subscription_of()
    subscription.note_run(0.0)
    deliveries = put(queue, subscription, *range(20))
    with queue.lock:
        assert queue.locked_take_batch(1.0, 7) == deliveries[:7]


def test_a_long_delivery_goes_alone_and_not_behind_short_ones():
    queue = LaneQueue()
    short, long = subscription_of(), subscription_of()
    short.note_run(0.0001)
    long.note_run(2.0)
    order = put(queue, short, 1, 2) + put(queue, long, 3) + put(queue, short, 4)
    with queue.lock:
        assert queue.locked_take_batch(0.005, 100) == order[:2]
        assert queue.locked_take_batch(0.005, 100) == order[2:3]
        assert queue.locked_take_batch(0.005, 100) == order[3:]


def test_a_batch_goes_through_the_priorities_in_order():
    queue = LaneQueue()
    low, high = subscription_of(), subscription_of(priority=2)
    low.note_run(0.0)
    high.note_run(0.0)
    behind = put(queue, low, 1, 2)
    ahead = put(queue, high, 3)
    with queue.lock:
        assert queue.locked_take_batch(0.005, 100) == ahead + behind


@given(
    st.lists(st.tuples(st.integers(-2, 2), st.floats(0, 0.01)), max_size=30),
    st.integers(1, 10),
    st.floats(0.0001, 0.02),
)
def test_batches_are_the_queue_in_order_cut_into_pieces(puts, most, budget_s):
    queue = LaneQueue()
    subscriptions: dict[int, Subscription] = {}
    for priority, average_s in puts:
        subscription = subscriptions.setdefault(priority, subscription_of(priority=priority))
        subscription.note_run(average_s)
        put(queue, subscription, None)
    expected = sorted(puts, key=lambda each: -each[0])
    taken: list[Delivery] = []
    with queue.lock:
        while batch := queue.locked_take_batch(budget_s, most):
            assert len(batch) <= most
            taken += batch
    assert [d.handler.priority for d in taken] == [priority for priority, _ in expected]
    assert len(set(taken)) == len(puts)


def test_a_delivery_that_is_tried_again_goes_in_front():
    queue = LaneQueue()
    subscription = subscription_of()
    first, second, third = put(queue, subscription, 1, 2, 3)
    assert queue.take() is first
    assert queue.step_aside(first) == 0
    assert queue.put_again(first)
    assert take_all(queue) == [first, second, third]


def test_deliveries_that_are_tried_again_keep_the_order_in_which_they_failed():
    queue = LaneQueue()
    subscription, urgent = subscription_of(), subscription_of(priority=1)
    failed = put(queue, subscription, 1, 2, 3)
    assert take_all(queue) == failed
    waiting = put(queue, subscription, 4, 5)
    for delivery in failed:
        queue.step_aside(delivery)
        assert queue.put_again(delivery)
    first = put(queue, urgent, 6)
    assert queue.waiting_deliveries() == first + failed + waiting
    assert take_all(queue) == first + failed + waiting


def test_a_delivery_that_is_tried_again_and_put_back_keeps_its_turn():
    queue = LaneQueue()
    failed = put(queue, subscription_of(), 1, 2, 3)
    take_all(queue)
    waiting = put(queue, failed[0].subscription, 4, 5)
    for delivery in failed:
        delivery.earlier = (Outcome(OutcomeKind.RAISED),)
        assert queue.put_again(delivery)
    with queue.lock:
        queue.locked_put_back(queue.locked_take_batch(1.0, 1) + queue.locked_take_batch(1.0, 1))
    assert queue.withdraw(failed[1])
    assert not queue.withdraw(failed[1])
    assert take_all(queue) == [failed[0], failed[2], *waiting]


def test_a_queue_that_was_held_shows_deliveries_that_are_tried_again():
    queue = LaneQueue()
    failed = put(queue, subscription_of(priority=2), 1, 2)
    take_all(queue)
    queue.hold()
    for delivery in failed:
        assert queue.put_again(delivery)
    assert take_all(queue) == []
    assert queue.depth() == 2
    queue.go_on()
    assert take_all(queue) == failed


def test_retried_delivery_wakes_a_waiter():
    queue = LaneQueue()
    (delivery,) = put(queue, subscription_of(), 1)
    assert queue.take() is delivery
    queue.step_aside(delivery)
    taken: list[Delivery | None] = []
    taker = in_thread(lambda: taken.append(queue.take()))
    assert queue.put_again(delivery)
    taker.join(BOUND_S)
    assert taken == [delivery]


def test_deliveries_that_may_run_meanwhile_wake_a_waiter():
    queue = LaneQueue()
    first, second = put(queue, subscription_of(concurrency=1), 1, 2)
    assert queue.take() is first
    taken: list[Delivery | None] = []
    taker = in_thread(lambda: taken.append(queue.take()))
    assert queue.step_aside(first) == 1
    taker.join(BOUND_S)
    assert taken == [second]
    assert queue.put_again(first)
    assert queue.depth() == 1
    assert take_all(queue) == [], "its place is taken"
    assert queue.release(second) == 1
    assert take_all(queue) == [first]


def test_a_cleared_queue_takes_nothing_again():
    queue = LaneQueue()
    for subscription in (subscription_of(), subscription_of(key=key_of, concurrency=1)):
        (delivery,) = put(queue, subscription, ("a", 1))
        assert queue.take() is delivery
    queue.step_aside(delivery)
    queue.clear()
    assert not queue.put_again(delivery)
    assert queue.depth() == 0


class QueueAgainstModel(RuleBasedStateMachine):
    """Handlers with every mix of options on one lane: nothing lost, doubled, or out of turn."""

    running = Bundle("running")

    @initialize(
        options=st.lists(
            st.tuples(st.booleans(), st.one_of(st.none(), st.integers(1, 2)), st.integers(-1, 1)),
            min_size=1,
            max_size=3,
        )
    )
    def start(self, options: list[tuple[bool, int | None, int]]) -> None:
        self.queue = LaneQueue()
        self.subscriptions = [
            subscription_of(key=key_of if keyed else None, concurrency=limit, priority=priority)
            for keyed, limit, priority in options
        ]
        self.sequence = 0
        self.open: list[Delivery] = []
        self.under_way: list[Delivery] = []
        #: Deliveries that wait for their next attempt.
        self.aside: list[Delivery] = []
        self.cleared = False

    def may_go(self, delivery: Delivery) -> bool:
        """Nothing of its key before it is open, and its handler is below its limit."""
        handler = delivery.handler
        mine = [d for d in self.under_way if d.subscription is delivery.subscription]
        if handler.concurrency is not None and len(mine) >= handler.concurrency:
            return False
        if handler.key is None:
            return True
        same = [
            d
            for d in self.open
            if d.subscription is delivery.subscription and d.key == delivery.key
        ]
        return same[0] is delivery

    @rule(which=st.integers(0, 2), key=st.sampled_from("ab"))
    def publish(self, which: int, key: str) -> None:
        self.sequence += 1
        subscription = self.subscriptions[which % len(self.subscriptions)]
        delivery = delivery_to(subscription, (key, self.sequence), self.sequence)
        if self.queue.put(delivery):
            assert not self.cleared
            self.open.append(delivery)
        else:
            assert self.cleared
            assert self.queue.release(delivery) == 0

    @rule(target=running)
    def take(self) -> Delivery | None:
        with self.queue.lock:
            delivery = self.queue.locked_take()
        here = [d for d in self.open if d not in self.under_way and d not in self.aside]
        could = [d for d in here if self.may_go(d)]
        if delivery is None:
            assert not could
            return None
        assert delivery in could
        assert delivery.handler.priority == max(d.handler.priority for d in could)
        self.under_way.append(delivery)
        return delivery

    @rule(delivery=running)
    def settle(self, delivery: Delivery | None) -> None:
        if delivery in self.under_way:
            self.under_way.remove(delivery)
            self.open.remove(delivery)
            self.queue.release(delivery)

    @rule(delivery=running)
    def put_back(self, delivery: Delivery | None) -> None:
        if delivery in self.under_way and not self.cleared:
            self.under_way.remove(delivery)
            with self.queue.lock:
                self.queue.locked_put_back([delivery])

    @rule(delivery=running)
    def fail(self, delivery: Delivery | None) -> None:
        if delivery in self.under_way:
            self.under_way.remove(delivery)
            self.aside.append(delivery)
            self.queue.step_aside(delivery)

    @precondition(lambda self: self.aside)
    @rule(data=st.data())
    def try_again(self, data: st.DataObject) -> None:
        self.put_again(self.aside[data.draw(st.integers(0, len(self.aside) - 1))])

    def put_again(self, delivery: Delivery) -> None:
        self.aside.remove(delivery)
        if not self.queue.put_again(delivery):
            assert self.cleared
            self.open.remove(delivery)
            self.queue.release(delivery)

    @rule()
    def clear(self) -> None:
        out = self.queue.clear()
        if not self.cleared:
            assert sorted(d.event_id for d in out) == [
                d.event_id for d in self.open if d not in self.under_way and d not in self.aside
            ]
        else:
            assert out == []
        self.cleared = True
        self.open = self.under_way + self.aside

    @invariant()
    def the_depth_is_what_is_open_and_not_under_way(self) -> None:
        if hasattr(self, "queue"):
            waiting = len(self.open) - len(self.under_way) - len(self.aside)
            assert self.queue.depth() == waiting

    def teardown(self) -> None:
        while hasattr(self, "queue") and self.open:
            if self.aside:
                self.put_again(self.aside[0])
                continue
            self.take()
            assert self.under_way, f"{self.queue.depth()} deliveries are stuck"
            self.settle(self.under_way[0])


TestQueueAgainstModel = QueueAgainstModel.TestCase


@pytest.mark.parametrize("takers", [1, 4])
def test_many_threads_get_each_delivery_exactly_once_and_keys_in_order(takers):
    queue = LaneQueue()
    subscription = subscription_of(key=key_of, concurrency=3)
    order: list[tuple[str, int]] = []
    left = threading.Semaphore(0)

    def taker() -> None:
        while (delivery := queue.take()) is not None:
            order.append(delivery.receipt.event)  # type: ignore[union-attr]
            queue.release(delivery)
            left.release()

    threads = [in_thread(taker) for _ in range(takers)]
    events = [("abcde"[n % 5], n) for n in range(1000)]
    put(queue, subscription, *events)
    for _ in events:
        assert left.acquire(timeout=BOUND_S)
    queue.close()
    for thread in threads:
        thread.join(BOUND_S)
    assert sorted(order) == sorted(events)
    for key in "abcde":
        assert [e for e in order if e[0] == key] == [e for e in events if e[0] == key]


def test_withdrawn_delivery_is_never_taken():
    queue, subscription = LaneQueue(), subscription_of()
    other = subscription_of(priority=1)
    first, second = put(queue, subscription, "a", "b")
    [third] = put(queue, other, "c")

    assert queue.withdraw(first)
    assert not queue.withdraw(first)
    assert take_all(queue) == [third, second]
    assert not queue.withdraw(second)


# Keys whose comparison is the user's code.


class Awkward:
    """A key of a user's: all have one hash, and comparing them calls the test."""

    def __init__(self, name: str, compared: Callable[[], object]) -> None:
        self.name, self.compared = name, compared

    def __hash__(self) -> int:
        return 7

    def __eq__(self, other: object) -> bool:
        self.compared()
        return isinstance(other, Awkward) and other.name == self.name


def awkward(subscription: Subscription, name: str, compared: Callable[[], object]) -> Delivery:
    delivery = delivery_to(subscription, (name, 0))
    delivery.key = UserKey(Awkward(name, compared))
    return delivery


def test_no_lock_is_held_while_the_keys_of_a_user_are_compared() -> None:
    queue = LaneQueue()
    subscription = subscription_of(key=key_of)
    held: list[bool] = []
    deliveries = [
        awkward(subscription, name, lambda: held.append(queue.lock.owned())) for name in "abcabcabc"
    ]

    for delivery in deliveries:
        assert queue.put(delivery)
    assert held
    assert not any(held)
    held.clear()
    order = []
    while batch := take_all(queue):
        order.append([d.receipt.event[0] for d in batch if d.receipt is not None])
        for delivery in batch:
            queue.release(delivery)

    assert order == [["a", "b", "c"]] * 3
    assert not held, "to leave nothing is compared"


def test_keys_of_a_user_are_forgotten_once_unused() -> None:
    queue = LaneQueue()
    subscription = subscription_of(key=key_of)
    gone = []
    for name in "aabbcc":
        delivery = awkward(subscription, name, lambda: None)
        gone.append(weakref.ref(delivery.key.key))
        assert queue.put(delivery)
    while batch := take_all(queue):
        for delivery in batch:
            queue.release(delivery)
    del batch, delivery
    gc.collect()

    assert [ref() for ref in gone] == [None] * 6


def test_a_key_that_leaves_while_another_publisher_compares_it_is_found_anew() -> None:
    queue = LaneQueue()
    subscription = subscription_of(key=key_of)
    left: list[bool] = []

    def leave() -> None:
        if not left:
            left.append(True)
            queue.release(first)
            assert queue.put(second)

    first = awkward(subscription, "a", leave)
    second, third = (awkward(subscription, "a", lambda: None) for _ in range(2))
    assert queue.put(first)

    assert queue.put(third)

    assert left
    assert take_all(queue) == [first, second], "the third waits behind the second"
    assert queue.depth() == 1


def test_a_key_that_left_before_its_publisher_had_the_lock_is_found_anew() -> None:
    subscription = subscription_of(key=key_of)
    gate = Gate(subscription.handler)
    first, second, third = (awkward(subscription, "a", lambda: None) for _ in range(3))
    token = gate.token_for(first.key)
    assert gate.accept(first, token)
    assert gate.admit(first)
    late = gate.token_for(second.key)
    assert late is token
    gate.release(first)
    assert gate.accept(third, gate.token_for(third.key))
    assert gate.admit(third)

    assert not gate.accept(second, late)
    assert gate.accept(second, gate.token_for(second.key))
    assert not gate.admit(second), "it waits behind the third"


def test_publishers_at_once_keep_one_delivery_of_a_key_inside() -> None:
    queue = LaneQueue()
    subscription = subscription_of(key=key_of)
    pause = threading.Event()

    def publish() -> None:
        for number in range(60):
            queue.put(awkward(subscription, "abc"[number % 3], lambda: pause.wait(0)))

    publishers = [in_thread(publish) for _ in range(3)]
    inside: Counter[str] = Counter()
    left = 180
    while left:
        delivery = queue.take()
        assert delivery is not None
        assert delivery.receipt is not None
        name = delivery.receipt.event[0]
        inside[name] += 1
        for other in take_all(queue):
            assert other.receipt is not None
            inside[other.receipt.event[0]] += 1
            assert max(inside.values()) == 1
            queue.release(other)
            inside[other.receipt.event[0]] -= 1
            left -= 1
        queue.release(delivery)
        inside[name] -= 1
        left -= 1
    for publisher in publishers:
        publisher.join(BOUND_S)
    assert queue.depth() == 0


def test_deliveries_put_together_are_taken_in_order_and_wake_one_taker():
    queue = LaneQueue()
    subscription, others = subscription_of(), subscription_of(priority=1)
    first = [delivery_to(subscription, event) for event in range(3)]
    more = [delivery_to(subscription, event) for event in range(2)]
    urgent = [delivery_to(others, event) for event in range(2)]
    assert queue.put_all(first)
    assert queue.starved
    assert queue.put_all(more)
    assert queue.put_all(urgent)
    assert take_all(queue) == [*urgent, *first, *more]
    assert (subscription.published, others.published) == (5, 2)
    assert all(delivery.queued for delivery in (*first, *more, *urgent))


def test_queue_that_was_cleared_for_good_takes_no_deliveries_together():
    queue = LaneQueue()
    subscription = subscription_of()
    queue.clear()
    assert not queue.put_all([delivery_to(subscription, event) for event in range(3)])
    assert take_all(queue) == []


class Watched(LaneQueue):
    """Notes each wait of a taker, and does not wait."""

    def __init__(self, abreast: int) -> None:
        super().__init__(abreast)
        self.waits: list[float | None] = []

    def locked_wait(self, timeout: float | None) -> bool:
        self.waits.append(timeout)
        return False


@pytest.mark.parametrize(
    ("abreast", "average_s", "waits"),
    [
        pytest.param(1, 10e-6, [LOOKOUT_S], id="with the GIL it stands lookout"),
        pytest.param(2, 10e-6, [], id="without the GIL it computes beside the first"),
        pytest.param(2, 1e-6, [LOOKOUT_S], id="tiny handlers are not worth it"),
        pytest.param(1, 1e-3, [], id="long handlers run at once anyway"),
    ],
)
def test_second_taker_of_short_handlers_computes_only_where_takers_go_abreast(
    abreast: int, average_s: float, waits: list[float]
) -> None:
    queue, subscription = Watched(abreast), subscription_of()
    subscription.average_s = average_s
    first, second, _ = put(queue, subscription, 1, 2, 3)
    assert queue.take(fresh=True) is first
    assert queue.starved
    with queue.lock:
        queue.locked_started()
    assert queue.take(fresh=True) is second
    assert queue.waits == waits


def test_no_more_takers_are_woken_for_short_handlers_than_go_abreast() -> None:
    queue, subscription = Watched(2), subscription_of()
    subscription.average_s = 10e-6
    put(queue, subscription, 1, 2, 3, 4)
    for _ in range(2):
        with queue.lock:
            queue.locked_started()
        queue.take(fresh=True)
    with queue.lock:
        queue.locked_started()
    queue.take(fresh=True)  # called as a lookout, in case a handler is not short this time
    assert queue.waits == [LOOKOUT_S]


class Disturbed(Watched):
    """Has deliveries taken meanwhile, in the first waits; says whether the taker was woken."""

    def __init__(self, *, woken: bool) -> None:
        super().__init__(1)
        self.woken = woken
        self.others_take = 3

    def locked_wait(self, timeout: float | None) -> bool:
        super().locked_wait(timeout)
        if self.others_take:
            self.others_take -= 1
            self.take(wait=False)
        return self.woken


@pytest.mark.parametrize(("woken", "waits"), [(True, 1), (False, 4)])
def test_a_lookout_takes_a_delivery_as_soon_as_it_is_woken(woken: bool, waits: int) -> None:
    queue, subscription = Disturbed(woken=woken), subscription_of()
    subscription.average_s = 10e-6
    put(queue, subscription, *range(6))
    queue.take(fresh=True)  # calls a lookout
    with queue.lock:
        queue.locked_started()
    queue.take(fresh=True)
    assert queue.waits.count(LOOKOUT_S) == waits


class Runner:
    """A thread that takes, as the queue sees it."""

    computes = False


def computing() -> Subscription:
    """Make a subscription whose runs are known to take 1 ms each, all of it CPU time."""
    subscription = subscription_of()
    subscription.note_run(1e-3)
    subscription.meter.note_run(1.0, 1e-3, 1e-3)
    return subscription


def runners_of(queue: LaneQueue, count: int) -> list[Runner]:
    """Have threads take a delivery each, as fresh ones."""
    runners = [Runner() for _ in range(count)]
    for runner in runners:
        with queue.lock:
            queue.locked_started()
        assert queue.take(fresh=True, taker=runner) is not None
    return runners


def test_a_taker_that_comes_back_leaves_computing_to_as_many_others_as_there_are_cores() -> None:
    queue, subscription = Watched(2), computing()
    deliveries = put(queue, subscription, *range(6))
    runners = runners_of(queue, 3)
    assert queue.take(wait=False, taker=runners[0]) is None
    assert queue.take(wait=False, taker=runners[0]) is None
    assert queue.take(wait=False, taker=runners[1]) is deliveries[3]
    assert queue.take(taker=runners[0]) is deliveries[4]  # it was woken: `Watched` never sleeps
    assert None in queue.waits


def test_a_handler_that_waits_is_taken_though_each_core_has_one_that_computes() -> None:
    queue = Watched(2)
    put(queue, computing(), *range(3))
    (waits,) = put(queue, subscription_of(), "waits")
    runners = runners_of(queue, 3)
    assert queue.take(wait=False, taker=runners[0]) is waits


def test_a_taker_whose_handler_waits_for_the_bus_makes_room_for_another() -> None:
    queue = Watched(2)
    deliveries = put(queue, computing(), *range(5))
    runners = runners_of(queue, 3)
    with queue.lock:
        queue.locked_returned(runners[1])
        queue.locked_returned(runners[1])
    assert queue.take(wait=False, taker=runners[0]) is deliveries[3]


def test_a_closed_queue_gives_the_last_deliveries_to_whoever_comes_back() -> None:
    queue = Watched(2)
    deliveries = put(queue, computing(), *range(4))
    runners = runners_of(queue, 3)
    queue.close()
    assert queue.take(taker=runners[0]) is deliveries[3]


# Pausing.


def test_held_queue_accepts_deliveries_and_gives_none_out():
    queue = LaneQueue()
    normal, first = subscription_of(), subscription_of(priority=5)
    later = put(queue, normal, 1)

    queue.hold()
    queue.hold()
    sooner = put(queue, first, 2)
    later += put(queue, normal, 3)

    assert queue.held
    assert take_all(queue) == []
    assert not queue.seems_ready()
    assert queue.depth() == 3
    queue.go_on()
    assert not queue.held
    assert take_all(queue) == sooner + later


def test_waiting_taker_gets_a_delivery_once_the_queue_goes_on():
    queue = LaneQueue()
    queue.hold()
    taken: list[Delivery | None] = []
    taker = in_thread(lambda: taken.append(queue.take()))
    eventually(lambda: queue.waiting)
    [delivery] = put(queue, subscription_of(), 1)
    eventually(lambda: queue.waiting)
    queue.go_on()
    taker.join(BOUND_S)
    assert taken == [delivery]


def test_deliveries_of_a_held_queue_can_be_withdrawn_and_cleared():
    queue = LaneQueue()
    gated = subscription_of(concurrency=1)
    deliveries = put(queue, gated, 1, 2, 3)
    queue.hold()

    assert queue.withdraw(deliveries[0])
    assert queue.clear() == deliveries[1:]
    assert queue.depth() == 0


def test_takers_leave_a_held_queue_that_is_closed():
    queue = LaneQueue()
    queue.hold()
    put(queue, subscription_of(), 1)
    taker = in_thread(queue.take)
    queue.close()
    taker.join(BOUND_S)
    assert not taker.is_alive()
