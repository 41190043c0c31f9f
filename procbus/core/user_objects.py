# SPDX-License-Identifier: MIT
"""Looking at the user's objects without harm from their methods.

An exception may be false, refuse attributes, lie about its class, or raise in `str()`. Even then
only one delivery may fail. So the modules that settle, log and send look at such objects through
these functions. The functions avoid the user's code where Python offers a way (the descriptors of
`BaseException` and `type`). Elsewhere they catch any exception of the user's code.
"""

from __future__ import annotations

import reprlib
import traceback
from types import TracebackType
from typing import Any, TypeGuard, TypeVar

T = TypeVar("T")

_NAME = type.__dict__["__name__"]
_MRO = type.__dict__["__mro__"]
_CAUSE = BaseException.__dict__["__cause__"]
_CONTEXT = BaseException.__dict__["__context__"]
_TRACEBACK = BaseException.__dict__["__traceback__"]

#: Maximum length of an object that is shown, in characters.
_LONGEST = 200

_short = reprlib.Repr()  # its settings never change
_short.maxother = _short.maxstring = _LONGEST


def class_name(obj: object) -> str:
    """The name of an object's class, whatever its metaclass says."""
    name: str = _NAME.__get__(type(obj))
    return name


def full_name(cls: type) -> str:
    """The name of a class, with its module."""
    try:
        return f"{cls.__module__}.{cls.__qualname__}"
    except BaseException:  # noqa: BLE001 - a metaclass is the user's code
        return str(_NAME.__get__(cls))


def bases_of(cls: type) -> tuple[type, ...]:
    """A class and its bases, in the order in which Python looks them through."""
    bases: tuple[type, ...] = _MRO.__get__(cls)
    return bases


def is_a(obj: object, kind: type[T]) -> TypeGuard[T]:
    """Whether an object is of this class, as `except` sees it: by its real class."""
    return any(base is kind for base in bases_of(type(obj)))


def is_any(obj: object, kinds: tuple[type, ...]) -> bool:
    """Whether an object is of one of these classes, as `except` sees it."""
    return any(base is kind for base in bases_of(type(obj)) for kind in kinds)


def words_of(error: BaseException) -> str:
    """The message of an exception; a note in its place if the message cannot be read."""
    try:
        return str.__str__(str(error))  # a plain string, whatever kind it gives
    except BaseException:  # noqa: BLE001 - the user's code
        return "(its message cannot be read)"


def named(error: BaseException) -> str:
    """An exception as the last line of a traceback has it: its class and its message."""
    words = words_of(error)
    return f"{class_name(error)}: {words}" if words else class_name(error)


def short_repr(obj: object) -> str:
    """The repr of an object: short, and never raising even if the object's own does."""
    try:
        return str.__str__(_short.repr(obj))
    except BaseException:  # noqa: BLE001 - the user's code
        return f"<{class_name(obj)} object, whose repr fails>"


def cause_of(error: BaseException) -> BaseException | None:
    """The cause of an exception."""
    cause: BaseException | None = _CAUSE.__get__(error)
    return cause


def set_cause(error: BaseException, cause: BaseException | None) -> None:
    """Set the cause of an exception, even one whose class refuses attributes."""
    _CAUSE.__set__(error, cause)


def context_of(error: BaseException) -> BaseException | None:
    """The exception that was being handled when this one was raised."""
    context: BaseException | None = _CONTEXT.__get__(error)
    return context


def traceback_of(error: BaseException) -> TracebackType | None:
    """The traceback of an exception."""
    found: TracebackType | None = _TRACEBACK.__get__(error)
    return found


def set_traceback(error: BaseException, trace: TracebackType | None) -> None:
    """Set the traceback of an exception."""
    _TRACEBACK.__set__(error, trace)


#: The place where an exception was raised, and the exception that was being handled there.
RaiseOrigin = tuple[TracebackType | None, BaseException | None]


def origin_of(error: BaseException) -> RaiseOrigin:
    """The origin of an exception, to be restored after it was raised elsewhere."""
    return traceback_of(error), _CONTEXT.__get__(error)


def restore_origin(error: BaseException, origin: RaiseOrigin) -> None:
    """Restore an exception's origin, because each raising adds to its traceback."""
    _TRACEBACK.__set__(error, origin[0])
    _CONTEXT.__set__(error, origin[1])


def text_of(error: BaseException, where: TracebackType | None) -> str:
    """An exception with its traceback and causes, as Python prints it.

    Args:
        error: the exception.
        where: its traceback, or the part of it to show.
    """
    text = standard_text_of(error, where)
    if text is not None:
        return text
    return f"Traceback (most recent call last):\n{frames_of(where)}{named(error)}\n"


def standard_text_of(error: BaseException, where: TracebackType | None) -> str | None:
    """As `text_of`; None for an exception that Python itself cannot print."""
    try:
        return "".join(traceback.format_exception(type(error), error, where))
    except BaseException:  # noqa: BLE001 - it asks for notes and causes, the user's code
        return None


def frames_of(where: TracebackType | None) -> str:
    """The frames of a traceback, as Python prints them."""
    return "".join(traceback.format_tb(where))


def attribute(obj: object, name: str) -> Any:
    """An attribute of an object; None if it has none, or if asking raises."""
    try:
        return getattr(obj, name)
    except BaseException:  # noqa: BLE001 - the user's code
        return None


def kind_of_event(event: Any) -> str:
    """Name the property that an event without a topic is routed by."""
    name = type(event).__qualname__
    try:
        event_type = getattr(event, "event_type", None)
        return f"{name} ({event_type!r})" if isinstance(event_type, str) else name
    except BaseException:  # noqa: BLE001 - a property of the user's; the event has no handler anyway
        return name
