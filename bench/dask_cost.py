"""What does the parent pay for an event, a batch and a byte on a Dask cluster?

The answer tells how many workers one bus feeds: see docs/scale.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from time import process_time
from typing import Any
from unittest.mock import patch

from .contenders import Handler, Opener, procbus
from .dask_lane import procbus_on_dask
from .model import PROCBUS, Question, Row, Settings
from .work import nap, tiny

EVENT, BATCH, BYTES = "each event", "each batch", "each MiB there"
EVENTS, BATCHES, LARGE = 40_000, 600, 100
#: Length of the sleep, in seconds; because the cores must be free for the parent.
NAP_S = 0.01
MIB = 1 << 20


def costs(opener: Opener, settings: Settings) -> dict[str, float]:
    """Measure the parent's cpu time, of all its threads, in µs."""
    event = per_event(opener, tiny, list(range(settings.count(EVENTS))), settings)
    with each_alone():
        alone = per_event(opener, nap, [NAP_S] * settings.count(BATCHES), settings)
    size = 4 * MIB
    large = per_event(opener, tiny, [bytes(size) for _ in range(settings.count(LARGE))], settings)
    return {
        EVENT: event * 1e6,
        BATCH: (alone - event) * 1e6,
        BYTES: (large - alone) / (size / MIB) * 1e6,
    }


@contextmanager
def each_alone() -> Iterator[None]:
    """Have lanes that are made here put each event into a batch of its own."""
    from procbus.pool.dask.pool import ClusterPool
    from procbus.pool.loky import LokyPool

    with patch.object(ClusterPool, "batch_s", 0.0), patch.object(LokyPool, "batch_s", 0.0):
        yield


def per_event(
    opener: Opener,
    handler: Handler,
    events: Sequence[Any],
    settings: Settings,
) -> float:
    """Return cpu seconds of the parent for each event, from publishing to its result."""
    with opener(handler, settings.workers) as contender:
        contender.run(events[: max(settings.workers, len(events) // 10)])
        began = process_time()
        contender.run(events)
        return (process_time() - began) / len(events)


QUESTION = Question(
    name="dask_cost",
    asks="What does the parent pay for an event, a batch and a byte on a Dask cluster?",
    rows=tuple(Row(name, "µs of the parent's cpu") for name in (EVENT, BATCH, BYTES)),
    contenders={
        PROCBUS: partial(costs, procbus_on_dask),
        f"{PROCBUS} on one machine": partial(costs, procbus),
    },
    rounds=3,
    needs=("distributed",),
)
