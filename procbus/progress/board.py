# SPDX-License-Identifier: MIT
"""The bars on show, and the one thread that refreshes them."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Sequence
from time import monotonic, thread_time
from typing import Protocol

from procbus.core.locks import Bell, Lock
from procbus.core.log import log
from procbus.core.own_thread import OwnThread
from procbus.progress.bar import Bar

#: Maximum share of one core that refreshing takes; a slow display is refreshed less often.
MOST_SHARE = 0.005
#: Maximum time for a bar to show its last figures, in seconds; because a display may hang.
END_S = 2.0


class Display(Protocol):
    """Shows bars. Only the thread of the board calls it; it may raise anything."""

    #: Minimum interval between two refreshes, in seconds.
    every_s: float

    def refresh(self, bars: Sequence[Bar]) -> None:
        """Show the present figures of these bars, which are all bars of the display."""

    def finish(self, bar: Bar) -> None:
        """Show the last figures of a bar that is at its end."""

    def close(self) -> None:
        """End the display: no bar is left. The board may be used again."""


class Board:
    """The bars on show. Thread-safe; `_lock` guards `_bars` and `_running`.

    Its thread runs while there are bars. A display that raises is reported once, and its bars are
    shown no more.

    Args:
        most_share: maximum share of one core that refreshing takes.
        end_s: maximum time for a bar to show its last figures, in seconds.
    """

    def __init__(self, *, most_share: float = MOST_SHARE, end_s: float = END_S) -> None:
        self._end_s = end_s
        self._most_share = most_share
        self._lock = Lock()
        self._bars: dict[Bar, Display] = {}
        self._running = False
        self._thread_id = 0
        self._wake = Bell()
        #: The next refresh of each display. Belongs to the thread.
        self._due: dict[Display, float] = {}

    def show(self, bar: Bar, display: Display) -> None:
        """Show a bar until it ends."""
        with self._lock:
            self._bars[bar] = display
            start = not self._running
            self._running = True
        if not start:
            self._wake.ring()
            return
        try:
            OwnThread("procbus-progress", self._run).start()
        except RuntimeError:  # too many threads, or the interpreter is ending
            with self._lock:
                self._running = False
                self._bars.clear()

    def end(self, bar: Bar) -> None:
        """Show the last figures of a bar, and remove it. Idempotent."""
        bar.ending = True
        if bar in self._bars:
            self._wake.ring()
            if threading.get_ident() != self._thread_id:
                bar.ended.wait(self._end_s)

    def end_all(self) -> None:
        """End all bars, because the script ends."""
        for bar in list(self._bars):
            self.end(bar)

    def forget(self) -> None:
        """Drop all bars, in a forked child: they belong to its parent."""
        self._lock = Lock()
        self._bars = {}
        self._running = False
        self._wake = Bell()

    # In the thread.

    def _run(self) -> None:
        self._thread_id = threading.get_ident()
        self._due.clear()
        while True:
            bars = self._by_display()
            now = monotonic()
            for display in bars:
                self._due.setdefault(display, now + display.every_s)
            self._wake.wait(max(0.0, min(map(self._due.__getitem__, bars), default=now) - now))
            for display, its in self._by_display().items():
                self._look_at(display, its)
            with self._lock:
                if not self._bars:
                    self._running = False
                    return

    def _by_display(self) -> dict[Display, list[Bar]]:
        with self._lock:
            bars = list(self._bars.items())
        displays: dict[Display, list[Bar]] = {}
        for bar, display in bars:
            displays.setdefault(display, []).append(bar)
        return displays

    def _look_at(self, display: Display, bars: list[Bar]) -> None:
        """Refresh a display if that is due, and finish its bars that are at their end."""
        began = thread_time()
        ending = [bar for bar in bars if bar.ending or bar.bus.closed()]
        staying = [bar for bar in bars if bar not in ending]
        try:
            for bar in ending:
                display.finish(bar)
            if not staying:
                display.close()
            elif monotonic() >= self._due.get(display, 0.0):
                display.refresh(staying)
                cost_s = thread_time() - began
                pause_s = max(display.every_s, cost_s / self._most_share)
                self._due[display] = monotonic() + pause_s
        except BaseException as error:  # noqa: BLE001 - a display must not harm the work
            log.warning("the display of progress failed; the work goes on without", exc_info=error)
            ending += staying
        finally:
            with self._lock:
                for bar in ending:
                    self._bars.pop(bar, None)
            for bar in ending:
                bar.ended.ring()


#: The board of this script.
board = Board()
atexit.register(board.end_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=board.forget)
