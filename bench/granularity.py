"""How much of the cores reaches a handler of 10 µs, 100 µs, 1 ms?

Against bare processes, as many, which only loop over the same function in the same run.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from time import perf_counter

from . import limit
from .contenders import CPU_CONTENDERS, Opener
from .model import LIMIT, PROCBUS, Question, Row, Settings, Target
from .work import spin


@dataclass(frozen=True)
class Grain:
    """One handler length: `per_ms` calls take 1 ms; counts are for about two seconds."""

    row: str
    per_ms: int
    full: int
    full_for_peers: int
    share: float

    def iterations(self, settings: Settings) -> int:
        """Return the fixed argument of `spin` for this length."""
        return max(1, settings.spins_per_ms // self.per_ms)


GRAINS = (
    Grain("1 ms handler, all cores", per_ms=1, full=4_000, full_for_peers=1_000, share=0.97),
    Grain("100 µs handler, all cores", per_ms=10, full=30_000, full_for_peers=4_000, share=0.93),
    Grain("10 µs handler, all cores", per_ms=100, full=200_000, full_for_peers=5_000, share=0.75),
)
FAST = (PROCBUS, "joblib")  # take as many events as the limit
WARM_UP = 0.1  # of the events that are measured


def contender_rate(name: str, opener: Opener, settings: Settings) -> dict[str, float]:
    """Submit one by one to running, warmed workers until all results are in the parent."""
    rates = {}
    for grain in GRAINS:
        full = grain.full if name in FAST else grain.full_for_peers
        events = [grain.iterations(settings)] * settings.count(full)
        with opener(spin, settings.workers) as contender:
            contender.run(events[: round(len(events) * WARM_UP)])
            began = perf_counter()
            contender.run(events)
            rates[grain.row] = len(events) / (perf_counter() - began)
    return rates


def bare_rate(settings: Settings) -> dict[str, float]:
    """Measure bare processes that loop over the handler."""
    return {
        grain.row: limit.bare_rate(
            spin, grain.iterations(settings), settings.count(grain.full), settings.workers
        )
        for grain in GRAINS
    }


QUESTION = Question(
    name="granularity",
    asks="How much of the cores reaches a handler of 10 µs, 100 µs, 1 ms?",
    rows=tuple(
        Row(grain.row, "events/s", (Target(grain.share, at_least=True, against=LIMIT),))
        for grain in GRAINS
    ),
    contenders={
        name: partial(contender_rate, name, opener) for name, opener in CPU_CONTENDERS.items()
    }
    | {LIMIT: bare_rate},
    limit="bare processes looping over the handler",
)
