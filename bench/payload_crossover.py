"""Which lane wins, by the size of the event and the length of its handler?

The handler is pure Python, the payload `bytes`, as many workers as cores. On threads nothing has
to be carried, but one handler computes at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from . import limit
from .contenders import Opener
from .crossover import iterations
from .crossover import row_of as length_name
from .model import LIMIT, PROCBUS_CPU, PROCBUS_IO, Question, Row, Settings
from .ways import WAYS, events_of, warm_rate
from .work import spin

KIB = 1024
SIZES = (0, 16 * KIB, 256 * KIB, 4096 * KIB, 32768 * KIB)
LENGTHS_US = (10, 100, 1_000, 10_000, 100_000)
SAMPLE_S = 0.1  # of handlers
MOST_BYTES = 256 * 1024 * KIB  # that one cell carries, but for a few events


@dataclass(frozen=True)
class Parcel:
    """An event with a payload."""

    iterations: int
    payload: bytes


def handle(parcel: Parcel) -> int:
    """Compute for some time, and look at the end of the payload."""
    spin(parcel.iterations)
    return len(parcel.payload)


def row_of(size: int, length_us: int) -> str:
    """Name one cell of the map.

    >>> row_of(4 * 1024 * 1024, 100)
    '4 MiB, 100 µs'
    """
    return f"{size_name(size)}, {length_name(length_us)}"


def size_name(size: int) -> str:
    """Name a size."""
    if size == 0:
        return "no payload"
    return f"{size // KIB} KiB" if size < KIB * KIB else f"{size // (KIB * KIB)} MiB"


def full_count(size: int, length_us: int) -> int:
    """Return how many events one cell is measured with."""
    by_time = round(SAMPLE_S * 1e6 / length_us)
    by_size = MOST_BYTES // size if size else by_time
    return max(8, min(by_time, by_size))


def rates(opener: Opener, settings: Settings) -> dict[str, float]:
    """Measure one lane in every cell."""
    found = {}
    with opener(handle, settings.workers) as contender:
        for size in SIZES:
            payload = bytes(size)
            for length_us in LENGTHS_US:
                parcel = Parcel(iterations(length_us, settings), payload)
                events = events_of(parcel, full_count(size, length_us), settings)
                found[row_of(size, length_us)] = warm_rate(contender, events)
    return found


def bare_rates(settings: Settings) -> dict[str, float]:
    """Measure bare processes that have the payload already: the same for every size."""
    found: dict[str, float] = {}
    for length_us in LENGTHS_US:
        parcel = Parcel(iterations(length_us, settings), b"")
        times = settings.count(full_count(0, length_us), at_least=2 * settings.workers)
        bare = limit.bare_rate(handle, parcel, times, settings.workers)
        found |= {row_of(size, length_us): bare for size in SIZES}
    return found


QUESTION = Question(
    name="payload_crossover",
    asks="Which lane wins, by the size of the event and the length of its handler?",
    rows=tuple(Row(row_of(size, length), "events/s") for size in SIZES for length in LENGTHS_US),
    contenders={
        PROCBUS_IO: partial(rates, WAYS[PROCBUS_IO]),
        PROCBUS_CPU: partial(rates, WAYS[PROCBUS_CPU]),
        LIMIT: bare_rates,
    },
    limit="bare processes that have the payload already",
    rounds=3,
)
