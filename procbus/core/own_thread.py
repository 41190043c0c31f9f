# SPDX-License-Identifier: MIT
"""The threads of procbus. Each begins in an empty context, whichever code starts it.

`run_in_thread` starts one where any lock may be held: in a signal handler, or by the collector.
"""

from __future__ import annotations

import _thread
import sys
import threading
from collections.abc import Callable
from contextvars import Context
from typing import Any


class OwnThread(threading.Thread):
    """A daemon thread in an empty `contextvars` context.

    With `-X thread_inherit_context=1`, which free-threaded builds have by default, a thread begins
    in a copy of the context of the code that starts it. A handler may start a thread of procbus,
    which would then work for that handler's event until its end.
    """

    def __init__(
        self, name: str | None, target: Callable[..., object] | None = None, *args: Any
    ) -> None:
        empty: dict[str, Any] = {"context": Context()} if sys.version_info >= (3, 14) else {}
        super().__init__(target=target, name=name, args=args, daemon=True, **empty)


def run_in_thread(name: str, function: Callable[[], object]) -> bool:
    """Run a function in a daemon thread of this name; return whether the thread could be started.

    `Thread.start` takes locks of `threading`, which an interrupted thread may hold.
    `_thread` starts a thread without locks.
    """

    def start() -> None:
        # In a second thread, because `threading` would list the first under a meaningless name.
        try:
            OwnThread(name, function).start()
        except RuntimeError:  # the interpreter began to end meanwhile: run it here after all
            function()

    try:
        _thread.start_new_thread(start, ())
    except RuntimeError:  # the interpreter is ending, or there are too many threads
        return False
    return True
