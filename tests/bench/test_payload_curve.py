"""The curve of cost by size: its points, its measurements, and its plot."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import memory_limits, payload_curve
from bench.found import Found
from bench.model import LIMIT, PROCBUS, Settings
from bench.payload_curve import COUNTS, POINTS, Point, payloads, rate_of
from bench.payload_curve_plot import BAND, BAND_NAME, LINES, draw_payload_curve, points_of
from bench.payload_curve_work import DIFFERENT, give, make

SETTINGS = Settings(workers=1, spins_per_ms=1_000, scale=0.02)


def test_every_point_has_a_row_of_its_own() -> None:
    assert len({point.row for point in POINTS}) == len(POINTS)


@pytest.mark.parametrize(
    ("kind", "size", "length"), [("bytes", 31_000, 31_000), ("str", 0, 0), ("records", 10, 10)]
)
def test_a_payload_has_its_size(kind: str, size: int, length: int) -> None:
    assert len(make(kind, size, 3)) == length


def test_payloads_of_one_point_differ_and_results_take_turns() -> None:
    point = Point("bytes", 1_000, is_result=False)
    assert len(set(payloads(point))) == DIFFERENT
    assert len({give(("bytes", 1_000)) for _ in range(DIFFERENT)}) == DIFFERENT


def test_a_quick_run_has_no_large_payload() -> None:
    largest = max(POINTS, key=lambda point: point.nbytes)
    assert largest.in_run(SETTINGS).nbytes <= payload_curve.QUICK_BYTES
    assert largest.in_run(replace(SETTINGS, scale=1.0)) == largest


def test_a_rate_is_that_of_the_events_that_were_run() -> None:
    ran: list[int] = []
    rate = rate_of(lambda events: ran.append(len(events)), POINTS[0], SETTINGS)
    assert rate > 0
    assert ran[:2] == [3, payload_curve.FIRST]


@pytest.mark.parametrize("size", [1, 100_000])
def test_the_limit_handles_each_event_once_also_where_results_fill_several_batches(
    size: int, tmp_path: Path
) -> None:
    handled = tmp_path / "handled"

    def handler(_event: Any) -> bytes:
        with handled.open("ab") as file:
            file.write(b".")
        return bytes(size)

    with memory_limits.shared_by(handler, 2) as run:
        run([*range(100)])
        run([bytes(size)] * 9)
    assert len(handled.read_bytes()) == 109


def test_slot_of_the_limit_returns_its_events() -> None:
    slot = memoryview(bytearray(memory_limits.SLOT_BYTES))
    events = iter([b"a", "b", 3, 4])
    assert memory_limits.put(slot, events, 3) == 3
    assert [*memory_limits.take(slot, 3)] == [b"a", "b", 3]
    assert next(events) == 4


def curve_found(rates: dict[str, float]) -> Found:
    """Results of `payload_curve` in which each contender has the same rate at every point."""
    rows = {point.row: {"unit": "events/s"} for point in POINTS}
    rounds = [{name: dict.fromkeys(rows, rate) for name, rate in rates.items()}]
    facts = {"asks": "", "limit": "", "not_installed": [], "errors": [], "disturbed": 0, "date": ""}
    return Found({**facts, "rounds": rounds, "rows": rows})


def test_line_of_the_plot_has_a_time_for_each_size() -> None:
    points = [point for point in POINTS if point.kind == "records" and point.is_result]
    found = curve_found({PROCBUS: 1e5})
    assert points_of(found, PROCBUS, points) == [(size, 10.0) for size in COUNTS]
    assert points_of(found, "loky", points) == []


@pytest.mark.usefixtures("open_fonts")
def test_plot_has_a_panel_for_each_kind_of_event_and_of_result() -> None:
    figure = draw_payload_curve(curve_found({PROCBUS: 1e5, LIMIT: 3e5, "loky": 9e3}), 2)
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        *("Events: bytes objects", "Results: bytes objects"),
        *("Events: dicts of records", "Results: dicts of records"),
        *("Events: NumPy arrays", "Results: NumPy arrays"),
    ]
    [legend] = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        *("procbus", "pickle and memory alone", BAND_NAME),
    ]


def test_plot_shows_every_contender_but_joblib() -> None:
    assert {*LINES, *BAND} == {*payload_curve.QUESTION.contenders} - {"joblib"}
