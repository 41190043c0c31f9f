# SPDX-License-Identifier: MIT
"""Exceptions taken apart and put together again, without a call of their class.

Pickle makes an exception again by calling its class with `args`. That call fails for a class that
takes a keyword or several arguments. And if `__init__` composes the message, the call composes it a
second time. This module makes the exception without `__init__`, and gives it its `args`,
attributes, notes and slots back.
"""

from __future__ import annotations

import builtins
import contextlib
import copyreg
from collections.abc import Callable
from types import GetSetDescriptorType, MemberDescriptorType
from typing import Any

from procbus.core.user_objects import bases_of, short_repr

_BUILTIN = frozenset(
    cls
    for cls in vars(builtins).values()
    if isinstance(cls, type) and issubclass(cls, BaseException)
)
#: A class that defines one of these methods pickles its objects in its own way.
_OWN_WAYS = (
    "__reduce__",
    "__reduce_ex__",
    "__getstate__",
    "__setstate__",
    "__getnewargs__",
    "__getnewargs_ex__",
)
_ARGS = BaseException.__dict__["args"]
_DICT = BaseException.__dict__["__dict__"]
_VARS = type.__dict__["__dict__"]
_NOTES = "__notes__"

#: `args`; the attributes; and the slots and C fields, each with the index of its class among the
#: bases.
State = tuple[tuple[Any, ...], dict[str, Any], list[tuple[int, str, Any]]]


def has_own_way(cls: type) -> bool:
    """Whether pickle's own way is the right one for exceptions of this class."""
    if cls in _BUILTIN or cls in copyreg.dispatch_table:
        return True
    own = [base for base in bases_of(cls) if base is not object and base not in _BUILTIN]
    return any(way in _VARS.__get__(base) for base in own for way in _OWN_WAYS)


def reduced(error: BaseException, travels: Callable[[Any], bool] | None = None) -> tuple[Any, ...]:
    """Take an exception apart, for pickle.

    Args:
        error: the exception.
        travels: tells whether a part can be pickled. Other parts are left out, and a note on the
            exception names them. None takes all parts.

    Returns:
        The result of a `__reduce__`.
    """
    cls = type(error)
    made_with: tuple[Any, ...] = ()
    if issubclass(cls, BaseExceptionGroup):
        made_with = (
            BaseExceptionGroup.message.__get__(error),
            BaseExceptionGroup.exceptions.__get__(error),
        )
    args, own, fields = _ARGS.__get__(error), dict(_DICT.__get__(error)), _fields_of(error)
    if travels is not None:
        args, own, fields = _left_over(args, own, fields, travels, bool(made_with))
    return make, (cls, made_with), (args, own, fields), None, None, fill_exception


def make(cls: type[BaseException], made_with: tuple[Any, ...]) -> BaseException:
    """Make an empty exception. Pickles name this function."""
    for base in bases_of(cls):
        if base in _BUILTIN:
            with contextlib.suppress(TypeError):  # another base determines the memory layout
                error: BaseException = base.__new__(cls, *made_with)
                return error
    raise TypeError(f"{cls!r} is no exception class that can be made")


def fill_exception(error: BaseException, state: State) -> None:
    """Restore the parts of an empty exception. Pickles name this function."""
    args, own, fields = state
    if args:
        _ARGS.__set__(error, args)
    _DICT.__get__(error).update(own)
    bases = bases_of(type(error))
    for place, name, value in fields:
        with contextlib.suppress(Exception):  # some fields are read-only
            _VARS.__get__(bases[place])[name].__set__(error, value)


def _fields_of(error: BaseException) -> list[tuple[int, str, Any]]:
    """The slots of an exception, and the fields of classes written in C."""
    cls = type(error)
    fields = []
    for place, base in enumerate(bases_of(cls)):
        if base in (object, BaseException, BaseExceptionGroup):
            continue
        for name, field in _VARS.__get__(base).items():
            if type(field) not in (MemberDescriptorType, GetSetDescriptorType):
                continue
            if name in ("__dict__", "__weakref__"):
                continue
            with contextlib.suppress(Exception):  # the slot is not set
                value = field.__get__(error, cls)
                if value is not None or base not in _BUILTIN:  # there None means "not set"
                    fields.append((place, name, value))
    return fields


def _left_over(
    args: tuple[Any, ...],
    own: dict[str, Any],
    fields: list[tuple[int, str, Any]],
    travels: Callable[[Any], bool],
    is_group: bool,
) -> State:
    """Leave out the parts that cannot travel, and name them in a note."""
    left = [name for name, value in own.items() if not travels(value)]
    left += [name for _, name, value in fields if not travels(value)]
    if is_group:
        args = ()
    left += [f"args[{index}]" for index, value in enumerate(args) if not travels(value)]
    args = tuple(value if travels(value) else short_repr(value) for value in args)
    own = {name: value for name, value in own.items() if name not in left}
    fields = [field for field in fields if field[1] not in left]
    if left:
        notes = own.get(_NOTES)
        said = f"left behind in the worker, since it cannot travel: {', '.join(left)}"
        own[_NOTES] = [*(notes if type(notes) is list else ()), said]
    return args, own, fields
