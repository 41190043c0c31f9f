# SPDX-License-Identifier: MIT
"""Settling: exactly once, for the first caller, with all consequences."""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procbus.core.delivery import Delivery, DeliveryState, cancelled
from procbus.core.errors import WorkerDied
from procbus.core.handler import make_handler
from procbus.core.moments import Settled
from procbus.core.outcome import Outcome, OutcomeKind
from procbus.core.receipt import Receipt
from procbus.core.subscription import FEW, SAMPLE, SAMPLED_BELOW_S, Subscription
from procbus.dispatch.admission import Admission
from procbus.dispatch.dead_letters import MOST_KEPT
from procbus.dispatch.settlement import Settlement
from tests.parts import (
    BOUND_S,
    FakeLane,
    delivery_to,
    handle,
    raised,
    receipt_for,
    settlement_with_room,
    subscription_of,
    succeeded,
)


def published(settlement: Settlement, admission: Admission, *to: Subscription) -> Receipt:
    receipt = receipt_for(*to, lock=settlement.lock)
    admission.enter(len(to), False)
    return receipt


def counts(subscription: Subscription) -> tuple[int, int, int, int]:
    s = subscription
    return s.succeeded, s.failed, s.cancelled, s.stopped


def test_a_success_is_counted_and_leaves_the_bus():
    settlement, admission = settlement_with_room()
    subscription = subscription_of()
    (delivery,) = published(settlement, admission, subscription).deliveries
    settlement.settle([(delivery, succeeded("value"))])
    assert delivery.state is DeliveryState.SUCCEEDED
    assert delivery.result() == "value"
    assert delivery.attempts == 1
    assert delivery.receipt is None
    assert counts(subscription) == (1, 0, 0, 0)
    assert subscription.average_s == 2.0
    assert admission.pending == 0
    assert settlement.dead_letters.snapshot() == ()


def test_successes_are_settled_together_and_each_once():
    settlement, admission = settlement_with_room()
    lane = FakeLane()
    plain, gated = subscription_of(lane), subscription_of(lane, concurrency=1)
    receipts = [published(settlement, admission, *to) for to in ([plain], [plain, gated], [plain])]
    done: list[Receipt] = []
    for receipt in receipts:
        receipt.when_done(done.append)
    deliveries = [d for receipt in receipts for d in receipt.deliveries]
    settlement.settle([(deliveries[3], cancelled(deliveries[3]))])
    times = [(101.0, 102.0, 0), (101.0, 103.0, 0), (101.0, 104.0, 0), (101.0, 105.0, 0)]
    settlement.settle_successes(deliveries, times, [1, 2, 3, 4], 4711)
    settlement.settle_successes(deliveries[:1], [(1.0, 2.0, 0)], [5], 1)
    assert [d.outcome for d in deliveries[:3]] == [
        succeeded(1, 101.0, 102.0),
        succeeded(2, 101.0, 103.0),
        succeeded(3, 101.0, 104.0),
    ]
    assert deliveries[3].state is DeliveryState.CANCELLED
    assert (plain.succeeded, plain.cancelled, gated.succeeded) == (2, 1, 1)
    assert lane.released == [deliveries[2]]
    assert done == [receipts[2], receipts[0], receipts[1]]
    assert admission.pending == 0
    assert (plain.ran.count, plain.ran.total) == (2, 3.0)


@pytest.mark.parametrize("long_one_in", [0, 3])
def test_every_success_counts_in_the_statistics_though_short_ones_are_sampled(long_one_in):
    settlement, admission = settlement_with_room()
    subscription = subscription_of()
    subscription.succeeded = FEW
    count = 2 * SAMPLE + 5
    admission.enter(count, False)
    deliveries = [receipt_for(subscription, event_id=n).deliveries[0] for n in range(count)]
    short_s, long_s = 0.5 * SAMPLED_BELOW_S, 2 * SAMPLED_BELOW_S
    runs_s = [long_s if long_one_in and not n % long_one_in else short_s for n in range(count)]
    times = [(101.0, 101.0 + run_s, 0) for run_s in runs_s]
    settlement.settle_successes(deliveries, times, [None] * count, 4711)
    assert SAMPLE < subscription.ran.count <= count
    for _ in range(2):
        settlement.note_untimed([subscription])
        assert (subscription.ran.count, subscription.queued.count) == (count, count)
        assert 0 <= subscription.ran.total - sum(runs_s) < SAMPLE * SAMPLED_BELOW_S


def test_a_failure_is_kept_as_a_dead_letter_and_logged_once_with_its_traceback(caplog):
    settlement, admission = settlement_with_room()
    subscription = subscription_of(name="shop.store")
    receipt = published(settlement, admission, subscription)
    (delivery,) = receipt.deliveries
    try:
        raise KeyError("id")
    except KeyError as error:
        outcome = raised(error)
    settlement.settle([(delivery, outcome)])
    (letter,) = settlement.dead_letters.snapshot()
    assert (letter.event_id, letter.event, letter.topic) == (1, "event", None)
    assert letter.handler == "shop.store"
    assert letter.outcome is outcome
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("procbus", logging.ERROR)
    assert record.getMessage() == "shop.store failed with event #1 (str): raised: KeyError: 'id'"
    assert 'raise KeyError("id")' in caplog.text
    assert counts(subscription) == (0, 1, 0, 0)


def test_events_that_were_dropped_are_named_in_the_log(caplog):
    settlement, admission = settlement_with_room()
    (delivery,) = published(settlement, admission, subscription_of()).deliveries
    settlement.settle([(delivery, raised(ValueError())._replace(dropped_events=3))])
    assert "(3 events dropped)" in caplog.records[0].getMessage()


@pytest.mark.parametrize(("ran_s", "counted"), [(None, (0, 0, 1, 0)), (0.5, (0, 0, 0, 1))])
def test_a_cancelled_delivery_is_no_failure(caplog, ran_s, counted):
    settlement, admission = settlement_with_room()
    subscription = subscription_of()
    (delivery,) = published(settlement, admission, subscription).deliveries
    settlement.settle([(delivery, cancelled(delivery, ran_s))])
    assert counts(subscription) == counted
    assert delivery.attempts == (0 if ran_s is None else 1)
    assert settlement.dead_letters.snapshot() == ()
    assert caplog.records == []
    assert admission.pending == 0


def test_a_worker_that_died_is_a_failure():
    settlement, admission = settlement_with_room()
    subscription = subscription_of()
    (delivery,) = published(settlement, admission, subscription).deliveries
    error = WorkerDied("gone")
    settlement.settle([(delivery, Outcome(OutcomeKind.WORKER_DIED, error=error))])
    assert delivery.state is DeliveryState.FAILED
    assert delivery.attempts == 0
    assert subscription.average_s is None


def test_only_the_first_outcome_counts():
    settlement, admission = settlement_with_room()
    lane = FakeLane()
    subscription = subscription_of(lane, concurrency=1)
    (delivery,) = published(settlement, admission, subscription).deliveries
    settlement.settle([(delivery, succeeded(1)), (delivery, raised(ValueError()))])
    settlement.settle([(delivery, cancelled(delivery))])
    assert delivery.result() == 1
    assert counts(subscription) == (1, 0, 0, 0)
    assert admission.pending == 0
    assert lane.released == [delivery]
    assert settlement.dead_letters.snapshot() == ()


def test_delivery_that_never_got_into_its_lane_opens_no_gate():
    settlement, admission = settlement_with_room()
    lane = FakeLane()
    (delivery,) = published(settlement, admission, subscription_of(lane, concurrency=1)).deliveries
    settlement.settle([(delivery, raised(ValueError()))], queued=False)
    assert lane.released == []
    assert admission.pending == 0


def test_bus_has_room_by_the_time_a_receipt_is_done():
    # Streams publish the next event as soon as they hear of a settled one.
    settlement, admission = settlement_with_room(max_pending=1)
    receipt = published(settlement, admission, subscription_of())
    receipt.when_done(lambda _: admission.enter(1, False))
    settlement.settle([(receipt.deliveries[0], succeeded())])
    assert admission.pending == 1


class Broken(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        raise RuntimeError("a filter that fails")


def test_logging_that_fails_keeps_no_delivery_open(caplog, capsys):
    settlement, admission = settlement_with_room()
    lane = FakeLane()
    receipt = published(settlement, admission, subscription_of(lane, concurrency=1))
    called: list[Receipt] = []
    receipt.when_done(called.append)
    broken = Broken()
    logging.getLogger("procbus").addFilter(broken)
    try:
        settlement.settle([(receipt.deliveries[0], raised(ValueError()))])
    finally:
        logging.getLogger("procbus").removeFilter(broken)
    assert admission.pending == 0
    assert lane.released == list(receipt.deliveries)
    assert called == [receipt]
    assert "a filter that fails" in capsys.readouterr().err


def test_dead_letters_are_bounded_and_the_newest_stay():
    settlement, admission = settlement_with_room(MOST_KEPT * 2)
    admission.enter(MOST_KEPT + 5, False)
    subscription = subscription_of()
    logging.getLogger("procbus").disabled = True
    try:
        for number in range(MOST_KEPT + 5):
            delivery = delivery_to(subscription, event_id=number)
            settlement.settle([(delivery, raised(ValueError()))])
    finally:
        logging.getLogger("procbus").disabled = False
    assert [x.event_id for x in settlement.dead_letters.snapshot()] == list(range(5, MOST_KEPT + 5))


@given(
    st.lists(st.integers(1, 3), min_size=1, max_size=5),
    st.lists(st.tuples(st.integers(0, 14), st.integers(0, 2)), max_size=60),
)
def test_every_delivery_is_settled_exactly_once_in_any_order(sizes, attempts):
    settlement, admission = settlement_with_room()
    lane = FakeLane()
    subscription = subscription_of(lane, concurrency=1)
    receipts = [published(settlement, admission, *[subscription] * size) for size in sizes]
    done: list[Receipt] = []
    for receipt in receipts:
        receipt.when_done(done.append)
    deliveries = [d for receipt in receipts for d in receipt.deliveries]
    first: dict[Delivery, Outcome] = {}
    for number, (index, kind) in enumerate(attempts):
        delivery = deliveries[index % len(deliveries)]
        outcome = (
            succeeded(number) if kind == 0 else cancelled(delivery, None if kind == 1 else 1.0)
        )
        settlement.settle([(delivery, outcome)])
        first.setdefault(delivery, outcome)
        assert delivery.outcome == first[delivery]
        assert admission.pending == len(deliveries) - len(first)
        assert sum(counts(subscription)) == len(first)
        assert len(lane.released) == len(set(lane.released)) == len(first)
        assert done.count(delivery_receipt(receipts, delivery)) <= 1
    assert set(map(id, done)) == {id(r) for r in receipts if all(d in first for d in r.deliveries)}
    assert all(r.done == (r in done) for r in receipts)


def delivery_receipt(receipts: list[Receipt], delivery: Delivery) -> Receipt:
    return next(r for r in receipts if delivery in r.deliveries)


def test_threads_that_settle_the_same_deliveries_settle_each_once():
    settlement, admission = settlement_with_room(10_000)
    lane = FakeLane()
    subscription = subscription_of(lane, concurrency=1)
    receipts = [published(settlement, admission, subscription, subscription) for _ in range(500)]
    done: list[int] = []
    for receipt in receipts:
        receipt.when_done(lambda r: done.append(id(r)))
    deliveries = [d for receipt in receipts for d in receipt.deliveries]
    start = threading.Barrier(4)

    def settle(which: int) -> None:
        start.wait(BOUND_S)
        for delivery in deliveries:
            settlement.settle([(delivery, succeeded(which))])

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(settle, which) for which in range(4)]:
            future.result(BOUND_S)
    assert subscription.succeeded == len(deliveries) == len(lane.released)
    assert admission.pending == 0
    assert sorted(done) == sorted(map(id, receipts))


def test_event_of_several_handlers_is_freed_outside_the_lock():
    settlement, admission = settlement_with_room()
    held: list[bool] = []

    class Ending:
        def __del__(self) -> None:
            held.append(settlement.lock.owned())

    receipt = receipt_for(
        subscription_of(), subscription_of(), event=Ending(), lock=settlement.lock
    )
    receipt.left = 2
    admission.enter(2, False)
    settled = [(delivery, succeeded()) for delivery in receipt.deliveries]
    del receipt
    settlement.settle(settled)
    assert held == [False]


# Listeners.


def test_a_listener_gets_the_end_of_each_delivery_before_its_receipt_is_called_back():
    settlement, admission = settlement_with_room()
    subscription = Subscription(make_handler(handle, int), FakeLane())
    told: list[Any] = []
    settlement.listeners.add(SimpleNamespace(settled=told.append))
    receipts = [receipt_for(subscription, event_id=n) for n in range(3)]
    for receipt in receipts:
        receipt.when_done(told.append)
    admission.enter(3, False)
    good, bad, stopped = (receipt.deliveries[0] for receipt in receipts)
    ends = [succeeded(7), raised(ValueError()), Outcome(OutcomeKind.CANCELLED)]
    settlement.settle(list(zip((good, bad, stopped), ends, strict=True)))
    settled = told[:3]
    assert [each.delivery for each in settled] == [good, bad, stopped]
    assert [each.receipt for each in settled] == receipts
    assert [each.outcome for each in settled] == ends
    assert [each.letter for each in settled] == [None, *settlement.dead_letters.snapshot(), None]
    assert told[3:] == receipts
    assert admission.pending == 0


def test_a_listener_gets_the_successes_of_a_batch_but_none_that_was_settled_before():
    settlement, admission = settlement_with_room()
    subscription = Subscription(make_handler(handle, int), FakeLane())
    told: list[Settled] = []
    settlement.listeners.add(SimpleNamespace(settled=told.append))
    admission.enter(2, False)
    first, second = (receipt_for(subscription, event_id=n).deliveries[0] for n in (1, 2))
    settlement.settle([(first, succeeded("first"))])
    settlement.settle_successes([first, second], [(1.0, 2.0, 0), (3.0, 4.0, 0)], ["a", "b"], 4711)
    assert [each.delivery for each in told] == [first, second]
    assert [each.outcome.value for each in told] == ["first", "b"]
    assert told[1].outcome == Outcome(OutcomeKind.SUCCEEDED, "b", None, 3.0, 4.0, 4711)
    assert admission.pending == 0


def test_an_attempt_that_is_followed_by_another_is_no_end_to_listeners():
    settlement, _ = settlement_with_room()
    subscription = Subscription(make_handler(handle, int, retries=1), FakeLane())
    told: list[Settled] = []
    settlement.listeners.add(SimpleNamespace(settled=told.append))
    (delivery,) = receipt_for(subscription).deliveries
    settlement.settle([(delivery, raised(ValueError()))])
    assert told == []
    settlement.settle([(delivery, raised(ValueError()))])
    assert [each.delivery for each in told] == [delivery]


def test_listener_that_raises_is_logged_and_holds_up_no_other(caplog):
    settlement, admission = settlement_with_room()
    subscription = Subscription(make_handler(handle, int), FakeLane())
    told: list[Settled] = []

    def broken(_: Settled) -> None:
        raise RuntimeError("a listener")

    settlement.listeners.add(SimpleNamespace(settled=broken))
    settlement.listeners.add(SimpleNamespace(settled=told.append))
    receipt = receipt_for(subscription)
    admission.enter(1, False)
    settlement.settle([(receipt.deliveries[0], succeeded())])
    assert receipt.done
    assert len(told) == 1
    assert admission.pending == 0
    assert "a listener" in caplog.text
