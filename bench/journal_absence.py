"""What does a bus without a journal pay for there being journals?

Since there are, `publish` takes an `id=`, and so has a keyword and a comparison more; nothing else
on the way of such an event has changed. Both ways publish on one bus, in short blocks by turns:
alone, while the bus's one thread is held in a handler so that no other thread wants the GIL, and
until all is settled. The share is the median of the turns': what disturbs one block says nothing
of the next.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from statistics import median
from time import perf_counter
from types import MethodType
from typing import Any

from procbus import EventBus, Receipt
from procbus.core.context import NOTHING
from procbus.core.topic import check_concrete

from .model import PROCBUS, Question, Row, Settings, Target
from .work import tiny

ALONE = "publish alone"
SETTLED = "publish until settled, tiny io handler"
NOW, BEFORE = "{}, now", "{}, before there were journals"
SHARE = "{}, share of before"
HOLD = "bench.hold"
BLOCK = 200  # events
FULL_TURNS = 2_000
BOUND_S = 20.0


class Before(EventBus):
    """A bus with the `publish` from before there were journals."""

    def publish(self, event: Any, payload: Any = NOTHING) -> Receipt:  # type: ignore[override]
        if payload is NOTHING:
            return self._publish(event, None)
        if not isinstance(event, str):
            check_concrete(event)
        return self._publish(payload, event)


class Held:
    """A handler that keeps the one thread of a bus while the benchmark wants it to."""

    def __init__(self, bus: EventBus) -> None:
        self._bus = bus
        self._began, self._go = threading.Semaphore(0), threading.Semaphore(0)
        bus.subscribe(HOLD, self)

    def __call__(self, _: Any) -> None:
        self._began.release()
        self._go.acquire(timeout=BOUND_S)

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Keep the thread; then run all that was published meanwhile."""
        self._bus.publish(HOLD, None)
        if not self._began.acquire(timeout=BOUND_S):
            raise TimeoutError("the io lane took nothing")
        yield
        self._go.release()
        self._bus.drain()


def figures(settings: Settings) -> dict[str, float]:
    """Measure publishing alone, and to the end."""
    with Before([], io_workers=1) as bus:
        held = Held(bus)
        bus.subscribe(int, tiny)
        now = MethodType(EventBus.publish, bus)
        turns = range(settings.count(FULL_TURNS))
        found: dict[str, float] = {}
        for name, holding, end in (
            (ALONE, held.holding, None),
            (SETTLED, nullcontext, bus.drain),
        ):
            seconds: tuple[list[float], list[float]] = ([], [])
            gc.disable()  # as timeit does
            try:
                for turn in turns:
                    with holding():
                        for which in (0, 1) if turn % 2 else (1, 0):
                            publish = now if which == 0 else bus.publish
                            seconds[which].append(block_s(publish, end))
            finally:
                gc.enable()
            found[NOW.format(name)] = median(seconds[0]) / BLOCK * 1e6
            found[BEFORE.format(name)] = median(seconds[1]) / BLOCK * 1e6
            shares = [100 * mine / former for mine, former in zip(*seconds, strict=True)]
            found[SHARE.format(name)] = median(shares)
    return found


def block_s(publish: Callable[[Any], Receipt], end: Callable[[], object] | None) -> float:
    """Return how long it takes to publish a block of events, and to wait for its end."""
    events = range(BLOCK)
    began = perf_counter()
    for event in events:
        publish(event)
    if end is not None:
        end()
    return perf_counter() - began


QUESTION = Question(
    name="journal_absence",
    asks="What does a bus without a journal pay for there being journals?",
    rows=tuple(
        row
        for name in (ALONE, SETTLED)
        for row in (
            Row(NOW.format(name), "µs"),
            Row(BEFORE.format(name), "µs"),
            Row(SHARE.format(name), "%", (Target(101, at_least=False, unit="%"),)),
        )
    ),
    contenders={PROCBUS: figures},
)
