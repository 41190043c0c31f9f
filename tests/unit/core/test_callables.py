# SPDX-License-Identifier: MIT
"""Properties of a callable that are found without calling it."""

import functools
from collections.abc import Callable
from typing import Any

import pytest

from procbus.core.introspection import accepts, is_async, is_generator


def plain(first: int = 0) -> None: ...
async def coroutine(first: int = 0) -> None: ...


def generator(first: int = 0) -> Any:
    yield first


async def async_generator(first: int = 0) -> Any:
    yield first


class Called:
    def __call__(self) -> None: ...


class CalledAsync:
    async def __call__(self) -> None: ...


class CalledGenerator:
    def __call__(self) -> Any:
        yield 1


@pytest.mark.parametrize(
    ("function", "asynchronous", "generates"),
    [
        (plain, False, False),
        (coroutine, True, False),
        (generator, False, True),
        (async_generator, False, True),
        (functools.partial(coroutine, 1), True, False),
        (functools.partial(functools.partial(generator), 1), False, True),
        (Called(), False, False),
        (CalledAsync(), True, False),
        (CalledAsync().__call__, True, False),
        (CalledGenerator(), False, True),
        (CalledAsync, False, False),  # calling the class makes an instance
        (print, False, False),
    ],
)
def test_coroutines_and_generators_are_recognised(
    function: Callable[..., Any], asynchronous: bool, generates: bool
):
    assert is_async(function) is asynchronous
    assert is_generator(function) is generates


def two(first: int, second: int) -> None: ...
def needs_keyword(first: int, *, second: int) -> None: ...
def any_number(*all_of: int) -> None: ...


@pytest.mark.parametrize(
    ("function", "numbers"),
    [
        (plain, {0, 1}),
        (two, {2}),
        (functools.partial(two, 1), {1}),
        (needs_keyword, set()),
        (any_number, {0, 1, 2}),
        (Called(), {0}),
        (dict.fromkeys, {1, 2}),
        (max, {0, 1, 2}),  # no signature: unknown
    ],
)
def test_the_number_of_arguments_that_is_accepted_is_reported(
    function: Callable[..., Any], numbers: set[int]
):
    assert {each for each in range(3) if accepts(function, each)} == numbers
