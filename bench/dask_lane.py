"""The cpu lane on a local Dask cluster: what do batches save, and what do long handlers lose?"""

from __future__ import annotations

from functools import partial
from time import perf_counter

from . import limit
from .contenders import Contender, Handler, Opener, distributed, procbus
from .model import LIMIT, PROCBUS, Question, Row, Settings, Target
from .work import spin, tiny

TINY = "tiny cpu handler"
LONG = "10 ms handler, all cores"
# Of about a second each.
TINY_COUNTS = {PROCBUS: 40_000, "distributed": 800}
LONG_COUNT = 400
WARM_UP = 0.1  # of the events that are measured


def procbus_on_dask(handler: Handler, workers: int) -> Contender:
    """Open a bus on a local cluster, as `distributed` opens a client."""
    from procbus import DaskPool

    return procbus(handler, workers, cpu=DaskPool.local(workers))


def contender_rate(name: str, opener: Opener, settings: Settings) -> dict[str, float]:
    """Submit one by one to running, warmed workers until all results are in the parent."""
    tiny_count = settings.count(TINY_COUNTS[name])
    ten_ms = [10 * settings.spins_per_ms] * settings.count(LONG_COUNT)
    return {
        TINY: rate(opener, tiny, list(range(tiny_count)), settings.workers),
        LONG: rate(opener, spin, ten_ms, settings.workers),
    }


def rate(opener: Opener, handler: Handler, events: list[int], workers: int) -> float:
    """Measure one handler."""
    with opener(handler, workers) as contender:
        contender.run(events[: max(workers, round(len(events) * WARM_UP))])
        began = perf_counter()
        contender.run(events)
        return len(events) / (perf_counter() - began)


def bare_rate(settings: Settings) -> dict[str, float]:
    """Measure bare processes that loop over the handler."""
    per_worker = 10 * settings.spins_per_ms
    count = settings.count(LONG_COUNT)
    return {LONG: limit.bare_rate(spin, per_worker, count, settings.workers)}


QUESTION = Question(
    name="dask_lane",
    asks="The cpu lane on a local Dask cluster: what do batches save, what do long handlers lose?",
    rows=(
        Row(TINY, "events/s", (Target(25, at_least=True, against="distributed"),)),
        Row(LONG, "events/s", (Target(0.95, at_least=True, against=LIMIT),)),
    ),
    contenders={
        PROCBUS: partial(contender_rate, PROCBUS, procbus_on_dask),
        "distributed": partial(contender_rate, "distributed", distributed),
        LIMIT: bare_rate,
    },
    limit="bare processes looping over the handler",
    rounds=3,
    needs=("distributed",),
)
