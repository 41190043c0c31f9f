"""Takes the samples: interleaved rounds, each sample in a fresh process, none left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import psutil

from .machine import wait_until_quiet
from .model import OPTIONAL, PROCBUS, Question, Row, Settings, Target

#: How long a sample waits for others to leave the cores alone, in seconds.
PATIENCE_S = 20.0

#: The directory of the names of semaphores.
SHARED_MEMORY = Path("/dev/shm")

# The directory of this package: `bench` in the project and `procbus._bench` when installed.
ROOT = Path(__file__).parents[len(__name__.split(".")) - 1]


@dataclass
class Answer:
    """The answer to one question: a list of figures for each contender, one entry per round.

    Attributes:
        question: the question.
        rounds: for each round, contender to its figures by row; a contender that failed is absent.
        errors: failures, as "contender, round: reason".
        not_installed: contenders that could not be asked.
        disturbed: samples that were begun while other programs used the cores.
    """

    question: Question
    rounds: list[dict[str, dict[str, float]]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    not_installed: list[str] = field(default_factory=list)
    disturbed: int = 0

    def figures(self, row: Row, contender: str) -> list[float]:
        """Return the contender's figures for one row, a round each."""
        return [
            figures[contender][row.name]
            for figures in self.rounds
            if row.name in figures.get(contender, {})
        ]

    def against(self, row: Row, target: Target) -> list[float]:
        """Return the value to compare with the target, one a round: procbus's figure or its ratio.

        A ratio is taken within a round, between samples that stand next to each other in time.
        """
        if target.against is None:
            return self.figures(row, PROCBUS)
        return [
            ours[row.name] / theirs[row.name]
            for figures in self.rounds
            if row.name in (ours := figures.get(PROCBUS, {}))
            and row.name in (theirs := figures.get(target.against, {}))
        ]

    def is_reached(self, row: Row, target: Target) -> bool | None:
        """Tell whether the median round keeps to the target; None where it was not measured."""
        values = self.against(row, target)
        return target.is_reached_by(median(values)) if values else None


class SampleFailed(Exception):
    """One sample gave no figures; the message says why."""


def take_sample(question: Question, contender: str, settings: Settings) -> dict[str, float]:
    """Run one sample in a fresh process and return its figures by row.

    Raises:
        SampleFailed: when the process failed, took longer than the question allows, or printed
            no figures.
    """
    command = [sys.executable, "-m", f"{__package__}.sample", question.name, contender]
    # A session of its own: whatever the sample starts can be ended as one group.
    process = subprocess.Popen(
        [*command, json.dumps(settings.to_json())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )
    try:
        # Ends when all that inherited the pipes have ended, not only the sample itself.
        output, errors = process.communicate(timeout=question.time_limit)
    except subprocess.TimeoutExpired:
        end_group(process)
        _, errors = process.communicate()
        raise SampleFailed(
            f"not done after {question.time_limit:g} s; {last_line(errors)}"
        ) from None
    finally:
        end_group(process)
    if process.returncode != 0:
        raise SampleFailed(f"exit code {process.returncode}: {last_line(errors)}")
    try:
        figures = json.loads(last_line(output))
    except ValueError:
        raise SampleFailed(f"printed no figures but {last_line(output)!r}") from None
    return {row: float(figure) for row, figure in figures.items()}


def end_group(process: subprocess.Popen[str]) -> None:
    """Kill the remains of the sample's process group, and remove the names that it leaves."""
    killed = {process.pid, *members(process.pid)}
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # as it should be: all have ended by themselves
        return
    # loky would unlink the semaphores by a process of its own, which is killed as well.
    for pid in killed:
        for name in SHARED_MEMORY.glob(f"sem.loky-{pid}-*"):
            name.unlink(missing_ok=True)


def members(group: int) -> Iterator[int]:
    """Processes of a process group."""
    for pid in psutil.pids():
        with suppress(ProcessLookupError):  # it has ended meanwhile
            if os.getpgid(pid) == group:
                yield pid


def last_line(text: str) -> str:
    """Return the last line that is not blank: of a traceback, the error itself."""
    return next((line for line in reversed(text.splitlines()) if line.strip()), "no output")


def ask(
    answer: Answer,
    settings: Settings,
    rounds: int,
    on_sample: Callable[[str, str, int], None],
    on_taken: Callable[[Answer], None],
    *,
    take: Callable[[Question, str, Settings], dict[str, float]] = take_sample,
    wait: Callable[[float], bool] = wait_until_quiet,
    find: Callable[[str], object] = find_spec,
) -> None:
    """Ask one question: in every round, each contender once, in an order that rotates.

    Args:
        answer: to the question; what is in it already is not asked again.
        settings: shared by all samples.
        rounds: number of figures of each contender.
        on_sample: called with the question's name, the contender and the round before each sample.
        on_taken: called with the answer after each sample, and once where there is none to take.
        take: takes a sample.
        wait: waits for a quiet machine, at most for that many seconds.
        find: finds a package; None if it is not installed.
    """
    question = answer.question
    answer.not_installed = list(question.not_here)
    names = [name for name in question.contenders if name not in question.not_here]
    for name in OPTIONAL:
        if name in names and find(name) is None:
            answer.not_installed.append(name)
            names.remove(name)
    if any(find(module) is None for module in question.needs):
        answer.not_installed += names
        names = []
    on_taken(answer)
    is_quiet = True
    for number in range(rounds if names else 0):
        if number == len(answer.rounds):
            answer.rounds.append({})
        figures = answer.rounds[number]
        first = number % len(names)
        for contender in names[first:] + names[:first]:
            if contender in figures:
                continue
            on_sample(question.name, contender, number)
            if settings.scale >= 1:  # the figures of a quick run mean nothing anyhow
                # After one wait in vain the others are not waited for.
                is_quiet = wait(PATIENCE_S if is_quiet else 0.0)
                answer.disturbed += not is_quiet
            try:
                figures[contender] = take(question, contender, settings)
            except SampleFailed as failure:
                answer.errors.append(f"{contender}, round {number + 1}: {failure}")
            on_taken(answer)
