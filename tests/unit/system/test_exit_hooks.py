# SPDX-License-Identifier: MIT
"""The end of the interpreter, as far as it shows in one process."""

import pytest

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
    version: tuple[int, int], alive: bool, expected: bool
) -> None:
    assert may_replace(version, ended=not alive) is expected
