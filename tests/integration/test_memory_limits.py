"""Limits of memory: of a handler, of a worker between two deliveries, and of the machine."""

import logging
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import psutil
import pytest

from procbus import DeliveryState, EventBus, MemoryLimitExceeded, OutcomeKind, Receipt
from procbus.assembly import Makers
from procbus.core.validation import parse_size
from procbus.lanes.breaker import CIRCUIT_LIMITS, CircuitLimits
from procbus.lanes.cpu import CpuLane
from procbus.supervision.supervisor import Supervisor
from procbus.system.memory import MemoryWatch
from tests.integration.helpers import PATIENCE_S, Bell, Door, Listener, Tally, wait_gone
from tests.matrix import quick_first
from tests.parts import BusWith
from tests.processes import is_alive

MIB = 1 << 20
#: A worker that has imported this module has some 50 MiB.
LIMIT = "160 MiB"
LIMIT_BYTES = 160 * MIB

MakeBus = Callable[[int], EventBus]

#: Objects that handlers leave behind in their worker.
left: list[bytearray] = []
left_behind: list[subprocess.Popen[bytes]] = []


@dataclass(frozen=True)
class Job:
    number: int
    tally: Tally
    door: Door | None = None
    bell: Bell | None = None
    #: How much the handler leaves behind, and how long it takes.
    leak: int = 0
    sleep_s: float = 0.0


def work(job: Job) -> int:
    if job.bell is not None:
        job.bell.ring(os.getpid())
    if job.door is not None:
        job.door.go_through()
    if job.leak:
        left.append(bytearray(b"x") * job.leak)
    time.sleep(job.sleep_s)
    job.tally.note(f"{job.number} {os.getpid()}")
    return job.number


def innocent(job: Job) -> int:
    return work(job)


def leak_for_ever(job: Job) -> None:
    job.tally.note(f"{job.number} {os.getpid()}")
    while True:
        left.append(bytearray(b"x") * (4 * MIB))
        time.sleep(0.002)  # some 1 GiB a second, and not all that the machine has


def exceeded(receipt: Receipt) -> MemoryLimitExceeded:
    with pytest.raises(MemoryLimitExceeded) as caught:
        receipt.result(PATIENCE_S)
    return caught.value


def numbers(tally: Tally) -> list[int]:
    return sorted(int(line.split()[0]) for line in tally.lines())


@pytest.fixture
def make_bus() -> MakeBus:
    """Makes a bus with a number of workers. `test_dask_memory` has one that makes them on Dask."""
    return lambda workers: EventBus([], cpu_workers=workers)


@pytest.fixture
def bus(make_bus: MakeBus) -> Iterator[EventBus]:
    with make_bus(1) as bus:
        bus.subscribe("work", work, kind="cpu")
        bus.subscribe("innocent", innocent, kind="cpu", max_memory=LIMIT, name="innocent")
        yield bus


def test_a_handler_that_leaks_is_stopped(make_bus: MakeBus, tally: Tally) -> None:
    with make_bus(2) as bus:
        bus.subscribe("work", work, kind="cpu")
        bus.subscribe("leak", leak_for_ever, kind="cpu", max_memory=LIMIT, name="leak")
        before = [bus.publish("work", Job(n, tally)) for n in range(30)]
        leaking = bus.publish("leak", Job(30, tally))
        after = [bus.publish("work", Job(n, tally)) for n in range(31, 60)]
        error = exceeded(leaking)
        assert [r.result(PATIENCE_S) for r in before + after] == [*range(30), *range(31, 60)]

        assert (error.handler, error.event_id, error.limit_bytes) == (
            "leak",
            leaking.id,
            LIMIT_BYTES,
        )
        assert LIMIT_BYTES < error.peak_bytes < psutil.virtual_memory().total
        assert "in leak_for_ever" in error.stack
        (delivery,) = leaking.deliveries
        assert delivery.state is DeliveryState.FAILED
        assert delivery.outcome is not None
        assert delivery.outcome.kind is OutcomeKind.OVER_MEMORY
        assert delivery.worker_pid is not None
        assert not is_alive(delivery.worker_pid)
        stats = bus.stats()
        assert (stats.handlers["leak"].over_memory, stats.handlers["leak"].failed) == (1, 1)
        assert stats.lanes["cpu"].restarts == 1
        assert [letter.event_id for letter in bus.dead_letters] == [leaking.id]
        assert any("max_memory" in h.last_exit for h in bus.health())
    assert numbers(tally) == [*range(60)]


def grow(mib: int) -> str:
    """Code of a process that takes an amount of memory, says so, and waits."""
    return f"kept = bytearray(b'x') * ({mib} << 20); print(1, flush=True); input()"


def start_processes(job: Job) -> int:
    """Start processes that take memory once the door is open and wait, and wait with them."""
    code = "input(); " + grow(job.leak // MIB)
    started = [
        subprocess.Popen([sys.executable, "-S", "-c", code], stdin=subprocess.PIPE)
        for _ in range(3)
    ]
    for process in started:
        if job.bell is not None:
            job.bell.ring(process.pid)
    if job.door is not None:
        job.door.go_through()
    for process in started:
        assert process.stdin is not None
        process.stdin.write(b"\n")
        process.stdin.flush()
    return work(replace(job, leak=0)) + sum(process.wait() for process in started)


def fork_processes(job: Job) -> int:
    """Take memory, and fork processes that have it in common with this one."""
    kept = bytearray(b"x") * job.leak
    started = []
    for _ in range(3):
        pid = os.fork()
        if not pid:
            time.sleep(job.sleep_s)
            os._exit(kept[0] - ord("x"))
        started.append(pid)
    return sum(os.waitpid(pid, 0)[1] for pid in started)


def test_memory_of_processes_started_by_a_handler_counts(
    make_bus: MakeBus, tally: Tally, door: Door, bell: Bell, heard: Listener
) -> None:
    with make_bus(2) as bus:
        bus.subscribe("start", start_processes, kind="cpu", max_memory=LIMIT, name="start")
        bus.subscribe("work", work, kind="cpu")
        neighbours = [bus.publish("work", Job(n, tally)) for n in range(1, 20)]
        with door.shut():
            receipt = bus.publish("start", Job(0, tally, door, bell, leak=50 * MIB))
            started = [psutil.Process(int(word)) for word in heard.wait(3)]
        error = exceeded(receipt)
        wait_gone(started)
        assert [r.result(PATIENCE_S) for r in neighbours] == [*range(1, 20)]
    assert error.peak_bytes > LIMIT_BYTES
    assert re.search(r"MiB in its worker and .* MiB in [23] processes that it started", str(error))
    assert "in start_processes" in error.stack


def test_processes_that_stay_below_the_limit_together_are_left_alone(
    make_bus: MakeBus, tally: Tally
) -> None:
    def start_small(job: Job) -> int:
        process = subprocess.Popen(
            [sys.executable, "-S", "-c", grow(job.leak // MIB)], stdin=subprocess.PIPE
        )
        time.sleep(job.sleep_s)  # the supervisor looks several times meanwhile
        process.communicate(b"\n")
        return process.returncode

    with make_bus(1) as bus:
        bus.subscribe("start", start_small, kind="cpu", max_memory=LIMIT)
        receipt = bus.publish("start", Job(0, tally, leak=50 * MIB, sleep_s=0.6))
        assert receipt.result(PATIENCE_S) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells it")
def test_memory_shared_by_forked_processes_counts_once(make_bus: MakeBus, tally: Tally) -> None:
    with make_bus(1) as bus:
        bus.subscribe("fork", fork_processes, kind="cpu", max_memory="240 MiB")
        receipt = bus.publish("fork", Job(0, tally, leak=100 * MIB, sleep_s=0.8))
        assert receipt.result(PATIENCE_S) == 0


def test_processes_that_others_left_behind_are_not_charged_to_a_handler(
    make_bus: MakeBus, tally: Tally
) -> None:
    def leave_behind(job: Job) -> int:
        code = grow(job.leak // MIB)
        process = subprocess.Popen(
            [sys.executable, "-S", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.readline()
        left_behind.append(process)
        return os.getpid()

    with make_bus(1) as bus:
        bus.subscribe("leave", leave_behind, kind="cpu")
        bus.subscribe("innocent", work, kind="cpu", max_memory=LIMIT)
        leaver = bus.publish("leave", Job(0, tally, leak=150 * MIB)).result(PATIENCE_S)
        assert bus.publish("innocent", Job(1, tally, sleep_s=0.5)).result(PATIENCE_S) == 1
    assert numbers(tally) == [1]
    assert str(leaver) not in tally.lines()[0].split(), "in a new worker"


def test_handler_that_frees_its_memory_is_left_alone(bus: EventBus, tally: Tally) -> None:
    def take_and_free(job: Job) -> int:
        for _ in range(20):
            len(bytearray(b"x") * (40 * MIB))
        return job.number

    bus.subscribe("free", take_and_free, kind="cpu", max_memory=LIMIT)
    assert [bus.publish("free", Job(n, tally)).result(PATIENCE_S) for n in range(3)] == [0, 1, 2]
    assert bus.stats().lanes["cpu"].restarts == 0


def test_handler_after_a_leak_in_the_same_worker_is_not_charged(
    bus: EventBus, tally: Tally, door: Door, bell: Bell, heard: Listener
) -> None:
    # Handlers that are known to be quick, so that several go in one batch, and the next ahead.
    warm = [bus.publish(topic, Job(-1, tally)) for topic in ("work", "innocent") * 100]
    assert all(r.result(PATIENCE_S) == -1 for r in warm)
    with door.shut():  # meanwhile the others gather
        first = bus.publish("work", Job(-1, tally, door, bell))
        heard.wait()
        leaks = [bus.publish("work", Job(n, tally, leak=2 * MIB)) for n in range(80)]
        followers = [bus.publish("innocent", Job(80, tally, sleep_s=1.0))]  # it is sampled
        followers += [bus.publish("innocent", Job(n, tally)) for n in range(81, 100)]
    assert first.result(PATIENCE_S) == -1
    assert [r.result(PATIENCE_S) for r in leaks] == [*range(80)]
    assert [r.result(PATIENCE_S) for r in followers] == [*range(80, 100)]
    assert leaks[-1].deliveries[0].worker_pid not in {r.deliveries[0].worker_pid for r in followers}
    assert [n for n in numbers(tally) if n >= 0] == [*range(100)]
    assert bus.stats().lanes["cpu"].restarts == 1
    assert bus.dead_letters == ()


def test_small_leaks_of_quick_handlers_are_charged_to_none(bus: EventBus, tally: Tally) -> None:
    """None of them has more than its limit by itself, though all together do."""
    warm = [bus.publish("innocent", Job(-1, tally)) for _ in range(200)]
    assert all(r.result(PATIENCE_S) == -1 for r in warm)
    receipts = [bus.publish("innocent", Job(n, tally, leak=2 * MIB)) for n in range(200)]
    assert [r.result(PATIENCE_S) for r in receipts] == [*range(200)]
    assert bus.stats().lanes["cpu"].restarts >= 2
    assert [n for n in numbers(tally) if n >= 0] == [*range(200)]


@pytest.mark.parametrize("seed", quick_first(range(3)))
def test_deliveries_left_to_another_worker_run_once(
    make_bus: MakeBus, tally: Tally, seed: int
) -> None:
    choose = random.Random(seed)
    with make_bus(2) as bus:
        bus.subscribe("work", work, kind="cpu")
        bus.subscribe("innocent", innocent, kind="cpu", max_memory=LIMIT)
        receipts = []
        for number in range(600):
            topic, leak, sleep_s = choose.choices(
                [("innocent", 0, 0.0), ("work", 2 * MIB, 0.0), ("work", 0, 0.05)], (60, 38, 2)
            )[0]
            receipts.append(bus.publish(topic, Job(number, tally, leak=leak, sleep_s=sleep_s)))
        assert [r.result(55) for r in receipts] == [*range(600)]
        assert bus.stats().lanes["cpu"].restarts >= 2
    assert numbers(tally) == [*range(600)]


def test_grown_worker_is_replaced_between_two_deliveries(
    tally: Tally, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "procbus")
    with EventBus([], cpu_workers=2, worker_max_memory=LIMIT) as bus:
        bus.subscribe("work", work, kind="cpu")
        receipts = [bus.publish("work", Job(n, tally, leak=10 * MIB)) for n in range(120)]
        assert [r.result(PATIENCE_S) for r in receipts] == [*range(120)]
        assert bus.drain(PATIENCE_S)
        restarts = bus.stats().lanes["cpu"].restarts
    assert restarts >= 3
    assert numbers(tally) == [*range(120)]
    pids = {line.split()[1] for line in tally.lines()}
    assert len(pids) >= 4
    said = [r for r in caplog.records if "worker_max_memory" in r.getMessage()]
    # The last worker of each companion may have grown too, and then has no successor.
    assert restarts <= len(said) <= restarts + 2
    assert {r.levelno for r in said} == {logging.INFO}
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_a_worker_too_large_from_the_start_still_works(tally: Tally) -> None:
    """It does one delivery at least, or nothing would ever be done."""
    with EventBus([], cpu_workers=1, worker_max_memory=parse_size("32 MiB")) as bus:
        bus.subscribe("work", work, kind="cpu")
        receipts = [bus.publish("work", Job(n, tally, leak=MIB)) for n in range(5)]
        assert [r.result(PATIENCE_S) for r in receipts] == [*range(5)]
    assert numbers(tally) == [*range(5)]


class Machine:
    """The memory that the machine pretends to have left, and the number of readings."""

    def __init__(self) -> None:
        self.available = 1 << 60
        self._asked = threading.Semaphore(0)

    def available_bytes(self) -> int:
        available = self.available
        self._asked.release()
        return available

    def make_bus(self, limits: CircuitLimits = CIRCUIT_LIMITS) -> EventBus:
        """A bus with one worker on this machine, which it samples often."""
        watch = partial(MemoryWatch, available=self.available_bytes)
        make = Makers(
            supervisor=partial(Supervisor, sample_s=0.02, watch_memory=watch),
            cpu_lane=partial(CpuLane, circuit=limits),
        )
        return BusWith(make, cpu_workers=1)

    def set(self, available: int) -> None:
        """Set it, and wait until it was read and the reading has had its effect."""
        self.available = available
        while self._asked.acquire(blocking=False):
            pass
        for _ in range(3):  # the first may have been answered before, the second not acted on
            assert self._asked.acquire(timeout=PATIENCE_S)


def test_a_machine_short_of_memory_begins_nothing_until_it_recovers(
    tally: Tally,
    door: Door,
    bell: Bell,
    heard: Listener,
    caplog: pytest.LogCaptureFixture,
) -> None:
    fake = Machine()
    with fake.make_bus() as bus:
        bus.subscribe("work", work, kind="cpu")
        bus.subscribe("io", lambda n: n)
        with door.shut():
            running = bus.publish("work", Job(0, tally, door, bell))
            heard.wait()
            fake.set(0)
            waiting = [bus.publish("work", Job(n, tally)) for n in range(1, 50)]
            assert "memory" in bus.stats().lanes["cpu"].paused
            assert bus.publish("io", 7).result(PATIENCE_S) == 7
        assert running.result(PATIENCE_S) == 0, "what runs goes on"
        fake.set(0)
        assert not any(r.done for r in waiting)
        assert numbers(tally) == [0]
        fake.set(1 << 60)
        assert [r.result(PATIENCE_S) for r in waiting] == [*range(1, 50)]
        assert bus.stats().lanes["cpu"].paused == ""
    assert numbers(tally) == [*range(50)]
    said = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(said) == 2
    assert "memory is short" in said[0]
    assert "enough memory again" in said[1]


def test_idle_lane_tries_single_deliveries_if_memory_stays_short(
    tally: Tally,
) -> None:
    """Other programs may use the memory; closing ends in any case."""
    fake = Machine()
    fake.available = 0
    with fake.make_bus(CircuitLimits(trickle_s=0.1)) as bus:
        bus.subscribe("work", work, kind="cpu")
        bus.publish("work", Job(-1, tally))
        fake.set(0)
        receipts = [bus.publish("work", Job(n, tally)) for n in range(3)]
    assert [r.result(0) for r in receipts] == [0, 1, 2]
