# SPDX-License-Identifier: MIT
"""Fingerprints of the user's objects, to see whether one was changed between two looks.

A fingerprint is a hash of the object's pickle. In that pickle only names stand for functions,
classes, modules and objects that cannot be pickled. Taking a fingerprint never raises. An object
that is too large has none.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from itertools import islice
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, NamedTuple

from procbus.codec.fault_path import parts_of
from procbus.core.introspection import name_of
from procbus.core.user_objects import class_name, full_name

#: Maximum size of a pickle that is looked at, in bytes; because a look should take milliseconds.
MOST_PICKLED = 16 << 20
#: Maximum number of parts of an object that are compared.
_PARTS = 100

_NAMED_ONLY = (type, FunctionType, BuiltinFunctionType, ModuleType)


class Imprint(NamedTuple):
    """An object as it was at one time."""

    #: Its fingerprint; None if it has none.
    whole: bytes | None
    #: Each of its parts, as the step that leads to it, with its fingerprint.
    parts: dict[str, bytes | None]


def look_at(obj: Any) -> Imprint:
    """Take the fingerprint of an object and of its parts."""
    whole = fingerprint(obj)
    if whole is None:
        return Imprint(None, {})
    try:
        parts = {step: fingerprint(part) for step, part in _parts_of(obj)}
    except BaseException:  # noqa: BLE001 - looking into it may run the user's code
        parts = {}
    return Imprint(whole, parts)


def changes(before: Imprint, obj: Any, name: str) -> Sequence[str]:
    """Say which parts of an object are not as they were.

    Args:
        before: the earlier imprint of the object.
        obj: the object now.
        name: the name of the object.

    Returns:
        Expressions such as `event.rows`; only the name, if the changed part is unknown; none if the
        object is unchanged, or cannot be compared.
    """
    now = fingerprint(obj)
    if before.whole is None or now is None or now == before.whole:
        return ()
    then, parts = before.parts, look_at(obj).parts
    steps = [step for step in {**then, **parts} if then.get(step) != parts.get(step)]
    return [name + step for step in steps] or [name]


#: Maximum of changed parts that a message lists.
_FEW = 5


def listed(found: Sequence[str]) -> str:
    """List changed parts for a message: the first few, and the number of the others."""
    more = f" and {len(found) - _FEW} more" if len(found) > _FEW else ""
    return ", ".join(found[:_FEW]) + more


def _parts_of(obj: Any) -> Iterator[tuple[str, Any]]:
    """The parts that an expression can name: no keys, no members of sets."""
    steps = (each for each in parts_of(obj) if not each[0].startswith(","))
    return islice(steps, _PARTS)


def fingerprint(obj: Any) -> bytes | None:
    """Take the fingerprint of an object; None if it has none."""
    sink = _Hash()
    try:
        _Pickler(sink, pickle.HIGHEST_PROTOCOL).dump(obj)
    except BaseException:  # noqa: BLE001 - pickling runs the user's code
        return None
    return sink.hash.digest()


class _Hash(io.RawIOBase):
    """A file that keeps a hash of what is written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.hash = blake2b(digest_size=16)
        self._left = MOST_PICKLED

    def write(self, data: Any) -> int:
        """Take in bytes; raise once there are too many."""
        view = memoryview(data).cast("B")
        self._left -= len(view)
        if self._left < 0:
            raise OverflowError
        self.hash.update(view)
        return len(view)


class _Pickler(pickle.Pickler):
    """A pickler that fails on no object, and whose pickles are not meant to be loaded."""

    def reducer_override(self, obj: Any) -> Any:
        """Pickle's hook for everything but plain data."""
        if obj is _name:
            return NotImplemented
        if isinstance(obj, _NAMED_ONLY):
            return _name, (_name_of(obj),)
        try:
            reduced = obj.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
        except Exception:  # noqa: BLE001 - a lock, or an object that refuses
            return _name, (class_name(obj),)
        return (_name, (reduced,)) if isinstance(reduced, str) else reduced


def _name_of(obj: Any) -> str:
    if isinstance(obj, type):
        return full_name(obj)
    return str(obj.__name__) if isinstance(obj, ModuleType) else name_of(obj)


def _name(name: str) -> str:
    """Stands in a pickle for an object that is only named there."""
    return name
