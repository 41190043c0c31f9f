# SPDX-License-Identifier: MIT
"""Which display progress gets: by the option, PROCBUS_PROGRESS, and the place that stderr goes to.

| place | display |
|---|---|
| a terminal | bars, see `terminal` |
| a notebook | `tqdm.auto`, see `notebook` |
| elsewhere | plain lines, see `plain` |
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

from procbus.core.errors import OptionError
from procbus.core.log import log
from procbus.core.validation import is_whole, shown
from procbus.progress.bar import Bar, BusFacts, Standing
from procbus.system.terminal import moves_cursor

if TYPE_CHECKING:
    from procbus.progress.board import Display
    from procbus.progress.tqdm_like import MakeBar

# The board and the displays are imported when progress is shown: most scripts show none.

#: The option `progress=`.
ShowProgress: TypeAlias = "bool | MakeBar"

#: Values of PROCBUS_PROGRESS: show no progress; show all; show all in plain lines.
_OFF = ("0", "off", "false", "no")
_ON = ("1", "on", "true", "yes")
_PLAIN = ("plain",)

#: The one display in a terminal, once there is one.
_terminal: Any = None


def check_progress(progress: Any, total: Any = None) -> ShowProgress:
    """Check the options `progress=` and `total=`; return the first.

    Raises:
        OptionError: one of them makes no sense.
    """
    if total is not None and not is_whole(total, 0):
        raise OptionError(f"total must be a whole number, 0 at least, or None, not {shown(total)}")
    if isinstance(progress, bool) or callable(progress):
        return progress  # type: ignore[no-any-return] # that is what was checked
    raise OptionError(
        "progress must be True, False or a callable that makes a bar, such as tqdm.tqdm, not "
        f"{shown(progress)}"
    )


def is_wanted(option: ShowProgress) -> bool:
    """Whether progress is to be shown, by the option and the environment."""
    wish = os.environ.get("PROCBUS_PROGRESS", "").lower()
    if wish in _OFF:
        return False
    return option is not False or wish in _ON or wish in _PLAIN


@contextmanager
def showing(
    option: ShowProgress, label: str, counts: Callable[[], Standing], bus: BusFacts
) -> Iterator[None]:
    """Show progress for the length of a block, if it is wanted.

    Args:
        option: as the user gave it, checked.
        label: the name of the bar.
        counts: returns the counters; called from another thread.
        bus: the facts of the bus.
    """
    bar = begin(option, label, counts, bus)
    try:
        yield
    finally:
        if bar is not None:
            end(bar)


def begin(
    option: ShowProgress, label: str, counts: Callable[[], Standing], bus: BusFacts
) -> Bar | None:
    """Begin to show progress, see `showing`; return the bar to be ended, or None."""
    if not is_wanted(option):
        return None
    from procbus.progress.board import board

    bar = Bar(label, counts, bus)
    try:
        display = _display_of(option, counts().total)
    except Exception as error:  # noqa: BLE001 - a display must not harm the work
        log.warning("progress cannot be shown; the work goes on without", exc_info=error)
        return None
    board.show(bar, display)
    return bar


def end(bar: Bar) -> None:
    """Show the last figures of a bar, and remove it. Idempotent."""
    from procbus.progress.board import board

    board.end(bar)


def _display_of(option: ShowProgress, total: int | None) -> Display:
    """Choose the display, in the thread that the progress belongs to."""
    from procbus.progress.plain import plain
    from procbus.progress.tqdm_like import MadeDisplay

    if not isinstance(option, bool):
        return MadeDisplay(option(total=total), total)
    if os.environ.get("PROCBUS_PROGRESS", "").lower() in _PLAIN:
        return plain
    if "IPython" in sys.modules:
        from procbus.progress.notebook import NotebookDisplay, in_kernel, notebook_bar

        if in_kernel():
            make = notebook_bar()
            if make is not None:
                return MadeDisplay(make(total=total), total)
            return NotebookDisplay(sys.modules["IPython"].display.display)
    return _terminal_display() or plain


def _terminal_display() -> Display | None:
    """The display in the terminal; None if stderr goes to no terminal, or rich is missing."""
    global _terminal
    from procbus.progress.screen import beneath

    stream = beneath(sys.stderr)
    if not moves_cursor(stream):
        return None
    try:
        from procbus.progress.terminal import TerminalDisplay
    except ImportError:  # no rich
        return None
    if _terminal is None or _terminal.screen.stream is not stream:
        _terminal = TerminalDisplay(stream)
    display: Display = _terminal
    return display
