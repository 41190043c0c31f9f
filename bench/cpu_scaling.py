"""How many times as fast as a loop do 1, 2, ... workers run a pure-Python handler of 1 ms?

Each sample measures the loop too, in its own process just before, and gives the ratio.
"""

from __future__ import annotations

from functools import partial

import loky

from . import limit
from .contenders import Opener
from .model import LIMIT, Question, Row, Settings
from .ways import WAYS, events_of, serial_rate, warm_rate
from .work import spin

FULL_COUNT = 500  # about half a second in the loop


def worker_counts(cores: int) -> list[int]:
    """Return the powers of two up to all cores, all cores, and twice and four times as many.

    >>> worker_counts(6)
    [1, 2, 4, 6, 12, 24]
    """
    powers = [1 << power for power in range(cores.bit_length())]
    return sorted({*powers, cores, 2 * cores, 4 * cores})


COUNTS = worker_counts(loky.cpu_count())


def row_of(count: int) -> str:
    """Name the row of a number of workers."""
    return f"{count} worker{'s' if count > 1 else ''}"


def speed_ups(opener: Opener, settings: Settings) -> dict[str, float]:
    """Measure one way of running handlers with every number of workers."""
    events = events_of(settings.spins_per_ms, FULL_COUNT, settings)
    found = {}
    for count in COUNTS:
        alone = serial_rate(spin, events)
        with opener(spin, count) as contender:
            found[row_of(count)] = warm_rate(contender, events) / alone
    return found


def bare_speed_ups(settings: Settings) -> dict[str, float]:
    """Measure as many bare processes that only loop over the handler."""
    events = events_of(settings.spins_per_ms, FULL_COUNT, settings)
    found = {}
    for count in COUNTS:
        alone = serial_rate(spin, events)
        bare = limit.bare_rate(spin, settings.spins_per_ms, len(events), count)
        found[row_of(count)] = bare / alone
    return found


QUESTION = Question(
    name="cpu_scaling",
    asks="How many times as fast as a loop do workers run a pure-Python handler of 1 ms?",
    rows=tuple(Row(row_of(count), "x the loop") for count in COUNTS),
    contenders={name: partial(speed_ups, opener) for name, opener in WAYS.items()}
    | {LIMIT: bare_speed_ups},
    limit="as many bare processes looping over the handler",
    rounds=3,
)
