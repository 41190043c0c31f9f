# SPDX-License-Identifier: MIT
"""The function that a worker runs for a cpu handler while `PROCBUS_DEBUG` is set.

The function compares the handler's global variables and its event before and after the call. In one
process the handler shares these objects with your script. In a worker process they are copies. A
handler that changes such a copy is most likely written for threads.
"""

from __future__ import annotations

import functools
import os
import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dis import get_instructions
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from procbus.codec.fingerprint import Imprint, changes, listed, look_at
from procbus.core.log import log
from procbus.core.log_origin import told_once
from procbus.core.resources import Resource
from procbus.core.together import Together
from procbus.core.user_objects import bases_of

if TYPE_CHECKING:
    from procbus.core.handler import Handler

#: Maximum of variables that are compared for one handler.
_VARIABLES = 200
#: Stands for a variable that is not set.
_UNSET = object()


def watch(handler: Handler) -> Callable[..., Any]:
    """Make the function that workers run for a handler; a call of an executor is not watched."""
    if getattr(handler.function, "__module__", "").startswith("procbus."):
        return handler.call
    return WatchedCall(handler.call, handler.name, f"{_TOKEN} {handler.number}")


#: Makes the keys of this process differ from the keys of another one.
_TOKEN = os.urandom(6).hex()


class WatchedCall:
    """Calls a cpu handler, and logs once which of its changes only its worker sees.

    Args:
        function: the function that a worker would run otherwise.
        name: name of the handler.
        token: a string that only this handler has; the same in all workers of its bus.
    """

    def __init__(self, function: Callable[..., Any], name: str, token: str) -> None:
        self.function = function
        self.name = name
        self._token = token
        self._told = False
        self._places: Sequence[_Place] | None = None

    def __reduce__(self) -> Any:
        """Travel with the function."""
        return type(self), (self.function, self.name, self._token)

    def __call__(self, event: Any) -> Any:
        """Call the handler, and compare."""
        if self._told:
            return self.function(event)
        given = event.events if isinstance(event, Together) else event
        if self._places is None:
            self._places = _variables_of(_innermost(self.function))
        before = [(place, look_at(_value(place.owner, place.name))) for place in self._places]
        event_before = look_at(given)
        try:
            return self.function(event)
        finally:
            self._compare(before, event_before, given)

    def _compare(
        self, before: Sequence[tuple[_Place, Imprint]], event_before: Imprint, given: Any
    ) -> None:
        found = [
            change
            for place, look in before
            for change in changes(look, _value(place.owner, place.name), place.label)
        ]
        ours = changes(event_before, given, "event")
        if found:
            self._tell(
                f"{self.name} changed {listed(found)}. A worker process has copies of your "
                "variables, so neither the script nor another worker sees the change. Return the "
                "value, keep an object for the life of a worker in a @resource, or subscribe the "
                'handler with kind="io"',
                "variables",
            )
        if ours:
            self._tell(
                f"{self.name} changed its event ({listed(ours)}). A worker process has a copy of "
                "the event, so neither the publisher nor another handler sees the change. Return "
                'the value, publish it, or subscribe the handler with kind="io"',
                "event",
            )

    def _tell(self, text: str, about: str) -> None:
        self._told = True
        log.warning("PROCBUS_DEBUG: %s", text, extra=told_once(f"{self._token} {about}"))


class _Place(NamedTuple):
    """A variable."""

    #: The dict, class or cell that has the variable; the object itself, if the name is "".
    owner: Any
    name: str
    label: str


def _value(owner: Any, name: str) -> Any:
    if name == "":
        return owner
    if isinstance(owner, dict):  # the globals of a module
        return owner.get(name, _UNSET)
    if isinstance(owner, type):
        return owner.__dict__.get(name, _UNSET)
    try:
        return owner.cell_contents
    except ValueError:  # not assigned yet
        return _UNSET


def _innermost(function: Any) -> Any:
    """The user's function, inside the ones of procbus."""
    while type(function).__module__.startswith("procbus.") and hasattr(function, "function"):
        function = function.function
    return function


def _variables_of(function: Any) -> list[_Place]:
    """The variables that a handler refers to, directly or in functions of yours that it calls."""
    found: dict[tuple[int, str], _Place] = {}
    seen: set[int] = set()
    waiting = [function]
    while waiting and len(found) < _VARIABLES:
        thing = waiting.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        for each in _inside(thing, waiting):
            found.setdefault((id(each.owner), each.name), each)
    return list(found.values())


def _inside(thing: Any, waiting: list[Any]) -> Iterator[_Place]:
    """The variables of one function, object or class; functions that it uses go to `waiting`."""
    if isinstance(thing, FunctionType):
        for name in dict.fromkeys(_names_in(thing.__code__)):
            value = thing.__globals__.get(name, _UNSET)
            if _is_code(value):
                waiting.append(value)
            elif not isinstance(value, ModuleType | Resource):
                yield _Place(thing.__globals__, name, f"the global variable {name}")
        for name, cell in zip(thing.__code__.co_freevars, thing.__closure__ or (), strict=True):
            value = _value(cell, "cell")
            if _is_code(value):
                waiting.append(value)
            else:
                yield _Place(cell, "cell", f"the closure variable {name}")
    elif isinstance(thing, MethodType):
        waiting.append(thing.__func__)
        if not isinstance(thing.__self__, type):
            yield _Place(thing.__self__, "", "self")
    elif isinstance(thing, functools.partial):
        waiting.append(thing.func)
    elif isinstance(thing, type):
        for base in bases_of(thing):
            for name, value in list(base.__dict__.items()) if _is_yours(base) else ():
                inner = getattr(value, "__func__", value)
                if isinstance(inner, FunctionType):
                    waiting.append(inner)
                elif not (name.startswith("__") or hasattr(type(value), "__get__")):
                    yield _Place(base, name, f"the class attribute {base.__name__}.{name}")
    elif callable(thing):
        waiting.append(type(thing))
        yield _Place(thing, "", "self")


def _names_in(code: CodeType) -> Iterator[str]:
    """Names of the global variables that a function reads or writes, itself or in its functions."""
    for step in get_instructions(code):
        if step.opname in ("LOAD_GLOBAL", "STORE_GLOBAL", "DELETE_GLOBAL"):
            yield str(step.argval)
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _names_in(inner)


def _is_code(value: Any) -> bool:
    """Whether a value is a function or class, whose variables are compared too."""
    if isinstance(value, FunctionType | type):
        return _is_yours(value)
    return isinstance(value, MethodType)


_LIBRARIES = tuple(
    os.path.join(sysconfig.get_path(name), "") for name in ("stdlib", "purelib", "platlib")
)


def _is_yours(thing: Any) -> bool:
    """Whether a function or class is written in the script or a module of yours."""
    module = getattr(thing, "__module__", None)
    if module == "__main__":
        return True  # also in a worker, where another module has that name
    if type(module) is not str or module.partition(".")[0] in ("procbus", "builtins"):
        return False
    file = getattr(sys.modules.get(module), "__file__", None) or ""
    return not file.startswith(_LIBRARIES)
