# SPDX-License-Identifier: MIT
"""Global variables of the script and its other modules by value, in worker processes.

Functions of one script share their globals. Functions that travel by value must share them too. So
a worker has one set of globals for each module that it cannot import. A variable arrives with the
first function that needs the variable. The worker's value then stays, until the script assigns
another value to that name: the new value is sent to all workers, once.
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

#: Maximum share of the time that looking for changes may take, as its reciprocal.
_SHARE = 200
#: Maximum size of a plain container whose changes in place are noticed, in bytes.
_SMALL = 4096
_CONTAINERS = frozenset((dict, list, set, bytearray))

#: Types of class attributes whose changes are noticed.
_ATOMS = frozenset((int, float, complex, bool, str, bytes, type(None)))

#: Stands for a variable that was deleted.
_GONE = object()


class _Noted(NamedTuple):
    """A global variable, as it was sent."""

    version: int
    #: A weak reference to the value if possible, so that the value is not kept alive; or the value.
    value: Any
    weak: bool
    content: bytes | None

    def is_still(self, value: Any) -> bool:
        """Whether the variable still has the same object, with the same content."""
        known = self.value() if self.weak else self.value
        if known is not value or (self.weak and known is None):
            return False
        return self.content is None or self.content == content_of(value)


# The tables need no lock: each step is atomic for other threads. If two threads note the same
# change at once, the change is sent twice, which does no harm.
_versions = itertools.count(1)
_noted: dict[str, dict[str, _Noted]] = {}
#: For each variable that changed after it was sent: the number of the newest change, and the value
#: encoded.
_changes: dict[tuple[str, str], tuple[int, bytes]] = {}
_refused: set[tuple[str, str]] = set()
_next_look = 0.0
#: Number of the newest change: a worker with this number knows all changes.
_newest = 0


def shared_name(variables: Mapping[str, Any]) -> str | None:
    """Return the name of the module whose globals these are; None if no module has them."""
    name = variables.get("__name__")
    module = sys.modules.get(name) if type(name) is str else None
    return name if module is not None and getattr(module, "__dict__", None) is variables else None


def note(module: str, values: Mapping[str, Any]) -> dict[str, int]:
    """Note that variables of a module are sent with these values; return the version of each."""
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


def look(encode: Callable[[object], bytes], importable: Callable[[str], bool]) -> int:
    """Look for variables that changed since they were sent, if a look is due.

    Args:
        encode: encodes a value for workers.
        importable: whether workers can import a module.

    Returns:
        The number of the newest change.
    """
    global _next_look
    began = perf_counter()
    if began < _next_look:
        return _newest
    _next_look = inf  # keeps other threads from looking meanwhile
    try:
        for module, known in list(_noted.items()):
            if importable(module):  # its own code changes them in each process
                continue
            variables = vars(sys.modules[module]) if module in sys.modules else {}
            for name, noted in list(known.items()):
                value = variables.get(name, _GONE)
                if value is not _GONE and not noted.is_still(value):
                    _tell(module, name, value, noted, encode)
    finally:
        ended = perf_counter()
        _next_look = ended + _SHARE * (ended - began)
    return _newest


def _tell(
    module: str, name: str, value: Any, noted: _Noted, encode: Callable[[object], bytes]
) -> None:
    global _newest
    versions = note(module, {name: value})
    change = _Change(module, versions, {name: value})
    if issubclass(type(value), type) and noted.content is not None:
        # Workers have the class as it was sent, or another one that had this name.
        was = marshal.loads(noted.content)  # noqa: S302 - our own bytes
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
    _newest += 1
    _changes[module, name] = _newest, data


def since(known: int) -> list[bytes]:
    """Return the messages for a worker that knows all changes up to the number `known`."""
    return [data for number, data in list(_changes.values()) if number > known]


class _Change:
    """New values of variables, on their way to workers."""

    def __init__(self, module: str, versions: Mapping[str, int], values: Mapping[str, Any]) -> None:
        self._parts: tuple[Any, ...] = module, versions, values

    def also(self, function: Callable[..., None], *arguments: Any) -> None:
        """Have a function called in the worker as well."""
        self._parts = (*self._parts, function, arguments)

    def __reduce__(self) -> Any:
        return take_in_globals, self._parts


class ModuleGlobals:
    """The globals of a module, named by a function that travels by value.

    Args:
        module: name of the module.
        own: the entries that Python itself keeps, such as `__name__`.
    """

    def __init__(self, module: str, own: dict[str, Any]) -> None:
        self._parts = module, own

    def __reduce__(self) -> Any:
        """Pickle as a name, under which the worker makes the globals if needed."""
        return variables_of, self._parts


class Imported:
    """The globals of a module that the worker imports, named by a function."""

    def __init__(self, module: str) -> None:
        self._module = module

    def __reduce__(self) -> Any:
        """Pickle as a name, under which the worker imports the module."""
        return imported, (self._module,)


def _note(value: Any) -> _Noted:
    content = content_of(value)
    if content is not None and len(content) > _SMALL:  # frequent looks would cost too much
        content = None
    try:
        return _Noted(next(_versions), weakref.ref(value), True, content)
    except TypeError:
        return _Noted(next(_versions), value, False, content)


def content_of(value: Any) -> bytes | None:
    """The content of a small container or instance of plain data; None for anything else.

    This function runs no code of the user's.
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
    except (ValueError, RuntimeError):  # it is not plain data, or was changed meanwhile
        return None


def _plain_attributes(cls: type) -> dict[str, Any]:
    """The settings in a class of the script: numbers, strings and similar values, by name."""
    inside = type.__getattribute__(cls, "__dict__")
    if inside.get("__module__") != "__main__":
        return {}
    return {
        name: value
        for name, value in list(inside.items())
        if type(value) in _ATOMS and not name.startswith("__")
    }


# In the process that receives them. Pickles name these functions.

_variables: dict[str, dict[str, Any]] = {}
_known: dict[str, dict[str, int]] = {}
_former: list[Any] = []


def start_anew() -> None:
    """Begin without variables, as a worker does."""
    _variables.clear()
    _known.clear()


class _Script(types.ModuleType):
    """The script, in a worker process: annotations are resolved in its `__dict__`.

    Pickle finds no attribute in this module, so it cannot name a function of it. A child that
    multiprocessing starts in a handler has no such module. That child would die of a function that
    arrived by name, and a pool would start the next child, for ever. multiprocessing also finds no
    `__file__`, so it does not run the script in its children.
    """

    def __getattribute__(self, name: str) -> Any:
        """Hide the script's variables; return only the module's own attributes."""
        if name == "__file__" or not (name.startswith("__") and name.endswith("__")):
            raise AttributeError(f"{name!r} of the script cannot be named in a worker process")
        return super().__getattribute__(name)


def be_the_script() -> None:
    """Make `__main__` the script in this process, as annotations and pickle expect."""
    _former.append(sys.modules["__main__"])  # kept, because its variables would go with it
    script = _Script("__main__")
    sys.modules["__main__"] = script
    _variables["__main__"] = vars(script)


def variables_of(module: str, own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the globals shared by all functions of a module that came by value."""
    variables = _variables.setdefault(module, {})
    for name, value in own.items():
        if variables.get(name) is None:
            variables[name] = value
    return variables


def imported(module: str) -> dict[str, Any]:
    """Import a module, and return its globals."""
    return vars(importlib.import_module(module))


def fill_globals(module: str, versions: Mapping[str, int], values: Mapping[str, Any]) -> None:
    """Set the variables that the worker lacks or has in an older version; leave the others."""
    variables, known = variables_of(module, {"__name__": module}), _known.setdefault(module, {})
    for name, value in values.items():
        version, had = versions[name], known.get(name)
        if (
            had is None and variables.get(name) is not None
        ):  # the worker itself has set it, in its set-up for example
            known[name] = version
        elif had is None or had < version:
            variables[name], known[name] = value, version


def take_in_globals(
    module: str,
    versions: Mapping[str, int],
    values: Mapping[str, Any],
    function: Callable[..., None] | None = None,
    arguments: tuple[Any, ...] = (),
) -> None:
    """Set the changed variables."""
    fill_globals(module, versions, values)
    if function is not None:
        function(*arguments)


def _set_attributes(cls: type, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        setattr(cls, name, value)


def set_function(function: Any, state: tuple[Any, ...]) -> None:
    """Give a function that came by value its state, and the variables that it uses."""
    set_state, own, module, versions, values = state
    fill_globals(module, versions, values)
    set_state(function, own)
