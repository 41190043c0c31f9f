# SPDX-License-Identifier: MIT
"""The end of the interpreter, as far as it shows in one process."""

import sys

import pytest

from procbus.system import exit_hooks
from procbus.system.exit_hooks import may_replace


@pytest.mark.parametrize(
    ("version", "alive", "expected"),
    [
        ((3, 11), True, True),
        ((3, 11), False, True),
        ((3, 12), True, True),
        ((3, 12), False, False),
        ((3, 13), False, True),
    ],
)
def test_workers_can_be_replaced_but_on_python_3_12_after_the_script(
    monkeypatch: pytest.MonkeyPatch, version: tuple[int, int], alive: bool, expected: bool
) -> None:
    monkeypatch.setattr(sys, "version_info", (*version, 0, "final", 0))
    monkeypatch.setattr(exit_hooks, "ending", not alive)

    assert may_replace() is expected
