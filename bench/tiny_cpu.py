"""How many tiny events per second reach a cpu handler and come back?"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any

from . import limit
from .contenders import Opener
from .model import LIMIT, PROCBUS, Question, Row, Settings, Target
from .peers import PROCESS_PEERS
from .work import Order, tiny

# Enough for half a second to one second each on a slow core; rates are per second.
FULL_COUNTS = {
    PROCBUS: 100_000,
    LIMIT: 400_000,
    "mp.Pool": 20_000,
    "joblib": 100_000,
    "pebble": 12_000,
    "distributed": 800,
    "ray": 2_000,
}
OTHERS = 8_000
WARM_UP = 500

MAKE_EVENT: dict[str, Callable[[int], Any]] = {
    "tiny cpu handler, int": lambda number: number,
    "tiny cpu handler, dataclass": lambda number: Order(number, "somebody", number / 7),
}


def contender_rate(opener: Opener, full: int, settings: Settings) -> dict[str, float]:
    """Submit one by one to running, warmed workers until all results are in the parent."""
    rates = {}
    for row, make_event in MAKE_EVENT.items():
        events = [make_event(number) for number in range(settings.count(full))]
        with opener(tiny, settings.workers) as contender:
            contender.run(events[:WARM_UP])
            began = perf_counter()
            contender.run(events)
            rates[row] = len(events) / (perf_counter() - began)
    return rates


def limit_rate(settings: Settings) -> dict[str, float]:
    """Measure pickle and pipe alone."""
    return {
        row: limit.pipe_rate(
            tiny,
            [make_event(number) for number in range(settings.count(FULL_COUNTS[LIMIT]))],
            settings.workers,
        )
        for row, make_event in MAKE_EVENT.items()
    }


TARGETS = (
    Target(20, at_least=True, against="ProcessPoolExecutor"),
    Target(6, at_least=True, against="mp.Pool"),
)

QUESTION = Question(
    name="tiny_cpu",
    asks="How many tiny events per second reach a cpu handler and come back?",
    rows=tuple(Row(name, "events/s", TARGETS) for name in MAKE_EVENT),
    contenders={
        name: partial(contender_rate, opener, FULL_COUNTS.get(name, OTHERS))
        for name, opener in PROCESS_PEERS.items()
    }
    | {LIMIT: limit_rate},
    limit="pickle and pipe, batches of 256",
)
