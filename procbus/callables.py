# SPDX-License-Identifier: MIT
"""What can be told of a callable without calling it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from procbus.annotation import module_of, name_of, without_partial


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling it gives a coroutine."""
    return _is(function, inspect.iscoroutinefunction)


def is_generator(function: Callable[..., Any]) -> bool:
    """Whether calling it only makes a generator, asynchronous or not, and runs nothing."""
    return _is(function, inspect.isgeneratorfunction) or _is(function, inspect.isasyncgenfunction)


def accepts(function: Callable[..., Any], arguments: int) -> bool:
    """Whether it can be called with so many positional arguments; True when nobody can tell."""
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):
        return True  # some builtins have no signature to check
    try:
        signature.bind(*[None] * arguments)
    except TypeError:
        return False
    return True


def travels_by_value(function: Callable[..., Any]) -> bool:
    """Whether a worker cannot import the function, so that its code and variables are sent.

    A bracket in the name is that of ``<locals>`` or ``<lambda>``.
    """
    return module_of(function) == "__main__" or "<" in name_of(function)


def _is(function: Callable[..., Any], asked: Callable[[Any], bool]) -> bool:
    """Ask it of the function, or of a callable object's ``__call__``, beneath any partial."""
    inner = without_partial(function)
    return asked(inner) or (not inspect.isroutine(inner) and asked(type(inner).__call__))
