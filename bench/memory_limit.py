"""How far does a handler get that allocates 1 GiB a second, against `max_memory="300 MiB"`?

It touches what it allocates, in steps of 8 MiB, and records after each step how large its worker is
(`bench.growth`).
"""

from __future__ import annotations

import os
import tempfile
from time import monotonic

from .growth import Growth, grow, read_growth
from .model import PROCBUS, Question, Row, Settings, Target

MIB = 2**20
LIMIT_BYTES = 300 * MIB
RATE = 1024 * MIB  # bytes a second
MOST_BYTES = 2048 * MIB  # where the handler ends by itself: the limit has failed
FULL_TIMES = 3
BOUND_S = 30.0
PEAK = "highest resident memory of the worker"
SETTLED = "from above the limit to settled"
GROWN = "rate at which it grew"


def figures(settings: Settings) -> dict[str, float]:
    """Let it grow a few times; the worst counts, and of the rates the lowest."""
    from procbus import EventBus, MemoryLimitExceeded

    peaks, settled, rates = [], [], []
    with tempfile.TemporaryDirectory() as folder, EventBus([], cpu_workers=2) as bus:
        bus.subscribe(Growth, grow, kind="cpu", max_memory=LIMIT_BYTES)
        bus.start()
        event = Growth(os.path.join(folder, "record"), RATE, LIMIT_BYTES, MOST_BYTES)
        for _ in range(settings.count(FULL_TIMES, at_least=1)):
            receipt = bus.publish(event)
            if not receipt.wait(BOUND_S):
                raise RuntimeError(f"{receipt!r} is not settled after {BOUND_S:g} s")
            known_at = monotonic()
            error = receipt.deliveries[0].exception()
            if type(error) is not MemoryLimitExceeded:
                raise RuntimeError(f"a handler that grew to {MOST_BYTES / MIB:g} MiB: {error!r}")
            grown = read_growth(event)
            if not grown.above_at:
                raise RuntimeError(f"it was killed before it was above its limit: {error!r}")
            peaks.append(grown.peak / MIB)
            settled.append((known_at - grown.above_at) * 1e3)
            rates.append(grown.allocated / grown.seconds / MIB)
    return {PEAK: max(peaks), SETTLED: max(settled), GROWN: min(rates)}


QUESTION = Question(
    name="memory_limit",
    asks="How far does a handler get that allocates 1 GiB a second, against a limit of 300 MiB?",
    rows=(
        Row(PEAK, "MiB", (Target(800, at_least=False, unit="MiB"),)),
        Row(SETTLED, "ms"),
        Row(GROWN, "MiB/s"),
    ),
    contenders={PROCBUS: figures},
)
