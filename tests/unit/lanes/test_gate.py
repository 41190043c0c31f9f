# SPDX-License-Identifier: MIT
"""The gate of one handler against a plain model: order by key, and how many run at once."""

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from procbus.core.delivery import Delivery
from procbus.core.subscription import Subscription
from procbus.lanes.gate import Gate
from tests.parts import delivery_to, handler_of, subscription_of


def key_of(event: tuple[object, int]) -> object:
    return event[0]


def gate_and(*events: tuple[object, int], **options) -> tuple[Gate, list[Delivery]]:
    subscription = subscription_of(**options)
    return Gate(subscription.handler), [delivery_to(subscription, event) for event in events]


def test_deliveries_of_one_key_pass_one_by_one_in_order():
    gate, (first, second, third) = gate_and(("a", 1), ("a", 2), ("a", 3), key=key_of)
    assert [gate.admit(d) for d in (first, second, third)] == [True, False, False]
    assert gate.release(first) == [second]
    assert gate.release(second) == [third]
    assert gate.release(third) == []


def test_deliveries_of_different_keys_pass_together():
    gate, deliveries = gate_and(("a", 1), ("b", 1), (None, 1), key=key_of)
    assert all(gate.admit(d) for d in deliveries)


def test_no_more_than_the_limit_pass():
    gate, deliveries = gate_and(*[("a", n) for n in range(5)], concurrency=2)
    assert [gate.admit(d) for d in deliveries] == [True, True, False, False, False]
    assert gate.release(deliveries[1]) == [deliveries[2]]
    assert gate.release(deliveries[0]) == [deliveries[3]]


def test_a_key_waits_for_its_turn_at_the_limit():
    gate, (a1, a2, b1) = gate_and(("a", 1), ("a", 2), ("b", 1), key=key_of, concurrency=1)
    assert [gate.admit(d) for d in (a1, a2, b1)] == [True, False, False]
    assert gate.release(a1) == [b1]
    assert gate.release(b1) == [a2]
    assert gate.release(a2) == []


def test_keys_that_are_done_are_forgotten():
    gate, deliveries = gate_and(*[(n, 0) for n in range(100)], key=key_of)
    for delivery in deliveries:
        gate.admit(delivery)
        gate.release(delivery)
    assert not gate._lines  # noqa: SLF001 - memory that would grow with every key


def test_an_abandoned_gate_gives_out_everyone_and_hands_out_nothing_more():
    gate, (a1, a2, b1, b2) = gate_and(
        ("a", 1), ("a", 2), ("b", 1), ("b", 2), key=key_of, concurrency=1
    )
    for delivery in (a1, a2, b1, b2):
        gate.admit(delivery)
    assert set(gate.abandon()) == {a2, b1, b2}
    assert gate.release(a1) == []
    assert gate.release(a2) == []
    assert gate.abandon() == []


def test_others_of_its_key_stay_behind_a_delivery_that_waits_for_its_next_attempt():
    gate, (first, second) = gate_and(("a", 1), ("a", 2), key=key_of)
    assert [gate.admit(d) for d in (first, second)] == [True, False]
    assert gate.step_aside(first) == []
    assert gate.step_back(first)
    assert gate.release(first) == [second]


def test_others_run_in_its_place_while_a_delivery_waits_for_its_next_attempt():
    gate, (first, second, third) = gate_and(("a", 1), ("b", 1), ("c", 1), concurrency=1)
    assert [gate.admit(d) for d in (first, second, third)] == [True, False, False]
    assert gate.step_aside(first) == [second]
    assert not gate.step_back(first), "its place is taken"
    assert gate.release(second) == [third]
    assert gate.release(third) == [first]
    assert gate.release(first) == []


def test_delivery_that_returns_to_an_abandoned_gate_does_not_wait():
    gate, (first, second) = gate_and(("a", 1), ("b", 1), concurrency=1)
    gate.admit(first)
    gate.admit(second)
    gate.abandon()
    assert gate.step_aside(first) == []
    assert gate.step_back(first)
    assert gate.step_back(second)


def test_keys_that_are_equal_are_one_key_and_nan_is_its_own():
    nan = float("nan")
    gate, (one, true, n1, n2) = gate_and((1, 1), (True, 2), (nan, 1), (nan, 2), key=key_of)
    assert [gate.admit(d) for d in (one, true, n1, n2)] == [True, False, True, False]
    assert gate.release(n1) == [n2]
    assert gate.release(one) == [true]


class GateAgainstModel(RuleBasedStateMachine):
    """Model: per key a queue whose head alone may go, and a line of heads at the limit."""

    @initialize(keyed=st.booleans(), limit=st.one_of(st.none(), st.integers(1, 3)))
    def start(self, keyed: bool, limit: int | None) -> None:
        self.keyed = keyed
        self.limit = limit
        self.subscription: Subscription = subscription_of(
            key=key_of if keyed else None, concurrency=limit
        )
        self.gate = Gate(self.subscription.handler)
        self.sequence = 0
        self.inside: list[Delivery] = []
        #: Deliveries that wait for their next attempt; the others of their key stay behind.
        self.aside: list[Delivery] = []
        self.lines: dict[object, deque[Delivery]] = {}
        self.heads: list[Delivery] = []

    def model_pass(self) -> list[Delivery]:
        go = []
        while self.heads and (self.limit is None or len(self.inside) < self.limit):
            go.append(self.heads.pop(0))
            self.inside.append(go[-1])
        return go

    @rule(key=st.sampled_from("abc"))
    def admit(self, key: str) -> None:
        self.sequence += 1
        delivery = delivery_to(self.subscription, (key, self.sequence))
        line = self.lines.setdefault(key if self.keyed else self.sequence, deque())
        line.append(delivery)
        if len(line) == 1:
            self.heads.append(delivery)
        assert self.gate.admit(delivery) == (delivery in self.model_pass())

    @precondition(lambda self: self.inside)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.inside) - 1))
        delivery = self.inside.pop(index)
        event = delivery.receipt.event  # type: ignore[union-attr]
        name = event[0] if self.keyed else event[1]
        line = self.lines[name]
        assert line.popleft() is delivery
        if line:
            self.heads.append(line[0])
        else:
            del self.lines[name]
        assert self.gate.release(delivery) == self.model_pass()

    @precondition(lambda self: self.inside)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        delivery = self.inside.pop(data.draw(st.integers(0, len(self.inside) - 1)))
        self.aside.append(delivery)
        assert self.gate.step_aside(delivery) == self.model_pass()

    @precondition(lambda self: self.there() - set(self.inside) - set(self.aside))
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        waiting = [d for line in self.lines.values() for d in line]
        waiting = [d for d in waiting if d not in self.inside and d not in self.aside]
        delivery = waiting[data.draw(st.integers(0, len(waiting) - 1))]
        assert self.gate.withdraw(delivery)
        assert not self.gate.withdraw(delivery)
        self.leave(delivery)

    @precondition(lambda self: self.aside)
    @rule(data=st.data())
    def cancel_before_the_next_attempt(self, data: st.DataObject) -> None:
        delivery = self.aside.pop(data.draw(st.integers(0, len(self.aside) - 1)))
        assert not self.gate.withdraw(delivery)
        self.leave(delivery)

    def there(self) -> set[Delivery]:
        return {d for line in self.lines.values() for d in line} if hasattr(self, "gate") else set()

    def leave(self, delivery: Delivery) -> None:
        """Settle a delivery that has no place inside."""
        event = delivery.receipt.event  # type: ignore[union-attr]
        name = event[0] if self.keyed else event[1]
        line = self.lines[name]
        was_first = line[0] is delivery
        line.remove(delivery)
        if delivery in self.heads:
            self.heads.remove(delivery)
        if not line:
            del self.lines[name]
        elif was_first:
            self.heads.append(line[0])
        assert self.gate.release(delivery) == self.model_pass()

    @precondition(lambda self: self.aside)
    @rule(data=st.data())
    def try_again(self, data: st.DataObject) -> None:
        delivery = self.aside.pop(data.draw(st.integers(0, len(self.aside) - 1)))
        self.heads.append(delivery)
        assert self.gate.step_back(delivery) == (delivery in self.model_pass())

    @invariant()
    def no_more_than_the_limit_are_inside(self) -> None:
        if hasattr(self, "gate") and self.limit is not None:
            assert len(self.inside) <= self.limit

    @invariant()
    def as_many_wait_as_in_the_model(self) -> None:
        if hasattr(self, "gate"):
            there = {d for line in self.lines.values() for d in line}
            waiting = there - set(self.inside) - set(self.aside)
            assert set(self.gate.waiting()) == waiting
            assert len(list(self.gate.waiting())) == len(waiting)

    def teardown(self) -> None:
        if hasattr(self, "gate"):
            while self.inside or self.aside:  # whatever waits gets its turn in the end
                if self.aside:
                    self.try_again(_First())
                else:
                    self.settle(_First())
            assert not self.lines
            assert not list(self.gate.waiting())


class _First:
    def draw(self, _: object) -> int:
        return 0


TestGateAgainstModel = GateAgainstModel.TestCase


@given(
    st.lists(st.sampled_from("abcd"), max_size=40),
    st.integers(0, 3),
    st.randoms(use_true_random=False),
)
def test_each_key_keeps_its_order_for_any_order_of_settling(keys, failures, random):
    subscription = subscription_of(key=key_of, concurrency=2)
    gate = Gate(subscription.handler)
    deliveries = [delivery_to(subscription, (key, n)) for n, key in enumerate(keys)]
    under_way = [d for d in deliveries if gate.admit(d)]
    aside: list[Delivery] = []
    order: list[tuple[str, int]] = []
    while under_way or aside:
        assert len(under_way) <= 2
        if aside and (not under_way or random.randrange(2)):
            again = aside.pop(random.randrange(len(aside)))
            if gate.step_back(again):
                under_way.append(again)
            continue
        done = under_way.pop(random.randrange(len(under_way)))
        if random.randrange(4) < failures:
            aside.append(done)
            under_way += gate.step_aside(done)
            continue
        order.append(done.receipt.event)  # type: ignore[union-attr]
        under_way += gate.release(done)
    assert len(order) == len(keys)
    for key in "abcd":
        of_key = [n for k, n in order if k == key]
        assert of_key == sorted(of_key)


def test_only_a_handler_with_key_or_limit_has_a_gate():
    assert not subscription_of().gated
    assert subscription_of(key=key_of).gated
    assert subscription_of(concurrency=1).gated
    with pytest.raises(AttributeError):
        handler_of(key=key_of).key = None  # type: ignore[misc] # the point of this line
