"""A handler that kills every worker: the cpu lane stops to start workers for it, and recovers."""

import asyncio
import os
import signal
import threading
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from procbus import CircuitOpen, EventBus, HandlerTimeout, OutcomeKind, Receipt, WorkerDied
from procbus.assembly import Makers
from procbus.lanes.breaker import CircuitLimits
from procbus.lanes.cpu import CpuLane
from procbus.supervision.supervisor import Supervisor
from tests.integration.helpers import PATIENCE_S, Tally
from tests.parts import BusWith
from tests.waits import eventually

#: Each test starts dozens of workers, which takes seconds each beside other programs that are busy.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

#: More deaths than this open the circuit.
MOST_DEATHS = 4
WORKERS = 2


@dataclass(frozen=True)
class Job:
    number: int
    tally: Tally
    #: The handler kills its worker while this file is there.
    poison: str


def work(job: Job) -> int:
    job.tally.note(job.number)
    if os.path.exists(job.poison):
        os.kill(os.getpid(), signal.SIGKILL)
    return job.number


OPENED = "takes no new work"
WORKS_AGAIN = "the cpu lane works again"


def make_bus(
    workers: int = WORKERS, *, cool_s: float = 600.0, most_cool_s: float = 600.0, **options: Any
) -> EventBus:
    """A bus whose circuit opens soon; by default it stays open."""
    limits = CircuitLimits(
        most_deaths=MOST_DEATHS, deaths_window_s=60.0, cool_s=cool_s, most_cool_s=most_cool_s
    )
    make = Makers(
        supervisor=partial(Supervisor, sample_s=0.05), cpu_lane=partial(CpuLane, circuit=limits)
    )
    return BusWith(make, cpu_workers=workers, **options)


@pytest.fixture
def poison(tmp_path: Path) -> Path:
    path = tmp_path / "poison"
    path.touch()
    return path


def publish(bus: EventBus, tally: Tally, poison: Path, *numbers: int) -> list[Receipt]:
    return [bus.publish("job", Job(number, tally, str(poison))) for number in numbers]


def fate(receipt: Receipt) -> OutcomeKind | None:
    outcome = receipt.deliveries[0].outcome
    return None if outcome is None else outcome.kind


def test_publishing_is_refused_and_pending_deliveries_wait(
    tally: Tally, poison: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with make_bus() as bus:
        bus.subscribe("job", work, kind="cpu", name="work")
        bus.subscribe("io", lambda n: n)
        receipts = publish(bus, tally, poison, *range(20))
        eventually(lambda: OPENED in caplog.text)
        with pytest.raises(CircuitOpen, match=r"worker processes died.*while it ran work"):
            bus.publish("job", Job(99, tally, str(poison)))
        with pytest.raises(CircuitOpen):
            next(bus.stream([Job(99, tally, str(poison))], topic="job"))
        with pytest.raises(CircuitOpen):
            asyncio.run(bus.apublish("job", Job(99, tally, str(poison))))
        assert bus.publish("io", 7).result(PATIENCE_S) == 7, "the other lane works"
        assert "workers died" in bus.stats().lanes["cpu"].paused

        # Deliveries that a worker has by then are begun, however long the worker takes to start.
        eventually(
            lambda: sum(r.done for r in receipts) + bus.stats().lanes["cpu"].depth == len(receipts)
        )
        assert sum(r.done for r in receipts) == len(tally.lines())
        waiting = [r for r in receipts if not r.done]
        assert MOST_DEATHS < len(tally.lines()) <= MOST_DEATHS + WORKERS
        started = len(tally.lines())
        assert not waiting[-1].wait(0.5), "nothing begins, though the supervisor looks"
        assert len(tally.lines()) == started
        assert caplog.text.count(OPENED) == 1
        bus.close(cancel=True)
    assert {fate(r) for r in waiting} == {OutcomeKind.CANCELLED}
    assert max(tally.counts().values()) == 1


def test_lane_works_again_after_a_trial_that_survives(
    tally: Tally, poison: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with make_bus(cool_s=0.3) as bus:
        bus.subscribe("job", work, kind="cpu")
        receipts = publish(bus, tally, poison, *range(20))
        eventually(lambda: OPENED in caplog.text)
        poison.unlink()
        eventually(lambda: WORKS_AGAIN in caplog.text)
        assert bus.drain(2 * PATIENCE_S)
        fates = [fate(r) for r in receipts]
        assert fates.count(OutcomeKind.WORKER_DIED) > MOST_DEATHS
        assert fates.count(OutcomeKind.SUCCEEDED) >= 20 - MOST_DEATHS - 2 * WORKERS
        assert len(fates) == fates.count(OutcomeKind.WORKER_DIED) + fates.count(
            OutcomeKind.SUCCEEDED
        )
        assert bus.stats().lanes["cpu"].paused == ""
        assert [r.result(PATIENCE_S) for r in publish(bus, tally, poison, 20, 21)] == [20, 21]
        assert tally.counts() == {str(n): 1 for n in range(22)}

        poison.touch()  # and it opens once more
        publish(bus, tally, poison, *range(22, 42))
        eventually(lambda: caplog.text.count(OPENED) == 2)
        bus.close(cancel=True)


def test_each_trial_that_fails_costs_one_delivery_and_one_worker(
    tally: Tally, poison: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with make_bus(cool_s=0.05, most_cool_s=0.2) as bus:
        bus.subscribe("job", work, kind="cpu")
        receipts = publish(bus, tally, poison, *range(MOST_DEATHS + 4))
        assert bus.drain(2 * PATIENCE_S)
        assert bus.stats().lanes["cpu"].restarts == MOST_DEATHS + 4
    assert {fate(r) for r in receipts} == {OutcomeKind.WORKER_DIED}
    assert tally.counts() == {str(n): 1 for n in range(MOST_DEATHS + 4)}
    assert caplog.text.count(OPENED) >= 3


@pytest.mark.parametrize(
    ("count", "options"),
    [
        (100, {}),
        (500, {"key": lambda job: job.number % 2}),
        (10, {"retries": 1_000, "max_crashes": 1_000, "backoff": 0.0}),
        (10, {"retries": 1_000, "max_crashes": 1_000, "backoff": 0.05}),
    ],
    ids=["plain", "waiting for their key", "retried at once", "retried later"],
)
def test_a_block_that_is_left_with_nothing_but_poison_ends(
    tally: Tally, poison: Path, count: int, options: dict[str, Any]
) -> None:
    with make_bus() as bus:
        bus.subscribe("job", work, kind="cpu", **options)
        receipts = publish(bus, tally, poison, *range(count))
    assert {fate(r) for r in receipts} == {OutcomeKind.WORKER_DIED}
    errors = [r.deliveries[0].exception() for r in receipts]
    tried = [n for n, error in enumerate(errors) if isinstance(error, WorkerDied)]
    given_up = [n for n, error in enumerate(errors) if isinstance(error, CircuitOpen)]
    assert sorted(tried + given_up) == [*range(count)]
    assert "no more were tried" in str(errors[given_up[0]])
    assert MOST_DEATHS < len(tally.lines()) < 40
    if "retries" not in options:
        assert tally.counts() == {str(n): 1 for n in tried}
    assert len(bus.dead_letters) == count
    assert bus.stats().pending == 0


def test_pending_deliveries_of_a_closing_bus_run_if_a_trial_survives(
    tally: Tally, poison: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with make_bus() as bus:
        bus.subscribe("job", work, kind="cpu")
        receipts = publish(bus, tally, poison, *range(50))
        eventually(lambda: OPENED in caplog.text)
        poison.unlink()
    fates = [fate(r) for r in receipts]
    assert fates.count(OutcomeKind.SUCCEEDED) >= 50 - MOST_DEATHS - 2 * WORKERS
    assert tally.counts() == {str(n): 1 for n in range(50)}
    assert caplog.text.count(WORKS_AGAIN) == 1


def test_publishers_that_wait_for_room_are_let_go(
    tally: Tally, poison: Path, caplog: pytest.LogCaptureFixture
) -> None:
    refused = threading.Semaphore(0)

    def flood() -> None:
        try:
            while True:
                bus.publish("job", Job(1, tally, str(poison)))
        except CircuitOpen:
            refused.release()

    async def aflood() -> None:
        try:
            while True:
                await bus.apublish("job", Job(2, tally, str(poison)))
        except CircuitOpen:
            refused.release()

    with make_bus(max_pending=10) as bus:
        bus.subscribe("job", work, kind="cpu")
        threads = [threading.Thread(target=flood) for _ in range(2)]
        threads.append(threading.Thread(target=lambda: asyncio.run(aflood())))
        for thread in threads:
            thread.start()
        for _ in threads:
            assert refused.acquire(timeout=PATIENCE_S)
        for thread in threads:
            thread.join(PATIENCE_S)
        assert bus.stats().pending > 0, "it was not room that they got"
        bus.close(cancel=True)


def hang(job: Job) -> None:
    time.sleep(1000)


def test_workers_that_the_supervisor_killed_do_not_count(
    tally: Tally, poison: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with make_bus() as bus:
        bus.subscribe("job", hang, kind="cpu", timeout=0.05)
        receipts = publish(bus, tally, poison, *range(2 * MOST_DEATHS + 2))
        errors = [
            error for r in receipts if r.wait(PATIENCE_S) for error in [r.deliveries[0].exception()]
        ]
    assert [type(error) for error in errors] == [HandlerTimeout] * (2 * MOST_DEATHS + 2)
    assert caplog.text.count(OPENED) == 0
