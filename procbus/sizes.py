# SPDX-License-Identifier: MIT
"""Amounts of memory, as people write them: "512 MiB", "1.5 GB"."""

from __future__ import annotations

import re

from procbus.amounts import is_whole
from procbus.hints import did_you_mean, shown

_BINARY = ("B", "KiB", "MiB", "GiB", "TiB")
_DECIMAL = ("B", "kB", "MB", "GB", "TB")
_BYTES = {unit.lower(): 1024**power for power, unit in enumerate(_BINARY)} | {
    unit.lower(): 1000**power for power, unit in enumerate(_DECIMAL)
}
_UNITS = (*_DECIMAL, *_BINARY[1:])
# What people write for either unit, by what the two begin with.
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
#: What an empty Python process needs, roughly.
_LEAST_LIMIT = 32 * 1024**2


def parse_size(value: int | str) -> int:
    """Read an amount of memory.

    Args:
        value: bytes as an integer, or a number and a unit: B, kB, MB, GB, TB count by 1000, KiB,
            MiB, GiB, TiB by 1024. Case does not matter; a decimal point and a space may be there.

    Returns:
        Bytes; what is less than one is cut off.

    Raises:
        ValueError: it is no such amount; the sentence says what would be.
    """
    size = _from_text(value) if isinstance(value, str) else value
    if not is_whole(size, 0, _ABSURD):
        raise ValueError(f"{shown(value)} is no amount of memory that a process can have; {_HOW}")
    return size


def parse_limit(value: int | str) -> int:
    """Read a limit on the memory of a worker: as `parse_size`, but no less than a process needs.

    Raises:
        ValueError: it is no such amount; the sentence says what would be.
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
