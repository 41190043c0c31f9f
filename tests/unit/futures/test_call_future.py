# SPDX-License-Identifier: MIT
"""The future of a call, whose standard part is made only when other code needs it."""

from __future__ import annotations

import asyncio
import copy
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, InvalidStateError, as_completed, wait
from typing import Any

import pytest

from procbus.core.outcome import Outcome, OutcomeKind
from procbus.futures.call_future import CallFuture
from tests.parts import BOUND_S, in_thread, raised

#: For `fail`, which looks at it only after the cancellation of a running call.
DELIVERY: Any = None
FAILURE = raised(ValueError("of the call"))
CANCELLATION = Outcome(OutcomeKind.CANCELLED, None, ValueError())


def end(future: CallFuture[Any], outcome: Outcome | None = None) -> None:
    if outcome is None:
        future.succeed("value")
    else:
        future.fail(DELIVERY, outcome)


def ask_condition(future: Future[Any]) -> None:
    wait([future], timeout=0)


#: Uses of a future that need its standard part.
USES: dict[str, Callable[[Future[Any]], object]] = {
    "wait": ask_condition,
    "add_done_callback": lambda future: future.add_done_callback(lambda _: None),
    "exception": lambda future: raises(TimeoutError, future.exception),
    "result": lambda future: raises(TimeoutError, future.result),
}


def raises(error: type[BaseException], ask: Callable[[float], object]) -> None:
    with pytest.raises(error):
        ask(0.0)


def test_result_of_a_success_needs_no_standard_part() -> None:
    future: CallFuture[str] = CallFuture()
    assert not future.done()
    assert not future.cancelled()

    end(future)

    assert future.result() == "value"
    assert future.exception() is None
    assert future.done()
    assert not future.cancelled()
    assert not future.cancel()
    assert not future.made


@pytest.mark.parametrize("use", USES)
def test_standard_part_that_was_made_before_the_end_has_the_result(use: str) -> None:
    future: CallFuture[str] = CallFuture()
    USES[use](future)
    assert future.made
    end(future)

    assert future.result(0) == "value"
    assert future.done()
    assert wait([future], 0).done == {future}


def test_standard_part_that_is_made_after_the_end_has_the_result() -> None:
    future: CallFuture[str] = CallFuture()
    end(future)
    called: list[Any] = []
    future.add_done_callback(called.append)

    assert called == [future]
    assert list(as_completed([future], 0)) == [future]
    assert wait([future], 0).not_done == set()
    assert future.result(0) == "value"
    assert "finished returned str" in repr(future)


@pytest.mark.parametrize("made_before", [False, True])
def test_failure_is_raised_each_time(made_before: bool) -> None:
    future: CallFuture[str] = CallFuture()
    if made_before:
        ask_condition(future)
    end(future, FAILURE)

    assert future.done()
    assert isinstance(future.exception(0), ValueError)
    for _ in range(2):
        with pytest.raises(ValueError, match="of the call"):
            future.result(0)


@pytest.mark.parametrize("made_before", [False, True])
def test_cancelled_call_is_cancelled(made_before: bool) -> None:
    future: CallFuture[str] = CallFuture()
    if made_before:
        ask_condition(future)
    end(future, CANCELLATION)

    assert future.cancelled()
    assert future.done()
    with pytest.raises(CancelledError):
        future.result(0)
    assert wait([future], 0).done == {future}


def test_result_that_other_code_gave_stays() -> None:
    future: CallFuture[str] = CallFuture()
    future.set_result("of other code")
    with pytest.raises(InvalidStateError):
        end(future)

    assert future.result(0) == "of other code"


def test_result_is_given_once() -> None:
    future: CallFuture[str] = CallFuture()
    end(future)

    with pytest.raises(InvalidStateError):
        future.set_result("of other code")
    assert future.result(0) == "value"


def test_event_loop_gets_the_result_of_a_call_that_is_done() -> None:
    future: CallFuture[str] = CallFuture()
    end(future)

    async def ask() -> str:
        return await asyncio.wrap_future(future)

    assert asyncio.run(ask()) == "value"


def test_unknown_attribute_is_an_attribute_error() -> None:
    future: Any = CallFuture()

    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = future.no_such_thing
    assert not hasattr(future, "no_such_thing")


def test_a_future_cannot_be_copied() -> None:
    future: CallFuture[str] = CallFuture()
    end(future)

    with pytest.raises(TypeError, match=r"pass its result\(\)"):
        copy.copy(future)


def test_waiters_in_all_threads_wake_at_an_end_that_comes_meanwhile() -> None:
    rounds = 200
    futures: list[CallFuture[str]] = [CallFuture() for _ in range(rounds)]
    together = threading.Barrier(4)
    heard: list[list[Any]] = [[], [], []]

    def ask(number: int) -> None:
        for future in futures:
            together.wait(BOUND_S)
            if number == 0:
                heard[0].append(future.result(BOUND_S))
            elif number == 1:
                heard[1].append(next(as_completed([future], BOUND_S)).result(0))
            else:
                called = threading.Event()
                future.add_done_callback(lambda _, called=called: called.set())  # type: ignore[misc]
                heard[2].append(called.wait(BOUND_S))

    threads = [in_thread(lambda number=number: ask(number)) for number in range(3)]
    for future in futures:
        together.wait(BOUND_S)
        end(future)
    for thread in threads:
        thread.join(BOUND_S)

    assert heard == [["value"] * rounds, ["value"] * rounds, [True] * rounds]
