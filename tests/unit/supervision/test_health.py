# SPDX-License-Identifier: MIT
"""How each worker is: it is measured, and nothing is changed by looking."""

import asyncio
import os
from dataclasses import FrozenInstanceError
from time import monotonic, thread_time
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from procbus import Delivery, EventBus
from procbus.supervision.health import WorkerHealth, cpu_health, io_health
from procbus.supervision.stall import STALL_WINDOW_S
from procbus.system.process import STOPPED, Details, Sample
from tests.parts import BOUND_S, Held, delivery_to, double, subscription_of


def test_a_new_bus_has_no_workers():
    with EventBus([]) as bus:
        assert bus.health() == ()


def test_threads_show_their_running_deliveries():
    held = Held()
    with EventBus([], io_workers=1) as bus:
        bus.subscribe(int, held, name="held")
        receipt = bus.publish(1)
        held.wait_begun()
        (busy,) = bus.health()
        held.go.set()
        bus.drain()
    assert (busy.kind, busy.pid, busy.state) == ("io", os.getpid(), "busy")
    assert busy.cpu_s is not None
    assert busy.cpu_s >= 0
    assert (busy.memory_bytes, busy.children) == (None, None)
    assert (busy.handler, busy.event_id) == ("held", receipt.id)
    assert busy.name.startswith("procbus-io-")
    assert busy.running_s is not None
    assert busy.running_s >= 0
    assert busy.events_done == 0


def test_a_thread_shows_its_share_of_the_cpu_once_that_says_anything():
    def burn(_: int) -> None:
        until = thread_time() + 0.15
        while thread_time() < until:
            pass

    with EventBus([], io_workers=1) as bus:
        bus.subscribe(int, burn)
        bus.publish(1).result(BOUND_S)
        (worker,) = bus.health()
    assert worker.cpu_share is not None
    assert 0 < worker.cpu_share <= 1.1


def test_idle_thread_counts_its_finished_deliveries():
    with EventBus([], io_workers=1) as bus:
        bus.subscribe(int, double)
        for number in range(3):
            bus.publish(number)
        bus.drain()
        (idle,) = bus.health()
    assert (idle.state, idle.handler, idle.event_id, idle.running_s) == ("idle", None, None, None)
    assert idle.events_done == 3
    assert (idle.restarts, idle.last_exit) == (0, "")


def test_the_event_loop_shows_each_handler_on_it():
    with EventBus([]) as bus:

        async def look(event: int) -> int:
            await asyncio.sleep(0)
            return sum(w.state == "busy" and w.name == "procbus-loop" for w in bus.health())

        bus.subscribe(int, look)
        assert bus.publish(1).result(BOUND_S) == 1
        bus.drain()
        (idle,) = bus.health()
    assert (idle.name, idle.state, idle.events_done) == ("procbus-loop", "idle", 1)
    assert idle.cpu_s is not None


def test_a_worker_process_shows_its_memory_and_cpu():
    with EventBus([], cpu_workers=1) as bus:
        bus.subscribe(int, double, kind="cpu", name="double")
        receipt = bus.publish(21)
        assert receipt.result(60) == 42
        bus.drain()
        (worker,) = bus.health()
    assert (worker.kind, worker.state, worker.events_done) == ("cpu", "idle", 1)
    assert worker.pid == receipt.deliveries[0].worker_pid != os.getpid()
    assert worker.memory_bytes is not None
    assert worker.memory_bytes > 1_000_000
    assert worker.cpu_s is not None
    assert worker.cpu_s > 0
    assert worker.unique_bytes is not None
    assert 0 < worker.unique_bytes <= worker.memory_bytes
    assert worker.children == 0
    assert worker.open_files is not None
    assert worker.open_files > 0
    with pytest.raises(FrozenInstanceError):
        worker.pid = 1  # type: ignore[misc]  # that is what must not work


# One worker of the cpu lane, by the facts of its companion and the system.

DETAILS = Details(
    status="running", rss=2000, uss=1000, cpu_s=3.0, children=2, open_files=7, age_s=6.0
)


class LookedAt:
    """Stands for a probe and a verdict: facts of a process from the system and the supervisor."""

    window_s = STALL_WINDOW_S

    def __init__(self, details: Details | None = DETAILS, stalled: bool = False) -> None:
        self.details = lambda *, brief: details
        self.stalled = lambda _: stalled


def unobserved(_: object) -> None:
    """The supervisor has not looked yet."""


def lane_with(*at_hand: Any) -> Any:
    """A cpu lane of one worker: its slot, its delivery, and the start of that."""
    return SimpleNamespace(
        batching=SimpleNamespace(at_hand=lambda: [at_hand]), pool=SimpleNamespace(left_behind=())
    )


def health_of(
    looked_at: LookedAt | None = None,
    running_s: float | None = None,
    last_sample: Sample | None = None,
    ready: bool = True,
    starting: Any = None,
) -> WorkerHealth:
    looked_at = looked_at or LookedAt()
    worker = SimpleNamespace(pid=4711, probe=looked_at, thread=None) if ready else None
    slot = SimpleNamespace(
        name="procbus-companion-1",
        worker=worker,
        starting=starting,
        starting_since=monotonic() - 5.0,
        events_done=5,
        restarts=1,
        last_exit="killed",
    )
    delivery = None if running_s is None else delivery_to(subscription_of(), event_id=9)
    since = 0.0 if running_s is None else monotonic() - running_s
    lane = lane_with(slot, delivery, since, None)
    seen: Any = SimpleNamespace(activity=looked_at, last_sample=last_sample)
    (health,) = cpu_health([lane], lambda worker: seen)
    return health


@pytest.mark.parametrize(
    ("set_up_since", "handler"), [(None, None), (0.5, "worker_init")], ids=["starts", "set up"]
)
def test_starting_worker_shows_all_known_facts(
    set_up_since: float | None, handler: str | None
) -> None:
    starting = SimpleNamespace(
        pid=4712, probe=LookedAt(), thread=None, set_up_since=lambda: set_up_since
    )

    health = health_of(ready=False, starting=starting)

    assert (health.state, health.pid, health.handler) == ("starting", 4712, handler)
    assert health.event_id is None
    assert health.running_s is not None
    assert 5.0 <= health.running_s < 5.0 + BOUND_S
    assert (health.memory_bytes, health.children) == (2000, 2)


def test_without_a_cpu_lane_there_are_no_processes():
    assert cpu_health((), unobserved) == []


def test_worker_shows_all_known_facts():
    health = health_of(running_s=0.5)

    assert (health.kind, health.name, health.pid) == ("cpu", "procbus-companion-1", 4711)
    assert (health.state, health.event_id) == ("busy", 9)
    assert health.handler is not None
    assert health.handler.endswith("handle")
    assert health.running_s is not None
    assert health.running_s >= 0.5
    assert (health.memory_bytes, health.unique_bytes, health.cpu_s) == (2000, 1000, 3.0)
    assert (health.children, health.open_files, health.events_done) == (2, 7, 5)
    assert (health.restarts, health.last_exit) == (1, "killed")


def test_the_states_of_a_worker():
    long = STALL_WINDOW_S + 1
    assert health_of(ready=False).state == "starting"
    assert health_of(ready=False).pid is None
    assert health_of().state == "idle"
    assert health_of(running_s=long).state == "busy"
    assert health_of(LookedAt(None), running_s=long).state == "dead"
    assert health_of(LookedAt(stalled=True), running_s=long).state == "stalled"
    stopped = LookedAt(DETAILS._replace(status=STOPPED), stalled=True)
    assert health_of(stopped, running_s=long).state == "stopped"
    assert health_of(stopped).state == "stopped"


def test_verdict_on_the_delivery_before_does_not_count():
    assert health_of(LookedAt(stalled=True), running_s=0.1).state == "busy"
    assert health_of(LookedAt(stalled=True)).state == "idle"


def test_of_a_dead_worker_nothing_is_measured():
    health = health_of(LookedAt(None))
    assert (health.memory_bytes, health.cpu_s, health.cpu_share) == (None, None, None)


def test_the_share_of_the_cpu_is_since_the_start_before_any_sample():
    assert health_of().cpu_share == 0.5
    assert health_of(LookedAt(DETAILS._replace(age_s=0.01))).cpu_share is None, "too short to say"


def sample(seconds_ago: float, cpu_s: float) -> Sample:
    return Sample(monotonic() - seconds_ago, 2000, cpu_s, 0)


def test_the_share_of_the_cpu_is_since_the_last_sample():
    share = health_of(last_sample=sample(1000.0, 1.0)).cpu_share
    assert share == pytest.approx(0.002, rel=0.1)
    assert health_of(last_sample=sample(1.0, 9.0)).cpu_share == 0, "of the worker before"
    assert health_of(last_sample=sample(-1000.0, 1.0)).cpu_share is None, "just taken"


def test_a_worker_without_a_process_is_not_measured():
    worker = SimpleNamespace(pid=os.getpid(), probe=None, details=None, thread=None)
    slot = SimpleNamespace(
        name="companion",
        worker=worker,
        starting=None,
        starting_since=0.0,
        events_done=0,
        restarts=0,
        last_exit="",
    )
    lane = lane_with(slot, None, 0.0, None)

    (health,) = cpu_health([lane], unobserved)

    assert (health.state, health.memory_bytes) == ("idle", None)


# Threads.


def thread(name: str, at_hand: Delivery | None, abandoned: bool = False) -> Mock:
    made = Mock(native_id=None, at_hand=at_hand, since=0.0, events_done=0, abandoned=abandoned)
    made.name = name  # not an argument: that names the mock itself
    return made


def test_a_thread_that_was_left_behind_is_stalled_and_shown_once():
    delivery = delivery_to(subscription_of(), event_id=9)
    left, busy = thread("left", delivery, abandoned=True), thread("busy", delivery)
    gone = thread("gone", None, abandoned=True)
    lane: Any = SimpleNamespace(
        threads=lambda: [left, busy], abandoned_threads=lambda: [left, gone]
    )

    found = {health.name: health for health in io_health(lane, None)}

    assert len(io_health(lane, None)) == 3
    assert {name: health.state for name, health in found.items()} == {
        "left": "stalled",
        "busy": "busy",
        "gone": "stalled",
    }
    assert (found["left"].event_id, found["gone"].event_id) == (9, None)
    assert found["gone"].cpu_s is None
