"""Tasks of which some kill their own worker, and the fate of all of them.

Every contender gets the same tasks in a process of its own, the scene (`bench.scene`). This module
watches the scene from outside. It bounds every wait, looks for remaining processes once the scene
has ended, and ends them.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from select import select

import psutil

from .runner import last_line
from .work import spin

# How a task kills its own process. An exit runs no clean-up: pools take it for a crash as well.
HOWS = ("SIGKILL", "SIGSEGV", "exit")
START_S = 20.0  # ample for the slowest contender to import and to start its workers
END_S = 3.0  # for the scene to close its pool and end, and again for what it leaves to go away
MARK = "PROCBUS_BENCH_SCENE"  # in the environment of a scene, and so of all that it starts

FINISHED = "finished"
FAILED = "failed"
HUNG = "hung"
TWICE = "run more than once"
LEFT = "processes left"
INNOCENT = "not finished, though they did not kill themselves"


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        number: is written to `file` when the task begins.
        file: where all tasks leave their numbers.
        spins: its work, for `work.spin`.
        how: one of `HOWS` kills its own process; empty does not.
    """

    number: int
    file: str
    spins: int
    how: str = ""


@dataclass(frozen=True)
class Plot:
    """The plan of one scene.

    Attributes:
        contender: name of the contender that runs the tasks.
        workers: number of worker processes.
        count: number of tasks.
        deaths: number of a task, as text, to how it kills its process.
        spins: work of each task.
        hung_s: time without a result after the last submit, in seconds, after which a task counts
            as hung.
        file: file in which all tasks leave their numbers.
    """

    contender: str
    workers: int
    count: int
    deaths: dict[str, str]
    spins: int
    hung_s: float
    file: str

    def tasks(self) -> list[Task]:
        """Make the tasks."""
        return [
            Task(number, self.file, self.spins, self.deaths.get(str(number), ""))
            for number in range(self.count)
        ]


def run(task: Task) -> int:
    """Handle one task: say that it began, work, and die where it is told to."""
    log = os.open(task.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(log, b"%d\n" % task.number)  # one write, so lines of two processes never mix
    os.close(log)
    spin(task.spins)
    if task.how == "SIGKILL":
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)  # never seen: the signal may take a moment to arrive
    elif task.how == "SIGSEGV":
        ctypes.string_at(0)
    elif task.how == "exit":
        os._exit(3)
    return task.number


def random_deaths(count: int, deaths: int, seed: int) -> dict[str, str]:
    """Choose which tasks die and how; the same ones for the same seed.

    Args:
        count: of tasks.
        deaths: how many of them die; each way of dying is used where there are enough.
        seed: of the choice.
    """
    chooser = random.Random(seed)
    numbers = chooser.sample(range(count), deaths)
    return {str(number): HOWS[turn % len(HOWS)] for turn, number in enumerate(numbers)}


def figures(
    contender: str, workers: int, count: int, deaths: dict[str, str], spins: int, hung_s: float
) -> dict[str, float]:
    """Play one scene and count: the tasks by their end, and the processes left.

    Raises:
        RuntimeError: the scene gave no counts.
    """
    with tempfile.TemporaryDirectory() as folder:
        begun = Path(folder, "begun")
        begun.touch()
        plot = Plot(contender, workers, count, deaths, spins, hung_s, str(begun))
        counts, left = play(plot)
        times = Counter(begun.read_text().split())
    found = {name: float(counts[name]) for name in (FINISHED, FAILED, HUNG)}
    found[INNOCENT] = count - len(deaths) - found[FINISHED]
    found[TWICE] = sum(each > 1 for each in times.values())
    found[LEFT] = left
    return found


def play(plot: Plot) -> tuple[dict[str, int], int]:
    """Run the scene; return its counts and how many of its processes were left.

    Raises:
        RuntimeError: the scene gave no counts.
    """
    mark = uuid.uuid4().hex
    with tempfile.TemporaryFile("w+") as said:  # not a pipe: the peers' output is not read
        with subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.scene", json.dumps(asdict(plot))],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=said,
            env={**os.environ, MARK: mark},
        ) as scene:
            assert scene.stdout is not None
            try:
                # It writes one line at once, so when there is something to read, all of it is.
                ready, _, _ = select([scene.stdout], [], [], START_S + plot.hung_s)
                line = scene.stdout.readline() if ready else b""
                left = wait_until_gone(mark) if line else 0
            finally:
                end_all(mark)
        if not line:
            said.seek(0)
            raise RuntimeError(f"{plot.contender} gave no counts: {last_line(said.read())}")
    return json.loads(line), left


def wait_until_gone(mark: str) -> int:
    """Wait until the scene and all that it started have ended; return how many have not in time."""
    # The scene has `END_S` to end by itself, and what outlives it as long again.
    deadline = time.monotonic() + 2 * END_S
    while (left := len(marked(mark))) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left


def marked(mark: str) -> list[psutil.Process]:
    """Find the living processes of one scene, whatever session or parent they have by now."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == mark:
                found.append(process)
        except psutil.Error:  # it has ended, or is another user's
            continue
    return found


def end_all(mark: str) -> None:
    """Kill the remains of one scene."""
    while processes := marked(mark):
        for process in processes:
            process.kill()
        psutil.wait_procs(processes, timeout=0.05)
