# SPDX-License-Identifier: MIT
"""Finding what cannot be pickled: the path of the attribute at fault, in words a person can use."""

from __future__ import annotations

import inspect
import reprlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from types import FunctionType
from typing import Any

from procbus.codec import encode_alone
from procbus.errors import SerializationError
from procbus.handler import Handler

#: How deep to look: further down a path helps nobody.
_DEPTH = 12
#: How many parts of one container to try.
_WIDTH = 1_000


def check_travels(handler: Handler) -> None:
    """Make sure that a cpu handler can be sent to a worker.

    Raises:
        SerializationError: it cannot; the message names the variable at fault.
    """
    try:
        encode_alone(handler.function)
    except Exception as error:
        raise handler_fault(handler, error) from error


def handler_fault(handler: Handler, error: BaseException) -> SerializationError:
    """Make the error for a handler that cannot be sent to a worker."""
    path = path_of_fault(handler.function, handler.name)
    where = f" because of {path}" if path else ""
    return SerializationError(
        f"cpu handler {handler.name} cannot travel to a worker process{where}: "
        f"{type(error).__name__}: {error}. Make that object inside the handler, or keep the "
        'handler in this process with kind="io"',
        path,
    )


def event_fault(
    handler: str, event_id: int, event: Any, error: BaseException
) -> SerializationError:
    """Make the error for an event that cannot be pickled."""
    path = path_of_fault(event, "event")
    return SerializationError(
        f"event {event_id} ({type(event).__name__}) cannot travel to a worker process for {handler}"
        f"{f' because of {path}' if path else ''}: {type(error).__name__}: {error}. Publish plain "
        'data, or take the event with a kind="io" handler',
        path,
    )


def path_of_fault(obj: Any, name: str, fails: Callable[[Any], bool] | None = None) -> str:
    """Find the innermost part of an object that fails, as an expression such as `event.rows[3]`.

    Args:
        obj: the object that fails as a whole.
        name: what to call it.
        fails: tells whether a part fails; by default, whether it cannot be pickled.

    Returns:
        The path; empty if the object itself does not fail after all.
    """
    fails = _cannot_be_pickled if fails is None else fails
    if not fails(obj):
        return ""
    path = name
    seen: set[int] = set()
    for _ in range(_DEPTH):
        seen.add(id(obj))
        for step, part in _parts(obj):
            if id(part) not in seen and fails(part):
                path, obj = path + step, part
                break
        else:
            break
    return path


def _cannot_be_pickled(part: Any) -> bool:
    try:
        encode_alone(part)
    except Exception:  # noqa: BLE001 - this is the question
        return True
    return False


def _parts(obj: Any) -> Iterator[tuple[str, Any]]:
    """The parts that pickling an object would go through, each with the step that leads to it."""
    if isinstance(obj, FunctionType):
        yield from _variables(obj)
        return
    if inspect.ismethod(obj):
        yield ".__self__", obj.__self__
        return
    if isinstance(obj, dict):
        for key, value in islice(obj.items(), _WIDTH):
            yield f"[{_shown(key)}]", value
            yield f", key {_shown(key)}", key
    elif isinstance(obj, list | tuple):
        for index, value in enumerate(obj[:_WIDTH]):
            yield f"[{index}]", value
    elif isinstance(obj, set | frozenset):
        for value in islice(obj, _WIDTH):
            yield f", member {_shown(value)}", value
    for name, value in _attributes(obj):
        yield f".{name}", value


def _variables(function: FunctionType) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # not assigned yet
            yield f", closure variable {name!r}", cell.cell_contents
    for name in function.__code__.co_names:
        if name in function.__globals__:
            yield f", global variable {name!r}", function.__globals__[name]
    for index, value in enumerate(function.__defaults__ or ()):
        yield f", default argument {index}", value
    for name, value in (function.__kwdefaults__ or {}).items():
        yield f", default of argument {name!r}", value


def _attributes(obj: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(obj, type):
        return
    with suppress(Exception):  # reading attributes may run the user's code
        yield from list(vars(obj).items())
    for cls in type(obj).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name.startswith("__") and not name.endswith("__"):
                name = f"_{cls.__name__.lstrip('_')}{name}"
            with suppress(Exception):
                yield name, getattr(obj, name)


def _shown(value: Any) -> str:
    """The repr of a value; short, and there even if its own fails."""
    return reprlib.repr(value)
