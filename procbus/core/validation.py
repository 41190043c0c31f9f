# SPDX-License-Identifier: MIT
"""Checks of option values, and the words for the messages about wrong ones.

Numbers within bounds, amounts of memory ("512 MiB", "1.5 GB") and times ("7 days") are read here.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from datetime import timedelta
from math import inf
from numbers import Real
from typing import Any, Literal, TypeGuard

# Whether an option is a number within its bounds. True and False are no numbers here.

# In a variable of this type, because for mypy an int is no Real.
_REAL: type[Any] = Real


def is_whole(value: object, least: float, most: float = inf) -> TypeGuard[int]:
    """Whether a value is an integer from `least` to `most`."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def is_real(value: object, least: float, most: float) -> TypeGuard[float]:
    """Whether a value is a number from `least` to `most`, of Python's own or another library's.

    NaN is no such number.
    """
    return isinstance(value, _REAL) and not isinstance(value, bool) and bool(least <= value <= most)


# Words for error messages: the value given, and the value probably meant.

#: Maximum length of a value in a message, in characters.
_SHOWN = 200


def did_you_mean(given: object, known: Sequence[str], suffix: str = "") -> str:
    """Suggest the nearest of the known words, as the end of a sentence; empty if none is near.

    Args:
        given: the word that was written in place of one of them.
        known: the words.
        suffix: follows the word suggested, such as the ``=`` of an option.
    """
    import difflib  # only when something is wrong

    from procbus.core.foreign_names import meant_by

    if meant := meant_by(str(given), known):
        return f"; did you mean {meant}{suffix}?"
    lowered = {word.lower(): word for word in known}
    close = difflib.get_close_matches(str(given).lower(), list(lowered), n=1)
    return f"; did you mean {lowered[close[0]]}{suffix}?" if close else ""


def shown(value: object) -> str:
    """The repr of a value, cut to a length. Never raises, even if the value's own repr does."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - a repr is the user's code; that of a huge int fails too
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


_BINARY = ("B", "KiB", "MiB", "GiB", "TiB")
_DECIMAL = ("B", "kB", "MB", "GB", "TB")
_BYTES = {unit.lower(): 1024**power for power, unit in enumerate(_BINARY)} | {
    unit.lower(): 1000**power for power, unit in enumerate(_DECIMAL)
}
_UNITS = (*_DECIMAL, *_BINARY[1:])
# Units that stand for either of two, with those two.
_AMBIGUOUS = {
    short: pair
    for pair in zip(_DECIMAL[1:], _BINARY[1:], strict=True)
    for short in (pair[0][0].lower(), pair[1][:2].lower())
}
_SIZE = re.compile(r"([0-9]{1,20})(?:\.([0-9]{1,20}))?\s*([a-z]*)", re.ASCII | re.IGNORECASE)
_HOW = (
    'write a number and a unit, such as "512 MiB" or "1.5 GB" '
    f"(the units are {', '.join(_UNITS)}), or give the bytes as an integer"
)
#: More memory than any machine has.
_ABSURD = 1024**6
#: Rough memory of an empty Python process, in bytes.
_LEAST_LIMIT = 32 * 1024**2


def parse_size(value: int | str) -> int:
    """Read an amount of memory.

    Args:
        value: bytes as an integer, or a number and a unit: B, kB, MB, GB, TB count by 1000, KiB,
            MiB, GiB, TiB by 1024. Case does not matter; a decimal point and a space may be there.

    Returns:
        Bytes, rounded down to a whole number.

    Raises:
        ValueError: it is no amount of memory; the message says how to write one.
    """
    size = _from_text(value) if isinstance(value, str) else value
    if not is_whole(size, 0, _ABSURD):
        raise ValueError(f"{shown(value)} is no amount of memory that a process can have; {_HOW}")
    return size


def parse_limit(value: int | str) -> int:
    """Read a limit on the memory of a worker: an amount no smaller than a process needs.

    Raises:
        ValueError: it is no such amount; the message says how to write one.
    """
    size = parse_size(value)
    if size < _LEAST_LIMIT:
        raise ValueError(
            f"{shown(value)} is less than an empty Python process needs; "
            f"the least limit is {format_size(_LEAST_LIMIT)}"
        )
    return size


def format_size(size: int) -> str:
    """Write an amount of memory for people: "512 MiB", "1.4 GiB".

    Args:
        size: bytes.
    """
    amount = float(size)
    for unit in _BINARY:
        text = f"{amount:.1f}"
        if float(text) < 1024 or unit == _BINARY[-1]:  # after rounding: no "1024 MiB"
            break
        amount /= 1024
    return f"{text.removesuffix('.0')} {unit}"


def _from_text(text: str) -> int:
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"cannot read {shown(text)} as an amount of memory; {_HOW}")
    whole, fraction, unit = match[1], match[2] or "", match[3].lower()
    number = f"{whole}.{fraction}" if fraction else whole
    if not unit:
        integer = "" if fraction else f", or the integer {number} for bytes"
        raise ValueError(
            f'{shown(text)} has no unit; did you mean "{number} MB" or "{number} MiB"{integer}?'
        )
    if unit in _AMBIGUOUS:
        decimal, binary = _AMBIGUOUS[unit]
        raise ValueError(
            f"{shown(text)} may mean either of two units; "
            f'did you mean "{number} {decimal}" or "{number} {binary}"?'
        )
    if unit not in _BYTES:
        hint = did_you_mean(unit, _UNITS) or f"; the units are {', '.join(_UNITS)}"
        raise ValueError(f"{shown(text)} has a unit that is unknown, {match[3]}{hint}")
    # In integers, so that any number of bytes comes out exactly.
    size: int = int(whole + fraction) * _BYTES[unit] // 10 ** len(fraction)
    return size


# Durations, such as the time for which a journal keeps finished deliveries.

Keep = Literal["unfinished", "all"] | float | str | timedelta

#: Seconds of each unit of time, by its names in the singular.
TIME_UNITS = {"s": 1, "sec": 1, "second": 1, "min": 60, "minute": 60, "h": 3_600, "hour": 3_600}
TIME_UNITS |= {"d": 86_400, "day": 86_400, "w": 604_800, "week": 604_800}
_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+?)s?\s*", re.IGNORECASE)


class Calendar:
    """The time of day, for deleting old records: a clock that is set forward deletes nothing.

    It is the earlier of two times: the time of the clock now, and the time that the clock would
    have if it had never been set since this object was made.
    """

    def __init__(self) -> None:
        self._ahead_s = time.time() - _steady()

    def now(self) -> float:
        """Seconds as of `time.time()`."""
        return min(time.time(), _steady() + self._ahead_s)


def _steady() -> float:
    """A clock that cannot be set, and that goes on while the machine sleeps, if there is one."""
    boottime = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boottime is None else time.clock_gettime(boottime)


def parse_keep(value: object) -> float:
    """Return the seconds for which finished records are kept: 0 for "unfinished", inf for "all".

    Args:
        value: "unfinished", "all", or how long: a number of seconds, such as "7 days" or "36 h", or
            a `timedelta`.

    Raises:
        ValueError: it is none of these; the message says how to mend it.

    >>> parse_keep("7 days"), parse_keep("all"), parse_keep("unfinished")
    (604800.0, inf, 0.0)
    """
    if value == "unfinished":
        return 0.0
    if value == "all":
        return inf
    try:
        seconds = parse_duration(value)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < inf:
        raise ValueError(
            'must be "unfinished", "all", or how long: a number of seconds, such as "7 days" or '
            f'"36 h", or a timedelta, not {value!r}'
        )
    return seconds


def parse_duration(value: object) -> float:
    """Return the seconds of a duration; the number may be out of bounds, or NaN.

    Args:
        value: a number of seconds, a text such as "5 min", or a `timedelta`.

    Raises:
        ValueError: it is none of these; the message says how to mend it.
    """
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, _REAL) and not isinstance(value, bool):
        return float(value)
    hint = ""
    if isinstance(value, str) and (found := _DURATION.fullmatch(value)):
        unit = TIME_UNITS.get(found[2].lower())
        if unit is not None:
            return float(found[1]) * unit
        hint = did_you_mean(found[2], list(TIME_UNITS)) or "; the units are s, min, h, d and w"
    raise ValueError(
        f'must be a number of seconds, a text such as "5 min" or "1.5 h", or a timedelta, not '
        f"{shown(value)}{hint}"
    )
