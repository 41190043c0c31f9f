"""Large events, and the handlers that get them. A light module: workers import it.

Handlers look at one element only, because the transport of the data is measured.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any

MB = 10**6
ITEM_BYTES = 8
WARM_UP = 3


def first(array: Any) -> float:
    """Look at the first element."""
    return float(array[0])


def changed(array: Any) -> Any:
    """Return another array of the same size."""
    return array + 1


def length(data: bytes) -> int:
    """Return the size of plain bytes."""
    return len(data)


def numbers(size: int, start: int = 0) -> Any:
    """Make an array of 64-bit floats of about the given size in bytes, that begins with `start`."""
    import numpy as np

    return np.arange(start, start + -(-size // ITEM_BYTES), dtype=np.float64)


def times(call: Callable[[], object], repeats: int, warm_up: int = WARM_UP) -> list[float]:
    """Return how long each of several calls took, in seconds, after some that are not counted."""
    found = []
    for number in range(warm_up + repeats):
        began = perf_counter()
        call()
        if number >= warm_up:
            found.append(perf_counter() - began)
    return found


def steady_ms(call: Callable[[], object], repeats: int) -> float:
    """Return the median time of a call in ms."""
    return 1e3 * median(times(call, repeats))
