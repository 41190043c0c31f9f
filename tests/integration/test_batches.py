"""Events and results of 4 to 31 KB while workers die and deliveries are cancelled."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import Any

import pytest

from procbus import DeliveryState, EventBus, WorkerDied


def content(number: int, size: int) -> bytes:
    return (b"%09d" % number * (size // 9 + 1))[:size]


def echo_or_die(event: dict[str, Any]) -> dict[str, Any]:
    if event["die"]:
        os.kill(os.getpid(), signal.SIGKILL)
    return event


def length(event: bytes) -> int:
    return len(event)


def test_each_event_has_its_own_result_or_error_though_workers_die() -> None:
    sizes = (0, 4_000, 16_000, 31_000)
    dying = {17, 18, 450}
    events = [
        {"number": n, "die": n in dying, "content": content(n, sizes[n * 7 % 4])}
        for n in range(600)
    ]
    with EventBus([], cpu_workers=2) as bus:
        bus.subscribe(dict, echo_or_die, kind="cpu")

        receipts = [bus.publish(event) for event in events]

        for number, receipt in enumerate(receipts):
            if number in dying:
                with pytest.raises(WorkerDied):
                    receipt.result(timeout=60)
            else:
                assert receipt.result(timeout=60) == events[number]


def test_each_kill_from_outside_costs_one_event_at_most() -> None:
    kills = 0
    with EventBus([], cpu_workers=2) as bus:
        bus.subscribe(bytes, length, kind="cpu")
        receipts = []
        for number in range(900):
            receipts.append(bus.publish(content(number, 16_000)))
            if number % 300 == 299:
                receipts[number - 200].wait(timeout=60)
                pids = [worker.pid for worker in bus.health() if worker.kind == "cpu"]
                if pids[0] is not None:
                    with contextlib.suppress(ProcessLookupError):  # dead since the look
                        os.kill(pids[0], signal.SIGKILL)
                        kills += 1
        failed = 0
        for receipt in receipts:
            try:
                assert receipt.result(timeout=60) == 16_000
            except WorkerDied:
                failed += 1
    assert failed <= kills


def test_a_bus_without_shared_memory_handles_them_too() -> None:
    with EventBus([], cpu_workers=1, shared_memory_limit=0) as bus:
        bus.subscribe(dict, echo_or_die, kind="cpu")
        events = [{"die": False, "content": content(n, 16_000)} for n in range(200)]
        receipts = [bus.publish(event) for event in events]
        assert [receipt.result(timeout=60) for receipt in receipts] == events


def test_a_bus_that_is_closed_with_cancel_settles_each_event_once() -> None:
    with EventBus([], cpu_workers=1) as bus:
        bus.subscribe(bytes, length, kind="cpu")
        receipts = [bus.publish(content(n, 31_000)) for n in range(800)]
        assert receipts[0].result(timeout=60) == 31_000
        bus.close(cancel=True)
    states = [receipt.deliveries[0].state for receipt in receipts]
    assert set(states) <= {DeliveryState.SUCCEEDED, DeliveryState.CANCELLED}
    assert states[0] is DeliveryState.SUCCEEDED
