# SPDX-License-Identifier: MIT
"""Open buses at the end of the interpreter, and after a fork.

A script need not close its bus: what it published still runs. That has to be seen to before
loky's own exit hook, which waits for its workers to end. Those hooks are run by `threading` before
anything else that ends, the last one registered first; there is no public way to be among them.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import Protocol

from procbus.core.locks import Lock
from procbus.system import sigterm

_lock = Lock()
#: Guarded by `_lock`.
_open: set[Watched] = set()
#: Whether the script has ended. For `threading` its main thread is still alive while buses close.
ending = False
#: Whether all buses are closed then. No thread can be started for a bus from now on.
over = False


class Watched(Protocol):
    """What is watched: a bus."""

    def close_at_exit(self) -> None:
        """The main thread has ended: finish, or give up after Ctrl-C."""

    def leave(self, error: BaseException | None) -> None:
        """Close because of an error: after Ctrl-C, only what is running is finished."""

    def disown(self) -> None:
        """This is a forked child: the bus belongs to its parent. Take no lock."""


def watch(bus: Watched) -> None:
    """Watch a bus that has started something, until `forget`."""
    with _lock:
        _open.add(bus)
    close_first()


def close_first() -> None:
    """Have open buses closed before the exit hooks that are registered so far.

    Called after each start of a worker, since loky registers its hook again each time.
    """
    try:
        threading._register_atexit(close_open)  # type: ignore[attr-defined]  # noqa: SLF001 - see above; concurrent.futures and loky do so too
    except RuntimeError:
        return  # the main thread has ended already: whoever uses a bus from now on closes it


def forget(bus: Watched) -> None:
    """The bus was closed."""
    with _lock:
        _open.discard(bus)


def watches(bus: Watched) -> bool:
    """Whether a bus has started something, and is not closed. Takes no lock."""
    return bus in _open


def close_open() -> None:
    """Close all open buses: the script has ended."""
    global ending, over
    ending = True
    sigterm.note_ending()
    with _lock:
        buses = list(_open)
    interrupt: KeyboardInterrupt | SystemExit | None = None
    for bus in buses:
        try:
            if interrupt is None:
                bus.close_at_exit()
            else:
                bus.leave(interrupt)
        except (KeyboardInterrupt, SystemExit) as error:  # SystemExit: SIGTERM
            interrupt = error
    over = True
    sigterm.end_in_time()
    if isinstance(interrupt, KeyboardInterrupt):
        raise interrupt


def may_replace() -> bool:
    """Whether a worker can be started in place of another.

    Python 3.12 starts no thread once the main script has ended, and loky needs one.
    """
    return sys.version_info[:2] != (3, 12) or not ending


def _after_fork_in_child() -> None:
    global _lock  # the parent's is no use here
    _lock = Lock()  # the old one may have been held by a thread that is not here
    buses = list(_open)
    _open.clear()
    for bus in buses:
        bus.disown()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
