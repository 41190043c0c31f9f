# SPDX-License-Identifier: MIT
"""The user's set-up of a worker: run once, before the first delivery.

A set-up function of the main script and its handlers travel by value and share their globals. The
exception is code that was executed with a dict for globals that is no module's. The set-up may put
an object into such a dict, for example a model that it loaded. Handlers of the same module expect
the object in their own globals, so it is copied there when they arrive.
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
    """The objects that a set-up function left in its globals.

    Args:
        function: the set-up function, which has run.
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
        """Copy these objects to the globals of a handler or a class from the same module.

        A handler that was imported by name has the very globals that the set-up changed, if the
        set-up was imported too.
        """
        for function in _functions_of(definition):
            left = self._left.get(function.__module__)
            if left is not None and not any(function.__globals__ is own for own in self._own):
                function.__globals__.update(left)


def _functions_of(thing: object) -> Iterator[types.FunctionType]:
    """The Python functions inside a callable or a class."""
    if isinstance(thing, types.FunctionType):
        yield thing
    elif isinstance(thing, functools.partial):
        yield from _functions_of(thing.func)
    elif isinstance(thing, types.MethodType | staticmethod | classmethod):
        yield from _functions_of(thing.__func__)
    elif isinstance(thing, property):
        yield from _functions_of(thing.fget)
    elif type(thing).__module__.startswith("procbus.") and hasattr(thing, "function"):
        yield from _functions_of(thing.function)  # procbus calls it in a way of its own
    else:
        cls: Any = thing if isinstance(thing, type) else type(thing)
        for base in cls.__mro__:
            for member in vars(base).values():
                if isinstance(member, types.FunctionType | staticmethod | classmethod | property):
                    yield from _functions_of(member)


# The user's code in a worker: its set-up, and the classes and handlers from the parent.


class UserCode:
    """The user's code that one worker has. The code belongs to the worker's main thread.

    Args:
        encoder: names the classes that travel by value, once they are known.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        #: Encoded handlers. Each is loaded at its first delivery, which an error of loading then
        #: fails.
        self._definitions: dict[int, bytes] = {}
        #: The loaded handlers, by number.
        self.functions: dict[int, Callable[[Any], Any]] = {}
        self.names: dict[int, str] = {}
        #: Memory limits of handlers that have one, in bytes.
        self.limits: dict[int, int] = {}
        #: Time limits of handlers that have one, in seconds.
        self.timeouts: dict[int, float] = {}
        self._set_up: SetUp | None = None
        self._variables: dict[int, tuple[ContextVar[Any], ...]] = {}

    def keep_set_up(self, function: Callable[[], object]) -> None:
        """Copy a set-up's objects to the globals of all code that arrives later."""
        self._set_up = SetUp(function)

    def learn(self, head: BatchHead) -> None:
        """Take in the classes and handlers of a batch; drop the handlers it forgets."""
        for number, definition in head.classes:
            cls = define_class(number, definition)
            if cls is not None:
                self._encoder.know(cls, number)
                if self._set_up is not None:
                    self._set_up.hand_on(cls)
        for change in head.globals:
            # A value that cannot be loaded here is left out: the variable keeps its old value.
            with suppress(BaseException):
                decode(change)
        for handler in head.forgotten:
            by_handler = self._definitions, self.functions, self.limits, self.timeouts
            for known in (self.names, *by_handler):
                known.pop(handler, None)
        for handler, name, definition, (timeout, max_memory) in head.handlers:
            self.names[handler] = name
            self._definitions[handler] = definition
            if timeout is not None:
                self.timeouts[handler] = timeout
            if max_memory is not None:
                self.limits[handler] = max_memory

    def variables(self, number: int) -> tuple[ContextVar[Any], ...]:
        """The context variables that arrived with a batch under this number."""
        found = self._variables.get(number)
        if found is None:
            found = self._variables[number] = decode(self._definitions[number])
            self._encoder.look_again()
        return found

    def load(self, handler: int) -> Callable[[Any], Any]:
        """Load a handler that arrived with a batch. This runs the user's code, and may raise."""
        function: Callable[[Any], Any] = decode(self._definitions[handler])
        self._encoder.look_again()  # objects known by their identity arrived with it
        if self._set_up is not None:
            self._set_up.hand_on(function)
        self.functions[handler] = function
        return function
