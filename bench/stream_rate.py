"""How many events per second go through `stream`, beside `publish` of each?"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from time import perf_counter
from typing import Any

from .model import PROCBUS, Question, Row, Settings, Target
from .work import tiny

FULL_COUNT = 100_000
WARM_UP = 2_000
PUBLISH = "publish"

KINDS: tuple[Any, ...] = ("cpu", "io")
#: The form in which the events come, and the order in which their receipts do.
SOURCES: dict[str, tuple[Callable[[range], Iterable[int]], bool]] = {
    "a list": (list, False),
    "a list, ordered": (list, True),
    "a generator": (lambda events: (event for event in events), False),
}


def row(kind: str, source: str) -> str:
    """The name of a row."""
    return f"tiny {kind} handler, {source}"


def publish_all(bus: Any, events: Iterable[int]) -> None:
    """Publish each event, then ask every receipt for its result."""
    for receipt in [bus.publish(event) for event in events]:
        receipt.result()


def rates(settings: Settings, run: Callable[[Any, Iterable[int], bool], None]) -> dict[str, float]:
    """Send events through a running, warmed bus."""
    from procbus import EventBus

    count = settings.count(FULL_COUNT)
    measured = {}
    for kind in KINDS:
        with EventBus([], cpu_workers=settings.workers) as bus:
            bus.subscribe(int, tiny, kind=kind)
            publish_all(bus, range(WARM_UP))
            for source, (make, ordered) in SOURCES.items():
                events = make(range(count))
                began = perf_counter()
                run(bus, events, ordered)
                measured[row(kind, source)] = count / (perf_counter() - began)
    return measured


def stream_all(bus: Any, events: Iterable[int], ordered: bool) -> None:
    """Stream the events, and ask every receipt for its result."""
    for receipt in bus.stream(events, ordered=ordered):
        receipt.result()


def publish_as_they_come(bus: Any, events: Iterable[int], _: bool) -> None:
    """Publish the events; the order makes no difference."""
    publish_all(bus, events)


QUESTION = Question(
    name="stream_rate",
    asks="How many events per second go through `stream`, beside `publish` of each?",
    rows=tuple(
        Row(row(kind, source), "events/s", (Target(1, at_least=True, against=PUBLISH),))
        for kind in KINDS
        for source in SOURCES
    ),
    contenders={
        PROCBUS: partial(rates, run=stream_all),
        PUBLISH: partial(rates, run=publish_as_they_come),
    },
)
