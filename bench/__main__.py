"""The command line of the benchmarks: ``python -m bench``, or ``procbus bench``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import loky

from . import interpreters, machine, merging, questions, report, work
from .model import Question, Settings
from .report import Console
from .results import CannotResume, Results
from .runner import Answer, ask

QUICK_SCALE = 0.02


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="procbus bench" if (__package__ or "").startswith("procbus") else "python -m bench",
        description="Threads or processes? Measures on this machine what the GIL does to work of "
        f"many kinds. Without --only or --all: {', '.join(questions.SUITE)}.",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        choices=[*questions.NAMES, *questions.GROUPS],
        help=f"ask only these questions, or these groups of them: {', '.join(questions.GROUPS)}",
    )
    which.add_argument("--all", action="store_true", help="ask every question that there is")
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
        "--resume",
        action="store_true",
        help="go on with that file: take only the samples that it lacks, and those that failed",
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
        help="multiplies the number of events (default: 1)",
    )
    parser.add_argument("--list", action="store_true", help="list the questions and end")
    parser.add_argument(
        "--report",
        type=Path,
        metavar="DIR",
        help="measure nothing: write what the file of --json has to DIR, as pages with plots",
    )
    parser.add_argument(
        "--merge",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="measure nothing: write the results of several runs, on other machines or Pythons, "
        "to the file of --json; the first keeps its names",
    )
    parser.add_argument(
        "--python",
        nargs="+",
        default=[],
        metavar="PATH",
        help="more interpreters for `pythons`, such as builds of your own",
    )
    return parser.parse_args(arguments)


def ask_all(
    names: Sequence[str],
    results: Results,
    repeat: int | None,
    *,
    load: Callable[[str], Question] = questions.load,
    ask: Callable[..., None] = ask,
) -> list[Answer]:
    """Ask the questions in turn, saying on stderr what is being measured.

    Args:
        names: names of the questions.
        results: take every sample, and may have some already.
        repeat: number of rounds of each; None for the question's own number.
        load: returns the question of a name.
        ask: asks one question, as `runner.ask`.
    """
    answers = []
    with Console(stderr=True).status("") as status:
        for question in map(load, names):
            rounds = question.rounds if repeat is None else repeat

            def on_sample(name: str, contender: str, number: int, rounds: int = rounds) -> None:
                status.update(f"{name}: {contender}, round {number + 1} of {rounds}")

            answer = results.answer_to(question)
            ask(answer, results.settings, rounds, on_sample, results.keep)
            answers.append(answer)
    return answers


def main(
    arguments: Sequence[str] | None = None,
    *,
    ask_all: Callable[[Sequence[str], Results, int | None], list[Answer]] = ask_all,
) -> int:
    """Ask, show and keep.

    Args:
        arguments: of the command line; None for the ones of this process.
        ask_all: asks the questions.

    Returns:
        The exit code: 0, 1 when a sample failed, 2 when a file cannot be continued. A target that
        is not reached is a finding, not a failure.
    """
    options = parse(arguments)
    if options.list:
        for name in questions.NAMES:
            print(f"{name:18} {questions.load(name).asks}")
        return 0
    if options.report:
        return write_report(options.json, options.report)
    if options.merge:
        return write_merged(options.merge, options.json)
    if options.python:
        # The samples are processes of their own, which look for interpreters too.
        paths = [*options.python, os.environ.get(interpreters.NAMED, "")]
        os.environ[interpreters.NAMED] = os.pathsep.join(filter(None, paths))
    settings = Settings(
        workers=loky.cpu_count(),
        spins_per_ms=work.spins_per_ms(),
        scale=QUICK_SCALE if options.quick else options.scale,
    )
    open_results = Results.resumed if options.resume and options.json.exists() else Results
    try:
        results = open_results(options.json, machine.facts(settings.workers), settings)
    except CannotResume as error:
        print(error, file=sys.stderr)
        return 2
    names = questions.NAMES if options.all else questions.expanded(options.only or ["gil"])
    try:
        answers = ask_all(names, results, 1 if options.quick else options.repeat)
    except KeyboardInterrupt:
        print(f"\n{options.json} has what was measured: go on with --resume", file=sys.stderr)
        return 130
    console = Console()
    report.show(answers, console if console.is_terminal else Console(width=report.TABLE_WIDTH))
    print(f"All figures: {options.json}")
    return 1 if any(answer.errors for answer in answers) else 0


def read_results(file: Path) -> dict[str, Any] | None:
    """Return the document of a run; None if there is none, which it says."""
    try:
        document: dict[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        print(
            f"no results in {file}: {error}. Measure first, or name a file with --json",
            file=sys.stderr,
        )
        return None
    return document


def write_merged(files: Sequence[Path], target: Path) -> int:
    """Write the results of several runs to one file."""
    documents = {file: document for file in files if (document := read_results(file)) is not None}
    if len(documents) < len(files):
        return 2
    target.write_text(json.dumps(merging.merged(documents), indent=1) + "\n")
    print(f"All figures: {target}")
    return 0


def write_report(file: Path, directory: Path) -> int:
    """Write the pages of one run."""
    document = read_results(file)
    if document is None:
        return 2
    if find_spec("matplotlib") is None:
        print("the plots need matplotlib: pip install 'procbus[bench]'", file=sys.stderr)
        return 2
    from . import page  # here: it imports what draws

    for path in page.write(document, directory):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
