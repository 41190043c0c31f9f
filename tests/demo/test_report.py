# SPDX-License-Identifier: MIT
"""The demo's words about its runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from procbus.demo import report
from procbus.demo.page import Printout
from procbus.demo.report import explained, show_failures, show_functions, show_runs, show_skipped
from procbus.demo.store import RankedFunction
from procbus.demo.ways import WAYS, DoneJob


def runs(*seconds: float) -> list[DoneJob]:
    return [DoneJob(way, took, 1.0, []) for way, took in zip(WAYS, seconds, strict=True)]


def test_functions_are_shown_with_their_figures_and_places(
    page: Printout, capsys: pytest.CaptureFixture[str]
) -> None:
    show_functions(page, Path("/root"), [RankedFunction("/root/pkg/a.py", "C.f", 12, 1234, 56, 7)])
    assert capsys.readouterr().out.split()[-4:] == ["1,234", "56", "C.f", "pkg/a.py:12"]


def test_no_table_is_shown_where_there_are_no_functions(
    page: Printout, capsys: pytest.CaptureFixture[str]
) -> None:
    show_functions(page, Path("/root"), [])
    assert capsys.readouterr().out == ""


def test_skipped_files_are_counted_and_the_first_are_shown(
    page: Printout, capsys: pytest.CaptureFixture[str]
) -> None:
    show_skipped(page, Path("/r"), 7, [("/r/a.py", "line 1: no"), ("/r/\x1b.py", "not utf-8")])
    assert capsys.readouterr().out.splitlines() == [
        "7 files could not be read or parsed:",
        "  a.py: line 1: no",
        "  \\x1b.py: not utf-8",
        "  and 5 more",
    ]


def test_runs_are_a_table_that_fits_60_columns(
    page: Printout, capsys: pytest.CaptureFixture[str]
) -> None:
    page.width = 60
    show_runs(page, runs(8.0, 4.0, 9.0, 4.4), workers=2)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 60
    assert any(line.split() == ["plain", "loop", "8.00", "50%", "the", "script"] for line in lines)


def test_slower_procbus_is_said_to_be_slower() -> None:
    assert "ProcessPoolExecutor was the fastest; procbus took 10% longer." in explained(
        runs(8.0, 4.0, 9.0, 4.4)
    )


def test_fastest_procbus_is_not_said_to_be_slower() -> None:
    assert not any("longer" in each for each in explained(runs(8.0, 4.5, 9.0, 4.0)))


@pytest.mark.parametrize(("has_gil", "said"), [(True, "can only lose"), (False, "has no GIL")])
def test_thread_pool_bus_is_explained_by_the_gil(
    monkeypatch: pytest.MonkeyPatch, has_gil: bool, said: str
) -> None:
    monkeypatch.setattr(report, "_has_gil", lambda: has_gil)
    assert any(said in each for each in explained(runs(8.0, 4.0, 9.0, 4.4)))


def test_failures_are_shown_up_to_a_number(
    page: Printout, capsys: pytest.CaptureFixture[str]
) -> None:
    show_failures(page, DoneJob(WAYS[0], 1.0, None, [f"no {number}" for number in range(7)]))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "plain loop: failed: no 0"
    assert lines[-1] == "plain loop: 7 failures in all"
    assert len(lines) == 6
