# SPDX-License-Identifier: MIT
"""The output of the demo: its report and its progress."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from procbus.demo.progress import showing_progress
from procbus.demo.runs import DemoRun
from rich.console import Console

from procbus.core.text import printable
from procbus.demo.report import (
    print_failures,
    print_functions,
    print_index,
    print_runs,
    print_skipped,
)
from procbus.demo.store import RankedFunction, Totals


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=100, force_terminal=False)


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_functions_are_shown_with_their_figures_and_places(console: Console) -> None:
    function = RankedFunction("/root/pkg/a.py", "C.f", 12, 1234, 56, 7)
    print_functions(console, Path("/root"), [function])
    row = next(line for line in printed(console).splitlines() if "C.f" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")] == [
        "1,234",
        "56",
        "7",
        "C.f",
        "pkg/a.py:12",
    ]


def test_no_table_is_shown_where_there_are_no_functions(console: Console) -> None:
    print_functions(console, Path("/root"), [])
    assert printed(console) == ""


def test_names_that_look_like_markup_are_shown_as_they_are(console: Console) -> None:
    print_functions(console, Path("/"), [RankedFunction("/[red]x.py", "f", 1, 1, 1, 0)])
    print_skipped(console, Path("/"), 1, [("/[bold]y.py", "[/] why")])
    assert "[red]x.py:1" in printed(console)
    assert "[bold]y.py: [/] why" in printed(console)


def test_skipped_files_are_counted_and_the_first_are_shown(console: Console) -> None:
    print_skipped(console, Path("/r"), 7, [("/r/a.py", "line 1: no"), ("/r/b.py", "not utf-8")])
    assert printed(console).splitlines() == [
        "7 files could not be read or parsed:",
        "  a.py: line 1: no",
        "  b.py: not utf-8",
        "  and 5 more: see the table files in the index",
    ]


def test_report_without_skipped_files_does_not_mention_them(console: Console) -> None:
    print_skipped(console, Path("/r"), 0, [])
    assert printed(console) == ""


def test_runs_are_compared_by_their_seconds(console: Console) -> None:
    ours = DemoRun("procbus", 2.0, 600, "2 processes")
    theirs = DemoRun("thread-pool bus", 3.0, 600, "4 threads")
    print_runs(console, [ours, theirs, DemoRun("pool", 2.5, 600, "2 processes")])
    text = printed(console)
    assert "300" in text
    assert "200" in text
    assert "Ratio: 1.50 (thread-pool bus ÷ procbus" in text
    assert "Ratio: 1.25 (pool ÷ procbus" in text


def test_single_run_has_no_ratio(console: Console) -> None:
    print_runs(console, [DemoRun("procbus", 2.0, 600, "2 processes")])
    assert "300" in printed(console)
    assert "Ratio" not in printed(console)


def test_failures_are_counted_and_the_first_are_shown(console: Console) -> None:
    run = DemoRun("procbus", 2.0, 600, "2 processes", failures=tuple("abcdefg"))
    print_failures(console, run)
    assert printed(console).splitlines() == [
        *(f"procbus: failed: {failure}" for failure in "abcde"),
        "procbus: 7 failures in all",
    ]


def test_the_place_of_the_index_is_said_on_one_line_however_long(console: Console) -> None:
    path = "/tmp/" + "long/" * 40 + "index.sqlite"
    print_index(console, path, Totals(files=3, skipped=2, functions=1234, complexity=9))
    assert printed(console).splitlines() == [
        "1,234 functions in 1 file",
        f"The index is an SQLite file: {path}",
    ]


def test_control_characters_are_shown_as_escapes() -> None:
    assert printable("a\x1b[31m\n\u200b\ud800é b") == "a\\x1b[31m\\n\\u200b\\ud800é b"


def test_progress_elsewhere_than_on_a_terminal_is_a_line_at_each_quarter(console: Console) -> None:
    with showing_progress(console, "procbus", 10) as show:
        for done in range(11):
            show(done)
            show(done)
    assert printed(console).splitlines() == [
        "procbus: 3 of 10 files",
        "procbus: 5 of 10 files",
        "procbus: 8 of 10 files",
        "procbus: 10 of 10 files",
    ]


def test_progress_on_a_terminal_is_a_bar() -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    with showing_progress(console, "procbus", 10) as show:
        show(10)
    assert "10/10" in printed(console)
    assert "\x1b[" in printed(console)
