"""Order by key holds on real workers and threads, also while workers die."""

import os
import random
import signal
from dataclasses import dataclass

import pytest

from procbus import EventBus, WorkerDied
from tests.integration.helpers import PATIENCE_S, Tally


@dataclass(frozen=True)
class Step:
    key: int
    number: int
    tally: Tally
    fatal: bool = False


def work(step: Step) -> int:
    step.tally.note(f"begin {step.key} {step.number}")
    if step.fatal:
        os.kill(os.getpid(), signal.SIGKILL)
    step.tally.note(f"end {step.key} {step.number}")
    return step.number


@pytest.mark.parametrize("kind", ["cpu", "io"])
def test_each_key_goes_one_at_a_time_and_in_order(kind: str, tally: Tally) -> None:
    choose = random.Random(3)
    steps = [
        Step(choose.randrange(4), n, tally, kind == "cpu" and n in (100, 333)) for n in range(500)
    ]
    with EventBus([], cpu_workers=2, io_workers=8) as bus:
        bus.subscribe("step", work, kind=kind, key=lambda step: step.key)  # type: ignore[call-overload]
        receipts = [bus.publish("step", step) for step in steps]
        assert bus.drain(PATIENCE_S)
    failed = [n for n, r in enumerate(receipts) if r.deliveries[0].exception() is not None]
    assert failed == [n for n, step in enumerate(steps) if step.fatal]
    assert all(isinstance(receipts[n].deliveries[0].exception(), WorkerDied) for n in failed)
    for key in range(4):
        lines = [line for line in tally.lines() if line.split()[1] == str(key)]
        expected = []
        for step in steps:
            if step.key == key:
                expected.append(f"begin {key} {step.number}")
                if not step.fatal:
                    expected.append(f"end {key} {step.number}")
        assert lines == expected
