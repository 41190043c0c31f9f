# SPDX-License-Identifier: MIT
"""Real workers that get nowhere, beside others that only take long."""

import fcntl
import subprocess
import sys
from dataclasses import dataclass

import pytest

from procbus import EventBus
from tests.integration.helpers import PATIENCE_S, Bell, Door, Listener
from tests.waits import eventually


@dataclass(frozen=True)
class Job:
    how: str
    door: Door
    bell: Bell


#: Burns CPU until its input ends.
BURN = """
import select, sys
while not select.select([sys.stdin], [], [], 0)[0]:
    sum(range(10_000))
"""


def take_long(job: Job) -> str:
    code = BURN if job.how == "subprocess" else "input()"
    with subprocess.Popen([sys.executable, "-S", "-c", code], stdin=subprocess.PIPE) as child:
        job.bell.ring()
        if job.how == "busy":
            while not is_open(job.door):
                sum(range(10_000))
        else:
            job.door.go_through()
        child.communicate(b"\n")
    return job.how


def is_open(door: Door) -> bool:
    with open(door.path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


@pytest.mark.slow
def test_stalled_worker_is_distinguished_from_a_slow_one(
    door: Door, bell: Bell, heard: Listener
) -> None:
    with EventBus([], cpu_workers=3) as bus:
        bus.subscribe("job", take_long, kind="cpu")
        with door.shut():
            hows = ["stalled", "busy", "subprocess"]
            receipts = {how: bus.publish("job", Job(how, door, bell)) for how in hows}
            heard.wait(3)
            ids = {receipt.id: how for how, receipt in receipts.items()}

            def states() -> dict[str, str]:
                return {ids[h.event_id]: h.state for h in bus.health() if h.event_id in ids}

            eventually(lambda: states()["stalled"] == "stalled")
            assert states() == {"stalled": "stalled", "busy": "busy", "subprocess": "busy"}
            (stalled,) = (h for h in bus.health() if h.state == "stalled")
            assert stalled.children == 1
            assert stalled.running_s is not None
        assert {how: r.result(PATIENCE_S) for how, r in receipts.items()} == {h: h for h in hows}
        assert "stalled" not in {h.state for h in bus.health()}
