"""A handler reports how far it is, and the script sees it: on every lane, and after its end."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from procbus import (
    Delivery,
    DeliveryState,
    EventBus,
    HandlerTimeout,
    Progress,
    WorkerDied,
    current,
)
from procbus.assembly import Makers
from procbus.supervision.supervisor import Supervisor
from procbus.testing import InlineBus
from tests.integration.helpers import PATIENCE_S, Bell, Door, Listener
from tests.parts import BusWith
from tests.waits import eventually


@dataclass(frozen=True)
class Job:
    door: Door
    bell: Bell


def report_and_wait(job: Job) -> None:
    current().progress(1, 5000, "loading")
    current().progress(4211, 5000, "parsing")
    job.bell.ring()
    job.door.go_through()


async def report_and_await(job: Job) -> None:
    current().progress(4211, 5000, "parsing")
    job.bell.ring()
    await asyncio.to_thread(job.door.go_through)


def report_and_raise(job: Job) -> None:
    """Report at the first attempt only, which fails."""
    if current().attempt == 1:
        current().progress(4211, 5000, "parsing")
        raise ValueError("the first attempt")
    job.bell.ring()
    job.door.go_through()
    current().progress(0.5, note="again")
    job.bell.ring()


def report_and_die(job: Job) -> None:
    current().progress(4211, 5000, "parsing")
    os.kill(os.getpid(), signal.SIGKILL)


def report_and_beat(job: Job) -> None:
    """Report ten times a second, and do nothing else."""
    opened = job.door.opened()
    job.bell.ring()
    beats = 0
    while not opened.wait(0.1):
        beats += 1
        current().progress(beats)


def report_once(job: Job) -> None:
    current().progress(0, note="waiting")
    job.bell.ring()
    job.door.go_through()


def report_late(job: Job) -> None:
    """Leave a thread behind that reports once the handler has ended."""
    me = current()
    me.progress(1, 2)

    def late() -> None:
        job.door.go_through()
        me.progress(2, 2)
        job.bell.ring()

    threading.Thread(target=late).start()


def parsing(progress: Progress | None) -> bool:
    return progress is not None and progress[:3] == (4211, 5000, "parsing")


def reporting(bus: EventBus) -> list[tuple[Delivery, Progress]]:
    return bus._parts.lanes.progress()  # noqa: SLF001 - the bar shows it


#: Kind of bus, and options of the subscription.
LANES: dict[str, tuple[Callable[[], EventBus], Callable[[Job], Any], dict[str, Any]]] = {
    "process": (lambda: EventBus(cpu_workers=1), report_and_wait, {"kind": "cpu"}),
    "thread": (EventBus, report_and_wait, {"kind": "io"}),
    "event loop": (EventBus, report_and_await, {"kind": "io"}),
    "cpu thread": (
        lambda: EventBus(cpu="threads", cpu_workers=1),
        report_and_wait,
        {"kind": "cpu"},
    ),
    "key of a process": (
        lambda: EventBus(cpu_workers=1),
        report_and_wait,
        {"kind": "auto", "concurrency": 1},
    ),
    "inline": (lambda: InlineBus(pickling=False), report_and_wait, {"kind": "cpu"}),
    "inline, pickled": (InlineBus, report_and_wait, {"kind": "cpu"}),
    "inline, async": (InlineBus, report_and_await, {"kind": "io"}),
}


@pytest.mark.parametrize("lane", LANES)
def test_last_report_is_seen_while_the_handler_runs(
    door: Door, bell: Bell, heard: Listener, lane: str
) -> None:
    make_bus, handler, options = LANES[lane]
    with make_bus() as bus:
        bus.subscribe("job", handler, **options)
        with door.shut():
            publisher = threading.Thread(target=bus.publish, args=("job", Job(door, bell)))
            publisher.start()
            heard.wait()
            [(delivery, progress)] = reporting(bus)
            assert parsing(progress)
            assert parsing(delivery.progress)
            assert str(delivery.progress) == "4,211 of 5,000: parsing"
            if not lane.startswith("inline"):
                assert [h.progress for h in bus.health() if h.progress] == [delivery.progress]
        publisher.join()
        assert bus.drain(PATIENCE_S)
        assert delivery.state is DeliveryState.SUCCEEDED
        assert delivery.progress is None, "it is settled"
        assert reporting(bus) == []


@pytest.fixture(params=["process", "thread", "cpu thread"])
def bus_of(request: pytest.FixtureRequest) -> Iterator[tuple[EventBus, str]]:
    kind = "io" if request.param == "thread" else "cpu"
    cpu: Any = "threads" if request.param == "cpu thread" else "processes"
    with EventBus(cpu_workers=1, cpu=cpu) as bus:
        yield bus, kind


def test_progress_of_a_retry_begins_anew(
    bus_of: tuple[EventBus, Any], door: Door, bell: Bell, heard: Listener
) -> None:
    bus, kind = bus_of
    bus.subscribe("job", report_and_raise, kind=kind, retries=1, backoff=0)
    with door.shut():
        receipt = bus.publish("job", Job(door, bell))
        [delivery] = receipt.deliveries
        heard.wait()
        assert delivery.progress is None
        assert reporting(bus) == []
    assert receipt.wait(PATIENCE_S)
    assert delivery.state is DeliveryState.SUCCEEDED


def test_late_report_is_not_taken_for_one_of_another_delivery(
    bus_of: tuple[EventBus, Any], door: Door, bell: Bell, heard: Listener, tmp_path: Any
) -> None:
    bus, kind = bus_of
    shut = Door(str(tmp_path / "shut"))
    bus.subscribe("late", report_late, kind=kind)
    bus.subscribe("job", report_and_wait, kind=kind)
    with shut.shut():
        with door.shut():
            assert bus.publish("late", Job(door, bell)).wait(PATIENCE_S)
            receipt = bus.publish("job", Job(shut, bell))
            heard.wait()
        heard.wait()  # the late one has reported
        progress = receipt.deliveries[0].progress
        assert progress is None or parsing(progress)
    assert receipt.wait(PATIENCE_S)


@pytest.mark.parametrize("lane", ["process", "thread", "event loop", "cpu thread"])
def test_timeout_says_how_far_the_handler_was(door: Door, bell: Bell, lane: str) -> None:
    make_bus, handler, options = LANES[lane]
    with make_bus() as bus:
        bus.subscribe("job", handler, timeout=1.0, name="parse", **options)
        with door.shut(), bell.heard():
            error = bus.publish("job", Job(door, bell)).deliveries[0]
            eventually(lambda: error.state is DeliveryState.FAILED)
            timeout = error.exception()
    assert isinstance(timeout, HandlerTimeout)
    assert parsing(timeout.progress)
    assert str(timeout).endswith(", at 4,211 of 5,000: parsing")


def test_death_of_a_worker_says_how_far_the_handler_was(door: Door, bell: Bell) -> None:
    with EventBus(cpu_workers=1) as bus:
        bus.subscribe("job", report_and_die, kind="cpu", name="parse")
        error = bus.publish("job", Job(door, bell)).deliveries[0]
        eventually(lambda: error.state is DeliveryState.FAILED)
        died = error.exception()
    assert isinstance(died, WorkerDied)
    assert parsing(died.progress)
    assert "died at 4,211 of 5,000: parsing (killed by SIGKILL" in str(died)
    again = pickle.loads(pickle.dumps(died))
    assert (str(again), again.progress) == (str(died), died.progress)


def test_handler_that_reports_is_not_stalled(door: Door, bell: Bell, heard: Listener) -> None:
    make = Makers(supervisor=partial(Supervisor, sample_s=0.1, stall_window_s=2.0))
    with BusWith(make, cpu_workers=2) as bus:
        bus.subscribe("job", report_and_beat, kind="cpu", name="beats")
        bus.subscribe("job", report_once, kind="cpu", name="waits")
        with door.shut():
            receipt = bus.publish("job", Job(door, bell))
            heard.wait(2)
            eventually(lambda: ("waits", "stalled") in states(bus))
            assert ("beats", "busy") in states(bus)
        assert receipt.wait(PATIENCE_S)


def states(bus: EventBus) -> set[tuple[str | None, str]]:
    return {(worker.handler, worker.state) for worker in bus.health()}
