# SPDX-License-Identifier: MIT
"""Delayed events in a journal: after a kill each runs once, and not before its time."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from procbus import EventBus
from tests.integration.helpers import ROOT, Tally
from tests.journal_scripts import killed, status
from tests.waits import BOUND_S, eventually

#: Publishes events with a delay, one of them from each kind of handler, and is killed at once.
PUBLISH = """
from procbus import current
from datetime import datetime, timedelta
bus.subscribe("later", print, name="io")
bus.subscribe("later", abs, kind="cpu", name="cpu", concurrency=1)
bus.subscribe("begin", lambda n: current().publish("later", n, delay=3600), name="begin")
bus.publish("later", 2, delay="1 h", id="two")
bus.publish("later", 3, at=datetime.now() + timedelta(days=2))
bus.publish("begin", 4).wait()
bus.publish("later", 1, delay=SOON)
"""


def began(path: Path, soon_s: float) -> Path:
    return killed(path, PUBLISH.replace("SOON", str(soon_s)))


def lines(path: Path) -> list[dict[str, object]]:
    shown = status(path, "list", "--json")
    assert shown.returncode == 0, shown.stderr
    found: list[dict[str, object]] = json.loads(shown.stdout)
    return found


def test_delayed_events_are_in_the_journal_with_their_times(tmp_path: Path) -> None:
    before = datetime.now(UTC)
    path = began(tmp_path / "run.db", 1_800.0)
    delayed = [each for each in lines(path) if each["state"] == "delayed"]
    assert Counter(str(each["handler"]) for each in delayed) == {"io": 4, "cpu": 4}
    assert {each["attempts"] for each in delayed} == {0}
    times = sorted({datetime.fromisoformat(str(each["at"])) for each in delayed})
    hours = [round((at - before) / timedelta(hours=1), 1) for at in times]
    assert hours == [0.5, 1.0, 1.0, 48.0]
    assert "delayed" in status(path, "status").stdout


def test_overdue_event_runs_at_once_after_a_restart_and_the_others_wait(tmp_path: Path) -> None:
    path = began(tmp_path / "run.db", 0.3)
    over = time.time() + 0.3
    eventually(lambda: time.time() > over)
    ran: list[int] = []
    with EventBus([], journal=path) as bus:
        bus.subscribe("later", ran.append, name="io")
        bus.subscribe("later", abs, name="cpu", concurrency=1)
        bus.start()
        known = bus.publish("later", 2, delay="1 h", id="two")
        assert not known.done
        held = {name: stats.held for name, stats in bus.stats().handlers.items()}
        assert held == {"io": 3, "cpu": 3}
        known.cancel()
        assert known.done
        bus.close(timeout=0.5)
    assert ran == [1]
    left = [each for each in lines(path) if each["state"] == "delayed"]
    assert Counter(str(each["handler"]) for each in left) == {"io": 2, "cpu": 2}


def test_delay_goes_on_after_a_restart(tmp_path: Path) -> None:
    began_at = time.time()
    path = began(tmp_path / "run.db", 2.5)
    ran: list[float] = []
    with EventBus([], journal=path) as bus:
        bus.subscribe("later", lambda _: ran.append(time.time()), name="io")
        bus.start()
        eventually(lambda: ran)
        bus.close(timeout=0.1)
    assert len(ran) == 1
    assert ran[0] >= began_at + 2.5


def test_bus_that_is_cut_short_keeps_its_delayed_events(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    for run in range(3):
        with EventBus([], journal=path) as bus:
            bus.subscribe("later", print, name="io")
            if not run:
                bus.publish("later", 1, delay="1 h")
            bus.start()
            assert bus.stats().handlers["io"].held == 1
            bus.close(cancel=True)
        assert [each["state"] for each in lines(path)] == ["delayed"]


# A script that is killed at random moments, and started again until all is done.

SCRIPT = """
import random, sys, time
from procbus import EventBus
from tests.integration.helpers import Tally

journal, tally, count, seed = sys.argv[1:]
tally, count = Tally(tally), int(count)

def note(what, event):
    number, due_at = event
    tally.note(f"{what} {number} {time.time() - due_at:.4f}")

def io(event):
    note("io", event)

async def on_loop(event):
    note("on_loop", event)

def compute(event):
    note("compute", event)

with EventBus([], journal=journal, cpu_workers=1) as bus:
    bus.subscribe("n", io)
    bus.subscribe("n", on_loop, concurrency=2)
    bus.subscribe("n", compute, kind="cpu", retries=50, max_crashes=50)
    bus.start()
    print("ready", flush=True)
    of = random.Random(int(seed))
    for number in range(count):
        delay = of.uniform(0, 1.5)
        bus.publish("n", (number, time.time() + delay), delay=delay, id=str(number))
        if number % 20 == 0:
            time.sleep(0.02)
print("done", flush=True)
"""


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_delayed_events_of_a_script_that_is_killed_run_once_and_not_early(
    tmp_path: Path, seed: int
) -> None:
    count = 300
    tally = Tally(str(tmp_path / "tally"))
    of = random.Random(seed)
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "run.db"), tally.path, str(count), "7"]
    kills = 0
    for _ in range(30):
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            try:
                output, _ = child.communicate(
                    timeout=of.uniform(0.05, 1.0) if kills < 6 else BOUND_S
                )
            except subprocess.TimeoutExpired:
                child.send_signal(signal.SIGKILL)
                kills += 1
                continue
        assert output == "done\n"
        break
    effects = Counter(line.rsplit(" ", 1)[0] for line in tally.lines())
    assert len(effects) == 3 * count
    assert kills
    # A kill may come between an effect and its record: then the delivery runs once more.
    twice = sum(each - 1 for each in effects.values())
    assert twice <= 20 * kills
    late = [float(line.rsplit(" ", 1)[1]) for line in tally.lines()]
    assert min(late) >= -0.001
