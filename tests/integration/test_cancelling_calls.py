# SPDX-License-Identifier: MIT
"""Calls that are cancelled while workers take them: each is run or cancelled, never both."""

from __future__ import annotations

import random
import threading
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

import pytest

from procbus import EventBus
from tests.integration.helpers import PATIENCE_S, Tally
from tests.matrix import quick_first

CALLS = 2_000
CANCELLERS = 2


def note(tally: Tally, number: int) -> int:
    tally.note(number)
    return number


@pytest.mark.parametrize("kind", ["cpu", "io"])
@pytest.mark.parametrize("seed", quick_first([1, 2, 3]))
def test_a_call_is_run_or_cancelled_and_never_both(kind: Any, seed: int, tmp_path: Path) -> None:
    tally = Tally(str(tmp_path / "tally"))
    with EventBus([], cpu_workers=2, io_workers=2, max_pending=100) as bus:
        pool = bus.executor(kind)
        futures: list[Future[int]] = []
        through = threading.Event()

        def cancel_some(number: int) -> None:
            chance = random.Random(seed * 100 + number)
            while not through.wait(0.0005):  # a pace at which some are run, and some cancelled
                for future in chance.sample(futures, min(len(futures), 3)):
                    future.cancel()

        cancellers = [
            threading.Thread(target=cancel_some, args=(number,)) for number in range(CANCELLERS)
        ]
        assert pool.submit(abs, -1).result() == 1, "the first worker is there"
        for thread in cancellers:
            thread.start()
        try:
            for number in range(CALLS):
                futures.append(pool.submit(note, tally, number))
            not_done = wait(futures, PATIENCE_S).not_done
        finally:
            through.set()
            for thread in cancellers:
                thread.join(PATIENCE_S)
        assert not not_done
        assert bus.drain(PATIENCE_S)
        stats = bus.stats()
        handler = stats.handlers[f"{__name__}.note"]
    cancelled = {number for number, future in enumerate(futures) if future.cancelled()}
    ran = [future.result() for future in futures if not future.cancelled()]
    assert sorted(map(int, tally.lines())) == ran, "each once, and no other"
    assert stats.pending == 0
    assert (handler.succeeded, handler.cancelled) == (len(ran), len(cancelled))
    assert handler.published == CALLS
