# SPDX-License-Identifier: MIT
"""The notebook that the script runs in, if any: its running cell, and how that cell ends."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any


def cell_number() -> int | None:
    """The number of the cell that IPython is running; None outside IPython."""
    shell = _shell()
    return None if shell is None else int(shell.execution_count)


def when_interrupted(give_up: Callable[[], object]) -> None:
    """Call a function when the running cell has ended, if an interrupt ended it.

    If the cell catches the interrupt and goes on, or outside IPython, the function is not called.
    """
    shell = _shell()
    if shell is None:
        return

    def after(result: Any) -> None:
        shell.events.unregister("post_run_cell", after)
        if isinstance(result.error_in_exec, KeyboardInterrupt):
            give_up()

    shell.events.register("post_run_cell", after)


def _shell() -> Any:
    ipython = sys.modules.get("IPython")
    return None if ipython is None else ipython.get_ipython()


class Redefined:
    """Counts the resources that were defined anew, in a notebook or by a reload.

    If the count has changed since a worker last looked, the worker looks again which resources its
    handlers use.
    """

    def __init__(self) -> None:
        self.count = 0


redefined = Redefined()
