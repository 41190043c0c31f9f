# SPDX-License-Identifier: MIT
"""Starting a thread while any lock may be held: in a signal handler, or by the collector."""

from __future__ import annotations

import _thread
from collections.abc import Callable

from procbus.core.own_thread import OwnThread


def run_in_thread(name: str, function: Callable[[], object]) -> bool:
    """Run a function in a daemon thread of this name; return whether the thread could be started.

    `Thread.start` takes locks of its own, which the interrupted thread may hold. Starting a thread
    by `_thread` takes none.
    """

    def start() -> None:
        # In a second thread, because `threading` would list this one under a meaningless name.
        try:
            OwnThread(name, function).start()
        except RuntimeError:  # the interpreter began to end meanwhile: run it here after all
            function()

    try:
        _thread.start_new_thread(start, ())
    except RuntimeError:  # the interpreter is ending, or there are too many threads
        return False
    return True
