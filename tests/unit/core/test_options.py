# SPDX-License-Identifier: MIT
"""Limits and retries of a handler: accepted values, and refusals with advice."""

import inspect
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf, nan
from typing import Any, TypedDict, Unpack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procbus import EventBus
from procbus.core.errors import HandlerTimeout
from procbus.core.handler import OPTIONS_OF_A_HANDLER, Handler, HandlerOptions, make_parts
from procbus.core.options import (
    checked,
    one_of,
    option,
    options_of,
    seconds_up_to,
    shows_options,
    whole,
)
from procbus.core.outcome import Outcome
from procbus.core.retry import RetryPolicy, exponential
from procbus.routing.registry import subscribe
from procbus.testing import InlineBus


def make(kind: Any = "cpu", /, **options: Any) -> Handler:
    return Handler(function=print, **make_parts({"kind": kind, **options}))


def refusal(kind: str = "cpu", /, **options: Any) -> str:
    """Make limits that must be refused; give the message."""
    with pytest.raises(ValueError, match=r" ") as caught:
        make(kind, **options)
    return str(caught.value)


@pytest.mark.parametrize("kind", ["io", "cpu"])
def test_without_options_there_are_no_limits_and_no_retries(kind: str):
    handler = make(kind)
    assert (handler.timeout, handler.max_memory, handler.limited) == (None, None, False)
    assert handler.retry == RetryPolicy()
    assert (handler.retries, handler.backoff, handler.max_crashes) == (0, exponential, 1)
    assert handler.retry_on == (Exception,)
    assert handler.writable is False


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
    assert make(kind, writable=writable).writable is writable


def test_error_for_a_writable_io_handler_says_that_it_has_the_very_object():
    message = refusal("io", writable=True)
    assert message.startswith('writable is for kind="cpu" only')
    assert "copy what you change" in message


@pytest.mark.parametrize("options", [{"max_memory": "1 GB"}, {"max_crashes": 0}])
def test_cpu_option_is_refused_for_io(options: dict[str, Any]):
    (option,) = options
    message = refusal("io", **options)
    assert message.startswith(f'{option} is for kind="cpu" only')
    assert f"or leave {option} out" in message


def test_every_option_that_may_be_written_is_declared_and_no_other():
    assert set(HandlerOptions.__annotations__) == set(OPTIONS_OF_A_HANDLER)


def test_messages_name_the_options_that_there_are():
    parameters = inspect.signature(subscribe).parameters.values()
    options = {each.name for each in parameters if each.kind is each.KEYWORD_ONLY}
    assert set(OPTIONS_OF_A_HANDLER) == options


@dataclass(kw_only=True)
class Oven:
    heat: int = option(180, whole(50, 300))
    mode: str | None = option(None, one_of("fan", "grill", None))
    pause: float = option(0, seconds_up_to(10))
    made_at: float = field(default=0.0)


class OvenOptions(TypedDict, total=False):
    heat: int
    mode: str | None
    pause: int | float


@shows_options(OvenOptions, Oven)
def bake(cake: str, **options: Unpack[OvenOptions]) -> str:
    return cake


def test_options_are_the_fields_that_were_declared_as_such():
    assert list(options_of(Oven)) == ["heat", "mode", "pause"]


def test_defaults_and_given_values_are_checked_and_other_names_passed_over():
    assert checked(Oven, {}) == {"heat": 180, "mode": None, "pause": 0.0}
    given_options = {"heat": 60, "mode": "fan", "pause": 1, "colour": "red"}
    assert checked(Oven, given_options) == {"heat": 60, "mode": "fan", "pause": 1.0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heat": 49}, "heat must be a whole number from 50 to 300, not 49"),
        ({"heat": None}, "heat must be a whole number from 50 to 300, not None"),
        ({"mode": "steam"}, 'mode must be "fan", "grill" or None, not \'steam\''),
        ({"mode": ["fan"]}, 'mode must be "fan", "grill" or None, not [\'fan\']'),
        ({"pause": 11}, "pause must be a number of seconds from 0 to 10, not 11"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=r" ") as caught:
        checked(Oven, options)
    assert str(caught.value) == message


def test_signature_and_help_show_each_option_with_type_and_default():
    shown = inspect.signature(bake).parameters
    assert {name: each.default for name, each in shown.items() if name != "cake"} == {
        "heat": 180,
        "mode": None,
        "pause": 0,
    }
    assert str(shown["mode"]) == "mode: str | None = None"
    assert bake("tart", heat=60) == "tart"


@pytest.mark.parametrize("function", [subscribe, EventBus.__init__, InlineBus.__init__])
def test_public_functions_show_no_catch_all_for_options(function: Callable[..., Any]):
    kinds = {each.kind for each in inspect.signature(function).parameters.values()}
    assert inspect.Parameter.VAR_KEYWORD not in kinds
    assert inspect.Parameter.KEYWORD_ONLY in kinds
