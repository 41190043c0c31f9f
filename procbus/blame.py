# SPDX-License-Identifier: MIT
"""Finding what cannot be pickled: the path of the attribute at fault, in words a person can use."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
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
        variables = inspect.getclosurevars(obj)
        for name, value in variables.nonlocals.items():
            yield f", closure variable {name!r}", value
        for name, value in variables.globals.items():
            yield f", global variable {name!r}", value
        for index, value in enumerate(obj.__defaults__ or ()):
            yield f", default argument {index}", value
        return
    if inspect.ismethod(obj):
        yield ".__self__", obj.__self__
        return
    if isinstance(obj, dict):
        for index, (key, value) in enumerate(obj.items()):
            if index >= _WIDTH:
                break
            yield f"[{key!r}]", value
            yield f", key {key!r}", key
    elif isinstance(obj, list | tuple):
        for index, value in enumerate(obj[:_WIDTH]):
            yield f"[{index}]", value
    elif isinstance(obj, set | frozenset):
        for index, value in enumerate(obj):
            if index >= _WIDTH:
                break
            yield f", member {value!r}", value
    for name, value in _attributes(obj):
        yield f".{name}", value


def _attributes(obj: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(obj, type):
        return
    yield from list(getattr(obj, "__dict__", {}).items())
    for cls in type(obj).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(obj, name):
                yield name, getattr(obj, name)
