# SPDX-License-Identifier: MIT
"""Tracebacks begin at the user's code."""

import contextlib
import pickle
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import pytest

from procbus.core.frames import begin_at_the_user, useful_cause, users_part
from procbus.core.user_objects import set_traceback, traceback_of

OURS: dict[str, Any] = {"__name__": "procbus.lanes.made_up"}
exec("def call(function, *args): return function(*args)", OURS)


def names(trace: TracebackType | None) -> list[str]:
    found = []
    while trace is not None:
        found.append(trace.tb_frame.f_code.co_name)
        trace = trace.tb_next
    return found


def raised_by(function: Any, *args: Any) -> BaseException:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - each test names its own
        OURS["call"](function, *args)
    error: BaseException = caught.value
    trace = traceback_of(error)
    set_traceback(error, None if trace is None else trace.tb_next)  # this function is the user's
    return error


def handler() -> None:
    OURS["call"](inner)


def inner() -> None:
    raise ValueError("no")


def test_frames_that_lead_to_the_user_are_cut_and_later_ones_stay() -> None:
    error = raised_by(handler)
    assert names(error.__traceback__) == ["call", "handler", "call", "inner"]
    begin_at_the_user(error)
    assert names(error.__traceback__) == ["handler", "call", "inner"]
    begin_at_the_user(error)
    assert names(error.__traceback__) == ["handler", "call", "inner"], "the second cut does nothing"


def test_an_error_without_a_frame_of_the_user_keeps_none() -> None:
    error = raised_by(int, "x")
    begin_at_the_user(error)
    assert error.__traceback__ is None
    assert users_part(None) is None


def test_a_frame_of_contextlib_between_them_is_cut() -> None:
    @contextlib.contextmanager
    def model() -> Iterator[None]:
        raise OSError("no model")
        yield

    error = raised_by(model().__enter__)
    assert names(users_part(traceback_of(error))) == ["model"]


class Refusing:
    def __getstate__(self) -> None:
        raise RuntimeError("no state")


def test_a_cause_with_frames_of_the_user_is_useful_and_one_of_pickle_is_not() -> None:
    of_user = raised_by(pickle.dumps, Refusing())
    assert useful_cause(of_user) is of_user
    assert names(of_user.__traceback__) == ["__getstate__"]
    assert useful_cause(raised_by(pickle.dumps, (x for x in ""))) is None


def test_the_useful_cause_may_lie_behind_one_that_is_not() -> None:
    outer, first = pickle.PicklingError("outer"), raised_by(pickle.dumps, Refusing())
    outer.__cause__ = first
    assert useful_cause(outer) is first


def test_causes_in_a_ring_end_the_search() -> None:
    one, two = ValueError(1), ValueError(2)
    one.__cause__, two.__context__ = two, one
    assert useful_cause(one) is None
