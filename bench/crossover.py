"""From which length of its handler on does an event gain by going to another process?

Pure Python, as many workers as cores, against a plain loop in the same process just before.
"""

from __future__ import annotations

from functools import partial

from . import limit
from .contenders import Opener
from .model import LIMIT, PROCBUS_CPU, PROCBUS_IO, Question, Row, Settings
from .ways import THREAD_BUS, WAYS, events_of, one_by_one, serial_rate, warm_rate
from .work import spin

ALONE = "procbus cpu, no batches"
LENGTHS_US = (1, 3, 10, 30, 100, 1_000, 10_000, 100_000)
SAMPLE_S = 0.2  # of the plain loop
MOST_EVENTS = 20_000  # of the short ones: what a bus takes for each is far longer than the handler


def row_of(length_us: int) -> str:
    """Name the row of one length.

    >>> [row_of(length) for length in (30, 1_000)]
    ['30 µs', '1 ms']
    """
    return f"{length_us} µs" if length_us < 1_000 else f"{length_us // 1_000} ms"


def iterations(length_us: int, settings: Settings) -> int:
    """Return the argument of `spin` for one length."""
    return max(1, round(settings.spins_per_ms * length_us / 1_000))


def full_count(length_us: int) -> int:
    """Return how many events one length is measured with."""
    return max(8, min(MOST_EVENTS, round(SAMPLE_S * 1e6 / length_us)))


def speed_ups(opener: Opener, settings: Settings) -> dict[str, float]:
    """Measure one way of running handlers with every length."""
    found = {}
    for length_us in LENGTHS_US:
        events = events_of(iterations(length_us, settings), full_count(length_us), settings)
        alone = serial_rate(spin, events)
        with opener(spin, settings.workers) as contender:
            found[row_of(length_us)] = warm_rate(contender, events) / alone
    return found


def bare_speed_ups(settings: Settings) -> dict[str, float]:
    """Measure bare processes that only loop over the handler."""
    found = {}
    for length_us in LENGTHS_US:
        events = events_of(iterations(length_us, settings), full_count(length_us), settings)
        alone = serial_rate(spin, events)
        bare = limit.bare_rate(spin, events[0], len(events), settings.workers)
        found[row_of(length_us)] = bare / alone
    return found


QUESTION = Question(
    name="crossover",
    asks="From which length of its handler on does an event gain by going to another process?",
    rows=tuple(Row(row_of(length), "x the loop") for length in LENGTHS_US),
    contenders={
        THREAD_BUS: partial(speed_ups, WAYS[THREAD_BUS]),
        PROCBUS_IO: partial(speed_ups, WAYS[PROCBUS_IO]),
        PROCBUS_CPU: partial(speed_ups, WAYS[PROCBUS_CPU]),
        ALONE: partial(speed_ups, one_by_one),
        LIMIT: bare_speed_ups,
    },
    limit="bare processes looping over the handler",
    rounds=3,
)
