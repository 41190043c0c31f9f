# SPDX-License-Identifier: MIT
"""A cancelled delivery ends once, wherever it is, and takes no other with it."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from procbus import Cancelled, DeliveryState, EventBus, OutcomeKind, Receipt, current
from procbus.testing import InlineBus
from tests.integration.helpers import PATIENCE_S, Bell, Door, Listener, Tally
from tests.waits import eventually

#: Time that handlers have in tests which do not end by themselves, in seconds.
GRACE_S = 0.2


@dataclass(frozen=True)
class Job:
    number: int
    tally: Tally
    bell: Bell
    door: Door | None = None


def begin(job: Job) -> None:
    job.tally.note(job.number)
    job.bell.ring(job.number)


def note(job: Job) -> int:
    begin(job)
    return job.number


def check_for_ever(job: Job) -> None:
    begin(job)
    while True:
        current().check()
        time.sleep(0.001)


def look_for_ever(job: Job) -> None:
    """Raise an error of its own once it is cancelled."""
    begin(job)
    while not current().cancelled:
        time.sleep(0.001)
    raise OSError("it could not tidy up")


def succeed_all_the_same(job: Job) -> int:
    begin(job)
    while not current().cancelled:
        time.sleep(0.001)
    return job.number


def wait_at_door(job: Job) -> int:
    begin(job)
    assert job.door is not None
    job.door.go_through()
    return job.number


async def sleep_for_ever(job: Job) -> None:
    begin(job)
    await asyncio.sleep(1000)


async def sleep_all_the_same(job: Job) -> int:
    begin(job)
    try:
        await asyncio.sleep(1000)
    except asyncio.CancelledError:
        return job.number
    return -1


async def never_end(job: Job) -> None:
    begin(job)
    while True:
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            if not current().cancelled:  # the bus is closing
                raise
            if job.door is None:
                raise
            await asyncio.to_thread(job.door.go_through)
            return


Jobs = Callable[[int], Job]


@pytest.fixture
def job(tally: Tally, bell: Bell, door: Door, heard: Listener) -> Jobs:
    return lambda number: Job(number, tally, bell, door)


@pytest.fixture(params=["io", "cpu", "threads"])
def where(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def bus(where: str) -> Iterator[EventBus]:
    cpu: Any = "threads" if where == "threads" else "processes"
    with EventBus([], cpu=cpu, cpu_workers=1, io_workers=1) as bus:
        yield bus


def kind_of(where: str) -> Any:
    return "io" if where == "io" else "cpu"


def error_of(receipt: Receipt) -> Cancelled:
    with pytest.raises(Cancelled) as caught:
        receipt.result(PATIENCE_S)
    (delivery,) = receipt.deliveries
    assert delivery.state is DeliveryState.CANCELLED
    assert delivery.outcome is not None
    assert delivery.outcome.kind is OutcomeKind.CANCELLED
    assert not isinstance(caught.value, asyncio.CancelledError)
    assert isinstance(caught.value, CancelledError)
    return caught.value


def assert_no_failure(bus: EventBus) -> None:
    assert not bus.dead_letters
    handlers = bus.stats().handlers.values()
    assert not any(each.failed or each.retried for each in handlers)


# Deliveries that have not begun.


def test_delivery_that_waits_is_cancelled_at_once_and_never_runs(
    bus: EventBus, where: str, job: Jobs, heard: Listener, door: Door, tally: Tally
) -> None:
    bus.subscribe("first", wait_at_door, kind=kind_of(where))
    bus.subscribe("job", note, kind=kind_of(where))
    with door.shut():
        first = bus.publish("first", job(0))
        heard.wait()
        receipts = [bus.publish("job", job(number)) for number in range(1, 6)]
        assert receipts[2].cancel()
        eventually(lambda: receipts[2].done)  # at once, but on its way to a worker
        assert receipts[2].cancel(), "it is cancelled already"
        error = error_of(receipts[2])
    assert "was cancelled before its handler began: cancel() was called" in str(error)
    assert (error.handler, error.event_id) == (f"{__name__}.note", receipts[2].id)
    assert first.result(PATIENCE_S) == 0
    assert [r.result(PATIENCE_S) for r in receipts if r is not receipts[2]] == [1, 2, 4, 5]
    assert not first.cancel(), "it has succeeded"
    assert sorted(tally.lines()) == ["0", "1", "2", "4", "5"]
    assert_no_failure(bus)
    assert bus.stats().handlers[f"{__name__}.note"].cancelled == 1


@pytest.mark.parametrize("options", [{"concurrency": 1}, {"key": lambda job: "the one"}])
def test_delivery_that_waits_at_a_gate_leaves_it_and_others_move_up(
    bus: EventBus, where: str, job: Jobs, heard: Listener, door: Door, options: Any
) -> None:
    bus.subscribe("job", wait_at_door, kind=kind_of(where), **options)
    with door.shut():
        receipts = [bus.publish("job", job(number)) for number in range(4)]
        heard.wait()
        assert receipts[1].cancel()
        assert receipts[1].done
        error_of(receipts[1])
    assert [receipts[n].result(PATIENCE_S) for n in (0, 2, 3)] == [0, 2, 3]
    assert bus.stats().pending == 0


def fail(job: Job) -> None:
    begin(job)
    raise ValueError("the one attempt")


@pytest.mark.parametrize("options", [{}, {"concurrency": 1}, {"key": lambda job: job.number % 2}])
def test_delivery_that_waits_for_its_next_attempt_is_cancelled_at_once(
    bus: EventBus, where: str, job: Jobs, options: Any, tally: Tally
) -> None:
    bus.subscribe("job", fail, kind=kind_of(where), retries=3, backoff=3600, **options)
    receipts = [bus.publish("job", job(number)) for number in range(3)]
    # The third waits behind the first if they have one key.
    eventually(lambda: all(each.deliveries[0].attempts for each in receipts[:2]))
    assert [r.cancel() for r in receipts] == [True] * 3
    for receipt in receipts:
        error_of(receipt)
    assert bus.drain(PATIENCE_S)
    assert not bus.dead_letters


# Running handlers.


def test_running_handler_that_checks_ends_and_its_worker_goes_on(
    bus: EventBus, where: str, job: Jobs, heard: Listener
) -> None:
    bus.subscribe("job", check_for_ever, kind=kind_of(where), grace=3600, retries=2, backoff=0)
    bus.subscribe("note", note, kind=kind_of(where))
    receipt, after = bus.publish("job", job(0)), bus.publish("note", job(1))
    heard.wait()
    assert receipt.deliveries[0].cancel()
    error = error_of(receipt)
    assert "s in its handler: cancel() was called" in str(error)
    assert error.__cause__ is None
    assert after.result(PATIENCE_S) == 1
    assert after.deliveries[0].worker_pid == receipt.deliveries[0].worker_pid
    assert_no_failure(bus)
    lane = bus.stats().lanes[kind_of(where)]
    assert (lane.restarts, lane.abandoned) == (0, 0)


def test_error_of_a_cancelled_handler_is_the_cause_and_no_failure(
    bus: EventBus, where: str, job: Jobs, heard: Listener
) -> None:
    bus.subscribe("job", look_for_ever, kind=kind_of(where), grace=3600, retries=2, backoff=0)
    receipt = bus.publish("job", job(0))
    heard.wait()
    assert receipt.cancel()
    assert isinstance(error_of(receipt).__cause__, OSError)
    assert_no_failure(bus)


def test_handler_that_succeeds_first_wins(
    bus: EventBus, where: str, job: Jobs, heard: Listener
) -> None:
    bus.subscribe("job", succeed_all_the_same, kind=kind_of(where), grace=3600)
    receipt = bus.publish("job", job(7))
    heard.wait()
    receipt.cancel()  # False if the handler is as quick as that
    assert receipt.result(PATIENCE_S) == 7
    assert not receipt.cancel()
    assert_no_failure(bus)


def test_handler_that_goes_on_is_ended_after_its_grace(
    bus: EventBus, where: str, job: Jobs, heard: Listener, door: Door, tally: Tally
) -> None:
    bus.subscribe("job", wait_at_door, kind=kind_of(where), grace=GRACE_S, retries=2, backoff=0)
    bus.subscribe("note", note, kind=kind_of(where))
    with door.shut():
        receipt = bus.publish("job", job(0))
        heard.wait()
        others = [bus.publish("note", job(number)) for number in range(1, 10)]
        assert receipt.cancel()
        error = error_of(receipt)
        assert "wait_at_door" in "".join(error.__notes__), "the stack of the handler"
        assert [r.result(PATIENCE_S) for r in others] == [*range(1, 10)]
        lane = bus.stats().lanes[kind_of(where)]
        assert (lane.restarts, lane.abandoned) == {"cpu": (1, 0), "io": (0, 1)}.get(where, (1, 1))
    assert_no_failure(bus)
    assert tally.counts()["0"] == 1
    eventually(lambda: bus.stats().lanes[kind_of(where)].abandoned == 0)


# The event loop.


def test_async_handler_gets_a_cancelled_error(job: Jobs, heard: Listener) -> None:
    with EventBus([]) as bus:
        bus.subscribe("job", sleep_for_ever, retries=2, backoff=0)
        bus.subscribe("note", note)
        receipts = [bus.publish("job", job(number)) for number in range(3)]
        heard.wait(3)
        assert receipts[1].cancel()
        assert error_of(receipts[1]).__cause__ is None
        assert not receipts[0].done
        assert not receipts[2].done
        for receipt in receipts:
            receipt.cancel()
            error_of(receipt)
        assert_no_failure(bus)


def test_async_handler_that_succeeds_after_its_cancellation_wins(
    job: Jobs, heard: Listener
) -> None:
    with EventBus([]) as bus:
        bus.subscribe("job", sleep_all_the_same, grace=3600)
        receipt = bus.publish("job", job(3))
        heard.wait()
        receipt.cancel()
        assert receipt.result(PATIENCE_S) == 3


def test_async_handler_that_goes_on_is_settled_after_its_grace(
    job: Jobs, heard: Listener, door: Door
) -> None:
    with EventBus([]) as bus:
        bus.subscribe("job", never_end, grace=GRACE_S)
        with door.shut():
            receipt = bus.publish("job", job(3))
            heard.wait()
            assert receipt.cancel()
            error_of(receipt)
        assert_no_failure(bus)


# The rest.


def test_receipt_with_several_handlers_cancels_all_that_are_open(
    job: Jobs, heard: Listener, door: Door
) -> None:
    with EventBus([], cpu_workers=1) as bus:
        bus.subscribe("job", note, name="done")
        bus.subscribe("job", check_for_ever, kind="cpu", name="cpu", grace=3600)
        bus.subscribe("job", sleep_for_ever, name="async")
        receipt = bus.publish("job", job(0))
        heard.wait(3)
        done = receipt.deliveries[0]
        eventually(lambda: done.state is DeliveryState.SUCCEEDED)
        assert not receipt.cancel(), "one has succeeded"
        assert receipt.wait(PATIENCE_S)
        states = [each.state for each in receipt.deliveries]
        assert states == [DeliveryState.SUCCEEDED, *[DeliveryState.CANCELLED] * 2]
        assert_no_failure(bus)


def publish_and_check(job: Job) -> None:
    current().publish("child", job)
    check_for_ever(job)


def test_events_of_a_cancelled_cpu_handler_are_dropped(job: Jobs, heard: Listener) -> None:
    with EventBus([], cpu_workers=1) as bus:
        bus.subscribe("job", publish_and_check, kind="cpu", grace=3600)
        bus.subscribe("child", note)
        receipt = bus.publish("job", job(0))
        heard.wait()
        receipt.cancel()
        error_of(receipt)
        outcome = receipt.deliveries[0].outcome
        assert outcome is not None
        assert outcome.dropped_events == 1
        assert bus.drain(PATIENCE_S)
        assert bus.stats().handlers[f"{__name__}.note"].published == 0


def remaining(_: object) -> float | None:
    return current().remaining_s


@pytest.mark.parametrize("timeout", [None, 100.0])
def test_handler_knows_the_time_that_it_has_left(
    bus: EventBus, where: str, timeout: float | None
) -> None:
    bus.subscribe("job", remaining, kind=kind_of(where), timeout=timeout)
    left_s = bus.publish("job", 1).result(PATIENCE_S)
    if timeout is None:
        assert left_s is None
    else:
        assert 0 < left_s <= timeout


def test_cancelled_delivery_is_not_resumed_and_one_of_a_closed_bus_is(
    tmp_path: Path, job: Jobs, tally: Tally, heard: Listener, door: Door
) -> None:
    path = str(tmp_path / "journal.db")
    with EventBus([], journal=path, cpu_workers=1) as bus:
        bus.subscribe("job", wait_at_door, kind="cpu", concurrency=1)
        with door.shut():
            first, cancelled, _ = (bus.publish("job", job(n), id=f"{n}") for n in range(3))
            heard.wait()
            assert cancelled.cancel()
            closing = threading.Thread(target=bus.close, kwargs={"cancel": True})
            closing.start()
            eventually(lambda: bus.stats().pending <= 1)
        closing.join(PATIENCE_S)
        assert first.result() == 0
    with EventBus([], journal=path) as bus:
        bus.subscribe("job", note, name=f"{__name__}.wait_at_door")
        again = bus.publish("job", job(1), id="1")
        with pytest.raises(Exception, match="was cancelled with event"):
            again.result(PATIENCE_S)
    assert tally.lines() == ["0", "2"]


def test_inline_bus_cancels_too() -> None:
    with InlineBus([]) as bus:
        receipts: list[Receipt] = []

        def cancel_it(number: int) -> None:
            found = bus.published[-1]
            receipts.append(found)
            assert found.cancel()
            current().check()

        bus.subscribe("job", cancel_it)
        bus.subscribe("fails", fail, retries=1, backoff=10)
        error_of(bus.publish("job", 1))
        assert_no_failure(bus)
        assert receipts


def test_cancelling_from_a_handler_and_from_a_callback(job: Jobs) -> None:
    with EventBus([], io_workers=2) as bus:
        bus.subscribe("later", check_for_ever, grace=3600)
        waiting = bus.publish("later", job(0))
        bus.subscribe("now", lambda _: waiting.cancel())
        assert bus.publish("now", 1).result(PATIENCE_S) is True
        error_of(waiting)
        last = bus.publish("later", job(1))
        bus.publish("now", 2).when_done(lambda _: last.cancel())
        error_of(last)


def test_worker_of_a_killed_handler_is_replaced_and_pid_is_told(
    job: Jobs, heard: Listener, door: Door
) -> None:
    with EventBus([], cpu_workers=1) as bus, door.shut():
        bus.subscribe("job", wait_at_door, kind="cpu", grace=0)
        receipt = bus.publish("job", job(0))
        heard.wait()
        assert receipt.cancel()
        error_of(receipt)
        pid = receipt.deliveries[0].worker_pid
        assert pid not in (None, os.getpid())
        bus.subscribe("pid", lambda _: os.getpid(), kind="cpu")
        assert bus.publish("pid", 0).result(PATIENCE_S) != pid


# Batch handlers.


def check_together(jobs: list[Job]) -> list[int]:
    for each in jobs:
        begin(each)
    while True:
        current().check()
        time.sleep(0.001)


def test_call_of_a_batch_handler_stops_once_all_of_its_events_are_cancelled(
    bus: EventBus, where: str, job: Jobs, heard: Listener
) -> None:
    bus.subscribe("job", check_together, kind=kind_of(where), batch=2, grace=3600)
    receipts = [bus.publish("job", job(number)) for number in range(5)]
    heard.wait()
    assert receipts[4].cancel(), "it waits"
    error_of(receipts[4])
    assert all(each.cancel() for each in receipts[:4])
    for receipt in receipts[:4]:
        error_of(receipt)
    assert bus.drain(PATIENCE_S)
    assert_no_failure(bus)


def test_cancelled_event_of_a_running_batch_ends_with_its_call(
    job: Jobs, heard: Listener, door: Door
) -> None:
    def together(jobs: list[Job]) -> list[int]:
        return [wait_at_door(each) for each in jobs]

    with EventBus([], io_workers=1) as bus:
        bus.subscribe("job", together, batch=2, batch_wait=60, grace=0)
        with door.shut():
            receipts = [bus.publish("job", job(number)) for number in range(2)]
            heard.wait()
            assert receipts[0].cancel(), "the other one is wanted, so the handler goes on"
        assert [each.result(PATIENCE_S) for each in receipts] == [0, 1]
