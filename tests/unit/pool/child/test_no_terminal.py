# SPDX-License-Identifier: MIT
"""A worker process has no terminal, and says so to a handler that asks for one."""

import io
import sys

import pytest

from procbus import ProcbusError
from procbus.pool.child.no_terminal import NoTerminal, refuse_terminal


@pytest.mark.parametrize(
    "read",
    [
        lambda: sys.stdin.read(),
        lambda: sys.stdin.readline(),
        lambda: list(sys.stdin),
        lambda: input("name? "),
        lambda: breakpoint(),
    ],
)
def test_reading_from_the_terminal_names_the_remedy(monkeypatch, read):
    monkeypatch.delenv("PYTHONBREAKPOINT", raising=False)
    monkeypatch.setattr(sys, "stdin", sys.stdin)
    monkeypatch.setattr(sys, "breakpointhook", sys.__breakpointhook__)
    refuse_terminal()

    with pytest.raises(ProcbusError, match="no terminal; run the script with PROCBUS_INLINE=1"):
        read()


def test_debugger_that_the_environment_names_is_left_alone(monkeypatch):
    monkeypatch.setenv("PYTHONBREAKPOINT", "0")
    monkeypatch.setattr(sys, "stdin", sys.stdin)
    monkeypatch.setattr(sys, "breakpointhook", sys.__breakpointhook__)
    refuse_terminal()

    breakpoint()


def test_standard_input_of_a_worker_has_no_descriptor():
    with pytest.raises(io.UnsupportedOperation):
        NoTerminal().fileno()
