# SPDX-License-Identifier: MIT
"""Tells a definition that is run again from a different one with the same name.

When a notebook cell is run again, or a module reloaded, its functions and classes replace the older
ones of the same module and qualified name. In a single run of a script, though, a loop or two
definitions may give several functions the same name, and each function is to be a handler. So each
handler remembers its `Provenance`, and a newer handler replaces an older handler only if both come
from the same place.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import CodeType, FrameType, FunctionType
from typing import Any, NamedTuple

from procbus.core.introspection import name_bearer, written
from procbus.core.notebook import cell_number


class Provenance(NamedTuple):
    """The place where a handler's function was written, and the run that subscribed it."""

    #: Module and qualified name; None for a function without a name of its own, such as a lambda.
    name: tuple[str, str] | None
    #: Code of the user's function, beneath decorators; None if there is none.
    code: CodeType | None
    #: Identity of the module's variables.
    variables: int
    #: Tells one run of the surrounding code from the next. For a cell it is the cell's number; for
    #: an imported module the module spec, which reloading makes anew; else the code of the script.
    #: None if it cannot be found.
    run: int | ModuleSpec | CodeType | None
    #: The cell whose run subscribed the handler; and the subscribing statement: its code and line.
    cell: int | None
    statement: tuple[CodeType, int] | None


def provenance_of(function: Callable[..., Any]) -> Provenance:
    """Find the provenance of a function that the calling code is subscribing."""
    cell = cell_number()
    try:
        source = written(function)
    except ValueError:  # decorators that wrap each other in a circle
        source = None
    if not isinstance(source, FunctionType):
        frame = _running_frame(None)
        return Provenance(None, None, 0, None, cell, _statement(frame))
    variables = source.__globals__
    frame = _running_frame(variables if cell is None else None)
    run: int | ModuleSpec | CodeType | None = cell
    spec = variables.get("__spec__")
    if isinstance(spec, ModuleSpec) and variables.get("__name__") != "__main__":
        run = spec
    elif cell is None and frame is not None and frame.f_globals is variables:
        run = frame.f_code
    return Provenance(
        _name_of(function), source.__code__, id(variables), run, cell, _statement(frame)
    )


def takes_its_place(new: Provenance, old: Provenance, same_topics: bool) -> bool:
    """Whether a handler replaces an older one. No code of the user's runs for it.

    Args:
        new: provenance of the handler that is being subscribed.
        old: provenance of a handler that is subscribed already.
        same_topics: whether both have exactly the same topics.
    """
    if same_topics and _is_statement_again(new, old):
        return True
    if new.name is None or new.name != old.name or new.code is None or old.code is None:
        return False
    if new.code is old.code:  # one definition made both: in a loop, or with other variables
        return False
    if new.name[1] == "_" and not same_topics:  # by convention `_` is no name
        return False
    if new.cell is None and new.variables != old.variables and not _is_import_again(new, old):
        return False  # the handlers belong to two modules with the same name
    moved = new.code.co_firstlineno != old.code.co_firstlineno
    elsewhere = new.code.co_filename != old.code.co_filename
    if new.run is None or old.run is None or (new.run == old.run and isinstance(new.run, int)):
        # Two definitions in one source are on two lines of it. A cell with another text has another
        # name, and may have been run again without being counted.
        return elsewhere or not moved
    return new.run is not old.run


def is_class_anew(cls: type, topic: type) -> bool:
    """Whether a class, or one of its bases, is another definition of the topic's class.

    After the cell of a class is run again, or its module reloaded, a handler takes the events of
    the new class. The class's name must refer to one of the two now: classes that merely share a
    name stay apart.
    """
    name, module = topic.__qualname__, topic.__module__
    if "<" in name:
        return False
    for each in cls.__mro__:
        if each.__qualname__ == name and each is not topic and each.__module__ == module:
            present = _lookup(module, name)
            return present is each or present is topic
    return False


def _lookup(module: str, name: str) -> object:
    found: object = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, "__dict__", {}).get(part)
    return found


def _is_statement_again(new: Provenance, old: Provenance) -> bool:
    """Whether a statement ran in another run of its cell. Codes compare by their content."""
    return (
        new.cell is not None
        and old.cell is not None
        and new.cell != old.cell
        and new.statement is not None
        and new.statement == old.statement
    )


def _is_import_again(new: Provenance, old: Provenance) -> bool:
    """Whether both belong to modules that were imported from one file."""
    return (
        isinstance(new.run, ModuleSpec)
        and isinstance(old.run, ModuleSpec)
        and new.run.origin == old.run.origin
    )


def _name_of(function: Callable[..., Any]) -> tuple[str, str] | None:
    found = name_bearer(function)
    module, name = getattr(found, "__module__", None), getattr(found, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str) or "<" in name:
        return None
    return str(module), str(name)


def _statement(frame: FrameType | None) -> tuple[CodeType, int] | None:
    return None if frame is None else (frame.f_code, frame.f_lineno)


def _running_frame(variables: dict[str, Any] | None) -> FrameType | None:
    """The frame that runs the code of the module with these variables, or the main program."""
    main = vars(sys.modules["__main__"])
    found = None
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name == "<module>":
            if frame.f_globals is variables:
                return frame
            if found is None and frame.f_globals is main:
                found = frame
        frame = frame.f_back
    return found
