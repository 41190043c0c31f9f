# SPDX-License-Identifier: MIT
"""The rough size of an object in memory, found in microseconds."""

from __future__ import annotations

import contextlib
import sys
from collections import deque
from collections.abc import Iterable
from itertools import islice
from types import FunctionType, MemberDescriptorType, ModuleType
from typing import Any

#: Maximum depth of containers and objects that are looked into, and maximum number of elements that
#: stand for all elements of a container.
_DEEP = 3
_SAMPLE = 3
#: Maximum number of an object's fields that are looked at.
_FIELDS = 50
#: Types whose size Python knows by itself, or whose objects no event or result has to itself.
_LEAVES = (int, float, complex, bool, str, bytes, bytearray, type(None))
_SHARED = (type, FunctionType, ModuleType)


def rough_size(obj: object) -> int:
    """Return the bytes that an object takes, as far as a quick look tells.

    A few elements stand for all elements of a container. An object that occurs twice counts twice.
    Nothing is raised: an object that cannot be looked into counts as small.
    """
    try:
        return _size(obj, _DEEP)
    except Exception:  # noqa: BLE001 - the user's `__sizeof__`, or a dict that changed meanwhile
        return sys.getsizeof(None)


def _size(obj: Any, deep: int) -> int:
    kind = type(obj)
    if kind in _LEAVES:
        return sys.getsizeof(obj)
    if isinstance(obj, _SHARED):
        return 0
    size = max(sys.getsizeof(obj), _buffer(obj))
    if not deep:
        return size
    if isinstance(obj, (list, tuple)):
        return size + _elements(
            (obj[0], obj[len(obj) // 2], obj[-1]) if obj else (), len(obj), deep
        )
    if isinstance(obj, dict):
        some = (part for pair in islice(dict.items(obj), _SAMPLE) for part in pair)
        return size + _elements(some, 2 * len(obj), deep)
    if isinstance(obj, (set, frozenset, deque)):
        return size + _elements(islice(obj, _SAMPLE), len(obj), deep)
    return size + sum(_size(each, deep - 1) for each in islice(_fields(obj), _FIELDS))


def _elements(some: Iterable[object], count: int, deep: int) -> int:
    sizes = [_size(each, deep - 1) for each in some]
    return count * sum(sizes) // len(sizes) if sizes else 0


def _buffer(obj: Any) -> int:
    """The bytes of an array, which may be a view of another one."""
    size = getattr(obj, "nbytes", 0)
    return size if type(size) is int else 0


def _fields(obj: Any) -> Iterable[object]:
    """The values of an object's own fields."""
    yield from getattr(obj, "__dict__", {}).values()
    for base in type(obj).__mro__:
        for field in base.__dict__.values():
            if type(field) is MemberDescriptorType:  # a slot
                with contextlib.suppress(AttributeError):  # it is not set
                    yield field.__get__(obj)
