"""The file of a run: measurements of an interrupted run are not repeated."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from bench import __main__ as bench_main
from bench import machine, questions, runner
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


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Samples are 1, 2, 3 ... in the order in which they are taken; gives who was asked."""
    asked: list[str] = []

    def take(_question: Question, contender: str, _settings: Settings) -> dict[str, float]:
        asked.append(contender)
        return {"speed": float(len(asked))}

    monkeypatch.setattr(runner, "take_sample", take)
    return asked


def ask(results: Results, rounds: int, on_taken: Any = None) -> runner.Answer:
    answer = results.answer_to(QUESTION)
    runner.ask(answer, results.settings, rounds, lambda *_: None, on_taken or results.keep)
    return answer


def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path, asked: list[str]) -> None:
    file = tmp_path / "results.json"
    results = Results(file, MACHINE, SETTINGS)

    def interrupt(answer: runner.Answer) -> None:
        results.keep(answer)
        if len(asked) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask(results, 2, on_taken=interrupt)
    before = json.loads(file.read_text())["questions"]["made_up"]["rounds"]

    resumed = Results.resumed(file, MACHINE, replace(SETTINGS, spins_per_ms=999))
    answer = ask(resumed, 2)

    assert before == [
        {PROCBUS: {"speed": 1.0}, LIMIT: {"speed": 2.0}, "other": {"speed": 3.0}},
        {LIMIT: {"speed": 4.0}},
    ]
    assert asked[4:] == ["other", PROCBUS]
    assert answer.rounds == [
        before[0],
        {LIMIT: {"speed": 4.0}, "other": {"speed": 5.0}, PROCBUS: {"speed": 6.0}},
    ]
    assert resumed.settings == SETTINGS  # the calibration of the first part


def test_finished_run_takes_no_sample_and_other_questions_stay(
    tmp_path: Path, asked: list[str]
) -> None:
    file = tmp_path / "results.json"
    results = Results(file, MACHINE, SETTINGS)
    ask(results, 1)
    results.document["questions"]["another"] = {"rounds": [{"x": {"y": 1.0}}]}
    results.keep(results.answer_to(QUESTION))
    asked.clear()
    resumed = Results.resumed(file, {**MACHINE, "date": "later"}, SETTINGS)
    ask(resumed, 1)
    document = json.loads(file.read_text())
    assert asked == []
    assert document["questions"]["another"]["rounds"] == [{"x": {"y": 1.0}}]
    assert document["questions"]["made_up"]["rows"]["speed"]["contenders"]["other"]["runs"] == [3.0]
    assert document["machine"]["resumed"] == ["later"]


def test_samples_that_failed_are_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_question: Question, contender: str, _settings: Settings) -> dict[str, float]:
        if contender == "other":
            raise runner.SampleFailed("it fell over")
        return {"speed": 1.0}

    monkeypatch.setattr(runner, "take_sample", fail)
    file = tmp_path / "results.json"
    assert ask(Results(file, MACHINE, SETTINGS), 1).errors == ["other, round 1: it fell over"]
    monkeypatch.setattr(runner, "take_sample", lambda *_: {"speed": 7.0})
    answer = ask(Results.resumed(file, MACHINE, SETTINGS), 1)
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
    asked: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "results.json"
    monkeypatch.setattr(questions, "load", lambda _name: QUESTION)
    take = runner.take_sample

    def interrupt(*arguments: Any) -> dict[str, float]:
        if len(asked) == 1:
            raise KeyboardInterrupt
        return take(*arguments)

    monkeypatch.setattr(runner, "take_sample", interrupt)
    arguments = ["--quick", "--only", "tiny_io", "--json", str(file)]
    assert bench_main.main(arguments) == 130
    assert "go on with --resume" in capsys.readouterr().err
    monkeypatch.setattr(runner, "take_sample", take)
    assert bench_main.main([*arguments, "--resume"]) == 0
    assert asked == [PROCBUS, LIMIT, "other"]


def test_real_run_waits_for_quiet_and_counts_questions_begun_without(
    tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = iter([0.0, 90.0, 90.0, 0.0])
    waited: list[float] = []

    def wait_until_quiet(patience_s: float) -> bool:
        waited.append(patience_s)
        return next(busy) < machine.QUIET_PERCENT

    monkeypatch.setattr(runner, "wait_until_quiet", wait_until_quiet)
    results = Results(tmp_path / "results.json", MACHINE, replace(SETTINGS, scale=1.0))
    answer = ask(results, 1)
    assert answer.disturbed == 2
    assert waited == [runner.PATIENCE_S, runner.PATIENCE_S, 0.0]  # in vain, so not once more
    assert results.answer_to(QUESTION).disturbed == 2


def test_machine_is_quiet_once_the_cores_are_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    used = iter([80.0, 30.0, 2.0])
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval: next(used))
    assert machine.wait_until_quiet(60.0)
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval: 99.0)
    assert not machine.wait_until_quiet(0.0)


def test_question_with_a_missing_requirement_is_skipped(asked: list[str]) -> None:
    answer = runner.Answer(replace(QUESTION, needs=("no_such_module",), not_here=("3.99",)))
    runner.ask(answer, SETTINGS, 1, lambda *_: None, lambda _: None)
    assert answer.not_installed == ["3.99", PROCBUS, LIMIT, "other"]
    assert asked == []
