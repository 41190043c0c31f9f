# SPDX-License-Identifier: MIT
"""A thread that is started where any lock may be held: in a signal handler, or by the collector."""

from __future__ import annotations

import _thread
import threading
from collections.abc import Callable


def run_in_thread(name: str, function: Callable[[], object]) -> bool:
    """Run a function in a daemon thread of this name; say whether that could be started.

    `Thread.start` takes locks of its own, which the thread that was interrupted may hold. Starting
    one by `_thread` takes none.
    """

    def start() -> None:
        # Not in this thread itself: `threading` would list it, under a name that tells nobody what
        # it is.
        try:
            threading.Thread(target=function, name=name, daemon=True).start()
        except RuntimeError:  # the interpreter began to end meanwhile: better here than not at all
            function()

    try:
        _thread.start_new_thread(start, ())
    except RuntimeError:  # the interpreter is ending, or there are too many threads
        return False
    return True
