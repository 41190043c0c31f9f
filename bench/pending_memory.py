"""How much memory does an event need in the parent while it waits for its handler?

The handlers wait for a file; until it is there, whatever is published is pending.
"""

from __future__ import annotations

import gc
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from .contenders import Opener
from .model import LIMIT, Question, Row, Settings
from .peers import PEERS
from .work import Order

ROW = "memory of the parent for each waiting event"
FULL_COUNT = 8_000  # a bus has room for 10,000 by default
GATE = "PROCBUS_BENCH_GATE"  # workers inherit it
WARM_UP = 50
#: joblib, blinker and pyee have nothing that waits; bubus refuses more than 100 waiting events.
ASKED = {
    name: opener
    for name, opener in PEERS.items()
    if name not in {"joblib", "blinker", "pyee", "bubus"}
}


def wait_at_gate(_event: Any) -> None:
    """Wait until the file is there."""
    gate = os.environ[GATE]
    while not os.path.exists(gate):
        time.sleep(0.01)


def own_bytes() -> int:
    """Return the memory that is this process's alone."""
    gc.collect()
    return int(psutil.Process().memory_full_info().uss)


def orders(count: int) -> Iterable[Order]:
    """Make events, each a new one."""
    return (Order(number, f"customer {number}", number / 7) for number in range(count))


def growth(submit: Callable[[Any], Any], count: int) -> tuple[float, list[Any]]:
    """Submit a number of events; return the growth per event in bytes, and the submits' results."""
    before = own_bytes()
    handles = [submit(order) for order in orders(count)]
    return (own_bytes() - before) / count, handles


def contender_bytes(opener: Opener, settings: Settings) -> dict[str, float]:
    """Warm up with the gate open, shut it, submit, measure, open it, wait for the end."""
    count = settings.count(FULL_COUNT)
    with tempfile.TemporaryDirectory(prefix="procbus-bench-") as directory:
        gate = Path(directory, "gate")
        os.environ[GATE] = str(gate)
        gate.touch()
        with opener(wait_at_gate, settings.workers) as contender:
            contender.run(list(orders(WARM_UP)))
            gate.unlink()
            grown, handles = growth(contender.submit, count)
            gate.touch()
            for handle in handles:
                contender.result(handle)
    return {ROW: grown}


QUESTION = Question(
    name="pending_memory",
    asks="How much memory does an event need in the parent while it waits for its handler?",
    rows=(Row(ROW, "bytes"),),
    contenders={name: partial(contender_bytes, opener) for name, opener in ASKED.items()}
    | {LIMIT: lambda settings: {ROW: growth(lambda event: event, settings.count(FULL_COUNT))[0]}},
    limit="the events themselves, in a list",
    rounds=3,
)
