# SPDX-License-Identifier: MIT
"""Objects of the user's as text, without running any of the user's code.

A `__repr__` may hang, or take a lock. The live view shows events and errors of a stuck script. So
it reads the parts of such objects only with the functions of Python's own classes. If an object
hides its parts, its class is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from procbus.core.text import printable
from procbus.core.user_objects import bases_of, class_name, is_a

#: Maximum length of an object that is shown, in characters.
PLAIN_CHARS = 200
#: Maximum number of parts of an object that are shown, and of objects nested in each other.
_PARTS = 8
_DEPTH = 3
#: Maximum length of one string or number in an object, in characters.
_PIECE = 80

_DICT = type.__dict__["__dict__"]
_MEMBER = type(type("_Slotted", (), {"__slots__": ("x",)}).__dict__["x"])


def plain_text(obj: object, most: int = PLAIN_CHARS) -> str:
    """An object in one line, as far as it can be read without its own methods.

    Args:
        obj: any object.
        most: maximum length, in characters.
    """
    return cut(_text(obj, _DEPTH), most)


def plain_error(error: BaseException | None) -> str:
    """The class and the message of an exception in one line, without its own methods."""
    if error is None:
        return ""
    args = BaseException.__dict__["args"].__get__(error)
    if len(args) == 1 and type(args[0]) is str and not is_a(error, KeyError):
        words = args[0][: 2 * PLAIN_CHARS]
    elif is_a(error, OSError) and len(args) == 2 and type(args[1]) is str:
        words = args[1][: 2 * PLAIN_CHARS]
    else:
        words = ", ".join(_text(arg, _DEPTH - 1) for arg in args[:_PARTS])
    words = printable(" ".join(words.split()))
    return cut(f"{class_name(error)}: {words}" if words else class_name(error), PLAIN_CHARS)


def cut(text: str, most: int) -> str:
    """Cut a text that is too long, and mark the cut by dots."""
    return text if len(text) <= most else f"{text[: max(0, most - 3)]}..."


def _text(obj: object, depth: int) -> str:
    cls = type(obj)
    if cls in _ATOMS:
        return _ATOMS[cls](obj)
    if depth <= 0:
        return "..."
    if cls in _BRACKETS:
        # A list may change meanwhile, in another thread; so its parts are taken in one step.
        parts = [_text(part, depth - 1) for part in _first(obj)]
        return _joined(_BRACKETS[cls], parts, len(obj))  # type: ignore[arg-type]
    if cls is dict:
        pairs = [
            f"{_text(k, depth - 1)}: {_text(v, depth - 1)}" for k, v in _first(obj, items=True)
        ]
        return _joined("{}", pairs, len(obj))  # type: ignore[arg-type]
    fields = [f"{name}={_text(value, depth - 1)}" for name, value in islice(_fields(obj), _PARTS)]
    if not fields and is_a(obj, tuple):
        fields = [_text(part, depth - 1) for part in tuple.__getitem__(obj, slice(_PARTS))]
    return f"{class_name(obj)}({', '.join(fields)})" if fields else f"<{class_name(obj)}>"


def _string(obj: Any) -> str:
    return repr(obj) if len(obj) <= _PIECE else f"{obj[:_PIECE]!r}..."


def _number(obj: Any) -> str:
    bits = obj.bit_length()
    return repr(obj) if bits <= 4 * _PIECE else f"<int of {bits} bits>"


_ATOMS: dict[type, Callable[[Any], str]] = {
    str: _string,
    bytes: _string,
    int: _number,
    **dict.fromkeys((bool, float, complex, type(None), type(...)), repr),
}
_BRACKETS: dict[type, str] = {list: "[]", tuple: "()", set: "{}", frozenset: "{}"}


def _first(obj: Any, *, items: bool = False) -> list[Any]:
    try:
        return list(islice(obj.items() if items else obj, _PARTS))
    except RuntimeError:  # another thread changes it
        return []


def _joined(brackets: str, parts: Iterable[str], size: int) -> str:
    shown = list(parts)
    if size > len(shown):
        shown.append(f"... {size} in all")
    return f"{brackets[0]}{', '.join(shown)}{brackets[1]}"


def _fields(obj: object) -> Iterator[tuple[str, object]]:
    """The attributes of an object, in slots and in its `__dict__`, read without its own methods."""
    own: Any = None
    for base in reversed(bases_of(type(obj))):
        held = _DICT.__get__(base)
        slots = held.get("__slots__")  # in the order in which they were written
        slots = slots if type(slots) is tuple else ()
        names = dict.fromkeys((*slots, *held))
        for name in names:
            member = held.get(name)
            if type(member) is _MEMBER and not name.startswith("_"):
                try:
                    yield name, member.__get__(obj)
                except AttributeError:  # not set
                    continue
            elif name == "__dict__" and type(member).__name__ == "getset_descriptor":
                own = member
    if own is not None:
        held = own.__get__(obj)
        for name in _first(held):
            if type(name) is str and not name.startswith("_"):
                yield name, held.get(name)
