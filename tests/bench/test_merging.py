"""Results of several runs in one document: no figure is lost, and each says where it is from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import __main__ as bench_main
from bench import merging, results, runner
from bench.found import Found
from bench.model import LIMIT, Question, Row, Settings

SETTINGS = Settings(workers=2, spins_per_ms=20_000)
SPEED = Row("speed", "x the loop")


def never_called(_settings: Settings) -> dict[str, float]:
    raise AssertionError("nothing is measured here")


def run_of(python: str, limit: float = 2.0, **figures: float) -> dict[str, Any]:
    """The document of a run in which each contender has one figure."""
    all_figures = {**figures, LIMIT: limit}
    question = Question(
        name="pythons",
        asks="Which?",
        rows=(SPEED,),
        contenders=dict.fromkeys(all_figures, never_called),
        limit="the cores",
    )
    answer = runner.Answer(
        question,
        rounds=[{name: {SPEED.name: figure} for name, figure in all_figures.items()}],
        errors=["threads: gone"],
        not_installed=["3.14t"],
        disturbed=1,
    )
    machine = {"python": f"CPython {python}", "workers": 2, "processor": "Fast"}
    return {
        "machine": {**machine, "date": "2026-12-02T07:00:00+00:00"},
        "settings": SETTINGS.to_json(),
        "questions": {"pythons": results.to_json(answer)},
    }


def merged(*documents: dict[str, Any]) -> Any:
    paths = [Path(f"run{number}.json") for number in range(len(documents))]
    return merging.merged(dict(zip(paths, documents, strict=True)))


def test_contender_of_another_run_is_added_under_its_own_name() -> None:
    whole = merged(run_of("3.11.7", **{"3.11": 1.0}), run_of("3.14.7", **{"3.14t": 1.9}))

    found = Found(whole["questions"]["pythons"])
    assert (found.own, found.added) == (["3.11", LIMIT], ["3.14t"])
    assert found.middle(SPEED.name, "3.14t") == 1.9
    assert found.not_installed == []


def test_contender_of_the_same_name_is_named_after_its_python() -> None:
    whole = merged(run_of("3.11.7", threads=1.0), run_of("3.14.7", threads=1.9))

    found = Found(whole["questions"]["pythons"])
    assert found.middle(SPEED.name, "threads") == 1.0
    assert found.middle(SPEED.name, "threads (3.14.7)") == 1.9
    assert whole["questions"]["pythons"]["rows"]["speed"]["contenders"]["threads (3.14.7)"]


def test_run_of_the_same_python_is_named_after_its_file() -> None:
    whole = merged(run_of("3.14.7", threads=1.0), run_of("3.14.7", threads=1.9))

    assert "threads (run1)" in Found(whole["questions"]["pythons"]).contenders
    assert list(whole["machine"]["merged"]) == ["run1"]


@pytest.mark.parametrize(("limit", "expected"), [(2.0, []), (64.0, ["limit (3.14.7)"])])
def test_limit_is_said_again_only_where_it_differs(limit: float, expected: list[str]) -> None:
    whole = merged(run_of("3.11.7", a=1.0), run_of("3.14.7", limit, b=1.9))

    found = Found(whole["questions"]["pythons"])
    assert [name for name in found.added if name.startswith(LIMIT)] == expected


def test_errors_and_disturbed_samples_of_all_runs_are_kept() -> None:
    whole = merged(run_of("3.11.7", a=1.0), run_of("3.14.7", b=1.9))

    found = Found(whole["questions"]["pythons"])
    assert found.errors == ["threads: gone", "3.14.7: threads: gone"]
    assert found.disturbed == 2


def test_question_of_one_run_alone_names_its_machine() -> None:
    other = run_of("3.14.7", b=1.9)
    other["questions"] = {"crossover": other["questions"]["pythons"]}
    whole = merged(run_of("3.11.7", a=1.0), other)

    assert Found(whole["questions"]["crossover"]).machine == other["machine"]


def test_files_are_left_as_they_are_and_merged_into_another(tmp_path: Path) -> None:
    first, second, target = (tmp_path / name for name in ("a.json", "b.json", "all.json"))
    first.write_text(json.dumps(run_of("3.11.7", a=1.0)))
    second.write_text(json.dumps(run_of("3.14.7", b=1.9)))
    before = first.read_text(), second.read_text()
    options = ["--merge", str(first), str(second), "--json", str(target)]

    assert bench_main.main(options) == 0
    found = Found(json.loads(target.read_text())["questions"]["pythons"])
    assert set(found.contenders) == {"a", "b", LIMIT}
    assert (first.read_text(), second.read_text()) == before


def test_merging_a_missing_file_is_an_error_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "all.json"
    options = ["--merge", str(tmp_path / "gone.json"), "--json", str(target)]

    assert bench_main.main(options) == 2
    assert "no results in" in capsys.readouterr().err
    assert not target.exists()
