# SPDX-License-Identifier: MIT
"""Handlers that return their work instead of doing it."""

import asyncio
import functools
import gc
import warnings
from collections.abc import Callable, Generator
from typing import Any

import pytest

from procbus import EventBus, ProcbusError
from procbus.core.handler import Kind
from procbus.core.unfinished import unfinished
from procbus.testing import InlineBus
from tests.matrix import quick_first
from tests.parts import BOUND_S


async def work(event: Any) -> Any:
    await asyncio.sleep(0)
    return event


async def aitems(event: Any) -> Any:
    yield event


def items(event: Any) -> Any:
    yield event


class Later:
    """Awaitable, and does nothing until then."""

    def __await__(self) -> Generator[Any, Any, str]:
        yield from ()
        return "now"


def wrapped(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    @functools.wraps(function)
    def inner(event: Any) -> Any:
        return function(event)

    return inner


WORK: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a lambda": (lambda e: work(e), "a coroutine"),
    "a decorator": (wrapped(work), "a coroutine"),
    "a partial of a decorated one": (functools.partial(wrapped(work)), "a coroutine"),
    "a generator": (wrapped(items), "a generator"),
    "a generator expression": (lambda e: (x for x in [e]), "a generator"),
    "an async generator": (wrapped(aitems), "an async generator"),
    "an awaitable": (lambda e: Later(), "an awaitable Later"),
}


@pytest.mark.parametrize("which", WORK)
@pytest.mark.parametrize("how", quick_first(["inline", "thread", "loop", "process"]))
def test_handler_that_returns_unfinished_work_fails_with_the_remedy(which, how):
    handler, what = WORK[which]

    async def on_loop(event: Any) -> Any:
        return handler(event)

    bus = InlineBus([]) if how == "inline" else EventBus([], cpu_workers=1)
    kind: Kind = "cpu" if how == "process" else "io"
    with warnings.catch_warnings(), bus:
        warnings.simplefilter("error")  # the error alone says that it was not awaited
        bus.subscribe("n", on_loop if how == "loop" else handler, name="lazy", kind=kind)
        for _ in range(2):
            with pytest.raises(ProcbusError, match=f"lazy returned {what}: its work was not done"):
                bus.publish("n", 1).result(BOUND_S)
        gc.collect()


@pytest.mark.parametrize(
    "handler", [work, functools.partial(work), wrapped(lambda e: e)], ids=["plain", "partial", "io"]
)
def test_async_function_is_awaited(handler):
    with EventBus([]) as bus:
        bus.subscribe("n", handler)
        assert bus.publish("n", 4).result(BOUND_S) == 4


def test_a_receipt_or_a_task_goes_on_by_itself_and_may_be_returned():
    with EventBus([]) as bus:

        async def with_task(event: Any) -> Any:
            return asyncio.get_running_loop().create_task(work(event))

        bus.subscribe("child", work)
        bus.subscribe("receipt", lambda e: bus.publish("child", e))
        bus.subscribe("task", with_task)
        assert bus.publish("receipt", 3).result(BOUND_S).result(BOUND_S) == 3
        assert isinstance(bus.publish("task", 3).result(BOUND_S), asyncio.Task)


def test_a_call_of_an_executor_may_return_a_generator_as_the_standard_has_it():
    with EventBus([]) as bus:
        assert list(bus.executor("io").submit(items, 3).result(BOUND_S)) == [3]


def test_class_that_cannot_be_hashed_or_inspected_does_no_harm():
    class Odd(type):
        __hash__ = None  # type: ignore[assignment] # the point

        def __getattribute__(cls, name: str) -> Any:
            if name in ("__mro__", "__await__"):
                raise KeyboardInterrupt
            return super().__getattribute__(name)

    class Result(metaclass=Odd):
        pass

    with EventBus([], io_workers=1) as bus:
        bus.subscribe("odd", lambda e: Result())
        bus.subscribe("n", lambda e: e)
        assert bus.publish("odd", 1).wait(BOUND_S)
        assert bus.publish("n", 2).result(BOUND_S) == 2


def test_work_that_has_begun_is_left_as_it_is():
    generator = items(1)
    next(generator)
    assert unfinished("h", generator) is not None
    assert generator.gi_frame is not None
    assert unfinished("h", [1]) is None
