"""Is a rate kept in every window, and is it used up?

A handler may begin 100 times in 0.5 s. 1,000 events are published at once, on threads, on the event
loop and in processes. The handler returns the time. aiolimiter, a leaky bucket for asyncio that
scrapers use, does the same work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from time import monotonic
from typing import Any

from .model import PROCBUS, Question, Row, Settings, Target

COUNT = 100  # runs in a window
WINDOW_S = 0.5
EVENTS = 1_000

MOST = "most runs in any window, of 100"
USED = "share of the rate used"


def look(event: int) -> float:
    """Return the time at which the handler runs."""
    return monotonic()


async def look_later(event: int) -> float:
    """Return the time, as a coroutine."""
    return monotonic()


def figures(times: Sequence[float]) -> dict[str, float]:
    """Compute the figures from the times at which the handlers ran."""
    times = sorted(times)
    first, most = 0, 0
    for index, time in enumerate(times):
        while times[first] <= time - WINDOW_S:
            first += 1
        most = max(most, index - first + 1)
    # All windows but the last: its runs may begin as soon as it does.
    least_s = WINDOW_S * ((len(times) - 1) // COUNT)
    return {MOST: float(most), USED: min(1.0, least_s / (times[-1] - times[0]))}


def on_procbus(handler: Callable[[int], Any], kind: Any, settings: Settings) -> dict[str, float]:
    """Publish all events at once."""
    from procbus import EventBus

    with EventBus([], cpu_workers=settings.workers) as bus:
        bus.subscribe("number", handler, kind=kind, rate=f"{COUNT}/{WINDOW_S}s")
        if kind == "cpu":
            bus.start()
        receipts = [bus.publish("number", n) for n in range(settings.count(EVENTS, 2 * COUNT))]
        return figures([receipt.result() for receipt in receipts])


def on_aiolimiter(settings: Settings) -> dict[str, float]:
    """Start a task for each event, which waits for the limiter."""
    from aiolimiter import AsyncLimiter

    async def all_of_them() -> list[float]:
        limiter = AsyncLimiter(COUNT, WINDOW_S)

        async def one(number: int) -> float:
            async with limiter:
                return await look_later(number)

        return await asyncio.gather(*map(one, range(settings.count(EVENTS, 2 * COUNT))))

    return figures(asyncio.run(all_of_them()))


QUESTION = Question(
    name="rate",
    asks="Is a rate kept in every window, and is it used up?",
    rows=(
        Row(MOST, "", (Target(COUNT, at_least=False),)),
        Row(USED, "", (Target(0.98, at_least=True),)),
    ),
    contenders={
        PROCBUS: partial(on_procbus, look, "io"),
        f"{PROCBUS} async": partial(on_procbus, look_later, "io"),
        f"{PROCBUS} cpu": partial(on_procbus, look, "cpu"),
        "aiolimiter": on_aiolimiter,
    },
)
