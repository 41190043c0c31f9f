# SPDX-License-Identifier: MIT
"""What can be told of a callable without calling it."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Hashable
from typing import Any

from procbus.annotation import module_of, name_of, signature_of, without_partial


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling it gives a coroutine."""
    return _is(function, inspect.iscoroutinefunction)


def is_generator(function: Callable[..., Any]) -> bool:
    """Whether calling it only makes a generator, asynchronous or not, and runs nothing."""
    return _is(function, inspect.isgeneratorfunction) or _is(function, inspect.isasyncgenfunction)


def accepts(function: Callable[..., Any], arguments: int) -> bool:
    """Whether it can be called with so many positional arguments; True when nobody can tell."""
    signature = signature_of(function)
    if signature is None:
        return True
    try:
        signature.bind(*[None] * arguments)
    except TypeError:
        return False
    return True


def identity_of(function: Callable[..., Any]) -> Hashable:
    """Give what two callables have in common exactly if they are one handler.

    `store.take` makes a new method object each time, and all of them are one handler. Partials are
    one if they bind the very same objects. The answer holds while the callable lives. No method of
    the user's classes runs for it, not even ``__eq__``.
    """
    kind = type(function)
    found: Any = function
    if kind is types.MethodType:
        return "method", id(found.__self__), id(found.__func__)
    if kind is types.BuiltinMethodType or kind is types.MethodWrapperType:
        return "method", id(found.__self__), found.__qualname__
    if kind is functools.partial:
        bound = [(name, id(value)) for name, value in found.keywords.items()]
        return "partial", identity_of(found.func), tuple(map(id, found.args)), tuple(bound)
    return id(function)


def same_function(one: Callable[..., Any], other: Callable[..., Any]) -> bool:
    """Whether two callables are one handler, see `identity_of`."""
    return one is other or identity_of(one) == identity_of(other)


def travels_by_value(function: Callable[..., Any]) -> bool:
    """Whether a worker cannot import the function, so that its code and variables are sent.

    A bracket in the name is that of ``<locals>`` or ``<lambda>``.
    """
    return module_of(function) == "__main__" or "<" in name_of(function)


def _is(function: Callable[..., Any], asked: Callable[[Any], bool]) -> bool:
    """Ask it of the function, or of a callable object's ``__call__``, beneath any partial."""
    inner = without_partial(function)
    try:
        if asked(inner):
            return True
    except Exception:  # noqa: BLE001 - it looks at attributes, which an object may refuse
        return asked(type(inner).__call__)
    return not inspect.isroutine(inner) and asked(type(inner).__call__)
