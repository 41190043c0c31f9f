"""Workers that are replaced after a number of deliveries: nothing is lost, and order is kept."""

import logging
import os
import random
import signal
from collections import Counter
from dataclasses import dataclass

import pytest

from procbus import EventBus, WorkerDied, current
from tests.integration.conftest import Run
from tests.integration.helpers import PATIENCE_S, Bell, Door, Listener, Tally

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Step:
    number: int
    tally: Tally
    key: int = 0
    fatal: bool = False


def work(step: Step) -> int:
    step.tally.note(f"{os.getpid()} {step.key} {step.number}")
    if step.fatal:
        os.kill(os.getpid(), signal.SIGKILL)
    return step.number


def per_process(tally: Tally) -> Counter[str]:
    return Counter(line.split()[0] for line in tally.lines())


@pytest.mark.parametrize(
    ("workers", "most", "steps"), [(1, 1, 8), (2, 1, 12), (1, 7, 60), (2, 50, 400)]
)
def test_each_process_runs_its_maximum_and_each_event_runs_once(
    tally: Tally, caplog: pytest.LogCaptureFixture, workers: int, most: int, steps: int
) -> None:
    caplog.set_level(logging.INFO, "procbus")
    with EventBus([], cpu_workers=workers, max_events_per_worker=most) as bus:
        bus.subscribe("step", work, kind="cpu")
        receipts = [bus.publish("step", Step(n, tally)) for n in range(steps)]
        assert bus.drain(150)
        restarts = bus.stats().lanes["cpu"].restarts
    assert [r.result() for r in receipts] == [*range(steps)]
    assert sorted(int(line.split()[2]) for line in tally.lines()) == [*range(steps)]
    done = per_process(tally)
    assert max(done.values()) <= most
    # All but the workers that were there at the end did all that they might.
    assert sum(count < most for count in done.values()) <= workers
    assert {r.deliveries[0].worker_pid for r in receipts} == {int(pid) for pid in done}
    assert restarts >= len(done) - workers
    said = [r for r in caplog.records if "max_events_per_worker" in r.getMessage()]
    assert {r.levelno for r in said} == {logging.INFO}
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING], "that is no trouble"


def test_order_by_key_is_kept_while_workers_are_replaced_and_die(tally: Tally) -> None:
    choose = random.Random(11)
    steps = [Step(n, tally, choose.randrange(4), n in (50, 120)) for n in range(200)]
    with EventBus([], cpu_workers=2, max_events_per_worker=20) as bus:
        bus.subscribe("step", work, kind="cpu", key=lambda step: step.key)
        receipts = [bus.publish("step", step) for step in steps]
        assert bus.drain(150)
    failed = [n for n, r in enumerate(receipts) if r.deliveries[0].exception()]
    assert failed == [50, 120]
    assert all(isinstance(receipts[n].deliveries[0].exception(), WorkerDied) for n in failed)
    assert max(per_process(tally).values()) <= 20
    for key in range(4):
        ran = [line.split() for line in tally.lines()]
        assert [int(number) for _, k, number in ran if k == str(key)] == [
            step.number for step in steps if step.key == key
        ]


def test_events_of_handlers_are_delivered_while_their_workers_are_replaced(
    tally: Tally,
) -> None:
    def parent(step: Step) -> None:
        for key in range(3):
            current().publish("child", Step(step.number, step.tally, key))

    with EventBus([], cpu_workers=2, max_events_per_worker=3) as bus:
        bus.subscribe("parent", parent, kind="cpu")
        bus.subscribe("child", work, kind="cpu")
        for number in range(10):
            bus.publish("parent", Step(number, tally))
    ran = sorted((int(n), int(key)) for _, key, n in (line.split() for line in tally.lines()))
    assert ran == [(number, key) for number in range(10) for key in range(3)]
    assert max(per_process(tally).values()) <= 3


def test_health_counts_replaced_workers_and_their_events(
    tally: Tally, door: Door, bell: Bell, heard: Listener
) -> None:
    def hold(step: Step) -> int:
        bell.ring()
        door.go_through()
        return work(step)

    with EventBus([], cpu_workers=1, max_events_per_worker=2) as bus:
        bus.subscribe("step", work, kind="cpu")
        bus.subscribe("hold", hold, kind="cpu")
        for number in range(4):
            bus.publish("step", Step(number, tally)).result(PATIENCE_S)
        with door.shut():
            held = bus.publish("hold", Step(4, tally))
            heard.wait()
            (health,) = bus.health()
        assert held.result(PATIENCE_S) == 4
    assert (health.state, health.events_done, health.restarts) == ("busy", 4, 2)
    assert "max_events_per_worker" in health.last_exit
    assert [*per_process(tally).values()] == [2, 2, 1]


def test_a_script_that_ends_without_closing_loses_nothing(run: Run, tally: Tally) -> None:
    """Python 3.12 starts nothing any more then: the last worker goes on beyond its number."""
    ended = run(
        f"""
        from procbus import EventBus
        from tests.integration.helpers import Tally
        tally = Tally({tally.path!r})

        def work(n):
            tally.note(n)

        bus = EventBus([], cpu_workers=1, max_events_per_worker=3)
        bus.subscribe("n", work, kind="cpu")
        for n in range(20):
            bus.publish("n", n)
        """
    )
    assert ended.check() == ""
    assert tally.counts() == {str(n): 1 for n in range(20)}
