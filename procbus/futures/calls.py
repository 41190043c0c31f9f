# SPDX-License-Identifier: MIT
"""The functions that run an executor's calls: each is a handler whose events are the arguments.

Workers import this module, so it is kept small.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

#: Positional arguments, and keyword arguments.
Arguments = tuple[tuple[Any, ...], dict[str, Any]]

#: Types of a single argument that is the event itself. Such an event needs no tuple, so no tuple is
#: pickled on the way to a worker.
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
        """Call the function with the arguments in an event."""
        if type(event) is not tuple:
            return self.function(event)
        args, kwargs = event
        return self.function(*args, **kwargs)


class AsyncCall(Call):
    """Calls an `async def` function."""

    async def __call__(self, event: Any) -> Any:
        """Call the function with the arguments in an event, and await it."""
        return await super().__call__(event)


class ChunkOfCalls:
    """Calls a function once for each of several rows of arguments."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, event: tuple[Arguments, Sequence[tuple[Any, ...]]]) -> list[Any]:
        """Return the result for each row of arguments, placed behind the common arguments."""
        (args, kwargs), rows = event
        return [self.function(*args, *row, **kwargs) for row in rows]


CallForm = type[Call] | type[ChunkOfCalls]


class CarriedCall:
    """Calls a function that comes with its arguments.

    Args:
        form: wraps that function, and is called.
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
