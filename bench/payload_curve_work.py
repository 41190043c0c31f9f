"""Events and results of every size, and their handlers. A light module: workers import it."""

from __future__ import annotations

from collections import deque
from functools import cache
from typing import Any

from .work import Order

#: Kinds of payload whose size is in bytes, and the one whose size is a count of records.
BYTES, STR, ARRAY, RECORDS = "bytes", "str", "array", "records"
#: Kinds that have one size only.
INT, DATACLASS = "int", "dataclass"
ITEM_BYTES = 8
#: Different objects that are used in turns. Pickle writes an object once that is twice in a chunk.
DIFFERENT = 16


def make(kind: str, size: int, number: int = 0) -> Any:
    """Make a payload; two with different numbers are different objects.

    Args:
        kind: what it is.
        size: in bytes, or in records; it means nothing for an int and a dataclass.
        number: goes into it, where there is room.
    """
    if kind == BYTES:
        return make(STR, size, number).encode()
    if kind == STR:
        return (f"{number:06}" * (size // 6 + 1))[:size]
    if kind == RECORDS:
        return {
            f"record {at}": {
                "id": number + at,
                "name": f"name {at}",
                "price": at / 7,
                "tags": ["a"],
            }
            for at in range(size)
        }
    if kind == ARRAY:
        import numpy as np

        return np.arange(number, number + size // ITEM_BYTES, dtype=np.float64)
    return Order(number, "somebody", number / 7) if kind == DATACLASS else number


def take(_event: Any) -> None:
    """Handle an event: nothing is done with it."""


def give(wanted: tuple[str, int]) -> Any:
    """Return a payload of this kind and size, another one than the last times."""
    made = _made(*wanted)
    made.rotate(1)
    return made[0]


def different(kind: str, size: int) -> list[Any]:
    """Make payloads of a kind and size that are used in turns."""
    return [make(kind, size, number) for number in range(DIFFERENT)]


@cache
def _made(kind: str, size: int) -> deque[Any]:
    return deque(different(kind, size))
