# SPDX-License-Identifier: MIT
"""Deliveries that are cancelled at any moment: each ends once, and no neighbour is touched."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from typing import Any

import pytest

from procbus import Cancelled, DeliveryState, EventBus, current
from tests.integration.helpers import PATIENCE_S

CANCELLERS = 2


def work(number: int) -> int:
    for _ in range(number % 5):
        current().check()
        time.sleep(0.0002)
    return number


async def work_async(number: int) -> int:
    for _ in range(number % 5):
        await asyncio.sleep(0)
    return number


def neighbour(number: int) -> int:
    return -number


@pytest.mark.parametrize("count", [1_000, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["io", "async", "cpu"])
def test_delivery_that_is_cancelled_at_random_ends_once(kind: str, count: int) -> None:
    ends: dict[int, int] = dict.fromkeys(range(count), 0)
    lock = threading.Lock()
    options: dict[str, Any] = {"kind": "cpu" if kind == "cpu" else "io", "grace": 600}

    def note(receipt: Any) -> None:
        with lock:
            ends[receipt.event] += 1

    with EventBus([], cpu_workers=2, io_workers=4, max_pending=500) as bus:
        bus.subscribe("n", work_async if kind == "async" else work, name="work", **options)
        bus.subscribe("beside", neighbour, **options)
        receipts: list[Any] = []
        through = threading.Event()

        def cancel_some(seed: int) -> None:
            chance = random.Random(seed)
            while not through.wait(0.0005):  # a pace at which some run, and some are cancelled
                for receipt in chance.sample(receipts[-600:], min(len(receipts), 5)):
                    receipt.cancel()

        cancellers = [threading.Thread(target=cancel_some, args=(n,)) for n in range(CANCELLERS)]
        for thread in cancellers:
            thread.start()
        try:
            beside = []
            for number in range(count):
                receipts.append(bus.publish("n", number))
                receipts[-1].when_done(note)
                if not number % 10:
                    beside.append(bus.publish("beside", number))
            assert bus.drain(PATIENCE_S)
        finally:
            through.set()
            for thread in cancellers:
                thread.join(PATIENCE_S)
        assert [each.result(PATIENCE_S) for each in beside] == [*range(0, -count, -10)]
        handler = bus.stats().handlers["work"]
        assert bus.stats().pending == 0
        assert not bus.dead_letters
    assert set(ends.values()) == {1}
    states = [receipt.deliveries[0].state for receipt in receipts]
    succeeded = states.count(DeliveryState.SUCCEEDED)
    assert succeeded + states.count(DeliveryState.CANCELLED) == count
    assert (handler.succeeded, handler.published, handler.failed) == (succeeded, count, 0)
    for number, (receipt, state) in enumerate(zip(receipts, states, strict=True)):
        if state is DeliveryState.SUCCEEDED:
            assert receipt.result() == number
        else:
            with pytest.raises(Cancelled):
                receipt.result()
