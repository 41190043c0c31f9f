"""How long does one event take from publish to result, when nothing else goes on?"""

from __future__ import annotations

from functools import partial
from statistics import median
from time import perf_counter

from . import limit
from .contenders import Opener
from .model import LIMIT, Question, Row, Settings, Target
from .peers import PEERS, SLOW
from .work import tiny

ROW = "publish → result, idle, p50"
FULL_COUNT = 1_000
WARM_UP = 50


def contender_latency(opener: Opener, full: int, settings: Settings) -> dict[str, float]:
    """Submit one event, wait for its result, submit the next; the garbage collector stays on."""
    with opener(tiny, settings.workers) as contender:
        contender.run(range(WARM_UP))
        times = []
        for number in range(settings.count(full)):
            began = perf_counter()
            contender.result(contender.submit(number))
            times.append(perf_counter() - began)
    return {ROW: median(times) * 1e6}


def limit_latency(settings: Settings) -> dict[str, float]:
    """Measure one pickled event and its answer on a pipe."""
    times = limit.pipe_round_trips(tiny, range(WARM_UP + settings.count(FULL_COUNT)))
    return {ROW: median(times[WARM_UP:]) * 1e6}


QUESTION = Question(
    name="latency",
    asks="How long does one event take from publish to result, when nothing else goes on?",
    rows=(Row(ROW, "µs", (Target(0.65, at_least=False, against="ProcessPoolExecutor"),)),),
    contenders={
        name: partial(contender_latency, opener, min(FULL_COUNT, SLOW.get(name, FULL_COUNT)))
        for name, opener in PEERS.items()
    }
    | {LIMIT: limit_latency},
    limit="one event on a pipe and back",
)
