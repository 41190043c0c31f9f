# SPDX-License-Identifier: MIT
"""What runs the calls of an executor: each is a handler whose event are the arguments.

Workers import this module, so it is kept small.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

#: Positional arguments, and those by name.
Arguments = tuple[tuple[Any, ...], dict[str, Any]]

#: One argument alone, of such a type, is the event itself: that takes neither a tuple nor, on the
#: way to a worker, pickling it.
BARE = frozenset((int, float, str, bool, type(None)))


def event_of(arguments: Arguments) -> Any:
    """Make the event of a call."""
    args, kwargs = arguments
    return args[0] if len(args) == 1 and not kwargs and type(args[0]) in BARE else arguments


class Call:
    """Calls a function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, event: Any) -> Any:
        """Call it with the arguments that an event is made of."""
        if type(event) is not tuple:
            return self.function(event)
        args, kwargs = event
        return self.function(*args, **kwargs)


class AsyncCall(Call):
    """Calls an `async def` function."""

    async def __call__(self, event: Any) -> Any:
        """Call it with the arguments that an event is made of, and await it."""
        return await super().__call__(event)


class ChunkOfCalls:
    """Calls a function once for each of several rows of arguments."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, event: tuple[Arguments, Sequence[tuple[Any, ...]]]) -> list[Any]:
        """Return the results for the rows, each behind the arguments that all have in common."""
        (args, kwargs), rows = event
        return [self.function(*args, *row, **kwargs) for row in rows]


CallForm = type[Call] | type[ChunkOfCalls]


class CarriedCall:
    """Calls a function that comes with its arguments.

    Args:
        form: what is made of that function, and called.
    """

    def __init__(self, form: CallForm) -> None:
        self.form = form

    def __call__(self, event: tuple[Callable[..., Any], Any]) -> Any:
        """Call the function with the rest of the event."""
        function, rest = event
        return self.form(function)(rest)


class AsyncCarriedCall(CarriedCall):
    """Calls an `async def` function that comes with its arguments."""

    async def __call__(self, event: tuple[Callable[..., Any], Any]) -> Any:
        """Call the function with the rest of the event, and await it."""
        function, rest = event
        return await AsyncCall(function)(rest)
