# SPDX-License-Identifier: MIT
"""Open buses at the end of the interpreter, and after a fork.

A script need not close its bus: what it published still runs. It has to be seen to before the
interpreter's own exit hooks, since loky's waits there for its workers to end. So one thread waits
for the main thread, the end of which comes before all hooks. It is no daemon: the interpreter
waits for it.
"""

from __future__ import annotations

import os
import threading
from typing import Protocol

_lock = threading.Lock()
#: Guarded by `_lock`.
_open: set[Watched] = set()
_thread: threading.Thread | None = None


class Watched(Protocol):
    """What is watched: a bus."""

    def close_at_exit(self) -> None:
        """The main thread has ended: finish, or give up after Ctrl-C."""

    def disown(self) -> None:
        """This is a forked child: the bus belongs to its parent. Take no lock."""


def watch(bus: Watched) -> None:
    """Watch a bus that has started something, until `forget`."""
    global _thread  # one for the process
    with _lock:
        _open.add(bus)
        if _thread is None:
            _thread = threading.Thread(target=_close_at_exit, name="procbus-exit", daemon=False)
            _thread.start()


def forget(bus: Watched) -> None:
    """The bus was closed."""
    with _lock:
        _open.discard(bus)


def _close_at_exit() -> None:
    threading.main_thread().join()
    with _lock:
        buses = list(_open)
    for bus in buses:
        bus.close_at_exit()


def _after_fork_in_child() -> None:
    global _thread, _lock  # the parent's are no use here
    _lock = threading.Lock()  # the old one may have been held by a thread that is not here
    _thread = None
    buses = list(_open)
    _open.clear()
    for bus in buses:
        bus.disown()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
