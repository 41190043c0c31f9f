# SPDX-License-Identifier: MIT
"""A script with a journal that is killed again and again, and simply started again until done."""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import sys
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from procbus.lanes.breaker import CIRCUIT_LIMITS
from tests.integration.helpers import ROOT, Tally
from tests.integration.torture import IO_WORKERS, MAX_PENDING, TOPICS

pytestmark = pytest.mark.slow

COUNT = 20_000
#: Bytes that the tally gains between the start of the script and its kill; below 0 it is killed
#: before the first effect.
LEAST_GAIN, MOST_GAIN = -10_000, 150_000
#: Interval between two looks at the tally, in seconds.
LOOK_S = 0.02
MOST_STARTS = 200


class Effect(NamedTuple):
    run: int
    delivery_id: str
    redelivered: bool


@dataclass
class Torture:
    directory: Path
    kill_workers: bool
    seed: int
    kills: int = 0
    random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.tally = Tally(str(self.directory / "tally"))

    def run_until_done(self) -> None:
        for run in range(1, MOST_STARTS):
            if self._run_once(run):
                return
        pytest.fail(f"not done after {MOST_STARTS} starts")

    def _run_once(self, run: int) -> bool:
        command = [sys.executable, "-m", "tests.integration.torture"]
        command += [str(self.directory / "run.db"), self.tally.path, str(COUNT), str(run)]
        with subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as child:
            assert child.stdout is not None
            assert child.stderr is not None
            full = self._tally_bytes() + self.random.uniform(LEAST_GAIN, MOST_GAIN)
            over = threading.Event()
            killer = threading.Thread(target=self._kill_workers, args=(child.pid, over))
            if self.kill_workers:
                killer.start()
            try:
                ready = child.stdout.readline()
                while True:
                    try:
                        output, errors = child.communicate(timeout=LOOK_S)
                        break
                    except subprocess.TimeoutExpired:
                        if self._tally_bytes() < full:
                            continue
                    child.send_signal(signal.SIGKILL)
                    child.communicate()
                    self.kills += 1
                    return False
            finally:
                over.set()
                if self.kill_workers:
                    killer.join()
        assert child.returncode == 0, errors
        assert "Traceback" not in errors or "Refused" in errors, errors
        assert (ready, output) == ("ready\n", "done\n")
        return True

    def _tally_bytes(self) -> int:
        path = Path(self.tally.path)
        return path.stat().st_size if path.exists() else 0

    def _kill_workers(self, pid: int, over: threading.Event) -> None:
        """Kill a worker process of the script now and then: too seldom to open the circuit."""
        kills = 0
        while kills < CIRCUIT_LIMITS.most_deaths // 2 and not over.wait(0.2):
            with contextlib.suppress(psutil.Error):
                # Chosen by their own traits: a fork of loky's tracker looks like the script at
                # first, and without the tracker the semaphores of a killed script stay behind.
                workers = [
                    each
                    for each in psutil.Process(pid).children()
                    if "procbus-worker" in each.cmdline()
                ]
                if workers:
                    self.random.choice(workers).kill()
                    kills += 1

    def effects(self) -> dict[tuple[str, int], list[Effect]]:
        found: dict[tuple[str, int], list[Effect]] = defaultdict(list)
        for line in self.tally.lines():
            what, number, run, delivery_id, redelivered = line.split(" ")
            effect = Effect(int(run), delivery_id, redelivered == "1")
            found[what, int(number)].append(effect)
        return found


def check(torture: Torture) -> None:
    effects = torture.effects()
    expected = {(TOPICS[n % len(TOPICS)], n) for n in range(COUNT)}
    expected |= {("leaf", n) for what, n in expected if what == "compute"}
    assert set(effects) == expected, "an effect is missing, or one was never asked for"
    doubled: dict[str, int] = defaultdict(int)
    for (what, number), each in effects.items():
        # One event for each id, and one for each success of a cpu handler: never a second.
        assert len({effect.delivery_id for effect in each}) == 1, f"{what} {number}: {each}"
        if len(each) > 1:
            doubled[what] += len(each) - 1
    # The delivery in a handler when the script was killed, and no other. A cpu worker holds a
    # batch, and reports its finished deliveries only then.
    for what in ("plain", "on_loop", "flaky", "leaf"):
        assert doubled[what] <= torture.kills * IO_WORKERS, f"{what}: {dict(doubled)}"
    if not torture.kill_workers:
        assert doubled["compute"] <= torture.kills * MAX_PENDING, dict(doubled)
    for (what, number), each in effects.items():
        if what in ("plain", "on_loop", "flaky"):  # that know in which run they are
            runs = [effect.run for effect in each]
            assert len(set(runs)) == len(runs), f"{what} {number} ran twice in one run: {each}"
            assert all(effect.redelivered for effect in each[1:]), f"{what} {number}: {each}"


@pytest.mark.timeout(240)
@pytest.mark.parametrize("seed", range(3))
def test_every_event_has_its_effect_though_the_script_is_killed(tmp_path: Path, seed: int):
    torture = Torture(tmp_path, kill_workers=seed == 2, seed=seed)
    torture.run_until_done()
    assert torture.kills > 0, "it was never killed: the test is too small for this machine"
    check(torture)


@pytest.mark.soak
@pytest.mark.timeout(290)
@pytest.mark.parametrize("seed", range(100, 150))
def test_every_event_has_its_effect_in_fifty_rounds(tmp_path: Path, seed: int):
    torture = Torture(tmp_path, kill_workers=seed % 2 == 1, seed=seed)
    torture.run_until_done()
    check(torture)
