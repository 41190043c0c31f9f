"""The file of a run: measurements of an interrupted run are not repeated."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bench import __main__ as bench_main
from bench import machine, runner
from bench.model import LIMIT, PROCBUS, Question, Row, Settings
from bench.results import CannotResume, Results

SETTINGS = Settings(workers=2, spins_per_ms=1_000, scale=0.02)
MACHINE = {
    "date": "2026-11-25T10:00:00+00:00",
    "system": "Linux",
    "processor": "fast",
    "cores": 2,
    "workers": 2,
    "python": "CPython 3.11",
    "libraries": {"loky": "3.7.0"},
}


def never_called(_settings: Settings) -> dict[str, float]:
    raise AssertionError("samples are taken in processes of their own")


QUESTION = Question(
    name="made_up",
    asks="Which way?",
    rows=(Row("speed", "events/s"),),
    contenders={PROCBUS: never_called, LIMIT: never_called, "other": never_called},
)


class Samples:
    """Samples are 1, 2, 3 ... in the order in which they are taken."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def take(self, _question: Question, contender: str, _settings: Settings) -> dict[str, float]:
        self.asked.append(contender)
        return {"speed": float(len(self.asked))}


@pytest.fixture
def samples() -> Samples:
    return Samples()


def ask(results: Results, rounds: int, on_taken: Any = None, **replaced: Any) -> runner.Answer:
    """Ask with parts of `runner.ask` replaced."""
    answer = results.answer_to(QUESTION)
    keep = on_taken or results.keep
    runner.ask(answer, results.settings, rounds, lambda *_: None, keep, **replaced)
    return answer


def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path, samples: Samples) -> None:
    file = tmp_path / "results.json"
    results = Results(file, MACHINE, SETTINGS)

    def interrupt(answer: runner.Answer) -> None:
        results.keep(answer)
        if len(samples.asked) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask(results, 2, on_taken=interrupt, take=samples.take)
    before = json.loads(file.read_text())["questions"]["made_up"]["rounds"]

    resumed = Results.resumed(file, MACHINE, replace(SETTINGS, spins_per_ms=999))
    answer = ask(resumed, 2, take=samples.take)

    assert before == [
        {PROCBUS: {"speed": 1.0}, LIMIT: {"speed": 2.0}, "other": {"speed": 3.0}},
        {LIMIT: {"speed": 4.0}},
    ]
    assert samples.asked[4:] == ["other", PROCBUS]
    assert answer.rounds == [
        before[0],
        {LIMIT: {"speed": 4.0}, "other": {"speed": 5.0}, PROCBUS: {"speed": 6.0}},
    ]
    assert resumed.settings == SETTINGS  # the calibration of the first part


def test_finished_run_takes_no_sample_and_other_questions_stay(
    tmp_path: Path, samples: Samples
) -> None:
    file = tmp_path / "results.json"
    results = Results(file, MACHINE, SETTINGS)
    ask(results, 1, take=samples.take)
    results.document["questions"]["another"] = {"rounds": [{"x": {"y": 1.0}}]}
    results.keep(results.answer_to(QUESTION))
    samples.asked.clear()
    resumed = Results.resumed(file, {**MACHINE, "date": "later"}, SETTINGS)
    ask(resumed, 1, take=samples.take)
    document = json.loads(file.read_text())
    assert samples.asked == []
    assert document["questions"]["another"]["rounds"] == [{"x": {"y": 1.0}}]
    assert document["questions"]["made_up"]["rows"]["speed"]["contenders"]["other"]["runs"] == [3.0]
    assert document["machine"]["resumed"] == ["later"]


def test_samples_that_failed_are_taken_again(tmp_path: Path) -> None:
    def fail(_question: Question, contender: str, _settings: Settings) -> dict[str, float]:
        if contender == "other":
            raise runner.SampleFailed("it fell over")
        return {"speed": 1.0}

    file = tmp_path / "results.json"
    failed = ask(Results(file, MACHINE, SETTINGS), 1, take=fail)
    assert failed.errors == ["other, round 1: it fell over"]
    answer = ask(Results.resumed(file, MACHINE, SETTINGS), 1, take=lambda *_: {"speed": 7.0})
    assert answer.errors == []
    assert answer.rounds[0]["other"] == {"speed": 7.0}


@pytest.mark.parametrize(
    ("what", "value"),
    [("python", "CPython 3.13"), ("cores", 64), ("libraries", {"loky": "3.8.0"}), ("scale", 1.0)],
)
def test_figures_of_another_kind_are_not_mixed_in(tmp_path: Path, what: str, value: Any) -> None:
    file = tmp_path / "results.json"
    Results(file, MACHINE, SETTINGS).keep(runner.Answer(QUESTION))
    settings = replace(SETTINGS, scale=value) if what == "scale" else SETTINGS
    with pytest.raises(CannotResume, match=f"was taken with {what} .*, and this is "):
        Results.resumed(file, {**MACHINE, what: value}, settings)


@pytest.mark.parametrize("content", ["", "[]", '{"machine": {}}'])
def test_a_file_that_holds_no_results_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "results.json"
    file.write_text(content)
    with pytest.raises(CannotResume, match="cannot be continued"):
        Results.resumed(file, MACHINE, SETTINGS)


def test_the_command_line_says_why_it_cannot_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "results.json"
    file.write_text("{}")
    arguments = ["--resume", "--quick", "--only", "tiny_io", "--json", str(file)]
    assert bench_main.main(arguments) == 2
    assert "cannot be continued" in capsys.readouterr().err
    assert file.read_text() == "{}"


def test_the_command_line_goes_on_and_an_interruption_says_how(
    tmp_path: Path,
    samples: Samples,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "results.json"

    def interrupt(*arguments: Any) -> dict[str, float]:
        if len(samples.asked) == 1:
            raise KeyboardInterrupt
        return samples.take(*arguments)

    def run(*more: str, take: Callable[..., dict[str, float]]) -> int:
        asks = partial(runner.ask, take=take)
        ask_all = partial(bench_main.ask_all, load=lambda _name: QUESTION, ask=asks)
        return bench_main.main([*arguments, *more], ask_all=ask_all)

    arguments = ["--quick", "--only", "tiny_io", "--json", str(file)]
    assert run(take=interrupt) == 130
    assert "go on with --resume" in capsys.readouterr().err
    assert run("--resume", take=samples.take) == 0
    assert samples.asked == [PROCBUS, LIMIT, "other"]


def test_real_run_waits_for_quiet_and_counts_questions_begun_without(
    tmp_path: Path, samples: Samples
) -> None:
    busy = iter([0.0, 90.0, 90.0, 0.0])
    waited: list[float] = []

    def wait_until_quiet(patience_s: float) -> bool:
        waited.append(patience_s)
        return next(busy) < machine.QUIET_PERCENT

    results = Results(tmp_path / "results.json", MACHINE, replace(SETTINGS, scale=1.0))
    answer = ask(results, 1, take=samples.take, wait=wait_until_quiet)
    assert answer.disturbed == 2
    assert waited == [runner.PATIENCE_S, runner.PATIENCE_S, 0.0]  # in vain, so not once more
    assert results.answer_to(QUESTION).disturbed == 2


def test_machine_is_quiet_once_the_cores_are_idle() -> None:
    used = iter([80.0, 30.0, 2.0])
    assert machine.wait_until_quiet(60.0, lambda _: next(used))
    assert not machine.wait_until_quiet(0.0, lambda _: 99.0)


def test_question_with_a_missing_requirement_is_skipped(samples: Samples) -> None:
    answer = runner.Answer(replace(QUESTION, needs=("no_such_module",), not_here=("3.99",)))
    runner.ask(answer, SETTINGS, 1, lambda *_: None, lambda _: None, take=samples.take)
    assert answer.not_installed == ["3.99", PROCBUS, LIMIT, "other"]
    assert samples.asked == []
