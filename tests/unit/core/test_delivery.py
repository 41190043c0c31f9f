# SPDX-License-Identifier: MIT
"""A delivery's view of itself, open and settled."""

import time
import traceback

import pytest

from procbus.core.delivery import TERMINAL_STATE, DeliveryState, cancelled
from procbus.core.errors import ProcbusError
from procbus.core.outcome import Outcome, OutcomeKind
from tests.parts import FakeLane, delivery_to, raised, subscription_of, succeeded


def test_a_delivery_is_pending_until_a_worker_has_it():
    lane = FakeLane()
    delivery = delivery_to(subscription_of(lane))
    states = [delivery.state]
    lane.running.append(delivery)
    states.append(delivery.state)
    delivery.end(succeeded())
    states.append(delivery.state)
    assert states == [DeliveryState.PENDING, DeliveryState.RUNNING, DeliveryState.SUCCEEDED]


@pytest.mark.parametrize("kind", list(OutcomeKind))
def test_every_kind_of_outcome_is_a_terminal_state(kind):
    expected = {
        OutcomeKind.SUCCEEDED: DeliveryState.SUCCEEDED,
        OutcomeKind.CANCELLED: DeliveryState.CANCELLED,
    }
    assert TERMINAL_STATE[kind] is expected.get(kind, DeliveryState.FAILED)


def test_an_open_delivery_has_no_result_and_says_how_to_wait():
    delivery = delivery_to(subscription_of(name="shop.store"))
    for ask in (delivery.result, delivery.exception):
        with pytest.raises(ProcbusError, match=r"shop\.store: pending> is not settled yet: wait"):
            ask()


def test_an_open_delivery_has_been_queued_until_now_and_has_not_run():
    delivery = delivery_to(subscription_of())
    delivery.queued_at = time.monotonic() - 5
    assert delivery.queued_s >= 5
    assert delivery.run_s is None
    assert delivery.worker_pid is None
    assert delivery.attempts == 0


def test_times_and_process_come_from_the_outcome():
    delivery = delivery_to(subscription_of())  # queued at 100.0
    delivery.end(succeeded("value", started_at=101.0, ended_at=103.5))
    assert (delivery.queued_s, delivery.run_s, delivery.worker_pid) == (1.0, 2.5, 4711)
    assert delivery.result() == "value"
    assert delivery.exception() is None


def test_failed_delivery_raises_its_handlers_exception():
    delivery = delivery_to(subscription_of())
    error = KeyError("id")
    delivery.end(raised(error))
    assert delivery.exception() is error
    with pytest.raises(KeyError) as caught:
        delivery.result()
    assert caught.value is error


def test_delivery_that_never_began_did_not_run():
    delivery = delivery_to(subscription_of())
    delivery.end(Outcome(OutcomeKind.RAISED, error=ValueError()))
    assert delivery.run_s is None
    assert delivery.queued_s == 0.0
    assert delivery.worker_pid is None


@pytest.mark.parametrize(
    ("ran_s", "says"), [(None, "before its handler began"), (0.5, "after 0.5 s in its handler")]
)
def test_a_cancelled_delivery_says_when_and_why(ran_s, says):
    delivery = delivery_to(subscription_of(name="store"), event_id=7)
    delivery.end(cancelled(delivery, ran_s))
    assert delivery.state is DeliveryState.CANCELLED
    with pytest.raises(ProcbusError, match=f"event #7 to store was cancelled {says}: the bus was"):
        delivery.result()
    if ran_s is None:
        assert delivery.run_s is None
    else:
        assert delivery.run_s == pytest.approx(ran_s)


def test_repr_tells_event_handler_and_state():
    delivery = delivery_to(subscription_of(name="shop.store"), event_id=7)
    assert repr(delivery) == "<Delivery of event #7 to shop.store: pending>"
    delivery.end(succeeded(started_at=101.0, ended_at=101.25))
    assert repr(delivery) == "<Delivery of event #7 to shop.store: succeeded after 0.25 s>"
    delivery.end(raised(KeyError("id")))
    assert (
        repr(delivery) == "<Delivery of event #7 to shop.store: failed after 2 s: KeyError('id')>"
    )


def frames_of(error: BaseException) -> int:
    return len(traceback.extract_tb(error.__traceback__))


def test_repeated_questions_do_not_lengthen_the_traceback():
    try:
        raise ValueError("in the handler")
    except ValueError as error:
        failed = error
    delivery = delivery_to(subscription_of())
    delivery.end(raised(failed))
    lengths = set()
    for _ in range(50):
        with pytest.raises(ValueError, match="in the handler") as caught:
            delivery.result()
        lengths.add(frames_of(caught.value))
    assert len(lengths) == 1
    asked = delivery.exception()
    assert asked is failed
    assert frames_of(asked) == 1


def test_exception_keeps_the_context_that_it_had_in_the_handler():
    failed = ValueError("in the handler")
    failed.__context__ = KeyError("handled there")
    delivery = delivery_to(subscription_of())
    delivery.end(raised(failed))
    try:
        raise OSError
    except OSError:
        with pytest.raises(ValueError, match="in the handler"):
            delivery.result()
    asked = delivery.exception()
    assert asked is not None
    assert isinstance(asked.__context__, KeyError)
