# SPDX-License-Identifier: MIT
"""The page of the demo: what a terminal, a pipe and a narrow window get."""

from __future__ import annotations

import sys

import pytest

from procbus.demo.page import Printout


def test_paragraph_is_wrapped_and_escapes_are_shown(
    page: Printout, capsys: pytest.CaptureFixture[str]
) -> None:
    page.say("word " * 40 + "\x1b[31m")
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= page.width
    assert "\\x1b[31m" in text


def test_counter_without_a_terminal_is_a_line_at_each_quarter(
    page: Printout, capsys: pytest.CaptureFixture[str]
) -> None:
    with page.counting("loop", 8) as show:
        for done in range(9):
            show(done)
    assert capsys.readouterr().err.splitlines() == [
        f"loop: {done} of 8 files" for done in (2, 4, 6, 8)
    ]


def test_stopped_counter_says_how_many_files_were_not_measured(
    page: Printout, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped() -> None:
        with page.counting("loop", 2_000) as show:
            show(10)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert capsys.readouterr().err == "loop: stopped; 1,990 of 2,000 files were not measured\n"


@pytest.mark.parametrize(
    ("variables", "bold", "redraws"),
    [
        ({"TERM": "xterm"}, True, True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, False, True),
        ({"TERM": "dumb"}, False, False),
        ({}, False, False),
    ],
)
def test_terminal_gets_only_codes_that_it_takes(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variables: dict[str, str],
    bold: bool,
    redraws: bool,
) -> None:
    for name in ("TERM", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    page = Printout()
    page.head("Head")
    with page.counting("loop", 4) as show:
        show(4)
    text = capsys.readouterr()
    assert ("\x1b" in text.out) is bold
    assert ("\r" in text.err) is redraws
    assert "\x1b" not in text.err
