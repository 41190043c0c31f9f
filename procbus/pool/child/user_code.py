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
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

from procbus.codec.encoder import Encoder, decode, define_class
from procbus.pool.wire import BatchHead


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


# The user's code in a worker: its set-up, and the classes and handlers that the parent sent.


class UserCode:
    """What one worker has of the user's code. It belongs to the worker's main thread.

    Args:
        encoder: names the classes that travel by value, once they are known.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        #: Handlers are loaded at their first delivery: what a broken one does is charged to that.
        self._definitions: dict[int, bytes] = {}
        #: The handlers that are loaded, by number.
        self.functions: dict[int, Callable[[Any], Any]] = {}
        self.names: dict[int, str] = {}
        #: Memory in bytes that handlers with such a limit may have.
        self.limits: dict[int, int] = {}
        self._set_up: SetUp | None = None
        self._variables: dict[int, tuple[ContextVar[Any], ...]] = {}

    def keep_set_up(self, function: Callable[[], object]) -> None:
        """Hand on what a set-up, which has run, left in its globals to all that comes later."""
        self._set_up = SetUp(function)

    def learn(self, head: BatchHead) -> None:
        """Take in the classes and handlers that come with a batch; let go of what it says."""
        for number, definition in head.classes:
            cls = define_class(number, definition)
            if cls is not None:
                self._encoder.know(cls, number)
                if self._set_up is not None:
                    self._set_up.hand_on(cls)
        for change in head.globals:
            # It could be loaded nowhere else either: what needs the variable has its old value.
            with suppress(BaseException):
                decode(change)
        for handler in head.forgotten:
            for known in (self.names, self._definitions, self.functions, self.limits):
                known.pop(handler, None)
        for handler, name, definition, max_memory in head.handlers:
            self.names[handler] = name
            self._definitions[handler] = definition
            if max_memory is not None:
                self.limits[handler] = max_memory

    def variables(self, number: int) -> tuple[ContextVar[Any], ...]:
        """The context variables that came with a batch under this number."""
        found = self._variables.get(number)
        if found is None:
            found = self._variables[number] = decode(self._definitions[number])
            self._encoder.look_again()
        return found

    def load(self, handler: int) -> Callable[[Any], Any]:
        """Load a handler that came with a batch: this runs the user's code, and may raise."""
        function: Callable[[Any], Any] = decode(self._definitions[handler])
        self._encoder.look_again()  # objects that it knows by their identity came with it
        if self._set_up is not None:
            self._set_up.hand_on(function)
        self.functions[handler] = function
        return function
