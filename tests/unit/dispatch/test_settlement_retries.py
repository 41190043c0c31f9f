# SPDX-License-Identifier: MIT
"""Settling where attempts follow each other, and where the user's hook is told of a failure."""

import logging
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procbus import EventBus, current
from procbus.core.context import HandlerContext, running
from procbus.core.dead_letter import DeadLetter
from procbus.core.delivery import Delivery, DeliveryState, cancelled
from procbus.core.errors import HandlerTimeout, WorkerDied
from procbus.core.outcome import Outcome, OutcomeKind
from procbus.core.receipt import Receipt
from procbus.core.subscription import Subscription
from procbus.dispatch.admission import Admission
from procbus.dispatch.retry_queue import RetryQueue
from procbus.testing import InlineBus
from tests.parts import (
    BOUND_S,
    FakeLane,
    raised,
    receipt_for,
    settlement_for,
    subscription_of,
    succeeded,
)

ERROR = ValueError("no")
KINDS = {
    OutcomeKind.RAISED: ERROR,
    OutcomeKind.TIMED_OUT: HandlerTimeout("too long"),
    OutcomeKind.WORKER_DIED: WorkerDied("gone"),
}


def failed(kind: OutcomeKind = OutcomeKind.RAISED) -> Outcome:
    return Outcome(kind, None, KINDS[kind], 101.0, 103.0, 4711)


class Parts:
    """A settlement with its neighbours, and a time that the test sets."""

    def __init__(self, on_failure: Any = None) -> None:
        self.now = 1000.0
        self.lane = FakeLane()
        self.admission = Admission(100, "raise")
        self.retries = RetryQueue(clock=lambda: self.now)
        self.settlement = settlement_for(
            self.admission, self.retries, on_failure, self.make_context
        )
        self.sent: list[tuple[Any, str | None]] = []

    def make_context(self, delivery: Delivery, receipt: Receipt) -> HandlerContext:
        return HandlerContext(
            delivery.handler.name,
            receipt.id,
            None,
            None,
            1,
            lambda event, topic: self.sent.append((event, topic)),
        )

    def publish(self, *to: Subscription) -> Receipt:
        receipt = receipt_for(*to, lock=self.settlement.lock)
        self.admission.enter(len(to), False)
        return receipt

    def published(self, **options: Any) -> tuple[Delivery, Receipt]:
        """One delivery to a handler with these options."""
        receipt = self.publish(subscription_of(self.lane, **options))
        return receipt.deliveries[0], receipt

    def settle(self, delivery: Delivery, outcome: Outcome) -> None:
        self.settlement.settle([(delivery, outcome)])

    def due(self, seconds: float) -> list[Delivery]:
        """The deliveries that the supervisor queues again after some seconds."""
        self.now += seconds
        return self.retries.wait(0.0)


@pytest.fixture
def parts() -> Parts:
    return Parts()


# Attempts.


def test_a_failure_with_retries_left_leaves_the_delivery_pending(parts: Parts, caplog: Any) -> None:
    delivery, receipt = parts.published(retries=2, backoff=5, concurrency=1, name="store")
    outcome = failed()

    parts.settle(delivery, outcome)

    assert delivery.state is DeliveryState.PENDING
    assert delivery.outcome is None
    assert delivery.earlier == (outcome,)
    assert delivery.attempts == 1
    assert delivery.receipt is receipt
    assert not receipt.done
    assert parts.admission.pending == 1
    assert parts.settlement.dead_letters.snapshot() == ()
    assert parts.lane.aside == [delivery]
    assert parts.lane.released == []
    subscription = delivery.subscription
    assert (subscription.retried, subscription.failed, subscription.succeeded) == (1, 0, 0)
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        "store with event #1: attempt 1 of 3 raised (ValueError: no); the next one in 5 s"
    )
    assert parts.due(4.9) == []
    assert parts.due(0.1) == [delivery]


def test_an_attempt_that_succeeds_in_the_end_is_a_success(parts: Parts) -> None:
    delivery, receipt = parts.published(retries=2, backoff=0)
    for _ in range(2):
        parts.settle(delivery, failed())
        assert parts.due(0.0) == [delivery]

    parts.settle(delivery, succeeded("value"))

    assert receipt.done
    assert delivery.result() == "value"
    assert delivery.attempts == 3
    assert [outcome.kind for outcome in delivery.earlier] == [OutcomeKind.RAISED] * 2
    assert (delivery.subscription.retried, delivery.subscription.failed) == (2, 0)
    assert parts.admission.pending == 0
    assert parts.settlement.dead_letters.snapshot() == ()


def test_last_failure_keeps_the_outcome_of_each_attempt(parts: Parts, caplog: Any) -> None:
    delivery, receipt = parts.published(retries=2, backoff=0, name="store")
    outcomes = [failed(), failed(OutcomeKind.TIMED_OUT), failed()]

    for outcome in outcomes:
        parts.due(0.0)
        parts.settle(delivery, outcome)

    assert receipt.done
    assert delivery.exception() is ERROR
    [letter] = parts.settlement.dead_letters.snapshot()
    assert letter.outcomes == tuple(outcomes)
    assert not letter.quarantined
    assert (delivery.subscription.retried, delivery.subscription.failed) == (2, 1)
    assert delivery.subscription.timed_out == 1
    last = caplog.records[-1]
    assert last.levelno == logging.ERROR
    text = "store failed with event #1 (str): raised, at the last of 3 attempts: "
    assert last.getMessage().startswith(text)


def test_a_crash_too_many_is_quarantined(parts: Parts, caplog: Any) -> None:
    # Retries of crashes are for cpu handlers; the settlement does not mind the kind.
    delivery, _ = parts.published(retries=9, backoff=0)

    for _ in range(2):
        parts.due(0.0)
        parts.settle(delivery, failed(OutcomeKind.WORKER_DIED))

    [letter] = parts.settlement.dead_letters.snapshot()
    assert letter.quarantined
    assert delivery.subscription.crashed == 2
    assert "not tried again, since it killed its worker each time" in caplog.text


def test_delivery_that_never_got_into_its_lane_is_not_retried(parts: Parts) -> None:
    delivery, receipt = parts.published(retries=5)

    parts.settlement.settle([(delivery, failed())], queued=False)

    assert receipt.done
    assert len(parts.retries) == 0


def test_attempts_of_one_call_go_their_own_ways(parts: Parts) -> None:
    (again, _), (done, _), (gone, _) = (parts.published(retries=n, backoff=0) for n in (1, 1, 0))

    parts.settlement.settle([(again, failed()), (done, succeeded()), (gone, failed())])

    assert again.outcome is None
    assert done.state is DeliveryState.SUCCEEDED
    assert gone.state is DeliveryState.FAILED
    assert parts.admission.pending == 1


def test_a_backoff_that_fails_in_earnest_loses_nothing(parts: Parts, caplog: Any) -> None:
    earnest = False

    def backoff(attempt: int, outcome: Outcome) -> float:
        if earnest:
            raise RuntimeError("a bug in the backoff")
        return 0.0

    delivery, _ = parts.published(retries=3, backoff=backoff, name="with a broken backoff")
    earnest = True

    for attempt in range(3):
        parts.settle(delivery, failed())
        assert delivery.attempts == attempt + 1
        assert parts.due(120.0) == [delivery]
    parts.settle(delivery, failed())

    assert delivery.state is DeliveryState.FAILED
    assert parts.admission.pending == 0
    assert caplog.text.count("the backoff function of handler with a broken backoff failed") == 1


class Broken(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        raise RuntimeError("a filter that fails")


def test_logging_that_fails_loses_no_attempt(parts: Parts, capsys: Any) -> None:
    delivery, _ = parts.published(retries=1, backoff=0)
    broken = Broken()
    logging.getLogger("procbus").addFilter(broken)
    try:
        parts.settle(delivery, failed())
    finally:
        logging.getLogger("procbus").removeFilter(broken)

    assert parts.due(0.0) == [delivery]
    assert "a filter that fails" in capsys.readouterr().err


def test_error_without_a_text_loses_no_attempt(parts: Parts) -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("mute")

    delivery, _ = parts.published(retries=1, backoff=0)

    parts.settle(delivery, raised(Mute()))

    assert parts.due(0.0) == [delivery]


# Cancelling.


def test_waiting_delivery_is_cancelled_once(parts: Parts) -> None:
    delivery, receipt = parts.published(retries=1, backoff=60)
    parts.settle(delivery, failed())

    [waiting] = parts.retries.cancel()
    parts.settle(waiting, cancelled(waiting))
    parts.settle(waiting, cancelled(waiting))

    assert waiting is delivery
    assert receipt.done
    assert delivery.state is DeliveryState.CANCELLED
    assert delivery.subscription.cancelled == 1
    assert parts.admission.pending == 0
    assert parts.settlement.dead_letters.snapshot() == ()


def test_delivery_that_fails_after_cancelling_is_cancelled_at_once(parts: Parts) -> None:
    delivery, receipt = parts.published(retries=1, backoff=60, concurrency=1)
    parts.retries.cancel()

    parts.settle(delivery, failed())

    assert receipt.done
    assert delivery.state is DeliveryState.CANCELLED
    assert delivery.attempts == 1
    assert len(delivery.earlier) == 1
    assert parts.admission.pending == 0


def test_delivery_settled_while_it_waits_is_not_settled_again(parts: Parts) -> None:
    delivery, _ = parts.published(retries=1, backoff=0)
    parts.settle(delivery, failed())

    parts.settle(delivery, cancelled(delivery, 1.0))
    [due] = parts.due(0.0)
    parts.settle(due, succeeded())

    assert delivery.state is DeliveryState.CANCELLED
    assert delivery.subscription.succeeded == 0
    assert parts.admission.pending == 0


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1)), min_size=1, max_size=6),
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from("sftdc")), max_size=60),
)
def test_every_delivery_is_settled_once_and_no_attempt_is_lost(
    options: list[tuple[int, int]], steps: list[tuple[int, str]]
) -> None:
    parts = Parts()
    made = [
        parts.published(retries=retries, backoff=0, concurrency=1 if gated else None)
        for retries, gated in options
    ]
    done: list[int] = []
    for _, receipt in made:
        receipt.when_done(lambda r: done.append(id(r)))
    logging.getLogger("procbus").disabled = True
    try:
        for index, what in steps:
            delivery, _ = made[index % len(made)]
            outcome = {
                "s": succeeded(),
                "f": failed(),
                "t": failed(OutcomeKind.TIMED_OUT),
                "d": failed(OutcomeKind.WORKER_DIED),
                "c": cancelled(delivery),
            }[what]
            parts.settle(delivery, outcome)
    finally:
        logging.getLogger("procbus").disabled = False
    still_open = [d for d, _ in made if d.outcome is None]
    assert parts.admission.pending == len(still_open)
    assert sorted(done) == sorted(id(r) for d, r in made if d.outcome is not None)
    waiting = parts.retries.cancel()
    assert {d for d in waiting if d.outcome is None} == {d for d in still_open if d.earlier}
    for delivery, _ in made:
        retried = len(delivery.earlier)
        assert delivery.subscription.retried == retried <= delivery.handler.retries
        assert waiting.count(delivery) == min(retried, 1)
        assert delivery.attempts in (retried, retried + 1)
        assert parts.lane.aside.count(delivery) == retried
        gated = delivery.handler.concurrency is not None and delivery.outcome is not None
        assert parts.lane.released.count(delivery) == int(gated)


# The hook.


def test_hook_gets_the_last_failure_and_no_other_end() -> None:
    told: list[DeadLetter] = []
    parts = Parts(on_failure=told.append)
    delivery, _ = parts.published(retries=1, backoff=0)
    fine, _ = parts.published()
    dropped, _ = parts.published()
    parts.settle(fine, succeeded())
    parts.settle(dropped, cancelled(dropped))
    parts.settle(delivery, failed())
    assert told == []

    parts.settle(delivery, failed())

    [letter] = told
    assert letter.event_id == delivery.event_id
    assert letter.attempts == 2
    assert parts.settlement.unseen.summary() is None, "the hook has seen it"


def test_the_hook_may_publish_as_the_handler_may() -> None:
    def publish(letter: DeadLetter) -> None:
        current().publish("failed", letter.event)

    parts = Parts(on_failure=publish)
    delivery, _ = parts.published()

    parts.settle(delivery, failed())

    assert parts.sent == [("event", "failed")]
    assert running.get() is None


@pytest.mark.parametrize("error", [ValueError("in the hook"), SystemExit()])
def test_a_hook_that_raises_is_logged_and_changes_nothing(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(letter: DeadLetter) -> None:
        raise error

    parts = Parts(on_failure=fail)
    delivery, receipt = parts.published(concurrency=1)

    parts.settle(delivery, failed())

    assert receipt.done
    assert parts.lane.released == [delivery]
    assert parts.admission.pending == 0
    assert "on_failure= raised" in caplog.text


def test_ctrl_c_in_the_hook_goes_on_to_the_script_and_leaves_nothing_open() -> None:
    def interrupted(letter: DeadLetter) -> None:
        raise KeyboardInterrupt

    parts = Parts(on_failure=interrupted)
    delivery, receipt = parts.published(concurrency=1)
    again, _ = parts.published(retries=1, backoff=0)
    called: list[Receipt] = []
    receipt.when_done(called.append)

    with pytest.raises(KeyboardInterrupt):
        parts.settlement.settle([(delivery, failed()), (again, failed())])

    assert called == [receipt]
    assert parts.lane.released == [delivery]
    assert parts.admission.pending == 1
    assert len(parts.retries) == 1
    assert running.get() is None


@pytest.mark.parametrize("kind", ["io", "cpu"])
def test_the_hook_may_publish_into_a_full_bus(kind: Any) -> None:
    seen: list[Any] = []

    def fail(event: Any) -> None:
        raise ValueError(event)

    with EventBus(
        [], max_pending=1, cpu_workers=1, on_failure=lambda letter: bus.publish("failed", 1)
    ) as bus:
        bus.subscribe("work", fail, kind=kind)
        bus.subscribe("failed", seen.append)
        for _ in range(3):
            assert bus.publish("work", "event").wait(BOUND_S)
        assert bus.drain(BOUND_S)
    assert seen == [1, 1, 1]


def test_the_hook_is_called_by_one_thread_for_each_failure() -> None:
    told: list[int] = []
    parts = Parts(on_failure=lambda letter: told.append(letter.event_id))
    delivery, _ = parts.published()
    start = threading.Barrier(4)

    def settle() -> None:
        start.wait(BOUND_S)
        parts.settle(delivery, failed())

    threads = [threading.Thread(target=settle) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(BOUND_S)
    assert told == [delivery.event_id]


def test_the_hook_sees_the_attempt_that_failed_last() -> None:
    seen: list[tuple[int, int]] = []

    def fail(event: Any) -> None:
        raise ValueError(current().attempt)

    def hook(letter: DeadLetter) -> None:
        seen.append((current().attempt, letter.attempts))

    def refuse(event: Any) -> bool:
        raise ValueError("in where=")

    with InlineBus([], on_failure=hook) as bus:
        bus.subscribe("work", fail, retries=2)
        bus.publish("work", 1)
        bus.subscribe("refused", fail, where=refuse)
        bus.publish("refused", 1)
    assert seen == [(3, 3), (1, 1)]
