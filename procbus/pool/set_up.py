# SPDX-License-Identifier: MIT
"""The user's set-up of a worker: run once, before the first delivery.

A set-up function of the main script travels by value, and so do handlers: they share their globals,
unless they were executed with a dict for their globals that is no module's. What the set-up put
into such a dict, a model that it loaded say, handlers of that name expect to find in theirs. So it
is copied there when they arrive.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator
from typing import Any


class SetUp:
    """What a set-up function left in its globals.

    Args:
        function: the set-up, which has run.
    """

    def __init__(self, function: Callable[[], object]) -> None:
        self._own = [inner.__globals__ for inner in _functions_of(function)]
        self._left = {
            inner.__module__: {
                name: value
                for name, value in inner.__globals__.items()
                if not name.startswith("__")
            }
            for inner in _functions_of(function)
        }

    def hand_on(self, definition: object) -> None:
        """Copy it to the globals of a handler, or of a class, that comes from the same module.

        One that was imported by name has the very globals that the set-up changed, if that was too.
        """
        for function in _functions_of(definition):
            left = self._left.get(function.__module__)
            if left is not None and not any(function.__globals__ is own for own in self._own):
                function.__globals__.update(left)


def _functions_of(thing: object) -> Iterator[types.FunctionType]:
    """The Python functions that a callable or a class is made of."""
    if isinstance(thing, types.FunctionType):
        yield thing
    elif isinstance(thing, functools.partial):
        yield from _functions_of(thing.func)
    elif isinstance(thing, types.MethodType | staticmethod | classmethod):
        yield from _functions_of(thing.__func__)
    elif isinstance(thing, property):
        yield from _functions_of(thing.fget)
    else:
        cls: Any = thing if isinstance(thing, type) else type(thing)
        for base in cls.__mro__:
            for member in vars(base).values():
                if isinstance(member, types.FunctionType | staticmethod | classmethod | property):
                    yield from _functions_of(member)
