# SPDX-License-Identifier: MIT
"""Waits between attempts: the default, the forms that users may give, refusals, calls."""

import functools
import logging
from collections.abc import Callable
from math import inf, nan
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procbus.core.errors import HandlerTimeout
from procbus.core.outcome import Outcome, OutcomeKind
from procbus.core.retry import exponential, make_backoff, wait_of

FAILED = Outcome(OutcomeKind.RAISED, error=OSError("down"))
TIMED_OUT = Outcome(OutcomeKind.TIMED_OUT, error=HandlerTimeout("slow"))

waits = st.floats(0, 86_400)


@given(st.integers(1, 1_000))
def test_the_default_waits_up_to_half_a_second_doubled_each_time_and_a_minute_at_most(attempt: int):
    assert 0 <= exponential(attempt, FAILED) <= min(60, 0.5 * 2 ** (attempt - 1))


def test_the_default_takes_all_of_that_range(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("random.uniform", lambda low, high: (low, high))
    bounds: list[Any] = [exponential(attempt, FAILED) for attempt in (1, 2, 3, 7, 8, 9, 1_000)]
    assert bounds == [(0, 0.5), (0, 1), (0, 2), (0, 32), (0, 60), (0, 60), (0, 60)]


def test_deliveries_that_failed_together_do_not_wait_alike():
    assert len({exponential(5, FAILED) for _ in range(20)}) == 20


def test_none_is_the_default():
    assert make_backoff(None, 3) is exponential


@given(waits | st.integers(0, 86_400), st.integers(1, 1_000))
def test_a_number_is_waited_always(seconds: float, attempt: int):
    assert make_backoff(seconds, 3)(attempt, FAILED) == seconds


@given(st.lists(waits, min_size=1, max_size=5), st.integers(1, 1_000))
def test_a_sequence_gives_the_wait_before_each_retry_and_its_last_is_repeated(
    seconds: list[float], attempt: int
):
    wait = make_backoff(seconds, 3)(attempt, FAILED)
    assert wait == (seconds[attempt - 1] if attempt <= len(seconds) else seconds[-1])


def test_a_sequence_that_its_owner_changes_stays_as_it_was():
    given_waits = [1.0, 2.0]
    backoff = make_backoff(given_waits, 3)
    given_waits[:] = [-1.0]
    assert [backoff(attempt, FAILED) for attempt in (1, 2, 3)] == [1.0, 2.0, 2.0]


def by_kind(attempt: int, outcome: Outcome) -> float:
    return attempt if outcome.kind is OutcomeKind.TIMED_OUT else 0.0


class Patient:
    def __call__(self, attempt: int, outcome: Outcome) -> float:
        return 1.0


@pytest.mark.parametrize(
    "function", [by_kind, Patient(), functools.partial(by_kind), Patient().__call__]
)
def test_a_function_is_taken_as_it_is(function: Callable[[int, Outcome], float]):
    assert make_backoff(function, 3) is function


@pytest.mark.parametrize(("retries", "last"), [(0, 1), (1, 1), (3, 3), (1_000, 100)])
def test_a_function_is_tried_for_each_retry_and_kind_of_failure(retries: int, last: int):
    calls = []

    def backoff(attempt: int, outcome: Outcome) -> float:
        calls.append((attempt, outcome.kind))
        assert isinstance(outcome.error, Exception)
        return 0

    make_backoff(backoff, retries)
    failing = [
        OutcomeKind.RAISED,
        OutcomeKind.TIMED_OUT,
        OutcomeKind.WORKER_DIED,
        OutcomeKind.OVER_MEMORY,
    ]
    assert calls == [(attempt, kind) for attempt in range(1, last + 1) for kind in failing]


def one(attempt: int) -> float:
    return 1.0


def three(attempt: int, outcome: Outcome, more: int) -> float:
    return 1.0


async def asynchronous(attempt: int, outcome: Outcome) -> float:
    return 1.0


def generates(attempt: int, outcome: Outcome) -> Any:
    yield 1.0


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (-1, "from 0 to 86400 (a day), not -1"),
        (nan, "not nan"),
        (inf, "not inf"),
        (86_401, "not 86401"),
        pytest.param(10**5000, "not a value of type int", id="huge"),
        (True, "not True"),
        ("1s", "a function of (attempt, outcome) that returns one, not '1s'"),
        (b"12", "not b'12'"),
        ({1, 2}, "not {1, 2}"),
        (1j, "not 1j"),
        ([], "empty sequence"),
        ((), "empty sequence"),
        ([1, -1], "backoff[1] must be a number of seconds from 0 to 86400 (a day), not -1"),
        ([True], "backoff[0]"),
        (["1"], "backoff[0]"),
        ([[1]], "backoff[0]"),
        (range(10**12), "backoff[86401]"),
        (one, "one must take two arguments"),
        (three, "three must take two arguments"),
        (lambda: 1, "must take two arguments"),
        (asynchronous, "asynchronous is async"),
        (generates, "gave no wait"),
        (Patient, "must take two arguments"),
    ],
)
def test_value_that_is_no_wait_is_refused(value: Any, reason: str):
    with pytest.raises(ValueError, match="backoff") as caught:
        make_backoff(value, 3)
    assert reason in str(caught.value)


@pytest.mark.parametrize("answer", [None, -1, nan, inf, 10**6, "1", True, [1]])
def test_a_function_that_gives_no_wait_is_refused(answer: Any):
    with pytest.raises(ValueError, match=r"tried with attempt 1 .* gave no wait") as caught:
        make_backoff(lambda attempt, outcome: answer, 0)
    assert f"not {answer!r}" in str(caught.value)


def test_backoff_that_raises_is_refused_with_its_exception():
    def retry_after(attempt: int, outcome: Outcome) -> float:
        if outcome.kind is OutcomeKind.TIMED_OUT and attempt == 2:
            raise KeyError("Retry-After")
        return 1.0

    assert make_backoff(retry_after, 1) is retry_after
    with pytest.raises(ValueError, match=r"attempt 2 and an outcome OutcomeKind\.TIMED_OUT") as got:
        make_backoff(retry_after, 2)
    assert "raised KeyError: 'Retry-After'" in str(got.value)
    assert isinstance(got.value.__cause__, KeyError)


@pytest.mark.parametrize("backoff", [by_kind, make_backoff(2, 1), make_backoff([0, 2], 1)])
def test_backoff_function_gives_the_wait_at_run_time(
    backoff: Callable[[int, Outcome], float], caplog: pytest.LogCaptureFixture
):
    assert wait_of("asked", backoff, 2, TIMED_OUT) == 2.0
    assert isinstance(wait_of("asked", backoff, 2, TIMED_OUT), float)
    assert not caplog.records


class Exits(BaseException):
    """As SystemExit is, no Exception."""


def raises(attempt: int, outcome: Outcome) -> float:
    raise KeyError(attempt)


def leaves(attempt: int, outcome: Outcome) -> float:
    raise Exits


def gives_nothing(attempt: int, outcome: Outcome) -> Any:
    return None


def gives_nan(attempt: int, outcome: Outcome) -> float:
    return nan


@pytest.mark.parametrize("backoff", [raises, leaves, gives_nothing, gives_nan])
def test_at_run_time_a_fault_is_logged_once_for_its_handler_and_the_default_is_used(
    backoff: Callable[[int, Outcome], float],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    monkeypatch.setattr("random.uniform", lambda _low, high: high)
    name = f"shop.{backoff.__name__}"
    assert [wait_of(name, backoff, attempt, FAILED) for attempt in (1, 2, 3)] == [0.5, 1, 2]
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("procbus", logging.ERROR)
    assert (
        f"the backoff function of handler {name} failed for attempt 1, which raised"
        in record.message
    )
    assert record.exc_info is not None

    wait_of(f"{name}.other", backoff, 1, FAILED)
    assert len(caplog.records) == 2
