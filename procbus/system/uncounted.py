# SPDX-License-Identifier: MIT
"""Objects that all threads use for each event, and whose uses Python need not count.

On a free-threaded build, a thread that uses an object made by another thread changes the object's
reference count. Two cores then wait for the same piece of memory, 0.2 us for each such object. From
3.14 on Python can leave these uses uncounted (deferred reference counting). Such an object is freed
only in Python's next search for garbage. The parts of a bus are freed in such a search anyway,
since they refer to each other.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable
from functools import cache
from types import BuiltinMethodType, MethodType, MethodWrapperType
from typing import Any

from procbus.core.gil import gil_is_on

_METHODS = (MethodType, BuiltinMethodType, MethodWrapperType)
_CONTAINERS = (dict, tuple, list, deque)
#: Reads the `__module__` of a class.
_MODULE = vars(type)["__module__"]


def leave_uncounted(*objects: object) -> None:
    """Have Python not count the uses of these objects, and of our objects that they refer to.

    This function does nothing if the GIL is on, or before Python 3.14.

    Args:
        objects: long-lived objects of procbus, or their methods.
    """
    if gil_is_on():
        return
    leave = _interpreters_function()
    for each in objects:
        leave(each)
        for kept in gc.get_referents(each):
            if _is_ours(kept):
                leave(kept)


def _is_ours(kept: object) -> bool:
    """Whether procbus made an object, and your code does not need it to be freed at once."""
    if isinstance(kept, _METHODS):
        kept = kept.__self__
    kind = type(kept)
    return any(kind is each for each in _CONTAINERS) or _module_of(kind).startswith("procbus.")


def _module_of(kind: type) -> str:
    """Read the module of a class, which may be a user's, without running a metaclass."""
    try:
        module = _MODULE.__get__(kind)
    except AttributeError:
        return ""
    return module if type(module) is str else ""


@cache
def _interpreters_function() -> Callable[[Any], object]:
    import ctypes  # only here: a script with a GIL does not need it

    leave = getattr(ctypes.pythonapi, "PyUnstable_Object_EnableDeferredRefcount", None)
    if leave is None:
        return _nothing
    leave.argtypes, leave.restype = [ctypes.py_object], ctypes.c_int
    return leave  # type: ignore[no-any-return]


def _nothing(_: object) -> None:
    """Stand in for the function on Python 3.13."""
