# SPDX-License-Identifier: MIT
"""How handlers end that run in this process."""

import asyncio
import os
from time import monotonic

import pytest

from procbus import ProcbusError
from procbus.core.errors import HandlerExited
from procbus.core.outcome import OutcomeKind
from procbus.core.subscription import Subscription
from procbus.lanes.attempt import failure, no_thread
from tests.parts import FakeLane, delivery_to, handler_of, subscription_of


def test_a_failure_has_the_error_itself() -> None:
    error = KeyError("gone")
    began = monotonic()
    outcome = failure(error, delivery_to(subscription_of()), began, os.getpid())

    assert outcome.kind is OutcomeKind.RAISED
    assert outcome.error is error
    assert (outcome.started_at, outcome.worker_pid) == (began, os.getpid())
    assert began <= outcome.ended_at <= monotonic()


@pytest.mark.parametrize(
    "error", [SystemExit(0), KeyboardInterrupt(), GeneratorExit(), asyncio.CancelledError()]
)
def test_exception_that_would_end_the_caller_is_the_cause_of_an_ordinary_error(
    error: BaseException,
) -> None:
    delivery = delivery_to(subscription_of(name="shop.store"), event_id=7)
    told = failure(error, delivery, 1.0, os.getpid()).error

    assert isinstance(told, HandlerExited)
    assert told.__cause__ is error
    assert (told.handler, told.event_id) == ("shop.store", 7)
    assert f"shop.store raised {error!r} with event #7" in str(told)


class Halt(BaseException):
    """Like an exception of pytest's: no Exception, and nothing that Python itself acts on."""


@pytest.mark.parametrize("error", [Halt(), ValueError(), ExceptionGroup("two", [ValueError()])])
def test_all_other_errors_are_reported_as_they_are(error: BaseException) -> None:
    assert failure(error, delivery_to(subscription_of()), 1.0, os.getpid()).error is error


def test_future_of_a_call_takes_even_exit_exceptions_like_the_standard() -> None:
    call = Subscription(handler_of(), FakeLane(), answered=True)
    error = SystemExit(3)

    assert failure(error, delivery_to(call), 1.0, os.getpid()).error is error


def test_error_without_a_thread_says_the_handler_and_the_remedy() -> None:
    cause = RuntimeError("can't start new thread")
    outcome = no_thread(delivery_to(subscription_of(), event_id=7), cause)

    assert outcome.kind is OutcomeKind.RAISED
    assert isinstance(outcome.error, ProcbusError)
    assert outcome.error.__cause__ is cause
    text = str(outcome.error)
    assert "event #7" in text
    assert "can't start new thread" in text
    assert "Close the bus" in text
