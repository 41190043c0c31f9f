# SPDX-License-Identifier: MIT
"""The handler of a call, and the handlers that are dropped."""

from __future__ import annotations

import functools
import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from procbus.core.handler import Handler
from procbus.core.introspection import is_async
from procbus.core.subscription import Subscription
from procbus.futures.calls import AsyncCall, Call, CarriedCall
from procbus.futures.handlers import (
    MOST_CALLABLES,
    MOST_SIBLINGS,
    CallHandler,
    CallHandlers,
    taken_apart,
)
from tests.parts import BOUND_S, FakeLane


class Stage:
    """Handlers, with all that were subscribed and retired."""

    def __init__(self, kind: Any = "io") -> None:
        self.subscribed: list[Subscription] = []
        self.retired: list[Subscription] = []
        self.handlers = CallHandlers(kind, Call, self._subscribe, self.retired.append)

    def _subscribe(self, function: Callable[..., Any], name: str) -> Subscription:
        handler = Handler(function=function, name=name, is_async=is_async(function))
        self.subscribed.append(Subscription(handler, FakeLane(), answered=True))
        return self.subscribed[-1]

    def call(self, function: Callable[..., Any]) -> CallHandler:
        """Find the handler, and have the call published and settled."""
        found, _, _ = self.handlers.find(function, (), {})
        found.subscription.published += 1
        found.subscription.succeeded += 1
        found.pins.pop()
        return found


def plain(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


class Thing:
    def method(self, *args: Any) -> Any:
        return self, args

    def __call__(self, *args: Any) -> Any:
        return self, args


async def awaiting() -> None:
    pass


def numbered(number: int) -> Callable[[], int]:
    return lambda: number


def test_a_callable_has_one_handler_under_its_name() -> None:
    stage = Stage()
    first = stage.call(plain)

    assert stage.call(plain) is first
    assert stage.call(functools.partial(plain, 1)) is first
    assert stage.call(len) is not first
    assert [s.handler.name for s in stage.subscribed] == [f"{__name__}.plain", "builtins.len"]
    assert not first.carries


def test_methods_partials_and_callable_objects_are_taken_apart() -> None:
    thing = Thing()

    assert taken_apart(plain, (1,), {"a": 2}) == (plain, (1,), {"a": 2})
    assert taken_apart(thing.method, (1,), {}) == (Thing.method, (thing, 1), {})
    assert taken_apart(thing, (1,), {}) == (Thing.__call__, (thing, 1), {})
    bound = functools.partial(functools.partial(plain, 1, a=1, b=1), 2, b=2)
    assert taken_apart(bound, (3,), {"c": 3}) == (plain, (1, 2, 3), {"a": 1, "b": 2, "c": 3})
    assert taken_apart(functools.partial(thing.method, 1), (2,), {}) == (
        Thing.method,
        (thing, 1, 2),
        {},
    )
    assert taken_apart(Thing, (), {}) == (Thing, (), {})
    assert taken_apart("a".upper, (), {})[0] == "a".upper
    with pytest.raises(TypeError, match="None is not callable"):
        taken_apart(None, (), {})  # type: ignore[arg-type] # refusing it is the point


@pytest.mark.skipif(not hasattr(functools, "Placeholder"), reason="partials have no gaps here")
def test_a_partial_with_gaps_stays_whole() -> None:
    gapped = functools.partial(plain, functools.Placeholder, 2)  # type: ignore[attr-defined] # 3.14
    assert taken_apart(gapped, (1,), {}) == (gapped, (1,), {})


def test_callable_object_with_a_state_travels_with_its_call() -> None:
    stage = Stage()
    found = stage.call("a".upper)

    assert found.carries
    assert stage.call("b".upper) is found
    carried = found.subscription.handler.function
    assert isinstance(carried, CarriedCall)
    assert carried(("b".upper, ((), {}))) == "B"


def test_an_async_function_is_awaited_or_refused() -> None:
    made = Stage("io").call(awaiting).subscription.handler
    assert isinstance(made.function, AsyncCall)
    assert made.is_async
    with pytest.raises(TypeError, match="awaiting is async"):
        Stage("cpu").call(awaiting)


def test_closures_of_one_code_are_shipped_up_to_a_number_and_then_carried() -> None:
    stage = Stage()
    shipped = [stage.call(numbered(n)) for n in range(MOST_SIBLINGS)]
    carried = [stage.call(numbered(n)) for n in range(100)]

    assert not any(found.carries for found in shipped)
    assert all(found is carried[0] for found in carried)
    assert carried[0].carries
    assert len(stage.subscribed) == MOST_SIBLINGS + 1
    used = numbered(5)
    assert stage.call(used) is carried[0]
    assert not stage.call(used).carries, "the second call in a row ships it"
    assert stage.call(numbered(6)) is carried[0]


def test_the_oldest_that_was_not_called_lately_is_let_go() -> None:
    stage = Stage()
    functions = [eval(f"lambda: {n}") for n in range(MOST_CALLABLES + 10)]
    found = [stage.call(function) for function in functions[:MOST_CALLABLES]]
    stage.call(
        functions[MOST_CALLABLES]
    )  # all were called since they were made, and are noticed so
    stage.call(functions[1])
    stage.call(functions[MOST_CALLABLES + 1])

    assert found[0].gone
    assert not found[1].gone, "it was called again"
    assert stage.retired[0] is found[0].subscription
    assert len(stage.subscribed) - len(stage.retired) == MOST_CALLABLES


def test_callable_with_pending_calls_is_not_dropped() -> None:
    stage = Stage()
    pending = stage.call(plain)
    pending.subscription.published += 1
    published, _, _ = stage.handlers.find(len, (), {})
    for n in range(3 * MOST_CALLABLES):
        stage.call(eval(f"lambda: {n}"))
    stage.handlers.clear()

    assert not pending.gone
    assert not published.gone
    assert len(stage.subscribed) - len(stage.retired) == 2


def test_dropped_callable_can_be_freed_and_comes_anew() -> None:
    stage = Stage()
    function = numbered(1)
    freed = weakref.ref(function)
    first = stage.call(function)
    stage.handlers.clear()
    assert first.gone
    assert stage.call(function) is not first
    stage.handlers.clear()
    del first, function
    stage.subscribed.clear()
    stage.retired.clear()
    gc.collect()
    assert freed() is None


def test_no_call_gets_a_handler_that_is_let_go_meanwhile() -> None:
    stage = Stage()
    functions = [eval(f"lambda: {n}") for n in range(2 * MOST_CALLABLES)]
    wrong: list[CallHandler] = []

    def call_all() -> None:
        for _ in range(5):
            for function in functions:
                found, _, _ = stage.handlers.find(function, (), {})
                if found.gone:
                    wrong.append(found)
                found.pins.pop()

    threads = [threading.Thread(target=call_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(BOUND_S)
    assert wrong == []
    assert len(stage.subscribed) - len(stage.retired) <= MOST_CALLABLES
