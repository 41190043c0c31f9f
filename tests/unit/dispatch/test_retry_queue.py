# SPDX-License-Identifier: MIT
"""Deliveries that wait for their next attempt: each comes out once, in time, and in its turn."""

import threading

import hypothesis.strategies as st
import pytest
from hypothesis.stateful import RuleBasedStateMachine, rule

from procbus.core.delivery import Delivery
from procbus.core.subscription import Subscription
from procbus.dispatch.retry_queue import RetryQueue
from tests.parts import BOUND_S, delivery_to, in_thread, subscription_of


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


SUBSCRIPTION = subscription_of()


def made(count: int, subscription: Subscription = SUBSCRIPTION) -> list[Delivery]:
    return [delivery_to(subscription, number) for number in range(count)]


def test_delivery_does_not_come_out_before_its_time(clock: Clock) -> None:
    queue = RetryQueue(clock=clock)
    [delivery] = made(1)

    assert queue.add(delivery, 5.0)

    clock.now += 4.999
    queue.wake()
    assert queue.wait(0.0) == []
    clock.now += 0.001
    assert queue.wait(0.0) == [delivery]
    assert queue.wait(0.0) == []


def test_deliveries_come_out_by_time_and_then_in_order(clock: Clock) -> None:
    queue = RetryQueue(clock=clock)
    late, first, second, soon = made(4)
    queue.add(late, 3.0)
    queue.add(first, 2.0)
    queue.add(second, 2.0)
    queue.add(soon, 1.0)
    assert len(queue) == 4

    clock.now += 10.0

    assert queue.wait(0.0) == [soon, first, second, late]
    assert len(queue) == 0


def test_delivery_due_at_once_is_not_waited_for(clock: Clock) -> None:
    queue = RetryQueue(clock=clock)
    [delivery] = made(1)
    queue.add(delivery, 0.0)

    assert queue.wait(3600.0) == [delivery]


def test_cancel_gives_out_the_rest_and_nothing_is_kept_after_it(clock: Clock) -> None:
    queue = RetryQueue(clock=clock)
    first, second, late = made(3)
    queue.add(first, 1.0)
    queue.add(second, 2.0)

    assert set(queue.cancel()) == {first, second}

    assert not queue.add(late, 0.0)
    assert queue.cancel() == []
    clock.now += 10.0
    assert queue.wait(0.0) == []
    assert len(queue) == 0


def test_waiter_returns_when_told_to_look(clock: Clock) -> None:
    queue = RetryQueue(clock=clock)

    queue.wake()
    assert queue.wait(3600.0) == []

    found: list[list[Delivery]] = []
    waiting = in_thread(lambda: found.append(queue.wait(3600.0)))
    queue.wake()
    waiting.join(BOUND_S)
    assert found == [[]]


def test_waiter_for_a_later_delivery_wakes_for_an_earlier_one() -> None:
    queue = RetryQueue()
    late, soon = made(2)
    queue.add(late, 3600.0)
    queue.wait(0.0)
    found: list[Delivery] = []

    def wait() -> None:
        while not found:
            found.extend(queue.wait(3600.0))

    waiting = in_thread(wait)
    queue.add(soon, 0.001)

    waiting.join(BOUND_S)
    assert found == [soon]
    assert queue.cancel() == [late]


class AnyRetryQueue(RuleBasedStateMachine):
    """Each comes out once: when it is due or when all are cancelled."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.queue = RetryQueue(clock=self.clock)
        self.due_at: dict[Delivery, float] = {}
        self.cancelled = False

    @rule(wait_s=st.sampled_from([0.0, 0.5, 1.0, 60.0, 86_400.0]))
    def add(self, wait_s: float) -> None:
        [delivery] = made(1)
        kept = self.queue.add(delivery, wait_s)
        assert kept is not self.cancelled
        if kept:
            self.due_at[delivery] = self.clock.now + wait_s

    @rule(seconds=st.sampled_from([0.1, 0.5, 1.0, 59.0, 90_000.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def wait(self) -> None:
        due = self.queue.wait(0.0)
        expected = [d for d, at in self.due_at.items() if at <= self.clock.now]
        assert due == sorted(expected, key=self.due_at.__getitem__)
        for delivery in expected:
            del self.due_at[delivery]

    @rule()
    def cancel(self) -> None:
        assert set(self.queue.cancel()) == set(self.due_at)
        self.due_at.clear()
        self.cancelled = True

    def teardown(self) -> None:
        assert len(self.queue) == len(self.due_at)


TestAnyRetryQueue = AnyRetryQueue.TestCase


def test_threads_that_add_and_cancel_lose_and_repeat_nothing() -> None:
    queue = RetryQueue()
    added: list[Delivery] = []
    refused: list[Delivery] = []
    out: list[Delivery] = []
    deliveries = made(4_000)
    start = threading.Barrier(5)
    done = threading.Event()

    def add(part: int) -> None:
        start.wait(BOUND_S)
        for delivery in deliveries[part::4]:
            (added if queue.add(delivery, 0.0) else refused).append(delivery)

    def take() -> None:
        while not done.is_set():
            out.extend(queue.wait(BOUND_S))

    taker = in_thread(take)
    adders = [in_thread(lambda part=part: add(part)) for part in range(4)]
    start.wait(BOUND_S)
    while len(out) < len(deliveries) // 4:
        assert taker.is_alive()
    rest = queue.cancel()
    for adder in adders:
        adder.join(BOUND_S)
    done.set()
    queue.wake()
    taker.join(BOUND_S)

    assert len(added) + len(refused) == len(deliveries)
    assert len(out) + len(rest) == len(added)
    assert set(out) | set(rest) == set(added)


def test_withdrawn_delivery_does_not_come_due() -> None:
    queue = RetryQueue()
    deliveries = made(5)
    for index, delivery in enumerate(deliveries):
        assert queue.add(delivery, 0.001 * index)

    assert queue.withdraw(deliveries[2])
    assert not queue.withdraw(deliveries[2])
    left: list[Delivery] = []
    while len(left) < 4:
        left += queue.wait(BOUND_S)
    assert left == [d for d in deliveries if d is not deliveries[2]]
