# SPDX-License-Identifier: MIT
"""What can be told of a callable without calling it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from procbus.annotation import without_partial


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


def _is(function: Callable[..., Any], asked: Callable[[Any], bool]) -> bool:
    """Ask it of the function, or of a callable object's ``__call__``, beneath any partial."""
    inner = without_partial(function)
    return asked(inner) or (not inspect.isroutine(inner) and asked(type(inner).__call__))
