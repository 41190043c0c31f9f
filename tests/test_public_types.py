"""Each type that a public name leads to is public as well, so that users can write it down."""

from __future__ import annotations

import ast
import inspect
import re
import typing
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cached_property
from pathlib import Path
from types import FunctionType

import procbus
import procbus.testing
from procbus import EventBus

#: Arguments and results of methods that only the bus calls, on an object that users have too.
OF_THE_BUS = {
    "CancelRequest",
    "ClusterPool",
    "InlineRun",
    "Run",
    "Shelf",
    "Sleeper",
    "ThreadSetUp",
}

WORD = re.compile(r"(?<![\w.'\"])[A-Za-z_]\w*")


def own_classes() -> set[str]:
    """The names of all classes of procbus, whether or not their libraries are installed."""
    return {
        node.name
        for file in Path(procbus.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    }


def annotations_of(thing: object) -> Iterator[tuple[str, str]]:
    """Each annotation that a user of a public name meets: results, arguments, fields."""
    if not isinstance(thing, type):
        yield from signature(thing)
        return
    if is_dataclass(thing):
        yield from ((f"{thing.__name__}.{f.name}", str(f.type)) for f in fields(thing))
    elif issubclass(thing, tuple) and hasattr(thing, "_fields"):
        yield from ((f"{thing.__name__}.{n}", str(a)) for n, a in thing.__annotations__.items())
    elif typing.is_typeddict(thing):
        for name, each in thing.__annotations__.items():
            yield f"{thing.__name__}.{name}", getattr(each, "__forward_arg__", str(each))
    if thing is EventBus:
        yield from signature(vars(thing)["__init__"])
    for base in thing.__mro__:
        if base.__module__.startswith("procbus."):
            yield thing.__name__, " ".join(map(str, getattr(base, "__orig_bases__", ())))
        for name, member in vars(base).items():
            if name.startswith("_") or not base.__module__.startswith("procbus."):
                continue
            if isinstance(member, property):
                yield from signature(member.fget)
            elif isinstance(member, cached_property):
                yield from signature(member.func)
            elif isinstance(member, classmethod | staticmethod):
                yield from signature(member.__func__)
            elif inspect.isfunction(member):
                yield from signature(member)


def signature(function: object) -> Iterator[tuple[str, str]]:
    assert isinstance(function, FunctionType)
    for written in (function, *typing.get_overloads(function)):
        for name, annotation in written.__annotations__.items():
            yield f"{function.__qualname__}({name})", str(annotation)


def public_things() -> dict[str, object]:
    modules = (procbus, procbus.testing)
    return {name: getattr(module, name) for module in modules for name in module.__all__}


def test_each_type_that_a_public_name_leads_to_is_public() -> None:
    public = public_things()
    classes = own_classes()
    hidden = {
        f"{where}: {name}"
        for thing in public.values()
        for where, annotation in annotations_of(thing)
        for name in WORD.findall(annotation)
        if name in classes - OF_THE_BUS and name not in public and not name.startswith("_")
    }
    assert sorted(hidden) == []
