# SPDX-License-Identifier: MIT
"""Progress in a notebook without tqdm and ipywidgets: a line of text below the cell."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

from procbus.core.notebook import cell_number
from procbus.progress.bar import Bar, last_line_of, line_of
from procbus.progress.tqdm_like import UPDATE_EVERY_S, MakeBar


def in_kernel() -> bool:
    """Whether the code runs in a notebook: IPython runs it in a kernel."""
    if cell_number() is None:
        return False
    return getattr(sys.modules["IPython"].get_ipython(), "kernel", None) is not None


def notebook_bar() -> MakeBar | None:
    """Return `tqdm.auto.tqdm`, which shows a widget; None if tqdm or ipywidgets is missing."""
    if find_spec("ipywidgets") is None or find_spec("tqdm") is None:
        return None
    from tqdm.auto import tqdm  # only in a notebook

    made: MakeBar = tqdm
    return made


class NotebookDisplay:
    """Shows one bar as a line of text that changes.

    Args:
        display: shows an object in the output of the running cell, see `IPython.display.display`.
    """

    every_s = UPDATE_EVERY_S

    def __init__(self, display: Callable[..., Any]) -> None:
        self._handle = display({"text/plain": ""}, raw=True, display_id=True)

    def refresh(self, bars: Sequence[Bar]) -> None:
        """Change the line."""
        self._put(line_of(bars[0].read()))

    def finish(self, bar: Bar) -> None:
        """Show the last line."""
        self._put(last_line_of(bar.read_last()))

    def close(self) -> None:
        """Leave the line where it is."""

    def _put(self, line: str) -> None:
        self._handle.update({"text/plain": line}, raw=True)
