"""The command line of the benchmarks: ``python -m bench``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import loky
from rich.console import Console

from . import machine, questions, report, work
from .model import Settings
from .runner import Answer, ask

QUICK_SCALE = 0.02


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        choices=questions.NAMES,
        default=questions.NAMES,
        help="ask only these questions",
    )
    parser.add_argument(
        "--repeat",
        type=int,
        metavar="N",
        help="rounds (default: 5, fewer where a question says so)",
    )
    parser.add_argument(
        "--json",
        type=Path,
        default=Path("bench-results.json"),
        metavar="FILE",
        help="where all figures go (default %(default)s)",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one round, few events: shows that it runs, its figures mean nothing",
    )
    parser.add_argument(
        "--scale",
        type=float,
        default=1.0,
        metavar="FACTOR",
        help="so many times as many events (default: 1)",
    )
    parser.add_argument("--list", action="store_true", help="list the questions and end")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Ask, show and keep.

    Returns:
        The exit code: 0, or 1 when a sample failed. A target that is not reached is a finding,
        not a failure.
    """
    options = parse(arguments)
    if options.list:
        for name in questions.NAMES:
            print(f"{name:15} {questions.load(name).asks}")
        return 0
    settings = Settings(
        workers=loky.cpu_count(),
        spins_per_ms=work.spins_per_ms(),
        scale=QUICK_SCALE if options.quick else options.scale,
    )
    facts = machine.facts(settings.workers)
    answers = ask_all(options.only, settings, 1 if options.quick else options.repeat)
    facts["load_after"] = os.getloadavg()[0]
    options.json.write_text(
        json.dumps(report.to_json(answers, facts, settings.to_json()), indent=1) + "\n"
    )
    console = Console()
    report.show(answers, console if console.is_terminal else Console(width=report.TABLE_WIDTH))
    print(f"All figures: {options.json}")
    return 1 if any(answer.errors for answer in answers) else 0


def ask_all(names: Sequence[str], settings: Settings, repeat: int | None) -> list[Answer]:
    """Ask the questions in turn, saying on stderr what is being measured.

    Args:
        names: of the questions.
        settings: shared by all samples.
        repeat: rounds of each; None for as many as the question itself says.
    """
    answers = []
    with Console(stderr=True).status("") as status:
        for question in map(questions.load, names):
            rounds = question.rounds if repeat is None else repeat

            def on_sample(name: str, contender: str, number: int, rounds: int = rounds) -> None:
                status.update(f"{name}: {contender}, round {number + 1} of {rounds}")

            answers.append(ask(question, settings, rounds, on_sample))
    return answers


if __name__ == "__main__":
    sys.exit(main())
