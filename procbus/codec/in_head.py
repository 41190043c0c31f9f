# SPDX-License-Identifier: MIT
"""Events that travel in the head of a batch, where all of them are pickled together.

Such an event is a small number or string, or an instance of a plain class with only such values. No
handler can tell whether two such events share a number or a string. No code of the user runs while
an instance is taken apart or made. An instance travels as its values: the batch has its class and
the names of its attributes once. Both sides together need 2 us for such an instance, and 5 us for
one that is pickled alone.
"""

from __future__ import annotations

import copyreg
from abc import ABCMeta
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import GetSetDescriptorType
from typing import Any

from procbus.codec.encoder import decode

#: Further types of events that may travel in the head; and the maximum length of a string, in
#: characters, and of a number, in bits.
_ATOMS = frozenset((float, bool, type(None)))
_LONGEST = 200
_WIDEST = 1 << 62

#: Maximum number of attributes of an instance in the head.
MOST_ATTRIBUTES = 32


def size_in_head(event: Any) -> int:
    """The approximate bytes of a small number or string in the head; 0 for any other event.

    An event in the head takes both sides together 0.1 us; one that is pickled alone takes 0.7 us.
    """
    kind = type(event)
    if kind is int:
        return 9 if -_WIDEST < event < _WIDEST else 0
    if kind is str:
        return 9 + len(event) if len(event) <= _LONGEST else 0
    return 9 if kind in _ATOMS else 0


#: Properties that instances in the head share: the encoded class, and the names of the attributes.
Shape = tuple[bytes, tuple[str, ...]]


#: An instance in the head: index of its shape in the batch, its values, and the approximate bytes.
InHead = tuple[int, tuple[Any, ...], int]


class Shapes:
    """The shapes of one batch. The shapes belong to the companion.

    Args:
        encode: encodes a class.
    """

    def __init__(self, encode: Callable[[type], bytes]) -> None:
        self._encode = encode
        #: By class: index of the shape, and the names of the attributes; None for a class whose
        #: instances are pickled.
        self._of: dict[type, tuple[int, tuple[str, ...]] | None] = {}
        #: For the head.
        self.found: list[Shape] = []

    def take(self, event: Any) -> InHead | None:
        """Take an instance apart; None for an event that has to be encoded alone."""
        kind = type(event)
        try:
            shape = self._of[kind]
        except KeyError:
            shape = self._of[kind] = self._shape_of(kind, event)
        if shape is None:
            return None
        index, names = shape
        state = event.__dict__
        if type(state) is not dict:
            return None
        values = tuple(state.values())
        if tuple(state) != names or len(values) != len(names):  # as another thread may change it
            return None
        size = 4
        for value in values:
            needed = size_in_head(value)
            if not needed:
                return None
            size += needed
        return index, values, size

    def _shape_of(self, kind: type, event: Any) -> tuple[int, tuple[str, ...]] | None:
        if not _is_plain(kind) or type(event.__dict__) is not dict:
            return None
        names = tuple(event.__dict__)
        # pickle looks for its methods in the instance too.
        if not 0 < len(names) <= MOST_ATTRIBUTES or any(map(_is_special, names)):
            return None
        with suppress(Exception):  # pickling the event will say why its class cannot travel
            self.found.append((self._encode(kind), names))
            return len(self.found) - 1, names
        return None


def _is_special(name: Any) -> bool:
    return type(name) is not str or name.startswith("__")


#: Names that a plain class does not define: pickle, or taking apart an instance, would call them.
_CALLED = frozenset(
    (
        *("__new__", "__reduce__", "__reduce_ex__", "__getattribute__", "__getstate__"),
        *("__setstate__", "__getnewargs__", "__getnewargs_ex__", "__getattr__", "__class__"),
    )
)


def _is_plain(kind: type) -> bool:
    """Whether pickle would take an instance apart into its class and its `__dict__` alone."""
    if type(kind) is not type and type(kind) is not ABCMeta:
        return False  # a metaclass may be the user's code
    if kind.__basicsize__ != _Plain.__basicsize__ or not kind.__dictoffset__:
        return False
    if kind in copyreg.dispatch_table:
        return False
    for base in kind.__mro__[:-1]:
        own = base.__dict__
        if own.get("__slots__") or not _CALLED.isdisjoint(own):
            return False
        if type(own.get("__dict__", _OWN_DICT)) is not GetSetDescriptorType:
            return False
    return True


class _Plain:
    """A class with a `__dict__` and weak references, as `class` makes them."""


_OWN_DICT = _Plain.__dict__["__dict__"]


class Maker:
    """Makes instances of one shape in a worker.

    Args:
        shape: the shape.
    """

    def __init__(self, shape: Shape) -> None:
        self._encoded, self._names = shape
        self._class: type | None = None

    def __call__(self, values: Iterable[Any]) -> Any:
        """Make an instance. Raises the error of loading its class, for each instance anew."""
        if self._class is None:
            self._class = decode(self._encoded)
        made = object.__new__(self._class)
        state = made.__dict__
        for name, value in zip(self._names, values, strict=False):  # `strict` takes 0.3 us
            state[name] = value
        return made
