# SPDX-License-Identifier: MIT
"""How handlers end that run in this process."""

import os
from time import monotonic

from procbus import ProcbusError
from procbus.outcome import Outcome, OutcomeKind
from procbus.own_process import failure, no_thread, success
from tests.parts import delivery_to, subscription_of


def test_a_success_is_the_outcome_that_checked_arguments_would_have_made() -> None:
    began = monotonic()
    outcome = success("value", began, began + 1, os.getpid())

    assert outcome == Outcome(OutcomeKind.SUCCEEDED, "value", None, began, began + 1, os.getpid())
    assert isinstance(outcome, Outcome)


def test_a_failure_has_the_error_itself() -> None:
    error = KeyError("gone")
    began = monotonic()
    outcome = failure(error, began, os.getpid())

    assert outcome.kind is OutcomeKind.RAISED
    assert outcome.error is error
    assert (outcome.started_at, outcome.worker_pid) == (began, os.getpid())
    assert began <= outcome.ended_at <= monotonic()


def test_where_no_thread_is_to_be_had_the_error_says_for_what_and_what_to_do() -> None:
    cause = RuntimeError("can't start new thread")
    outcome = no_thread(delivery_to(subscription_of(), event_id=7), cause)

    assert outcome.kind is OutcomeKind.RAISED
    assert isinstance(outcome.error, ProcbusError)
    assert outcome.error.__cause__ is cause
    text = str(outcome.error)
    assert "event 7" in text
    assert "can't start new thread" in text
    assert "Close the bus" in text
