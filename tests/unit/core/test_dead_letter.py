# SPDX-License-Identifier: MIT
"""A dead letter: its facts, and their text for people."""

import dataclasses
from datetime import UTC, datetime
from typing import Any

import pytest

from procbus.core.dead_letter import DeadLetter, letter_of, stack_of, summary_of
from procbus.core.errors import HandlerTimeout, MemoryLimitExceeded, WorkerDied, WorkerTraceback
from procbus.core.outcome import Outcome, OutcomeKind
from tests.parts import raised, receipt_for, subscription_of

AT = datetime(2024, 2, 29, 23, 59, 58, tzinfo=UTC)


def letter(*errors: BaseException, **fields: Any) -> DeadLetter:
    known: dict[str, Any] = {
        "event_id": 7,
        "event": "event",
        "topic": None,
        "handler": "shop.store",
        "kind": "io",
        "outcomes": tuple(map(raised, errors)),
        "failed_at": AT,
    }
    return DeadLetter(**{**known, **fields})


def caught(error: Exception) -> Exception:
    try:
        raise error
    except Exception as same:  # noqa: BLE001 - it is what was given
        return same


def test_letter_is_made_of_a_failed_delivery():
    subscription = subscription_of(name="shop.store", kind="cpu")
    receipt = receipt_for(subscription, event="event", event_id=7)
    outcomes = (raised(ValueError()), raised(OSError()))
    before = datetime.now(UTC)
    made = letter_of(receipt.deliveries[0], receipt, outcomes, True)
    assert (made.event_id, made.event, made.topic) == (7, "event", None)
    assert (made.handler, made.kind, made.quarantined) == ("shop.store", "cpu", True)
    assert made.outcomes is outcomes
    assert before <= made.failed_at <= datetime.now(UTC)
    assert made.failed_at.tzinfo is UTC


def test_the_last_attempt_is_the_one_that_counts():
    first, last = ValueError(), OSError()
    made = letter(first, last)
    assert made.outcome.error is made.error is last
    assert made.attempts == 2


def test_letter_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        letter(ValueError()).event_id = 8  # type: ignore[misc] # the point


class Incomparable:
    def __eq__(self, other: object) -> bool:
        raise TypeError("as arrays do")


def test_letter_is_equal_only_to_itself():
    one, other = (letter(ValueError(), event=Incomparable()) for _ in range(2))
    assert one == one
    assert one != other
    assert len({one, other}) == 2


def test_letter_has_a_stack_for_each_attempt():
    from_worker = ValueError("there")
    from_worker.__cause__ = WorkerTraceback("Traceback of the worker\n")
    made = letter(
        caught(KeyError("here")),
        from_worker,
        HandlerTimeout("late", stack="in parse\n"),
        MemoryLimitExceeded("large", stack="in load\n"),
        WorkerDied("gone"),
    )
    own, worker, late, large, died = made.stacks
    assert "in caught" in own
    assert own.endswith("KeyError: 'here'\n")
    assert worker == "Traceback of the worker\n"
    assert (late, large, died) == ("in parse\n", "in load\n", "")


def test_a_cause_is_part_of_the_stack():
    error = ValueError("outer")
    error.__cause__ = caught(KeyError("inner"))
    assert "KeyError: 'inner'" in stack_of(error)
    assert stack_of(error).endswith("ValueError: outer\n")


def test_letter_is_readable():
    timed_out = Outcome(OutcomeKind.TIMED_OUT, error=HandlerTimeout("too late"))
    made = letter(
        event={"id": 5},
        topic="order.updated",
        outcomes=(raised(ValueError("bad\n  row")), timed_out),
        quarantined=True,
    )
    assert str(made) == made.describe()
    assert made.describe().splitlines() == [
        "shop.store (io) failed with event #7 (topic order.updated) at 2024-02-29 23:59:58 UTC",
        "  event: {'id': 5}",
        "  attempt 1: raised after 2 s: ValueError: bad row",
        "  attempt 2: timed out: HandlerTimeout: too late",
        "  quarantined: it killed its workers too often to be tried again",
    ]
    assert repr(made) == "<DeadLetter of event #7 for shop.store: HandlerTimeout('too late')>"


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")

    __repr__ = __str__


def test_event_that_cannot_be_shown_is_named_by_its_class():
    made = letter(Unspeakable(), event=Unspeakable())
    assert "Unspeakable: (its message cannot be read)" in str(made)
    assert "event: <Unspeakable instance at 0x" in str(made)
    assert "<Unspeakable instance at 0x" in repr(made)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("bad"), "ValueError: bad"),
        (ValueError(), "ValueError"),
        (KeyError("id"), "KeyError: 'id'"),
        (ValueError("x" * 1_000), f"ValueError: {'x' * 200}..."),
        (None, "no error"),
    ],
)
def test_an_error_fits_one_line(error, expected):
    assert summary_of(error) == expected
