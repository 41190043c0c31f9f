# SPDX-License-Identifier: MIT
"""The supervisor: limits, stalls, hidden deaths, short memory and retries, at a time of ours."""

import itertools
import logging
import os
import threading
import time
from collections.abc import Iterator
from math import inf
from typing import Any

import pytest

from procbus.core.delivery import Delivery
from procbus.core.errors import HandlerTimeout, MemoryLimitExceeded
from procbus.core.outcome import OutcomeKind
from procbus.dispatch.retry_queue import RetryQueue
from procbus.pool.interface import At
from procbus.supervision.stall import STALL_WINDOW_S
from procbus.supervision.supervisor import SAMPLE_S, Supervisor
from procbus.system.cooperative import Task
from procbus.system.footprint import Footprint
from procbus.system.process import Sample
from tests.cpu_stage import SpyWorker, Stage, spot, visit, visited
from tests.parts import BOUND_S, FakeLane, delivery_to, subscription_of
from tests.waits import eventually

SUCCEEDED, TIMED_OUT, OVER_MEMORY, DIED = (
    OutcomeKind.SUCCEEDED,
    OutcomeKind.TIMED_OUT,
    OutcomeKind.OVER_MEMORY,
    OutcomeKind.WORKER_DIED,
)
MIB = 1 << 20


class FakeProbe:
    """A process that is as the test says."""

    pid = os.getpid()

    def __init__(self) -> None:
        self.memory = MIB
        self.cpu_s = itertools.count(1)
        self.is_alive = True
        self.sampled = 0
        self.times = itertools.count(100.0, STALL_WINDOW_S / 2)

    def own_bytes(self) -> int | None:
        return self.memory if self.is_alive else None

    def sample(self, *, closer: bool) -> Sample | None:
        self.sampled += 1
        if not self.is_alive:
            return None
        return Sample(next(self.times), self.memory, next(self.cpu_s), 0)

    def tree_cpu_s(self) -> float:
        return 0.0

    def alive(self) -> bool:
        return self.is_alive

    def children(self, *, any_thread: bool) -> list[int]:
        return []


class FakeMemory:
    """The machine's memory: short or not as the test says."""

    short_below, enough_above = 100 * MIB, 150 * MIB
    is_short = False

    def short(self) -> bool:
        return self.is_short


class FakeIo:
    """An io lane that notes each question for handlers that ran out of time."""

    def __init__(self) -> None:
        self.asked_at: list[float] = []
        self.fails = False

    def expire(self, now: float) -> float:
        self.asked_at.append(now)
        if self.fails:
            raise RuntimeError("a bug in procbus")
        return float("inf")


class Supervised:
    """A cpu lane of inline workers with a supervisor whose clock the test sets ahead."""

    cpu: Any
    io: Any

    def __init__(self, workers: int = 1) -> None:
        self.stage = Stage(workers)
        self.cpu = self.stage.lane
        self.cpu_lanes = [self.cpu]
        self.io = FakeIo()
        self.limited = True
        self.ahead_s = 0.0
        self.memory: Any = FakeMemory()
        self.probes: list[FakeProbe] = []
        self.stage.pool.make_probe = self.make_probe
        self.supervisor = Supervisor(
            self.stage.retries, watch_memory=lambda: self.memory, clock=self.monotonic
        )
        self.supervisor.look_after(self)

    def pace(self, now: float) -> float:
        return inf

    def make_probe(self) -> FakeProbe:
        self.probes.append(FakeProbe())
        return self.probes[-1]

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead_s

    def look(self, seconds: float = SAMPLE_S) -> None:
        """Have it look at everything, some seconds later, and wait until it has."""
        self.ahead_s += seconds
        for _ in range(3):  # one may have begun before, and the last is not at its end
            asked = len(self.io.asked_at)
            self.supervisor.wake()
            eventually(lambda: len(self.io.asked_at) > asked)  # noqa: B023 - called at once

    def finish(self) -> None:
        self.stage.finish()
        self.supervisor.stop()


@pytest.fixture
def it() -> Iterator[Supervised]:
    it = Supervised()
    assert it.supervisor.start()
    yield it
    it.finish()


# Its thread.


def supervisors() -> int:
    return sum(thread.name == "procbus-supervisor" for thread in threading.enumerate())


def test_supervisor_is_started_once_and_stopped_for_good() -> None:
    it = Supervised()
    supervisor = it.supervisor
    supervisor.stop()
    assert not supervisor.start(), "it was stopped"

    supervisor = Supervisor(RetryQueue())
    supervisor.look_after(it)
    assert supervisor.start()
    assert supervisor.start()
    assert supervisors() == 1
    supervisor.stop()
    supervisor.stop()
    assert supervisors() == 0


def test_supervisor_says_if_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    supervisor = Supervised().supervisor
    monkeypatch.setattr(threading.Thread, "start", refuse)

    assert not supervisor.start()
    supervisor.stop()


def test_fault_of_the_supervisor_does_not_end_it(
    it: Supervised, caplog: pytest.LogCaptureFixture
) -> None:
    it.io.fails = True
    it.look()
    it.io.fails = False
    it.look()

    assert supervisors() == 1
    assert "procbus itself failed in its supervisor, which goes on" in caplog.text


def test_logging_that_fails_does_not_end_it(
    it: Supervised, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(record: logging.LogRecord) -> bool:
        raise ValueError("a filter that fails")

    logging.getLogger("procbus.pool").addFilter(broken)
    try:
        it.io.fails = True
        it.look()
    finally:
        logging.getLogger("procbus.pool").removeFilter(broken)

    assert supervisors() == 1
    assert "a filter that fails" in capsys.readouterr().err


def test_without_limits_no_handler_is_checked_for_time(it: Supervised) -> None:
    slow = spot("slow")
    [delivery] = it.stage.put("slow")
    slow.wait_begun()
    it.look()
    it.limited = False
    asked, sampled = len(it.io.asked_at), it.probes[0].sampled
    it.ahead_s += SAMPLE_S
    it.supervisor.wake()
    eventually(lambda: it.probes[0].sampled > sampled)

    assert len(it.io.asked_at) <= asked + 1, "but for a look that had begun before"
    slow.go_on.set()
    assert it.stage.settled(delivery) == [SUCCEEDED]


# Retries.


def test_due_deliveries_are_queued_again_in_order(it: Supervised) -> None:
    lane = FakeLane()
    deliveries = [delivery_to(subscription_of(lane), n) for n in range(5)]

    for delivery in deliveries:
        it.stage.retries.add(delivery, 0.0)

    eventually(lambda: len(lane.again) == 5)
    assert lane.again == deliveries


def test_delivery_that_cannot_be_queued_again_harms_no_other(
    it: Supervised, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(FakeLane):
        def put_again(self, delivery: Delivery) -> None:
            raise RuntimeError("a bug in procbus")

    lane = FakeLane()
    broken, fine = delivery_to(subscription_of(Broken())), delivery_to(subscription_of(lane))
    for delivery in (broken, fine):
        it.stage.retries.add(delivery, 0.0)

    eventually(lambda: lane.again == [fine])
    assert "a bug in procbus" in caplog.text


# Limits of time.


def test_a_handler_is_killed_at_its_limit_and_not_before(it: Supervised) -> None:
    hung = spot("hung")
    limited = it.stage.subscribe(visit, timeout=30.0)
    [victim] = it.stage.put("hung", to=limited)
    hung.wait_begun()

    it.look(29.0)
    assert it.stage.pool.kills == []
    it.look(1.0)
    assert it.stage.pool.kills == [True]
    hung.go_on.set()  # a thread cannot be killed; it comes to its end

    assert it.stage.settled(victim) == [TIMED_OUT]
    error = victim.exception()
    assert isinstance(error, HandlerTimeout)
    assert (error.limit_s, error.event_id) == (30.0, victim.event_id)
    assert "in visit" in error.stack
    assert victim.run_s is not None
    assert victim.run_s >= 30.0
    assert it.cpu.stats().restarts == 1
    assert it.cpu.breaker.reason() == ""


def test_rest_of_a_killed_workers_batch_runs_in_the_next(it: Supervised) -> None:
    blocker, hung = spot("blocker"), spot("hung")
    limited = it.stage.subscribe(visit, timeout=30.0)
    first = it.stage.put("blocker")
    blocker.wait_begun()
    before, victim, *after = it.stage.put("before", "hung", "a", "b", to=limited)
    blocker.go_on.set()
    hung.wait_begun()
    it.look(30.0)
    hung.go_on.set()

    assert it.stage.settled(*first, before, victim, *after) == [
        SUCCEEDED,
        SUCCEEDED,
        TIMED_OUT,
        SUCCEEDED,
        SUCCEEDED,
    ]
    assert visited == ["blocker", "before", "hung", "a", "b"]
    assert before.result() == "before"


def test_observations_of_a_worker_do_not_count_for_the_next(it: Supervised) -> None:
    slow, next_one = spot("slow"), spot("next")
    [delivery] = it.stage.put("slow")
    slow.wait_begun()
    it.look()
    [worker] = it.stage.pool.started
    seen = it.supervisor.observed(worker)
    assert seen is not None
    assert seen.last_sample is not None
    worker.kill()
    slow.go_on.set()
    assert it.stage.settled(delivery) == [DIED]
    [after] = it.stage.put("next")
    next_one.wait_begun()
    it.look()

    assert it.supervisor.observed(it.stage.pool.started[1]) is not seen
    next_one.go_on.set()
    assert it.stage.settled(after) == [SUCCEEDED]


def test_a_handler_without_a_limit_may_take_its_time(it: Supervised) -> None:
    slow = spot("slow")
    [delivery] = it.stage.put("slow")
    slow.wait_begun()

    it.look(1e6)

    assert it.stage.pool.kills == []
    slow.go_on.set()
    assert it.stage.settled(delivery) == [SUCCEEDED]


def test_worker_that_ends_while_it_is_being_killed_is_left_alone(
    it: Supervised,
) -> None:
    late = spot("late")
    limited = it.stage.subscribe(visit, timeout=30.0)
    [delivery] = it.stage.put("late", to=limited)
    late.wait_begun()
    [worker] = it.stage.pool.started

    def end_first(_: SpyWorker) -> Task[None]:
        late.go_on.set()
        assert it.stage.settled(delivery) == [SUCCEEDED]
        yield from ()

    it.stage.pool.on_kill = end_first
    it.look(30.0)

    assert it.stage.pool.kills == [False]
    assert it.stage.settled(*it.stage.put("next")) == [SUCCEEDED]
    assert it.stage.pool.started == [worker], "it goes on unharmed"


def test_dead_worker_is_not_killed_again(it: Supervised) -> None:
    hung = spot("hung")
    [victim] = it.stage.put("hung", to=it.stage.subscribe(visit, timeout=30.0))
    hung.wait_begun()

    it.look(30.0)
    it.look()
    it.look()

    assert it.stage.pool.kills == [True]
    hung.go_on.set()
    assert it.stage.settled(victim) == [TIMED_OUT]


def test_an_attempt_that_ran_out_of_time_may_be_followed_by_another(it: Supervised) -> None:
    hung = spot("hung")
    limited = it.stage.subscribe(visit, timeout=30.0, retries=1, backoff=0)
    [delivery] = it.stage.put("hung", to=limited)
    hung.wait_begun()

    it.look(30.0)
    hung.go_on.set()

    assert it.stage.settled(delivery) == [SUCCEEDED]
    assert [outcome.kind for outcome in delivery.earlier] == [TIMED_OUT]
    assert delivery.attempts == 2
    assert visited == ["hung", "hung"]


def test_workers_that_hang_at_once_are_killed_together() -> None:
    names = [f"hung-{n}" for n in range(8)]
    it = Supervised(len(names))
    hung = [spot(name) for name in names]
    deliveries = it.stage.put(*names, to=it.stage.subscribe(visit, timeout=30.0))
    for each in hung:
        each.wait_begun()
    begun: list[object] = []

    def wait_until_all_have_begun(worker: SpyWorker) -> Task[None]:
        deadline = time.monotonic() + BOUND_S
        begun.append(worker)
        while len(begun) < len(names) and time.monotonic() < deadline:
            yield

    it.stage.pool.on_kill = wait_until_all_have_begun
    it.ahead_s = 31.0
    assert it.supervisor.start()
    try:
        eventually(lambda: len(it.stage.pool.kills) == len(names))
        assert len(begun) == len(names), "none was waited for before the last had begun"
        for each in hung:
            each.go_on.set()
        assert it.stage.settled(*deliveries) == [TIMED_OUT] * len(names)
    finally:
        it.finish()


# Limits of memory.


def assert_ended_above_100_mib(it: Supervised, victim: Delivery) -> None:
    assert it.stage.settled(victim) == [OVER_MEMORY]
    error = victim.exception()
    assert isinstance(error, MemoryLimitExceeded)
    assert (error.limit_bytes, error.peak_bytes) == (100 * MIB, 101 * MIB)
    assert "in visit" in error.stack


def test_a_handler_is_killed_above_its_limit_of_memory(it: Supervised) -> None:
    grown = spot("grown")
    limited = it.stage.subscribe(visit, max_memory="100 MiB")
    [victim] = it.stage.put("grown", to=limited)
    grown.wait_begun()
    [probe] = it.probes

    probe.memory = 100 * MIB
    it.look(0.1)
    assert it.stage.pool.kills == []
    probe.memory = 101 * MIB
    it.look(0.1)
    assert it.stage.pool.kills == [True]
    grown.go_on.set()

    assert_ended_above_100_mib(it, victim)


def test_a_handler_far_away_is_killed_when_its_host_says_that_it_is_above_its_limit(
    it: Supervised,
) -> None:
    grown = spot("grown")
    limited = it.stage.subscribe(visit, max_memory="100 MiB")
    [victim] = it.stage.put("grown", to=limited)
    grown.wait_begun()
    [worker] = it.stage.pool.started
    asked: list[tuple[At, int]] = []
    said: list[Footprint] = []

    def watch_memory(at: At, limit: int) -> Footprint | None:
        asked.append((at, limit))
        return said[-1] if said else None

    worker.watch_memory = watch_memory  # type: ignore[assignment, method-assign]
    worker.probe = None

    it.look(0.1)
    assert it.stage.pool.kills == []
    assert set(asked) == {(worker.running(), 100 * MIB)}
    said.append(Footprint(81 * MIB, 20 * MIB, 1))
    it.look(0.1)
    assert it.stage.pool.kills == [True]
    grown.go_on.set()

    assert_ended_above_100_mib(it, victim)


def test_a_process_that_cannot_be_looked_at_is_not_killed_for_its_memory(it: Supervised) -> None:
    grown = spot("grown")
    [delivery] = it.stage.put("grown", to=it.stage.subscribe(visit, max_memory="100 MiB"))
    grown.wait_begun()
    [worker] = it.stage.pool.started
    worker.probe = None

    it.look()

    assert it.stage.pool.kills == []
    grown.go_on.set()
    assert it.stage.settled(delivery) == [SUCCEEDED]


# Stalled, and dead without a word.


def test_stalled_handler_is_logged_once(it: Supervised, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("first", "second"):
        hung = spot(name)
        [delivery] = it.stage.put(name)
        hung.wait_begun()
        it.probes[0].cpu_s = itertools.repeat(7)  # type: ignore[assignment]
        for _ in range(8):
            it.look()
        hung.go_on.set()
        assert it.stage.settled(delivery) == [SUCCEEDED]

    said = [r.getMessage() for r in caplog.records if "is stalled" in r.getMessage()]
    assert len(said) == 1
    assert it.stage.visits.handler.name in said[0]


def test_computing_worker_is_not_stalled(it: Supervised, caplog: pytest.LogCaptureFixture) -> None:
    busy = spot("busy")
    [delivery] = it.stage.put("busy")
    busy.wait_begun()
    for _ in range(8):
        it.look()
    busy.go_on.set()

    assert it.stage.settled(delivery) == [SUCCEEDED]
    assert "stalled" not in caplog.text


def test_a_worker_that_died_without_a_word_is_hung_up_on(it: Supervised) -> None:
    dead = spot("dead")
    [delivery] = it.stage.put("dead")
    dead.wait_begun()
    it.probes[0].is_alive = False

    it.look()
    it.look()
    assert set(it.stage.pool.hung_up) == set(it.stage.pool.started[:1])
    dead.go_on.set()

    assert it.stage.settled(delivery) == [DIED]
    assert it.stage.settled(*it.stage.put("next")) == [SUCCEEDED]


def test_a_worker_that_died_before_it_began_is_hung_up_on_too(it: Supervised) -> None:
    receiving, go_on = threading.Event(), threading.Event()

    def wait(_: object) -> None:
        receiving.set()
        assert go_on.wait(BOUND_S)

    it.stage.pool.on_receive = wait
    [delivery] = it.stage.put("a")
    assert receiving.wait(BOUND_S)
    it.probes[0].is_alive = False
    it.look()
    it.look()
    assert set(it.stage.pool.hung_up) == set(it.stage.pool.started[:1])
    go_on.set()

    assert it.stage.settled(delivery) == [SUCCEEDED], "nobody is charged for it"
    assert len(it.stage.pool.started) == 2


def test_a_worker_that_lives_is_not_hung_up_on(it: Supervised) -> None:
    slow = spot("slow")
    [delivery] = it.stage.put("slow")
    slow.wait_begun()
    for _ in range(4):
        it.look()

    assert it.stage.pool.hung_up == []
    slow.go_on.set()
    assert it.stage.settled(delivery) == [SUCCEEDED]


# The machine.


def test_while_the_machine_is_short_of_memory_nothing_new_begins(
    it: Supervised, caplog: pytest.LogCaptureFixture
) -> None:
    running = spot("running")
    [first] = it.stage.put("running")
    running.wait_begun()
    it.memory.is_short = True
    it.look()
    it.look()
    waiting = it.stage.put("a", "b")
    assert it.cpu.stats().paused == "less than 150 MiB of memory left"
    running.go_on.set()
    assert it.stage.settled(first) == [SUCCEEDED]
    eventually(lambda: it.cpu.queue.waiting == 1)
    assert [delivery.outcome for delivery in waiting] == [None, None]

    it.memory.is_short = False
    it.look()

    assert it.stage.settled(*waiting) == [SUCCEEDED] * 2
    assert it.cpu.stats().paused == ""
    said = [record.getMessage() for record in caplog.records]
    assert [text.partition(":")[0] for text in said] == [
        "memory is short",
        "there is enough memory again",
    ]
    assert "less than 100 MiB is left" in said[0]
    assert "until it is 150 MiB" in said[0]


def test_deliveries_that_a_worker_has_not_begun_wait_too_when_memory_is_short(
    it: Supervised,
) -> None:
    blocker, running = spot("blocker"), spot("running")
    first = it.stage.put("blocker")
    blocker.wait_begun()
    deliveries = it.stage.put("running", "a", "b")
    blocker.go_on.set()
    running.wait_begun()
    it.memory.is_short = True
    it.look()
    running.go_on.set()
    assert it.stage.settled(*first, deliveries[0]) == [SUCCEEDED] * 2
    eventually(lambda: it.cpu.queue.waiting == 1)
    assert visited == ["blocker", "running"]

    it.memory.is_short = False
    it.look()

    assert it.stage.settled(*deliveries) == [SUCCEEDED] * 3
    assert visited == ["blocker", "running", "a", "b"]


def test_workers_of_other_machines_go_on_while_this_one_is_short_of_memory(
    caplog: pytest.LogCaptureFixture,
) -> None:
    it = Supervised()
    it.stage.pool.local = False
    it.memory.is_short = True
    assert it.supervisor.start()
    it.look()
    it.look()

    assert it.stage.settled(*it.stage.put("a", "b")) == [SUCCEEDED] * 2
    assert it.cpu.stats().paused == ""
    assert it.cpu.oom is None  # nor did the kernel of this machine kill them
    assert not caplog.records
    it.finish()


def test_the_supervisor_ends_in_the_middle_of_a_wait() -> None:
    it = Supervised()
    it.supervisor.start()
    stopper = threading.Thread(target=it.supervisor.stop)
    stopper.start()
    stopper.join(BOUND_S)
    assert not stopper.is_alive()
    assert supervisors() == 0
