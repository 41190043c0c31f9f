# SPDX-License-Identifier: MIT
"""A script with a job on a journal, which is killed at random moments and started again."""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from procbus import EventBus, JobDone
from tests.integration.helpers import ROOT, Tally
from tests.integration.job_torture import FAILS_EACH, INNER_EACH

BOUND_S = 120.0
MOST_STARTS = 400


class Killed:
    """One journal with its script.

    Args:
        directory: directory for the files.
        count: number of events.
        seed: of the moments of the kills.
        longest_s: maximum time from a start to its kill, in seconds.
    """

    def __init__(self, directory: Path, count: int, seed: int, longest_s: float) -> None:
        self.count = count
        self.journal = directory / "run.db"
        self.tally = Tally(str(directory / "tally"))
        self._random = random.Random(seed)
        self._longest_s = longest_s
        self.kills = 0

    def run(self, *, settle: bool = False, kill: bool = True) -> bool:
        """Start the script; return whether it came to its end."""
        command = [sys.executable, "-m", "tests.integration.job_torture", str(self.journal)]
        command += [self.tally.path, str(self.count), *(["settle"] if settle else [])]
        with subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            wait_s = self._random.uniform(0.0, self._longest_s) if kill else BOUND_S
            with suppress(subprocess.TimeoutExpired):
                output, errors = child.communicate(timeout=wait_s)
                assert child.returncode == 0, errors
                assert output == "done\n"
                return True
            child.send_signal(signal.SIGKILL)
            child.communicate()
            self.kills += 1
        return False

    def run_until_done(self, *, settling: bool) -> None:
        for number in range(MOST_STARTS):
            # Some starts open no job: the events of the earlier ones go on all the same.
            settle = settling and number % 3 == 2
            if self.run(settle=settle) and not settle:
                return
        pytest.fail(f"not done after {MOST_STARTS} starts")

    def rows(self, sql: str) -> list[Any]:
        with closing(sqlite3.connect(self.journal)) as database:
            return database.execute(sql).fetchall()

    def check(self) -> None:
        """One `JobDone` was recorded for each job, with the counts of all runs."""
        inner = range(0, self.count, INNER_EACH)
        fails = len([n for n in range(1, self.count, 2) if n % FAILS_EACH == 0])
        # Each event of the cpu lane has a leaf; each inner job has two deliveries, and its JobDone.
        succeeded = self.count - fails + (self.count + 1) // 2 + 3 * len(inner)
        expected = {f"inner {number}": (2, 0, 0) for number in inner}
        expected["outer"] = (succeeded, fails, 0)
        jobs = self.rows("SELECT id, succeeded, failed, cancelled FROM jobs")
        assert {id: tuple(counts) for id, *counts in jobs} == expected
        assert self.rows("SELECT * FROM owned") == []
        assert self.rows("SELECT id FROM jobs WHERE done_at IS NULL") == []
        ids = self.rows("SELECT given_id FROM ids WHERE given_id LIKE 'job:%'")
        assert sorted(id for (id,) in ids) == sorted(f"job:{id}" for id in expected)
        # Each event with an id was recorded once: its deliveries have the number of one event.
        noted = [line.rsplit(" ", 3) for line in self.tally.lines()]
        assert {id: tuple(map(int, counts)) for id, *counts in noted} == expected
        # A handler that was killed in the middle runs again, and no other one does.
        assert len(noted) <= len(expected) + self.kills


@pytest.mark.parametrize("settling", [False, True])
def test_job_of_a_killed_script_is_done_once_with_the_counts_of_all_runs(
    tmp_path: Path, settling: bool
) -> None:
    killed = Killed(tmp_path, 300, 1 + settling, 0.8)
    for _ in range(3):
        killed.run()
    killed.run_until_done(settling=settling)
    killed.check()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_job_survives_many_kills(tmp_path: Path, seed: int) -> None:
    killed = Killed(tmp_path, 4_000, seed, 1.0)
    killed.run_until_done(settling=bool(seed % 2))
    killed.check()
    assert killed.kills > 3


def test_job_whose_script_is_killed_after_the_block_ends_without_another_block(
    tmp_path: Path,
) -> None:
    script = f"""
import os
from procbus import EventBus
def take(number):
    if number == 150:
        left.wait(60)
        os.kill(os.getpid(), 9)
import threading
left = threading.Event()
bus = EventBus([], journal={str(tmp_path / "run.db")!r}, io_workers=1)
bus.subscribe("number", take, name="take")
with bus:
    with bus.job("sum"):
        for number in range(200):
            bus.publish("number", number)
        book = bus._parts.job_book()
        def watch():
            while book._known["sum"].in_block:
                pass
            left.set()
        threading.Thread(target=watch).start()
"""
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, timeout=BOUND_S, check=False, capture_output=True
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    done: list[JobDone] = []
    for _ in range(2):
        with EventBus([], journal=tmp_path / "run.db") as bus:
            bus.subscribe("number", abs, name="take")
            bus.subscribe(JobDone, done.append)
            bus.drain()
    assert done == [JobDone("sum", "sum", 200, 0, 0)]
