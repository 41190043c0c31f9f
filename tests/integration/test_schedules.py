# SPDX-License-Identifier: MIT
"""Schedules with a journal: a tick that was missed runs once after the restart."""

from __future__ import annotations

import json
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from procbus import EventBus
from tests.integration.helpers import ROOT, Tally
from tests.journal_scripts import killed, status
from tests.waits import BOUND_S, eventually

BEGIN = """
bus.subscribe("beat", lambda e: None, name="beat")
first = bus.every(INTERVAL, "beat", 1, name="pulse")
bus.every("1 day", "beat", 2)
"""


def began(path: Path, interval_s: float) -> Path:
    return killed(path, BEGIN.replace("INTERVAL", str(interval_s)))


def test_missed_ticks_are_made_up_for_by_one_event(tmp_path: Path) -> None:
    path = began(tmp_path / "run.db", 3_600.0)
    status(path, "status")  # moves the records of the dead bus into the database
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE schedules SET last_at = last_at - 35000 WHERE name = 'pulse'")
    made_up: list[int] = []
    for _ in range(3):
        with EventBus([], journal=path) as bus:
            bus.subscribe("beat", made_up.append, name="beat")
            schedule = bus.every("1 h", "beat", 1, name="pulse")
            bus.every("1 day", "beat", 2)
            eventually(lambda: made_up)
            assert schedule.next_at is not None
            left_s = schedule.next_at.timestamp() - time.time()
            # 35,000 s are 9 intervals and 2,600 s.
            assert left_s == pytest.approx(1_000, abs=BOUND_S)
        assert made_up == [1]


def test_interval_keeps_its_phase_over_a_restart(tmp_path: Path) -> None:
    path = began(tmp_path / "run.db", 3_600.0)
    with EventBus([], journal=path) as bus:
        bus.subscribe("beat", print, name="beat")
        schedule = bus.every("1 h", "beat", 1, name="pulse")
        assert schedule.next_at is not None
        first = schedule.next_at.timestamp()
    assert first < time.time() + 3_600
    with EventBus([], journal=path) as bus:
        again = bus.every("1 h", "beat", 1, name="pulse")
        assert again.next_at is not None
        assert abs(again.next_at.timestamp() - first) < 0.1


def test_journal_shows_schedules_until_they_are_cancelled(tmp_path: Path) -> None:
    path = began(tmp_path / "run.db", 3_600.0)
    shown = json.loads(status(path, "status", "--json").stdout)["schedules"]
    assert [(each["name"], each["times"]) for each in shown] == [
        ("beat every 1 day", "1 day"),
        ("pulse", "1 h"),
    ]
    assert "pulse" in status(path, "status").stdout
    with EventBus([], journal=path) as bus:
        bus.every("1 h", "beat", 1, name="pulse").cancel()
    shown = json.loads(status(path, "status", "--json").stdout)["schedules"]
    assert [each["name"] for each in shown] == ["beat every 1 day"]


SCRIPT = """
import sys, time
from procbus import EventBus
from tests.integration.helpers import Tally

journal, tally = sys.argv[1:]
tally = Tally(tally)
with EventBus([], journal=journal) as bus:
    bus.subscribe("beat", lambda _: tally.note(f"{time.time():.4f}"))
    schedule = bus.every(INTERVAL, "beat", None)
    print("ready", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_script_that_is_killed_at_random_has_one_event_a_tick_and_one_a_gap(
    tmp_path: Path, seed: int
) -> None:
    interval_s = 0.2
    of = random.Random(seed)
    tally = Tally(str(tmp_path / "tally"))
    code = SCRIPT.replace("INTERVAL", str(interval_s))
    command = [sys.executable, "-c", code, str(tmp_path / "run.db"), tally.path]
    began_at = time.time()
    for _ in range(6):
        with subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            with pytest.raises(subprocess.TimeoutExpired):
                child.wait(timeout=of.uniform(0.05, 0.9))
            child.send_signal(signal.SIGKILL)
    ran = sorted(float(line) for line in tally.lines())
    assert ran
    # In one interval of the clock there is one tick at most; the end of a gap adds one, and a kill
    # between the effect and its record another.
    slots = Counter(int((at - began_at) / interval_s) for at in ran)
    assert len(ran) <= len(slots) + 2 * 6
    assert len(ran) <= (time.time() - began_at) / interval_s + 2 * 6
