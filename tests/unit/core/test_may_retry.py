# SPDX-License-Identifier: MIT
"""Whether another attempt follows: never more than the handler wants, nor than workers stand."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procbus.core.errors import (
    CircuitOpen,
    HandlerExited,
    HandlerTimeout,
    MemoryLimitExceeded,
    ProcbusError,
    SerializationError,
    WorkerDied,
)
from procbus.core.handler import make_handler
from procbus.core.outcome import Outcome, OutcomeKind
from procbus.core.retry import may_retry, quarantined
from tests.parts import handle

KINDS = OutcomeKind


class Tried:
    """One delivery: its handler, and how its attempts ended so far."""

    def __init__(self, **options: Any) -> None:
        self.handler = make_handler(handle, "t", kind="cpu", **options)
        self.earlier: tuple[Outcome, ...] = ()

    def may_retry(self, outcome: Outcome) -> bool:
        return may_retry(self.handler.retry, self.earlier, outcome)

    def quarantined(self, outcome: Outcome) -> bool:
        return quarantined(self.handler.retry, self.earlier, outcome)


def failed(kind: OutcomeKind = KINDS.RAISED, error: BaseException | None = None) -> Outcome:
    """An attempt that began, and ended in this way."""
    errors: dict[OutcomeKind, BaseException] = {
        KINDS.RAISED: ValueError("no"),
        KINDS.TIMED_OUT: HandlerTimeout("too long"),
        KINDS.WORKER_DIED: WorkerDied("gone"),
        KINDS.OVER_MEMORY: MemoryLimitExceeded("too much"),
        KINDS.CANCELLED: ProcbusError("closed"),
    }
    return Outcome(kind, None, error or errors[kind], 1.0, 2.0, 4711)


FAILURES = st.sampled_from([KINDS.RAISED, KINDS.TIMED_OUT, KINDS.WORKER_DIED, KINDS.OVER_MEMORY])
CRASHES = (KINDS.WORKER_DIED, KINDS.OVER_MEMORY)


def attempts_of(tried: Tried, kinds: list[OutcomeKind]) -> list[OutcomeKind]:
    """How the attempts end that are made, if they would end in these ways one after the other."""
    made = []
    for kind in kinds:
        made.append(kind)
        outcome = failed(kind)
        crashes = sum(kind in CRASHES for kind in made)
        limit = tried.handler.max_crashes
        assert tried.quarantined(outcome) == (kind in CRASHES and crashes > limit)
        if not tried.may_retry(outcome):
            break
        tried.earlier += (outcome,)
    return made


@given(st.integers(0, 10), st.integers(0, 5), st.lists(FAILURES, min_size=1, max_size=20))
def test_attempts_and_crashes_are_bounded_exactly(
    retries: int, max_crashes: int, kinds: list[OutcomeKind]
) -> None:
    tried = Tried(retries=retries, max_crashes=max_crashes)

    made = attempts_of(tried, kinds)

    crashes = sum(kind in CRASHES for kind in made)
    assert len(made) <= retries + 1
    assert crashes <= max_crashes + 1
    if len(made) < len(kinds):
        assert len(made) == retries + 1 or crashes == max_crashes + 1


@given(st.lists(FAILURES, max_size=3), st.integers(0, 5))
def test_object_that_cannot_travel_is_never_retried(
    before: list[OutcomeKind], crashes: int
) -> None:
    tried = Tried(retries=10, max_crashes=crashes, retry_on=BaseException)
    tried.earlier = tuple(failed(kind) for kind in before)

    assert not tried.may_retry(failed(error=SerializationError("no")))


@pytest.mark.parametrize(
    ("retry_on", "error", "expected"),
    [
        (OSError, ConnectionError(), True),
        (OSError, ValueError(), False),
        ((OSError, ValueError), ValueError(), True),
        (HandlerTimeout, HandlerTimeout("too long"), True),
        (OSError, HandlerTimeout("too long"), True),  # as any TimeoutError of Python
        (ValueError, HandlerTimeout("too long"), False),
    ],
)
def test_only_errors_that_the_handler_names_are_tried_again(
    retry_on: Any, error: BaseException, expected: bool
) -> None:
    assert Tried(retries=1, retry_on=retry_on).may_retry(failed(error=error)) is expected


@pytest.mark.parametrize("error", [SystemExit(), KeyboardInterrupt(), GeneratorExit()])
def test_base_exception_is_retried_only_if_it_is_named(error: BaseException) -> None:
    told = HandlerExited("exited")
    told.__cause__ = error
    for each in (error, told):
        assert not Tried(retries=1).may_retry(failed(error=each))
        assert Tried(retries=1, retry_on=BaseException).may_retry(failed(error=each))


def test_an_exception_that_cannot_travel_is_judged_by_the_classes_that_it_had() -> None:
    error = SerializationError("told in words", raised=("shop.Gone", "builtins.LookupError"))

    assert Tried(retries=1, retry_on=LookupError).may_retry(failed(error=error))
    assert not Tried(retries=1, retry_on=ValueError).may_retry(failed(error=error))
    assert not Tried(retries=1, retry_on=SerializationError).may_retry(failed(error=error))


class Lying(Exception):
    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise RuntimeError("not told")


def test_an_exception_that_lies_about_its_class_is_judged_by_the_real_one() -> None:
    assert Tried(retries=1).may_retry(failed(error=Lying()))
    assert not Tried(retries=1, retry_on=OSError).may_retry(failed(error=Lying()))


def test_no_attempt_follows_a_cancellation() -> None:
    tried = Tried(retries=5, retry_on=BaseException)

    assert not tried.may_retry(failed(KINDS.CANCELLED))


def test_lack_of_a_worker_is_no_crash() -> None:
    # The delivery did not kill anything: no worker could be started for it.
    tried = Tried(retries=5, max_crashes=0)
    none = Outcome(KINDS.WORKER_DIED, error=WorkerDied("no worker can be started"))

    assert tried.may_retry(none)
    assert not tried.quarantined(none)


def test_closing_bus_without_workers_retries_nothing() -> None:
    # It closes: with every attempt that followed it would do so later.
    tried = Tried(retries=5)
    given_up = Outcome(KINDS.WORKER_DIED, error=CircuitOpen("closing"))

    assert not tried.may_retry(given_up)


def test_a_handler_that_was_refused_to_publish_may_be_tried_again() -> None:
    assert Tried(retries=1).may_retry(failed(error=CircuitOpen("publish again")))


def test_a_crash_too_many_is_quarantined_even_with_retries_left() -> None:
    tried = Tried(retries=100, max_crashes=1)
    assert attempts_of(tried, [KINDS.WORKER_DIED] * 5) == [KINDS.WORKER_DIED] * 2

    assert tried.quarantined(failed(KINDS.OVER_MEMORY))
    assert not tried.quarantined(failed(KINDS.RAISED))


def test_a_crash_is_no_quarantine_where_there_are_no_retries() -> None:
    assert not Tried().quarantined(failed(KINDS.WORKER_DIED))
    assert Tried(max_crashes=0).quarantined(failed(KINDS.WORKER_DIED))
