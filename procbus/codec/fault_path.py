# SPDX-License-Identifier: MIT
"""Finding the object that cannot be pickled: a path to it, in the user's own names.

An error such as "cannot pickle '_thread.lock' object" does not say where the lock is. The search in
this module answers `event.rows[3].lock`. The search looks into the user's objects, which may raise
anything, or give a wrong class. So it goes by their real classes, and returns the path as far as it
got.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from contextvars import ContextVar
from itertools import islice
from time import monotonic
from types import CodeType, FunctionType, MethodType
from typing import Any

from procbus.codec import by_value
from procbus.codec.encoder import PROTOCOL, cannot_encode, encode_definition, travels_by_value
from procbus.core.errors import SerializationError
from procbus.core.frames import useful_cause
from procbus.core.user_objects import bases_of, class_name, named, short_repr

#: Maximum depth of the search, in parts; because a longer path helps no reader.
_DEPTH = 12
#: Maximum of parts tried in one container, and maximum duration of the search in seconds; because
#: other deliveries of the same worker wait meanwhile.
_WIDTH = 100_000
_PATIENCE_S = 0.5

_TOO_DEEP = "sys.setrecursionlimit before the bus is made lets it go deeper. "


def check_travels(function: Callable[..., Any], name: str) -> None:
    """Check that a cpu handler can be sent to a worker.

    Args:
        function: the handler.
        name: name of the handler in the message.

    Raises:
        SerializationError: it cannot be sent; the message names the variable at fault.
    """
    try:
        encode_definition(function)
    except KeyboardInterrupt:  # Ctrl-C of the script that subscribes
        raise
    except BaseException as error:  # noqa: BLE001 - the user's code
        raise handler_fault(function, name, error) from useful_cause(error)


def handler_fault(
    function: Callable[..., Any], name: str, error: BaseException
) -> SerializationError:
    """Make the error for a handler that cannot be sent to a worker."""
    path = path_of_fault(function, name)
    where = f" because of {path}" if path else ""
    return SerializationError(
        f"cpu handler {name} cannot travel to a worker process{where}: "
        f"{_said(error)}. {_remedy(error)}",
        path,
    )


def _said(error: BaseException) -> str:
    return named(error).rstrip(".")


def _remedy(error: BaseException) -> str:
    text = named(error)
    if "current().publish(" in text:  # the text has the remedy; a bus for each worker is none
        return 'Or keep the handler in this process with kind="io"'
    of_locks = (
        "A lock guards nothing between processes: use concurrency=1 to have one run at a time. "
        if "_thread." in text and "ock" in text
        else ""
    )
    return (
        f"{of_locks}Make that object inside the handler, or once for each worker in a @resource, "
        'or keep the handler in this process with kind="io"'
    )


def event_fault(
    handler: str, event_id: int, event: Any, error: BaseException
) -> SerializationError:
    """Make the error for an event that cannot be pickled."""
    path = path_of_fault(event, "event")
    return SerializationError(
        f"event #{event_id} ({class_name(event)}) cannot travel to a worker process for {handler}"
        f"{f' because of {path}' if path else ''}: {_said(error)}. "
        + (_TOO_DEEP if "deep recursion" in str(error) else "")
        + 'Publish plain data, or take the event with a kind="io" handler',
        path,
    )


def call_fault(
    function: str, args: tuple[Any, ...], kwargs: dict[str, Any], error: BaseException
) -> SerializationError:
    """Make the error for a call of an executor whose arguments cannot be pickled."""
    path = path_of_fault(args, "args") or path_of_fault(kwargs, "kwargs")
    return SerializationError(
        f"a call of {function} cannot travel to a worker process"
        f"{f' because of {path}' if path else ''}: {_said(error)}. "
        + (_TOO_DEEP if "deep recursion" in str(error) else "")
        + 'Pass plain data, or use an executor with kind="io"',
        path,
    )


def check_variables(variables: Sequence[ContextVar[Any]]) -> None:
    """Check that these context variables can be sent to workers.

    Raises:
        SerializationError: the default of one cannot travel; the message names the variable.
    """
    for variable in variables:
        try:
            encode_definition(variable)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - the user's code
            raise SerializationError(
                f"the default of the context variable {variable.name!r} cannot travel to a worker "
                f"process, as carry= would need: {named(error)}. Define the variable in a module "
                "that workers can import, or without that default",
                variable.name,
            ) from useful_cause(error)


def variable_fault(
    variables: Sequence[tuple[str, Any]], error: BaseException
) -> SerializationError:
    """Make the error for context variables of which one cannot be pickled.

    Args:
        variables: the variables that travel, by name, with their values.
        error: the error of pickling.
    """
    found = (path_of_fault(value, f"{name}.get()") for name, value in variables)
    path = next(filter(None, found), "")
    return SerializationError(
        "a context variable that EventBus(carry=...) takes along cannot travel to a worker process"
        f"{f' because of {path}' if path else ''}: {_said(error)}. Keep plain data in it, or "
        "leave it out of carry=",
        path,
    )


def path_of_fault(obj: Any, name: str, fails: Callable[[Any], bool] = cannot_encode) -> str:
    """Find the innermost part of an object that fails, as an expression such as `event.rows[3]`.

    It raises nothing.

    Args:
        obj: the object that fails as a whole.
        name: its name in the path.
        fails: whether a part fails; it must raise nothing. By default, whether it cannot be
            pickled.

    Returns:
        The path, as far as it was found in `_PATIENCE_S`; empty if the object does not fail after
        all.
    """
    if not fails(obj):
        return ""
    end_at = monotonic() + _PATIENCE_S
    path = name
    seen: set[int] = set()
    # The user's code runs in here: an exception of it ends the search.
    with suppress(BaseException):
        for _ in range(_DEPTH):
            seen.add(id(obj))
            if _refuses(obj):
                break
            for step, part in parts_of(obj):
                if id(part) not in seen and fails(part):
                    path, obj = path + step, part
                    break
                if monotonic() > end_at:
                    return path
            else:
                break
    return path


def _refuses(obj: Any) -> bool:
    """Whether an object itself refuses to travel, so that a search of its parts is of no use.

    A bus, an executor and a progress bar refuse. The search goes on into objects of the user's
    classes, because the cause of their refusal may be one of their parts.
    """
    kind = type(obj)
    if issubclass(kind, type):
        return False
    if by_value.counts_here(kind):
        return True
    if not any(base.__module__.partition(".")[0] == "procbus" for base in bases_of(kind)):
        return False
    try:
        obj.__reduce_ex__(PROTOCOL)
    except Exception:  # noqa: BLE001 - a class derived from a bus is the user's code
        return True
    return False


def parts_of(obj: Any) -> Iterator[tuple[str, Any]]:
    """The parts that pickling an object visits, each with the step that leads to it."""
    kind = type(obj)
    if kind is FunctionType:
        yield from _variables(obj)
        return
    if kind is MethodType:
        yield ".__self__", obj.__self__
        yield from parts_of(obj.__func__)
        return
    if issubclass(kind, functools.partial):
        yield ".func", obj.func
        yield from ((f".args[{index}]", value) for index, value in enumerate(obj.args))
        yield from ((f".keywords[{short_repr(key)}]", value) for key, value in obj.keywords.items())
    # Methods of the built-in types are called, because a derived class may override them.
    if issubclass(kind, dict):
        for key, value in islice(dict.items(obj), _WIDTH):
            yield f"[{short_repr(key)}]", value
            yield f", key {short_repr(key)}", key
    elif issubclass(kind, list | tuple):
        values = list.__iter__(obj) if issubclass(kind, list) else tuple.__iter__(obj)
        for index, value in enumerate(islice(values, _WIDTH)):
            yield f"[{index}]", value
    elif issubclass(kind, set | frozenset):
        members = set.__iter__(obj) if issubclass(kind, set) else frozenset.__iter__(obj)
        for value in islice(members, _WIDTH):
            yield f", member {short_repr(value)}", value
    for name, value in _attributes(obj):
        yield f".{name}", value
    if not issubclass(kind, type) and travels_by_value(kind):
        yield f", class {kind.__qualname__!r}", kind


def _variables(function: FunctionType) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # not assigned yet
            yield f", closure variable {name!r}", cell.cell_contents
    for name in dict.fromkeys(_names_in(function.__code__)):
        if name in function.__globals__:
            yield f", global variable {name!r}", function.__globals__[name]
    for index, value in enumerate(function.__defaults__ or ()):
        yield f", default argument {index}", value
    for name, value in (function.__kwdefaults__ or {}).items():
        yield f", default of argument {name!r}", value


def _names_in(code: CodeType) -> Iterator[str]:
    """Names that a function uses, including the functions inside it."""
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _names_in(inner)


def _attributes(obj: Any) -> Iterator[tuple[str, Any]]:
    if issubclass(type(obj), type):
        if travels_by_value(obj):
            # The values of the class first: its methods have the class among their globals.
            own = sorted(vars(obj).items(), key=lambda item: type(item[1]) is FunctionType)
            yield from own
        return
    own = []
    with suppress(BaseException):  # reading attributes may run the user's code
        own = list(vars(obj).items())
    yield from own
    for cls in bases_of(type(obj)):
        slots = cls.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name in ("__dict__", "__weakref__"):
                continue
            if name.startswith("__") and not name.endswith("__"):
                name = f"_{cls.__name__.lstrip('_')}{name}"
            try:
                value = getattr(obj, name)
            except BaseException:  # noqa: BLE001, S112 - as above
                continue
            yield name, value
