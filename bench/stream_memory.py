"""How much does the parent's memory grow over 1,000,000 events through `stream`?

No peer has a stream that takes from its source only as fast as there is room; their maps read the
whole source into memory first. procbus stands here alone, beside its target.
"""

from __future__ import annotations

from time import perf_counter

from .model import PROCBUS, Question, Row, Settings, Target
from .work import tiny

FULL_COUNT = 1_000_000
GROWTH = "1,000,000 events through stream, memory growth"
RATE = "1,000,000 events through stream, rate"
LOOK_EVERY = 5_000


def procbus_growth(settings: Settings) -> dict[str, float]:
    """Compare the highest resident memory on the way with that of the idle bus before.

    The bus has started its workers and run one event before, so that modules and threads are
    not counted; everything that the stream itself needs is.
    """
    import psutil

    from procbus import EventBus

    process = psutil.Process()
    count = settings.count(FULL_COUNT)
    with EventBus([], cpu_workers=settings.workers) as bus:
        bus.subscribe(int, tiny, kind="cpu")
        bus.start()
        bus.publish(0).result()
        before = peak = process.memory_info().rss
        began = perf_counter()
        settled = 0
        for receipt in bus.stream(range(count)):
            settled += 1
            if settled % LOOK_EVERY == 0:
                receipt.result()
                peak = max(peak, process.memory_info().rss)
        peak = max(peak, process.memory_info().rss)
        seconds = perf_counter() - began
    if settled != count:
        raise RuntimeError(f"the stream yielded {settled} receipts for {count} events")
    return {GROWTH: (peak - before) / 1e6, RATE: settled / seconds}


QUESTION = Question(
    name="stream_memory",
    asks="How much does the parent's memory grow over 1,000,000 events through stream?",
    rows=(Row(GROWTH, "MB", (Target(20, at_least=False, unit="MB"),)), Row(RATE, "events/s")),
    contenders={PROCBUS: procbus_growth},
)
