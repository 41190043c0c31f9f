# SPDX-License-Identifier: MIT
"""Streams that are terminals whose cursor moves, and others."""

import io
import os

import pytest

from procbus.system.terminal import moves_cursor


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("name", "moves"),
    [("xterm-256color", True), ("dumb", False), ("unknown", False), ("", False), (None, False)],
)
def test_cursor_moves_on_a_terminal_with_a_name(
    monkeypatch: pytest.MonkeyPatch, name: str | None, moves: bool
) -> None:
    if name is None:
        if os.name == "nt":
            pytest.skip("terminals have no names there")
        monkeypatch.delenv("TERM", raising=False)
    else:
        monkeypatch.setenv("TERM", name)
    assert moves_cursor(Terminal()) is moves
    assert not moves_cursor(io.StringIO())


def test_closed_and_missing_streams_are_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    read, write = os.pipe()
    file = os.fdopen(write, "w")
    os.close(read)
    file.close()
    assert not moves_cursor(file)
    assert not moves_cursor(None)
    assert not moves_cursor(object())
