"""What does a bus without a journal pay for there being journals?

Since there are, `publish` takes an `id=`, and so has a keyword and a comparison more; nothing else
on the way of such an event has changed. Both ways publish on one bus, in short blocks by turns,
while its one thread is held in a handler, so that nobody else wants the GIL. The share is the
median of the turns': what disturbs one block says nothing of the next.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from statistics import median
from time import perf_counter
from types import MethodType
from typing import Any

from procbus import EventBus, Receipt
from procbus.context import NOTHING
from procbus.topic import check_concrete

from .model import PROCBUS, Question, Row, Settings, Target

NOW = "publish"
BEFORE = "publish, as it was before there were journals"
SHARE = "the first in % of the second"
HOLD = "bench.hold"
BLOCK = 200  # events
FULL_TURNS = 2_000
BOUND_S = 20.0


class Before(EventBus):
    """A bus whose `publish` is that of before there were journals."""

    def publish(self, event: Any, payload: Any = NOTHING) -> Receipt:  # type: ignore[override]
        if payload is NOTHING:
            return self._publish(event, None)
        if not isinstance(event, str):
            check_concrete(event)
        return self._publish(payload, event)


def figures(settings: Settings) -> dict[str, float]:
    """Publish a block in one way, then one in the other; run them; and so on."""
    began, go = threading.Semaphore(0), threading.Semaphore(0)

    def hold(_: Any) -> None:
        began.release()
        go.acquire(timeout=BOUND_S)

    seconds: tuple[list[float], list[float]] = ([], [])
    with Before([], io_workers=1) as bus:
        bus.subscribe(HOLD, hold)
        bus.subscribe(int, int)
        now = MethodType(EventBus.publish, bus)
        ways: tuple[Callable[[Any], Receipt], ...] = (now, bus.publish)
        gc.disable()  # as timeit does
        try:
            for turn in range(settings.count(FULL_TURNS)):
                bus.publish(HOLD, None)
                if not began.acquire(timeout=BOUND_S):
                    raise TimeoutError("the io lane took nothing")
                for which in (0, 1) if turn % 2 else (1, 0):
                    seconds[which].append(block_s(ways[which]))
                go.release()
                bus.drain()
        finally:
            gc.enable()
    return {
        NOW: median(seconds[0]) / BLOCK * 1e6,
        BEFORE: median(seconds[1]) / BLOCK * 1e6,
        SHARE: 100 * median(mine / former for mine, former in zip(*seconds, strict=True)),
    }


def block_s(publish: Callable[[Any], Receipt]) -> float:
    """Return how long it takes to publish a block of events."""
    events = range(BLOCK)
    began = perf_counter()
    for event in events:
        publish(event)
    return perf_counter() - began


QUESTION = Question(
    name="journal_absence",
    asks="What does a bus without a journal pay for there being journals?",
    rows=(
        Row(NOW, "µs"),
        Row(BEFORE, "µs"),
        Row(SHARE, "% of before", (Target(101, at_least=False, unit="%"),)),
    ),
    contenders={PROCBUS: figures},
)
