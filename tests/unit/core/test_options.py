# SPDX-License-Identifier: MIT
"""Limits and retries of a handler: what is accepted, and what is refused with which advice."""

import inspect
from array import array
from dataclasses import replace
from math import inf, nan
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procbus.core.errors import HandlerTimeout
from procbus.core.handler import OPTIONS_OF_A_HANDLER, Limits, make_limits
from procbus.core.outcome import Outcome
from procbus.core.retry import exponential
from procbus.routing.registry import subscribe


def make(kind: str = "cpu", /, **options: Any) -> Limits:
    return make_limits(kind, **options)


def refusal(kind: str = "cpu", /, **options: Any) -> str:
    """Make limits that must be refused; give the message."""
    with pytest.raises(ValueError, match=r" ") as caught:
        make(kind, **options)
    return str(caught.value)


@pytest.mark.parametrize("kind", ["io", "cpu"])
def test_without_options_there_are_no_limits_and_no_retries(kind: str):
    assert make(kind) == Limits(None, 0, exponential, (Exception,), 1, None, False)


@given(st.floats(0, 30 * 86_400, exclude_min=True) | st.integers(1, 30 * 86_400))
def test_a_timeout_of_up_to_thirty_days_is_taken(timeout: float):
    assert make("io", timeout=timeout).timeout == timeout
    assert isinstance(make(timeout=timeout).timeout, float)


@pytest.mark.parametrize("timeout", [0, 0.0, -1, nan, inf, -inf, 30 * 86_400 + 1, True, "30", [30]])
def test_any_other_timeout_is_refused(timeout: object):
    message = refusal(timeout=timeout)
    assert message.startswith("timeout must be a number of seconds above 0, 2592000 (30 days)")
    assert message.endswith(f"not {timeout!r}")


@pytest.mark.parametrize("option", ["retries", "max_crashes"])
@given(count=st.integers(0, 1_000))
def test_counts_of_up_to_a_thousand_are_taken(option: str, count: int):
    assert getattr(make(**{option: count}), option) == count


@pytest.mark.parametrize("option", ["retries", "max_crashes"])
@pytest.mark.parametrize("count", [-1, 1_001, True, 1.0, nan, "3", None])
def test_any_other_count_is_refused(option: str, count: object):
    message = refusal(**{option: count})
    assert message == f"{option} must be a whole number from 0 to 1000, not {count!r}"


def test_the_backoff_knows_how_many_retries_there_are():
    attempts = set()

    def backoff(attempt: int, outcome: Outcome) -> float:
        attempts.add(attempt)
        return 1.0

    make(retries=4, backoff=backoff)
    assert attempts == {1, 2, 3, 4}


def test_a_backoff_that_makes_no_sense_is_refused():
    assert "backoff must be" in refusal(backoff=-1)


@pytest.mark.parametrize(
    ("retry_on", "classes"),
    [
        (OSError, (OSError,)),
        ([OSError, HandlerTimeout], (OSError, HandlerTimeout)),
        ((BaseException,), (BaseException,)),
    ],
)
def test_retry_on_takes_one_class_or_several(retry_on: Any, classes: tuple[type, ...]):
    assert make(retry_on=retry_on).retry_on == classes


@pytest.mark.parametrize(
    "retry_on",
    [(), [], None, int, OSError(), "OSError", (OSError, "x"), ((OSError,),), {OSError}, True],
)
def test_any_other_retry_on_is_refused(retry_on: object):
    message = refusal(retry_on=retry_on)
    assert message.startswith("retry_on must be an exception class or a tuple of such")
    assert repr(retry_on) in message


@pytest.mark.parametrize(
    ("max_memory", "size"), [("512 MiB", 512 * 1024**2), (10**9, 10**9), ("32MiB", 32 * 1024**2)]
)
def test_max_memory_comes_out_in_bytes(max_memory: Any, size: int):
    assert make(max_memory=max_memory).max_memory == size


@pytest.mark.parametrize(
    ("max_memory", "reason"),
    [
        ("512M", 'did you mean "512 MB" or "512 MiB"?'),
        ("31 MiB", "less than an empty Python process needs"),
        (0, "less than an empty Python process needs"),
        (-1, "such as"),
        (True, "such as"),
        (nan, "such as"),
    ],
)
def test_any_other_max_memory_is_refused(max_memory: object, reason: str):
    message = refusal(max_memory=max_memory)
    assert message.startswith(f"max_memory: {max_memory!r} ")
    assert reason in message


@pytest.mark.parametrize("writable", [1, 0, 1.0, None, "yes", array("i", [1, 2])])
def test_any_other_writable_than_true_and_false_is_refused(writable: object):
    assert refusal(writable=writable) == f"writable must be True or False, not {writable!r}"


def test_a_writable_whose_comparison_is_no_answer_is_refused_all_the_same():
    class Elementwise:  # as an array of NumPy
        __hash__ = None  # type: ignore[assignment] # as for such an array

        def __eq__(self, other: object) -> Any:
            raise ValueError("The truth value of an array is ambiguous")

    assert refusal(writable=Elementwise()).startswith("writable must be True or False, not ")


@pytest.mark.parametrize(("kind", "writable"), [("cpu", True), ("cpu", False), ("io", False)])
def test_writable_is_taken_where_there_is_a_copy_to_write_to(kind: str, writable: bool):
    assert make(kind, writable=writable) == replace(make(kind), writable=writable)


def test_a_writable_io_handler_is_told_that_it_has_the_very_object():
    message = refusal("io", writable=True)
    assert message.startswith('writable is for kind="cpu" only')
    assert "copy what you change" in message


@pytest.mark.parametrize("options", [{"max_memory": "1 GB"}, {"max_crashes": 0}])
def test_what_only_a_process_can_have_is_refused_for_io(options: dict[str, Any]):
    (option,) = options
    message = refusal("io", **options)
    assert message.startswith(f'{option} is for kind="cpu" only')
    assert f"or leave {option} out" in message


def test_the_options_that_messages_name_are_those_that_there_are():
    parameters = inspect.signature(subscribe).parameters.values()
    options = {each.name for each in parameters if each.kind is each.KEYWORD_ONLY}
    assert set(OPTIONS_OF_A_HANDLER) == options
