"""How long does an event take to a handler and back, by its size: where does sharing memory pay?"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from .contenders import Opener, procbus
from .large_contenders import LARGE_CONTENDERS
from .large_work import first, numbers, steady_ms
from .model import LIMIT, Question, Row, Settings

KIB = 1024
SIZES = [KIB << power for power in range(19)]  # 1 KiB to 256 MiB
#: procbus with shared memory for whatever may use it.
SHARED = "shared from 4 KiB"
SIZE_CONTENDERS: dict[str, Opener] = {
    **LARGE_CONTENDERS,
    SHARED: partial(procbus, shared_memory_threshold=4 * KIB),
}
BYTES_A_SECOND = 400e6  # at about which the slow ones go: so that each size takes half a second
MOST_REPEATS = 200


def row_of(size: int) -> str:
    """Name the row of one size.

    >>> [row_of(size) for size in (1024, 65_536, 268_435_456)]
    ['1 KiB', '64 KiB', '256 MiB']
    """
    return f"{size // KIB} KiB" if size < KIB * KIB else f"{size // (KIB * KIB)} MiB"


def size_in(size: int, settings: Settings) -> int:
    """Return the size that is measured in place of `size`: in a quick run not more than 2 MiB."""
    return size if settings.scale >= 1 else min(size, 2048 * KIB)


def time_of(call: Callable[[], object], size: int, settings: Settings) -> float:
    """Return the median time of a call in ms, of more calls where the size is small."""
    repeats = min(MOST_REPEATS, max(5, round(0.5 * BYTES_A_SECOND / size)))
    return steady_ms(call, settings.count(repeats, at_least=3))


def contender_times(name: str, settings: Settings) -> dict[str, float]:
    """Submit an array, wait for its first element, submit the next."""
    found = {}
    with SIZE_CONTENDERS[name](first, settings.workers) as contender:

        def there(array: Any) -> None:
            if contender.result(contender.submit(array[:])) != 0:
                raise RuntimeError(f"{name} gave a wrong result")

        for size in SIZES:
            array = numbers(size_in(size, settings))
            found[row_of(size)] = time_of(partial(there, array), size, settings)
    return found


def limit_times(settings: Settings) -> dict[str, float]:
    """Copy each array once, into memory that was written to before."""
    import numpy as np

    found = {}
    for size in SIZES:
        array = numbers(size_in(size, settings))
        copy = partial(np.copyto, np.empty_like(array), array)
        found[row_of(size)] = time_of(copy, size, settings)
    return found


QUESTION = Question(
    name="payload_sizes",
    asks="How long does an event take to a handler and back, by its size?",
    rows=tuple(Row(row_of(size), "ms") for size in SIZES),
    contenders={name: partial(contender_times, name) for name in SIZE_CONTENDERS}
    | {LIMIT: limit_times},
    limit="one memcpy into memory that is mapped",
    rounds=3,
    needs=("numpy",),
)
