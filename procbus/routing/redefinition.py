# SPDX-License-Identifier: MIT
"""Tells a definition that is run again from another one that happens to have the same name.

When a cell of a notebook is run again, or a module reloaded, functions and classes of the same
module and qualified name come in place of those from before. In one run of a script, though, a loop
or two definitions may well give several functions one name, and all of them are meant.
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
    """Where a handler's function was written, and which run of what code subscribed it."""

    #: Module and qualified name; None for what has none of its own, as a lambda has.
    name: tuple[str, str] | None
    #: Of the function that the user wrote, beneath decorators; None where there is none.
    code: CodeType | None
    #: The identity of the variables of its module.
    variables: int
    #: What tells one run of the code around it from the next: the number of the cell; of an
    #: imported module the specification, which reloading makes anew; else the code of the script.
    #: None where that cannot be found out.
    run: int | ModuleSpec | CodeType | None
    #: The cell whose run subscribed it; and the statement there: its code, and its line.
    cell: int | None
    statement: tuple[CodeType, int] | None


def provenance_of(function: Callable[..., Any]) -> Provenance:
    """Find out where a function comes from that is being subscribed by the calling code."""
    cell = cell_number()
    try:
        source = written(function)
    except ValueError:  # decorators that name each other as what they wrap
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
    """Whether a handler is there in place of an older one. No code of the user's runs for it.

    Args:
        new: of a handler that is being subscribed.
        old: of one that is subscribed.
        same_topics: whether both are on the very same topics.
    """
    if same_topics and _is_statement_again(new, old):
        return True
    if new.name is None or new.name != old.name or new.code is None or old.code is None:
        return False
    if new.code is old.code:  # one definition made both: in a loop, or with other variables
        return False
    if new.name[1] == "_" and not same_topics:  # the name says that it is none
        return False
    if new.cell is None and new.variables != old.variables and not _is_import_again(new, old):
        return False  # of another module that has the name
    moved = new.code.co_firstlineno != old.code.co_firstlineno
    elsewhere = new.code.co_filename != old.code.co_filename
    if new.run is None or old.run is None or (new.run == old.run and isinstance(new.run, int)):
        # Two definitions in one source are on two lines of it. A cell of other text has another
        # name, and may have been run again without being counted.
        return elsewhere or not moved
    return new.run is not old.run


def is_class_anew(cls: type, topic: type) -> bool:
    """Whether a class, or one that it inherits from, is another definition of the topic's class.

    So a handler takes the events of the class that its topic became, when the cell of that class
    was run again or its module reloaded. The name has to stand for one of the two now: classes that
    only have a name in common are left apart.
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
    """Whether a statement was run in another run of its cell. Codes compare by their content."""
    return (
        new.cell is not None
        and old.cell is not None
        and new.cell != old.cell
        and new.statement is not None
        and new.statement == old.statement
    )


def _is_import_again(new: Provenance, old: Provenance) -> bool:
    """Whether both are of modules that were imported from one file."""
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
    """The frame that runs the code of the module with these variables, or of the main program."""
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
