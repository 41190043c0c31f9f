# SPDX-License-Identifier: MIT
"""The functions that run an executor's calls in a worker."""

import asyncio
import pickle

import pytest

from procbus.futures.calls import (
    AsyncCall,
    AsyncCarriedCall,
    Call,
    CarriedCall,
    ChunkOfCalls,
    event_of,
)


def given(*args: object, **kwargs: object) -> object:
    return args, kwargs


async def awaited(*args: object, **kwargs: object) -> object:
    return args, kwargs


def test_a_call_gives_the_function_its_arguments() -> None:
    assert Call(given)(((1, 2), {"a": 3})) == ((1, 2), {"a": 3})
    assert asyncio.run(AsyncCall(awaited)(((1,), {"a": 3}))) == ((1,), {"a": 3})


@pytest.mark.parametrize("event", [1, -1.5, "text", True, None, 10**30])
def test_single_small_argument_is_the_event(event: object) -> None:
    assert event_of(((event,), {})) is event
    assert Call(given)(event) == ((event,), {})
    assert asyncio.run(AsyncCall(awaited)(event)) == ((event,), {})


@pytest.mark.parametrize("args", [(), (1, 2), ((1, 2),), ([1],), (b"bytes",)])
def test_other_arguments_are_an_event_together(args: tuple[object, ...]) -> None:
    assert event_of((args, {})) == (args, {})
    assert event_of(((1,), {"a": 2})) == ((1,), {"a": 2})
    assert Call(given)(event_of((args, {}))) == (args, {})


def test_chunk_calls_with_the_common_arguments_before_each_row() -> None:
    chunk = ChunkOfCalls(given)

    assert chunk((((0,), {"a": 3}), [(1,), (2,)])) == [((0, 1), {"a": 3}), ((0, 2), {"a": 3})]
    assert chunk((((), {}), [])) == []


def test_a_function_that_is_carried_comes_with_the_event() -> None:
    assert CarriedCall(Call)((given, ((1,), {}))) == ((1,), {})
    assert CarriedCall(ChunkOfCalls)((given, (((), {}), [(1,)]))) == [((1,), {})]
    assert asyncio.run(AsyncCarriedCall(AsyncCall)((awaited, ((1,), {})))) == ((1,), {})


def test_calls_travel() -> None:
    for made in (Call(given), ChunkOfCalls(given), CarriedCall(Call), CarriedCall(ChunkOfCalls)):
        assert vars(pickle.loads(pickle.dumps(made))) == vars(made)
