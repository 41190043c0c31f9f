# SPDX-License-Identifier: MIT
"""A cancelled job whose script is killed: the next run does not go on with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from procbus import EventBus, JobDone
from tests.journal_scripts import killed, status

# The handler "stubborn" goes on after it was cancelled, so the kill comes before its end.
CANCEL_AND_DIE = """
begun = threading.Event()
def stubborn(n):
    current().progress(n)
    while True:
        threading.Event().wait(1)
from procbus import current
bus.subscribe("stubborn", stubborn, name="stubborn", kind="cpu", grace=60)
bus.subscribe("quick", abs, name="quick")
with bus.job("index") as job:
    bus.publish("quick", -1).result()
    receipt = bus.publish("stubborn", 1, id="stubborn")
    for n in range(5):
        bus.publish("quick", n, id=f"late {n}", delay=3600)
    while receipt.deliveries[0].progress is None:
        threading.Event().wait(0.001)
    job.cancel()
    os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("opened", [True, False])
def test_killed_script_does_not_go_on_with_its_cancelled_job(tmp_path: Path, opened: bool) -> None:
    path = killed(tmp_path / "run.db", CANCEL_AND_DIE)
    (job,) = json.loads(status(path, "jobs", "--json").stdout)
    assert job["state"] == "cancelled"
    ran: list[int] = []
    done: list[JobDone] = []
    with EventBus([], journal=str(path)) as bus:
        bus.subscribe("stubborn", ran.append, name="stubborn")
        bus.subscribe("quick", ran.append, name="quick")
        bus.subscribe(JobDone, done.append)
        if opened:
            with bus.job("index"):
                bus.publish("stubborn", 1, id="stubborn")
                bus.publish("quick", 7)
        bus.drain()
    assert ran == []
    (job,) = json.loads(status(path, "jobs", "--json").stdout)
    assert (job["succeeded"], job["pending"]) == (1, 0)
    assert job["cancelled"] == 6 + opened
    assert [each.cancelled for each in done] == ([7] if opened else [])
