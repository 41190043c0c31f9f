"""What does cpu work do to the latency of io handlers, on threads and on processes of its own?

The load and the probes come from `io_latency`. A thread that wants the GIL asks for it after
`sys.getswitchinterval()`, by default 5 ms. So each of its steps waits for that long or longer
behind a thread that computes: the convoy. The same is measured with an interval of 0.5 ms.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from statistics import quantiles

from .io_latency import (
    SECONDS,
    Stopwatch,
    bare_latency,
    loky_latency,
    procbus_latency,
    thread_bus_latency,
)
from .model import LIMIT, PROCBUS, PROCBUS_IO, Question, Row, Settings

INTERVALS_MS = (5.0, 0.5)
PERCENTILES = {"p50": 499, "p99": 989, "p99.9": 998}  # of the 999 cut points
PROBES = "probes"


def row_of(what: str, interval_ms: float) -> str:
    """Name one row."""
    return f"{what}, switch interval {interval_ms:g} ms"


def latencies(latency: Callable[..., Stopwatch], settings: Settings) -> dict[str, float]:
    """Measure with each switch interval; percentiles in µs, and of how many probes they are."""
    found = {}
    for interval_ms in INTERVALS_MS:
        sys.setswitchinterval(interval_ms / 1e3)
        times = latency(settings, seconds=1.5 * SECONDS).times
        cuts = quantiles(times, n=1000, method="inclusive")
        for name, at in PERCENTILES.items():
            found[row_of(name, interval_ms)] = cuts[at] * 1e6
        found[row_of(PROBES, interval_ms)] = len(times)
    return found


QUESTION = Question(
    name="convoy",
    asks="What does cpu work do to the latency of io handlers, on threads and on processes?",
    rows=tuple(
        Row(row_of(name, interval_ms), "µs" if name in PERCENTILES else "probes")
        for interval_ms in INTERVALS_MS
        for name in (*PERCENTILES, PROBES)
    ),
    contenders={
        PROCBUS: partial(latencies, procbus_latency),
        PROCBUS_IO: partial(latencies, partial(procbus_latency, kind="io")),
        "thread bus": partial(latencies, thread_bus_latency),
        "loky": partial(latencies, loky_latency),
        LIMIT: partial(latencies, bare_latency),
    },
    limit="one thread behind a queue, bare processes on the cores",
    rounds=3,
)
