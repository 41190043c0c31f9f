# SPDX-License-Identifier: MIT
"""Global variables of the script, and what goes by the name of one, in its worker processes.

Functions of one script share their globals. So do those that travel by value: a worker has one set
of globals for each module that cannot be imported there. A variable gets there with the first
function that needs it, and stays as the worker has it until the script gives that name another
value: then this is sent to all workers, once.
"""

from __future__ import annotations

import importlib
import itertools
import marshal
import sys
import types
import weakref
from collections.abc import Callable, Mapping
from math import inf
from time import perf_counter
from typing import Any, NamedTuple

from procbus.core.log import log

# In the process that the functions come from.

#: Looking for changes takes at most one part in so many of the time.
_SHARE = 200
#: Of small plain containers, of so many bytes at most, a change in place is noticed too.
_SMALL = 4096
_CONTAINERS = frozenset((dict, list, set, bytearray))

#: Types of attributes of a class of which a change is noticed.
_ATOMS = frozenset((int, float, complex, bool, str, bytes, type(None)))

#: In place of a variable that is not there any more.
_GONE = object()


class _Noted(NamedTuple):
    """A global variable as it was sent."""

    version: int
    #: The value; a weak reference to it where there can be one, as nobody else may want it.
    value: Any
    weak: bool
    content: bytes | None

    def is_still(self, value: Any) -> bool:
        """Whether the variable has that very value, and the same in it."""
        known = self.value() if self.weak else self.value
        if known is not value or (self.weak and known is None):
            return False
        return self.content is None or self.content == content_of(value)


# The tables need no lock: each step is one for other threads, and two that note the same change
# at once send it twice.
_versions = itertools.count(1)
_noted: dict[str, dict[str, _Noted]] = {}
#: Of each variable that got another value since it was sent the newest one, ready to travel, with
#: the number of that change.
_changes: dict[tuple[str, str], tuple[int, bytes]] = {}
_refused: set[tuple[str, str]] = set()
_next_look = 0.0
#: The number of the newest change: a worker that knows of it knows of all.
newest = 0


def shared_name(variables: Mapping[str, Any]) -> str | None:
    """The module whose globals these are; None where they are those of no module."""
    name = variables.get("__name__")
    module = sys.modules.get(name) if type(name) is str else None
    return name if module is not None and getattr(module, "__dict__", None) is variables else None


def note(module: str, values: Mapping[str, Any]) -> dict[str, int]:
    """Take note that variables of a module are sent as they are now; give the version of each."""
    known = _noted.setdefault(module, {})
    versions = {}
    for name, value in values.items():
        noted = known.get(name)
        if noted is None:
            noted = known.setdefault(name, _note(value))
        if not noted.is_still(value):
            noted = known[name] = _note(value)
        versions[name] = noted.version
    return versions


def look(encode: Callable[[object], bytes], importable: Callable[[str], bool]) -> None:
    """See which variables have changed since they were sent, if it is time for that.

    Args:
        encode: gives what is to travel to a worker.
        importable: whether workers import a module.
    """
    global _next_look
    began = perf_counter()
    if began < _next_look:
        return
    _next_look = inf  # for all others
    try:
        for module, known in list(_noted.items()):
            if importable(module):  # its own code changes them, in each process by itself
                continue
            variables = vars(sys.modules[module]) if module in sys.modules else {}
            for name, noted in list(known.items()):
                value = variables.get(name, _GONE)
                if value is not _GONE and not noted.is_still(value):
                    _tell(module, name, value, noted, encode)
    finally:
        ended = perf_counter()
        _next_look = ended + _SHARE * (ended - began)


def _tell(
    module: str, name: str, value: Any, noted: _Noted, encode: Callable[[object], bytes]
) -> None:
    global newest
    versions = note(module, {name: value})
    change = _Change(module, versions, {name: value})
    if issubclass(type(value), type) and noted.content is not None:
        # Workers have the class as it was sent, or another that had this name.
        was = marshal.loads(noted.content)  # noqa: S302 - it is our own
        now = _plain_attributes(value)
        new = {key: now[key] for key in now if key not in was or was[key] != now[key]}
        change.also(_set_attributes, value, new)
    try:
        data = encode(change)
    except BaseException as error:  # noqa: BLE001 - pickling runs the user's code
        if (module, name) not in _refused:
            _refused.add((module, name))
            log.warning(
                "the global variable %r was changed, but its new value cannot travel to a worker "
                "process: cpu handlers still have the old one (%s: %s)",
                name,
                type(error).__name__,
                error,
            )
        return
    newest += 1
    _changes[module, name] = newest, data


def since(told: int) -> list[bytes]:
    """What a worker has to be told that knows of all changes up to the number `told`."""
    return [data for number, data in list(_changes.values()) if number > told]


class _Change:
    """New values on their way to workers."""

    def __init__(self, module: str, versions: Mapping[str, int], values: Mapping[str, Any]) -> None:
        self._parts: tuple[Any, ...] = module, versions, values

    def also(self, function: Callable[..., None], *arguments: Any) -> None:
        """Have a function called there, too."""
        self._parts = (*self._parts, function, arguments)

    def __reduce__(self) -> Any:
        return take_in, self._parts


class Variables:
    """The globals of a module, to be named by a function that travels by value.

    Args:
        module: its name.
        own: what Python itself keeps among them, such as `__name__`.
    """

    def __init__(self, module: str, own: dict[str, Any]) -> None:
        self._parts = module, own

    def __reduce__(self) -> Any:
        """Name the globals, to be made where they are not there yet."""
        return variables_of, self._parts


class Imported:
    """The globals of a module that the worker imports, to be named by a function."""

    def __init__(self, module: str) -> None:
        self._module = module

    def __reduce__(self) -> Any:
        """Name the globals."""
        return imported, (self._module,)


def _note(value: Any) -> _Noted:
    content = content_of(value)
    if content is not None and len(content) > _SMALL:  # looking at it often would cost too much
        content = None
    try:
        return _Noted(next(_versions), weakref.ref(value), True, content)
    except TypeError:
        return _Noted(next(_versions), value, False, content)


def content_of(value: Any) -> bytes | None:
    """The content of a small container, or instance, of plain data; None for all else.

    It runs no code of the user.
    """
    if issubclass(type(value), type):
        value = _plain_attributes(value)
    elif type(value) not in _CONTAINERS:
        if type(value).__module__ == "builtins":
            return None
        try:
            value = object.__getattribute__(value, "__dict__")
        except (AttributeError, TypeError):
            return None
        if type(value) is not dict:
            return None
    if len(value) > _SMALL:
        return None
    try:
        return marshal.dumps(value, 2)  # later versions give other bytes for equal content
    except (ValueError, RuntimeError):  # it is more than plain data, or was changed meanwhile
        return None


def _plain_attributes(cls: type) -> dict[str, Any]:
    """What a class of the script has for settings: numbers, strings and the like, by name."""
    inside = type.__getattribute__(cls, "__dict__")
    if inside.get("__module__") != "__main__":
        return {}
    return {
        name: value
        for name, value in list(inside.items())
        if type(value) in _ATOMS and not name.startswith("__")
    }


# In the process that gets them. Pickles name these functions.

_variables: dict[str, dict[str, Any]] = {}
_known: dict[str, dict[str, int]] = {}
_former: list[Any] = []


def start_anew() -> None:
    """Begin without variables: a worker begins here."""
    _variables.clear()
    _known.clear()


class _Script(types.ModuleType):
    """The script, in a worker process: annotations are resolved in its `__dict__`.

    Pickle finds nothing in it. A child that multiprocessing starts in a handler has no such module:
    it would die of a function that came by name, and a pool would start the next for ever. Nor does
    multiprocessing find `__file__`, and run the script in the children that it starts.
    """

    def __getattribute__(self, name: str) -> Any:
        """Have its own attributes only."""
        if name == "__file__" or not (name.startswith("__") and name.endswith("__")):
            raise AttributeError(f"{name!r} of the script cannot be named in a worker process")
        return super().__getattribute__(name)


def be_the_script() -> None:
    """Have `__main__` mean the script in this process, as annotations and pickle expect it."""
    _former.append(sys.modules["__main__"])  # the variables of a module go when it goes
    script = _Script("__main__")
    sys.modules["__main__"] = script
    _variables["__main__"] = vars(script)


def variables_of(module: str, own: Mapping[str, Any]) -> dict[str, Any]:
    """The globals of all functions of a module that came by value."""
    variables = _variables.setdefault(module, {})
    for name, value in own.items():
        if variables.get(name) is None:
            variables[name] = value
    return variables


def imported(module: str) -> dict[str, Any]:
    """The globals of a module, which is imported for that."""
    return vars(importlib.import_module(module))


def fill(module: str, versions: Mapping[str, int], values: Mapping[str, Any]) -> None:
    """Set variables that are not there, or are older; all others stay as the worker has them."""
    variables, known = variables_of(module, {"__name__": module}), _known.setdefault(module, {})
    for name, value in values.items():
        version, had = versions[name], known.get(name)
        if (
            had is None and variables.get(name) is not None
        ):  # the worker has set it: its set-up, say
            known[name] = version
        elif had is None or had < version:
            variables[name], known[name] = value, version


def take_in(
    module: str,
    versions: Mapping[str, int],
    values: Mapping[str, Any],
    function: Callable[..., None] | None = None,
    arguments: tuple[Any, ...] = (),
) -> None:
    """Take in a change, as its parts say."""
    fill(module, versions, values)
    if function is not None:
        function(*arguments)


def _set_attributes(cls: type, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        setattr(cls, name, value)


def set_function(function: Any, state: tuple[Any, ...]) -> None:
    """Give a function that came by value its state, and the variables that it uses."""
    set_state, own, module, versions, values = state
    fill(module, versions, values)
    set_state(function, own)
