# SPDX-License-Identifier: MIT
"""The user's code in a worker: known by number, loaded when needed, and let go of."""

import pickle
from collections.abc import Callable
from typing import Any

import pytest

from procbus.codec.encoder import Encoder, encode_alone
from procbus.pool.child.user_code import UserCode
from procbus.pool.wire import BatchHead, HandlerDefinition
from tests.parts import double, handle


@pytest.fixture
def code() -> UserCode:
    return UserCode(Encoder(7, 1 << 20))


def head(*handlers: HandlerDefinition, forgotten: list[int] | None = None) -> BatchHead:
    return BatchHead(
        1, [], list(handlers), [], [], [], [], [], {}, False, [], None, forgotten or []
    )


def sent(number: int, function: Callable[[Any], Any], limit: int | None = None) -> Any:
    return number, function.__name__, encode_alone(function), (None, limit)


def test_a_handler_is_loaded_only_once_it_is_needed(code: UserCode) -> None:
    code.learn(head((1, "broken", b"no pickle", (None, None)), sent(2, double)))
    assert code.functions == {}
    assert code.names == {1: "broken", 2: "double"}

    assert code.load(2)(21) == 42
    assert set(code.functions) == {2}
    with pytest.raises(pickle.UnpicklingError):
        code.load(1)
    assert set(code.functions) == {2}


def test_only_handlers_with_a_memory_limit_are_kept_with_one(code: UserCode) -> None:
    code.learn(head(sent(1, double, 1 << 30), sent(2, handle)))

    assert code.limits == {1: 1 << 30}


def test_forgotten_handler_leaves_no_trace(code: UserCode) -> None:
    code.learn(head(sent(1, double, 1 << 30)))
    code.load(1)
    code.learn(head(forgotten=[1, 2]))

    assert (code.functions, code.names, code.limits) == ({}, {}, {})
    with pytest.raises(KeyError):
        code.load(1)


def test_forgotten_handler_that_comes_again_is_the_new_one(code: UserCode) -> None:
    code.learn(head(sent(1, double)))
    code.load(1)
    code.learn(head(sent(1, handle), forgotten=[1]))

    assert code.load(1)(21) == 21


def test_globals_of_a_set_up_reach_handlers_that_travel_by_value(code: UserCode) -> None:
    there: dict[str, Any] = {"__name__": "__main__"}
    exec("def set_up():\n    global model\n    model = 42\n", there)
    there["set_up"]()
    code.keep_set_up(there["set_up"])
    script: dict[str, Any] = {"__name__": "__main__"}
    exec("def answer(event):\n    return model\n", script)
    code.learn(head(sent(1, script["answer"])))

    assert code.load(1)(None) == 42
