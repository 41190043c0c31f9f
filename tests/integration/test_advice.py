"""Advice on real handlers, on real threads and in real workers."""

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from procbus import EventBus, current
from procbus.advice.gil_probe import is_available
from procbus.system.cores import usable_cores
from tests.matrix import quick_first
from tests.parts import BOUND_S

pytestmark = pytest.mark.skipif(not is_available(), reason="needs the clocks of other threads")


def spin(_event: Any) -> int:
    x = 0
    for number in range(60_000):
        x += number
    return x


def nap(_event: Any) -> None:
    time.sleep(0.005)


async def async_nap(_event: Any) -> None:
    await asyncio.sleep(0.005)


async def async_spin(event: Any) -> int:
    return spin(event)


def run_until(bus: EventBus, event: Any, advised: Callable[[], bool]) -> None:
    """Keep the bus busy until it advises so, for nearly as long as a test may take.

    A machine that has no core to spare may keep the bus from saying anything. That is no fault.
    """
    deadline = time.monotonic() + 2 * BOUND_S
    room = threading.Semaphore(16)
    while not advised():
        if time.monotonic() > deadline:
            if bus.advice()[0].kind is None and os.getloadavg()[0] > 4 * usable_cores():
                pytest.skip("too many programs want a core")
            pytest.fail(f"it never did:\n{bus.advice()}")
        for _ in range(16):
            room.acquire()
            bus.publish("event", event).when_done(lambda _: room.release())


@pytest.mark.parametrize(
    ("function", "declared", "kind"),
    quick_first(
        [
            (spin, "io", "cpu"),
            (nap, "cpu", "io"),
            (nap, "io", "io"),
            (spin, "cpu", "cpu"),
            (async_nap, "io", "io"),
            (async_spin, "io", "cpu"),
        ],
        2,
    ),
)
def test_right_kind_is_advised(function: Any, declared: Any, kind: str):
    with EventBus(handlers=[], cpu_workers=2, io_workers=4) as bus:
        bus.subscribe("event", function, kind=declared, name="it")
        # On one core nothing is gained by another process.
        if kind == "cpu" and usable_cores() < 2:
            pytest.skip("needs two cores")
        run_until(bus, 1, lambda: bus.advice()[0].kind == kind)


@pytest.mark.parametrize(
    ("work", "declared", "kind"), quick_first([(spin, "io", "cpu"), (nap, "cpu", "io")], 1)
)
def test_right_kind_of_a_batch_handler_is_advised(work: Any, declared: Any, kind: str):
    def load(events: list[Any]) -> None:
        for event in events:
            work(event)

    if kind == "cpu" and usable_cores() < 2:
        pytest.skip("needs two cores")
    with EventBus(handlers=[], cpu_workers=2, io_workers=4) as bus:
        bus.subscribe("event", load, kind=declared, batch=4, name="it")
        run_until(bus, 1, lambda: bus.advice()[0].kind == kind)
        (advice,) = bus.advice()
        runs = bus.stats().handlers["it"].succeeded
    assert 0 < advice.evidence.ran < runs  # calls, not events


def test_wrong_kind_is_logged_once(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "procbus")

    def said() -> int:
        return sum("declare it io" in record.getMessage() for record in caplog.records)

    with EventBus(handlers=[], cpu_workers=1) as bus:
        bus.subscribe("event", nap, kind="cpu", name="it")
        run_until(bus, 1, lambda: said() > 0)
    assert said() == 1


@pytest.mark.parametrize(
    "of_the_bus", quick_first([{"max_events_per_worker": 4}, {}, {"max_events_per_worker": 1}])
)
def test_few_runs_are_all_measured_with_any_limit(of_the_bus: dict[str, Any]):
    def nap_or_fail(number: int) -> None:
        time.sleep(0.005)
        if not number % 5 and current().attempt == 1:
            raise ValueError("not at the first attempt")

    with EventBus(handlers=[], cpu_workers=2, **of_the_bus) as bus:
        bus.subscribe(
            "event",
            nap_or_fail,
            kind="cpu",
            name="it",
            timeout=150,
            retries=1,
            backoff=0.001,
            max_memory="1 GB",
        )
        receipts = [bus.publish("event", number) for number in range(10)]
        for receipt in receipts:
            receipt.result(BOUND_S)
    [advice] = bus.advice()
    assert (advice.evidence.ran, advice.evidence.runs) == (12, 12)
    assert "were measured" not in advice.text, "it says so when some were not"


def test_handler_whose_events_cannot_travel_stays():
    with EventBus(handlers=[], io_workers=4) as bus:
        bus.subscribe("event", spin, name="it")
        run_until(
            bus, threading.Lock(), lambda: bus.advice()[0].evidence.obstacle not in (None, "")
        )
        [advice] = bus.advice()
    assert advice.kind == "io"
    assert "its events cannot travel" in advice.text


def test_the_advisor_ends_with_its_bus():
    with EventBus(handlers=[], io_workers=4) as bus:
        bus.subscribe("event", nap, name="it")
        run_until(bus, 1, lambda: bus.advice()[0].kind == "io")
    assert "procbus-advisor" not in [thread.name for thread in threading.enumerate()]
