"""The report: pages and plots from the JSON of a run, with no figure that the run did not give."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from bench import __main__ as bench_main
from bench import gil_texts, page, questions, results, runner
from bench.found import Found
from bench.gil_plots import GIL_PLOTS
from bench.model import Question, Settings

SETTINGS = Settings(workers=2, spins_per_ms=20_000, scale=1.0)
REPORTED = [*GIL_PLOTS, *questions.PEERS]


def made_up(question: Question, figure: float = 2.0) -> dict[str, Any]:
    """The JSON of a question, in which every contender has a figure in every row of two rounds."""
    answer = runner.Answer(question)
    for number in range(2):
        answer.rounds.append(
            {
                name: {row.name: figure + at + number for row in question.rows}
                for at, name in enumerate(question.contenders)
            }
        )
    return results.to_json(answer)


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """A small document with every question that is reported."""
    machine = {
        "date": "2026-11-25T10:00:00+00:00",
        "system": "Linux 6",
        "processor": "Fast",
        "cores": 2,
        "workers": 2,
        "memory_gb": 8.0,
        "python": "CPython 3.11.7",
        "libraries": {"loky": "3.7.0", "ray": None},
        "load_before": 0.1,
    }
    found = {name: made_up(questions.load(name)) for name in REPORTED}
    return {"machine": machine, "settings": SETTINGS.to_json(), "questions": found}


@pytest.mark.slow
@pytest.mark.usefixtures("open_fonts")
def test_the_report_is_two_pages_and_a_plot_for_each_part(
    document: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "results.json"
    file.write_text(json.dumps(document))
    assert bench_main.main(["--report", str(tmp_path / "docs"), "--json", str(file)]) == 0
    markdown = (tmp_path / "docs" / "benchmarks.md").read_text()
    html = (tmp_path / "docs" / "benchmarks.html").read_text()
    shown = re.findall(r"!\[[^\]]+\]\((benchmarks/\w+\.svg)\)", markdown)
    assert [Path(path).stem for path in shown] == [*GIL_PLOTS, "peers"]
    for path in shown:
        svg = (tmp_path / "docs" / path).read_text()
        assert len(svg) < 150_000
        assert "<text" in svg
        ElementTree.fromstring(svg)
    for title, _ in gil_texts.GIL_TEXTS.values():
        assert f"## {title}" in markdown
        assert f">{title}</h2>" in html
    assert "Fast, 8.0 GB, Linux 6, CPython 3.11.7. loky 3.7.0." in markdown
    assert "quick run" not in markdown


@pytest.mark.slow
@pytest.mark.usefixtures("open_fonts")
def test_the_html_page_needs_no_other_file(document: dict[str, Any], tmp_path: Path) -> None:
    _, html, _, *plots = page.write(document, tmp_path)
    text = html.read_text()
    assert text.count('src="data:image/svg+xml;base64,') == len(plots)
    assert set(re.findall(r'src="(\w+):', text)) == {"data"}
    assert "<link" not in text
    assert "<script" not in text
    assert "<table>" in text


def test_axes_have_units_and_lines_have_names(document: dict[str, Any], open_fonts: None) -> None:
    for name, draw in GIL_PLOTS.items():
        figure = draw(Found(document["questions"][name]), 2)
        for axes in figure.axes:
            assert axes.get_ylabel(), name
        legends = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
        names = legends or [text.get_text() for axes in figure.axes for text in axes.texts]
        assert len(names) > 1, name


def test_the_spread_of_the_rounds_is_drawn(document: dict[str, Any], open_fonts: None) -> None:
    figure = GIL_PLOTS["crossover"](Found(document["questions"]["crossover"]), 2)
    (axes,) = figure.axes
    drawn = {
        (segment[0][1], segment[1][1])
        for container in axes.containers
        for collection in container[2]
        for segment in collection.get_segments()
    }
    assert (2.0, 3.0) in drawn  # the first contender's lowest and highest round


def test_documentation_page_matches_its_results() -> None:
    docs = Path(__file__).parents[2] / "docs"
    document = json.loads((docs / "benchmarks.json").read_text())
    found = {name: Found(each) for name, each in document["questions"].items()}
    markdown = (docs / "benchmarks.md").read_text()
    assert page.page(document, found, document["settings"]["workers"]) == markdown
    for path in re.findall(r"\((benchmarks/\w+\.svg)\)", markdown):
        assert "<svg" in (docs / path).read_text()


def figures_in(text: str) -> set[str]:
    return set(re.findall(r"\d[\d,]*\.?\d*", text))


@pytest.mark.parametrize("name", gil_texts.GIL_TEXTS)
def test_texts_say_no_figure_of_speed_that_the_run_did_not_give(name: str) -> None:
    """With figures that occur nowhere else, the rest of the text is the set-up."""
    _, text = gil_texts.GIL_TEXTS[name]
    found = text(Found(made_up(questions.load(name), figure=777_000.0)), 2)
    other = text(Found(made_up(questions.load(name), figure=888_000.0)), 2)
    assert any(figure.startswith("777") for figure in figures_in(found))
    set_up = {each.rstrip(".,") for each in figures_in(found) & figures_in(other)}
    known = {"0.0005", "0.001", "0.5", "1", "2", "3", "4", "5", "8", "10", "16", "20", "32", "64"}
    known |= {"99", "100", "200", "256", "500", "1,000", "31,000", "100,000", "1,000,000"}
    assert set_up <= known | {"3.11", "3.12", "3.13", "3.14", "3.15"}


def test_a_part_without_results_is_left_out_and_a_quick_run_says_so(
    document: dict[str, Any],
) -> None:
    convoy = {"convoy": document["questions"]["convoy"]}
    quick = {**document, "questions": convoy, "settings": {**SETTINGS.to_json(), "scale": 0.02}}
    text = page.page(quick, {name: Found(each) for name, each in convoy.items()}, 2)
    assert "its figures mean nothing" in text
    assert "## The convoy" in text
    assert "## Whole jobs" not in text
    assert "## Beside its peers" not in text


def test_failed_and_missing_contenders_are_named(document: dict[str, Any]) -> None:
    pythons = dict(document["questions"]["pythons"], not_installed=["3.14t"], errors=["3.12: gone"])
    found = Found(pythons)
    assert "left out: 3.14t" in gil_texts.of_pythons(found, 2)
    assert "Failed: 3.12: gone" in page.limit_of(found)


def test_disturbed_samples_are_reported(document: dict[str, Any]) -> None:
    found = Found(dict(document["questions"]["convoy"], disturbed=3))
    assert "Of 10 samples 3 were begun while other programs used the cores" in page.limit_of(found)
    warning = "**3 of 10 samples were begun while"
    assert warning in page.about(document, {"convoy": found})
    calm = Found(document["questions"]["convoy"])
    assert warning[2:20] not in page.about(document, {"convoy": calm})


def test_a_contender_without_figures_leaves_a_hole_and_no_error(document: dict[str, Any]) -> None:
    crossover = json.loads(json.dumps(document["questions"]["crossover"]))
    for each in crossover["rounds"]:
        del each["procbus cpu"]
    assert "(no figure)" in gil_texts.of_crossover(Found(crossover), 2)


def test_ratios_are_medians_of_the_rounds_ratios() -> None:
    rounds = [{"a": {"r": 6.0}, "b": {"r": 2.0}}, {"a": {"r": 8.0}, "b": {"r": 1.0}}, {"a": {}}]
    common: dict[str, Any] = {
        "asks": "",
        "limit": "",
        "not_installed": [],
        "errors": [],
        "date": "",
    }
    common["disturbed"] = 0
    found = Found({**common, "rounds": rounds, "rows": {"r": {"unit": "s"}}})
    assert found.ratio("r", "a", "b") == 5.5
    assert found.middle("r", "a") == 7.0
    assert found.spread("r", "b") == (1.5, 1.0, 2.0)
    assert found.ratio("r", "a", "c") is None


def test_the_length_from_which_another_process_gains_is_that_of_all_longer_ones() -> None:
    question = questions.load("crossover")
    found = Found(made_up(question))
    for each in found.rounds:
        each["procbus cpu"] = dict.fromkeys(found.rows, 99.0)
    assert gil_texts.gain_from(found, "procbus cpu") == "1 µs"
    for each in found.rounds:
        each["procbus cpu"]["10 µs"] = 0.5
    assert gil_texts.gain_from(found, "procbus cpu") == "30 µs"
    assert gil_texts.gain_from(found, "nobody") is None


def test_report_of_no_results_names_the_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "none.json"
    assert bench_main.main(["--report", str(tmp_path), "--json", str(missing)]) == 2
    assert "Measure first" in capsys.readouterr().err
