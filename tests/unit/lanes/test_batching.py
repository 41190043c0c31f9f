# SPDX-License-Identifier: MIT
"""Sharing out: taken back, put back, lost or cancelled, each delivery is in one place."""

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from procbus.core.delivery import Delivery
from procbus.core.subscription import Subscription
from procbus.lanes.batching import Batching
from procbus.lanes.breaker import CIRCUIT_LIMITS
from procbus.lanes.slot import Batch, Slot
from procbus.pool.interface import At, Message
from tests.parts import BOUND_S, delivery_to, in_thread, subscription_of

_batch_numbers = itertools.count(1)


class FakeWorker:
    """A worker as the lane sees it: it begins deliveries in order, one for each token."""

    recalling = waiting = False

    def __init__(self) -> None:
        self.tokens = 0
        self.at: At | None = None

    def offer(self, message: Message) -> None:
        self.tokens += len(message.deliveries)

    def take_back(self, most: int) -> int:
        taken = min(most, self.tokens)
        self.tokens -= taken
        return taken

    def progress(self, at: At) -> None:
        """It has made no report."""

    def running(self) -> At | None:
        return self.at


class Parts:
    """Batching between slots that no thread runs."""

    def __init__(self, slots: int = 1, clock: Callable[[], float] = time.monotonic) -> None:
        self.batching = Batching(clock=clock)
        for number in range(slots):
            slot = Slot(number)
            fake: Any = FakeWorker()
            slot.worker = fake
            self.batching.slots.append(slot)
        self.short = subscription_of()
        self.short.average_s = 1e-6  # known to be short, so that batches are large
        self.numbers = itertools.count(1)

    def put(self, count: int, to: Subscription | None = None) -> list[Delivery]:
        numbers = [next(self.numbers) for _ in range(count)]
        made = [delivery_to(to or self.short, n, n) for n in numbers]
        for delivery in made:
            assert self.batching.queue.put(delivery)
        return made

    def take(self, most: int | None = None) -> list[Delivery]:
        return self.batching.next_batch(wait=False, most=most)

    def hand_out(
        self, slot: Slot, deliveries: list[Delivery], rest: Iterable[Delivery] = ()
    ) -> tuple[Batch, list[Delivery]]:
        number = next(_batch_numbers)
        batch = Batch(Message(number, b"", deliveries, rest=list(rest)))
        assert slot.worker is not None
        return batch, self.batching.hand_out(slot, slot.worker, batch)

    def open_circuit(self) -> None:
        with self.batching.queue.lock:
            for _ in range(CIRCUIT_LIMITS.most_deaths + 1):
                self.batching.circuit.note_death(100.0)

    def take_all_back(self) -> list[Delivery]:
        with self.batching.queue.lock:
            return self.batching.locked_take_all_back()

    def ready(self) -> list[Delivery]:
        """All that is ready, in order; it is not ready any more."""
        with self.batching.queue.lock:
            return list(iter(self.batching.queue.locked_take, None))


def worker_of(slot: Slot) -> FakeWorker:
    assert isinstance(slot.worker, FakeWorker)
    return slot.worker


# How much.


@pytest.mark.parametrize(("ready", "slots", "share"), [(10, 1, 10), (10, 2, 5), (10, 3, 4)])
def test_batch_is_a_workers_share_of_the_ready_deliveries(
    ready: int, slots: int, share: int
) -> None:
    parts = Parts(slots)
    deliveries = parts.put(ready)

    assert parts.take() == deliveries[:share]


def test_a_batch_is_no_larger_than_the_worker_may_have() -> None:
    parts = Parts()
    deliveries = parts.put(10)

    assert parts.take(most=3) == deliveries[:3]
    assert parts.take(most=100) == deliveries[3:]


def test_a_worker_with_nothing_to_do_gets_a_batch_that_is_soon_encoded() -> None:
    parts = Parts(1)
    parts.short.before_s = 0.001
    deliveries = parts.put(100)
    idle = parts.batching.next_batch(wait=True)
    assert idle == deliveries[:4]
    assert parts.take() == deliveries[4:23]  # the time for encoding counts as work all the same


@pytest.mark.parametrize(("batch_s", "expected"), [(0.010, 1), (0.050, 4), (0.0, 1)])
def test_a_batch_is_as_much_work_as_the_pool_says(batch_s: float, expected: int) -> None:
    batching = Batching(batch_s)
    handler = subscription_of()
    handler.average_s = 0.012
    for number in range(20):
        batching.queue.put(delivery_to(handler, number))

    assert len(batching.next_batch(wait=False)) == expected


def test_encoding_and_results_count_as_work_of_a_batch() -> None:
    batching = Batching(0.010)
    handler = subscription_of()
    handler.average_s, handler.before_s, handler.after_s = 0.001, 0.002, 0.002
    for number in range(20):
        batching.queue.put(delivery_to(handler, number))

    assert len(batching.next_batch(wait=False)) == 2


def test_batch_is_due_once_its_results_should_be_read() -> None:
    handler = subscription_of()
    handler.average_s, handler.after_s = 0.001, 0.002
    batch = Batch(Message(1, b"", [delivery_to(handler, number) for number in range(10)]))

    assert batch.expected_s == pytest.approx(0.030)


def test_empty_queue_gives_no_batch() -> None:
    assert Parts().take() == []


def test_waiting_companion_gets_the_next_delivery() -> None:
    parts = Parts()
    taken: list[Delivery] = []
    taker = in_thread(lambda: taken.extend(parts.batching.next_batch(wait=True)))

    deliveries = parts.put(1)

    taker.join(BOUND_S)
    assert taken == deliveries


def test_waiting_companion_is_released_when_the_lane_closes() -> None:
    parts = Parts()
    taken: list[list[Delivery]] = []
    taker = in_thread(lambda: taken.append(parts.batching.next_batch(wait=True)))

    parts.batching.queue.close()

    taker.join(BOUND_S)
    assert taken == [[]]


# The circuit.


def test_open_circuit_gives_out_one_delivery_for_each_trial() -> None:
    parts = Parts()
    deliveries = parts.put(5)
    parts.open_circuit()
    assert parts.take() == []

    with parts.batching.queue.lock:
        assert parts.batching.circuit.look(1000.0, "", []).trial

    assert parts.take(most=3) == deliveries[:1]
    assert parts.take() == []


def test_companion_that_waits_for_the_circuit_is_woken_for_the_trial() -> None:
    parts = Parts()
    deliveries = parts.put(5)
    parts.open_circuit()
    taken: list[Delivery] = []
    taker = in_thread(lambda: taken.extend(parts.batching.next_batch(wait=True)))

    with parts.batching.queue.lock:
        assert parts.batching.circuit.look(1000.0, "", []).trial
        parts.batching.queue.locked_wake()

    taker.join(BOUND_S)
    assert taken == deliveries[:1]


# The deliveries of each slot.


def test_running_delivery_is_known_by_batch_and_index() -> None:
    parts = Parts(2)
    idle, busy = parts.batching.slots
    deliveries = parts.put(3)
    parts.hand_out(busy, deliveries[:1])
    second, _ = parts.hand_out(busy, deliveries[1:])
    at = (second.number, 1, 100.0)
    worker_of(busy).at = at

    assert parts.batching.running() == [(busy, busy.worker, deliveries[2], at)]
    assert parts.batching.at_hand() == [
        (idle, None, 0.0, None),
        (busy, deliveries[2], 100.0, None),
    ]
    assert parts.batching.with_work() == [busy]


@pytest.mark.parametrize("at", [(1_000_000_000, 0, 1.0), (None, 5, 1.0)])
def test_logbook_that_is_ahead_or_behind_names_no_other_delivery(at: Any) -> None:
    parts = Parts()
    [slot] = parts.batching.slots
    batch, _ = parts.hand_out(slot, parts.put(2))
    number, index, since = at
    worker_of(slot).at = (number or batch.number, index, since)

    assert parts.batching.running() == []


def test_a_companion_without_a_worker_runs_nothing() -> None:
    parts = Parts()
    [slot] = parts.batching.slots
    parts.hand_out(slot, parts.put(2))
    slot.worker = None

    assert parts.batching.running() == []
    assert parts.take_all_back() == []


def test_deliveries_without_room_in_a_message_go_back_in_front() -> None:
    parts = Parts()
    [slot] = parts.batching.slots
    deliveries = parts.put(5)
    taken = parts.take(most=4)

    batch, dropped = parts.hand_out(slot, taken[:2], rest=taken[2:])

    assert batch.deliveries == deliveries[:2]
    assert dropped == []
    assert parts.ready() == deliveries[2:]


def test_taking_back_takes_the_last_ones_first_across_both_batches() -> None:
    parts = Parts()
    [slot] = parts.batching.slots
    deliveries = parts.put(6)
    first, _ = parts.hand_out(slot, deliveries[:3])
    second, _ = parts.hand_out(slot, deliveries[3:])
    worker_of(slot).tokens -= 2  # it has begun two

    assert parts.take_all_back() == deliveries[2:]

    assert first.deliveries == deliveries[:2]
    assert second.deliveries == []
    assert slot.recalled


def test_a_worker_with_nothing_to_take_back_is_not_recalled() -> None:
    parts = Parts()
    [slot] = parts.batching.slots
    parts.hand_out(slot, parts.put(1))
    worker_of(slot).tokens = 0

    assert parts.take_all_back() == []
    assert not slot.recalled


def test_deliveries_taken_before_a_recall_are_not_handed_out_after_it() -> None:
    # The worker would take its tokens for the deliveries that were taken back.
    parts = Parts()
    [slot] = parts.batching.slots
    first, second, third = parts.put(3)
    with parts.batching.queue.lock:
        parts.batching.queue.locked_take_batch(1.0, 3)
    parts.hand_out(slot, [first, second])
    assert parts.take_all_back() == [first, second]

    batch, dropped = parts.hand_out(slot, [third])

    assert (batch.deliveries, dropped) == ([], [])
    assert worker_of(slot).tokens == 0
    assert parts.ready() == [third]


def test_overdue_deliveries_are_taken_back_by_a_companion_without_work() -> None:
    now = 1000.0
    parts = Parts(2, clock=lambda: now)
    slow, _ = parts.batching.slots
    deliveries = parts.put(4)
    parts.hand_out(slow, parts.ready())
    worker_of(slow).tokens -= 1
    assert parts.take() == []

    now = 1005.0

    assert parts.take() == deliveries[1:3], "a share of it"
    assert slow.recalled
    assert parts.take() == deliveries[3:]


def test_batch_is_overdue_later_if_encoding_it_again_takes_long() -> None:
    now = 1000.0
    parts = Parts(2, clock=lambda: now)
    slot, _ = parts.batching.slots
    deliveries = parts.put(4)
    message = Message(next(_batch_numbers), b"", parts.ready(), encoding_s=10.0)
    assert slot.worker is not None
    parts.batching.hand_out(slot, slot.worker, Batch(message))

    now = 1015.0
    assert parts.take() == []

    now = 1025.0
    assert parts.take() == deliveries[:2]


def test_after_cancelling_everything_comes_out_and_nothing_goes_in() -> None:
    parts = Parts()
    [slot] = parts.batching.slots
    running, begun, *rest = parts.put(6)
    parts.hand_out(slot, [running])
    with parts.batching.queue.lock:
        parts.batching.queue.locked_take_batch(1.0, 6)
    assert parts.batching.queue.clear() == []

    batch, dropped = parts.hand_out(slot, [begun, *rest[:2]], rest=rest[2:3])

    assert dropped == [begun, *rest[:3]]
    assert batch.deliveries == []
    assert list(slot.in_flight)[1:] == []
    assert parts.batching.put_back(rest[3:]) == rest[3:]
    assert parts.take() == []


class AnySharing(RuleBasedStateMachine):
    """Many slots, whose workers run, are recalled and die in any order."""

    @initialize(slots=st.integers(1, 3))
    def start(self, slots: int) -> None:
        self.parts = Parts(slots)
        self.batching = self.parts.batching
        #: Deliveries that a slot has taken and not handed out, and batches sent to its worker.
        self.prepared: dict[Slot, list[Delivery]] = {}
        self.sent: dict[Slot, deque[tuple[Batch, list[Delivery]]]] = {
            slot: deque() for slot in self.batching.slots
        }
        self.published: list[Delivery] = []
        self.ended: list[Delivery] = []
        self.cancelled: list[Delivery] = []

    def slot(self, which: int) -> Slot:
        return self.batching.slots[which % len(self.batching.slots)]

    @rule(count=st.integers(1, 8))
    def publish(self, count: int) -> None:
        if not self.batching.queue.cancelled:
            self.published += self.parts.put(count)

    @rule(which=st.integers(0, 2))
    def take(self, which: int) -> None:
        slot = self.slot(which)
        # As the slot does: nothing ahead of a second batch, nor for one that was recalled.
        ahead = len(slot.in_flight)
        if not self.batching.queue.seems_ready():
            self.publish(4)
        if slot not in self.prepared and (not ahead or (ahead < 2 and not slot.recalled)):
            self.prepared[slot] = self.batching.next_batch(wait=False)

    @precondition(lambda self: self.prepared)
    @rule(which=st.integers(0, 2), room=st.integers(1, 8), recall=st.booleans())
    def hand_out(self, which: int, room: int, recall: bool) -> None:
        if recall:
            self.recall()
        slot = list(self.prepared)[which % len(self.prepared)]
        taken = self.prepared.pop(slot)
        before = worker_of(slot).tokens
        batch, dropped = self.parts.hand_out(slot, taken[:room], rest=taken[room:])
        self.cancelled += dropped
        assert worker_of(slot).tokens == before + len(batch.deliveries)
        if batch.deliveries:
            assert slot.in_flight[-1] is batch
            self.sent[slot].append((batch, list(batch.deliveries)))

    @rule(which=st.integers(0, 2), recall_at=st.integers(0, 8))
    def run_batch(self, which: int, recall_at: int) -> None:
        """A worker comes through a batch; on the way, everything may be taken back."""
        slot = self.slot(which)
        if not self.sent[slot]:
            return
        batch, known = self.sent[slot].popleft()
        worker = worker_of(slot)
        for index, delivery in enumerate(known):
            if index == recall_at:
                self.recall()
            if not worker.tokens:
                break
            worker.tokens -= 1
            assert batch.deliveries[index] is delivery, "it begins nothing that was taken back"
            batch.ended += 1
            self.ended.append(delivery)
        assert batch.open() == [], "what it has not begun was taken back"
        self.batching.complete(slot)
        if not slot.in_flight:
            assert worker.tokens == 0

    @rule(which=st.integers(0, 2), at=st.integers(0, 8))
    def die(self, which: int, at: int) -> None:
        """A worker dies after `at` deliveries of its first batch, in the handler of the next."""
        slot = self.slot(which)
        worker = worker_of(slot)
        batches = self.batching.take_all(slot)
        if batches:
            # It had no more than its tokens let it begin.
            ended = min(at + 1, worker.tokens, len(batches[0].deliveries))
            batches[0].ended = ended
            self.ended += batches[0].deliveries[:ended]
        back = [delivery for batch in batches for delivery in batch.open()]
        self.cancelled += self.batching.put_back(back)
        self.sent[slot].clear()
        fresh: Any = FakeWorker()
        slot.worker = fresh
        assert not slot.recalled

    @rule()
    def recall(self) -> None:
        """As the breaker does when it stops the lane."""
        with self.batching.queue.lock:
            back = self.batching.locked_take_all_back()
            if back and not self.batching.queue.cancelled:
                self.batching.queue.locked_put_back(back)
            else:
                self.cancelled += back

    @precondition(lambda self: len(self.published) > 30)
    @rule()
    def cancel(self) -> None:
        self.cancelled += self.batching.queue.clear()
        self.recall()

    def places(self) -> list[Delivery]:
        in_flight = [d for c in self.batching.slots for b in c.in_flight for d in b.open()]
        prepared = [d for taken in self.prepared.values() for d in taken]
        return self.ended + self.cancelled + in_flight + prepared

    @invariant()
    def each_delivery_is_in_one_place(self) -> None:
        if hasattr(self, "batching"):
            places = self.places()
            assert len(set(places)) == len(places)
            assert len(places) + self.batching.queue.depth() == len(self.published)

    def teardown(self) -> None:
        if not hasattr(self, "batching"):
            return
        while self.prepared:
            self.hand_out(0, 8, False)
        for slot in self.batching.slots:
            while self.sent[slot]:
                self.run_batch(self.batching.slots.index(slot), 9)
        assert sorted(d.event_id for d in self.places() + self.parts.ready()) == [
            d.event_id for d in self.published
        ]


TestAnySharing = AnySharing.TestCase


def withdraw(parts: Parts, delivery: Delivery) -> bool:
    with parts.batching.queue.lock:
        return parts.batching.locked_withdraw(delivery)


def test_withdrawn_delivery_leaves_the_batch_and_the_others_are_queued_again() -> None:
    parts = Parts()
    [slot] = parts.batching.slots
    first, second, third, fourth, fifth = parts.put(5)
    batch, _ = parts.hand_out(slot, parts.ready())
    worker_of(slot).tokens -= 2  # it has begun two

    assert not withdraw(parts, second)
    assert parts.ready() == [third, fourth, fifth], "in their order"
    assert batch.deliveries == [first, second]
    assert not withdraw(parts, third), "nobody has it"


def test_withdrawing_takes_from_the_one_worker_that_has_it() -> None:
    parts = Parts(2)
    here, there = parts.batching.slots
    kept, withdrawn, *elsewhere = parts.put(4)
    parts.ready()
    others, _ = parts.hand_out(there, elsewhere)
    parts.hand_out(here, [kept, withdrawn])

    assert withdraw(parts, withdrawn)
    assert parts.ready() == [kept]
    assert others.deliveries == elsewhere
    assert here.recalled
    assert not there.recalled
