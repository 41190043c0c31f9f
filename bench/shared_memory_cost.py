"""What does shared memory cost, or save, where events are small?

The same handler on two buses, one with shared memory and one that has pipes alone, in turns.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

from .contenders import Contender, procbus
from .large_contenders import pipe_alone, stream
from .large_work import length
from .model import PROCBUS, Question, Row, Settings, Target
from .work import tiny

KIB = 1024
#: Difference between two equal buses in this number of turns on a noisy machine.
NOISE = Target(98, at_least=True, unit="%")


class Kind(NamedTuple):
    """Events of one kind.

    Attributes:
        name: name of the row.
        handler: the handler of the events.
        make: makes one by its number.
        events: number of events in a turn.
        turns: number of turns of each bus.
        target: minimum rate with shared memory, in % of the rate without.
    """

    name: str
    handler: Callable[[Any], Any]
    make: Callable[[int], Any]
    events: int
    turns: int
    target: Target | None


KINDS = (
    Kind("tiny events", tiny, lambda number: number, 5_000, 60, NOISE),
    Kind("64 KiB bytes", length, lambda number: bytes([number % 256]) * (64 * KIB), 500, 40, NOISE),
    Kind("1 MiB bytes", length, lambda number: bytes([number % 256]) * (KIB * KIB), 200, 10, None),
)


def with_shared(kind: Kind) -> str:
    """Name the row of the rate with shared memory."""
    return f"{kind.name}, shared memory"


def without(kind: Kind) -> str:
    """Name the row of the rate without it."""
    return f"{kind.name}, pipe alone"


def share(kind: Kind) -> str:
    """Name the row of the first in % of the second."""
    return f"{kind.name}, rate with shared memory"


def figures(settings: Settings) -> dict[str, float]:
    """Measure each kind of event on both buses in turns; the share is the median of the turns'."""
    found: dict[str, float] = {}
    for kind in KINDS:
        events = [kind.make(number) for number in range(settings.count(kind.events))]
        with ExitStack() as opened:
            buses = [
                opened.enter_context(opener(kind.handler, settings.workers))
                for opener in (procbus, pipe_alone)
            ]
            for bus in buses:
                rate(bus, events)
            rates: tuple[list[float], list[float]] = ([], [])
            for turn in range(settings.count(kind.turns, at_least=2)):
                for which in (0, 1) if turn % 2 else (1, 0):
                    rates[which].append(rate(buses[which], events))
        shares = [100 * ours / theirs for ours, theirs in zip(*rates, strict=True)]
        found |= {
            with_shared(kind): median(rates[0]),
            without(kind): median(rates[1]),
            share(kind): median(shares),
        }
    return found


def rate(bus: Contender, events: list[Any]) -> float:
    """Return events per second, all of them pending at once, until all results are there."""
    began = perf_counter()
    stream(bus, events, pending=len(events))
    return len(events) / (perf_counter() - began)


QUESTION = Question(
    name="shared_memory_cost",
    asks="What does shared memory cost, or save, where events are small?",
    rows=tuple(
        row
        for kind in KINDS
        for row in (
            Row(with_shared(kind), "events/s"),
            Row(without(kind), "events/s"),
            Row(share(kind), "% of without", (kind.target,) if kind.target else ()),
        )
    ),
    contenders={PROCBUS: figures},
    rounds=3,
    needs=("numpy",),
)
