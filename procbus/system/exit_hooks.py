# SPDX-License-Identifier: MIT
"""Open buses at the end of the interpreter, and after a fork.

A script need not close its bus: published events are still handled. The bus must handle them before
loky's own exit hook, which waits for loky's workers to end. `threading` runs such hooks before
anything else ends, the last registered one first. There is no public way to register a hook.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import Protocol

from procbus.core.locks import Lock

_lock = Lock()
#: Guarded by `_lock`.
_open: set[Watched] = set()
#: Whether the script has ended. `threading` counts its main thread as alive while buses close.
ending = False
#: Whether all buses are closed after the script's end. From then on no bus can start a thread.
over = False
#: Hooks that are called in this order once all buses are closed. Each use of the dict is atomic.
_afterwards: dict[Callable[[], object], None] = {}


class Watched(Protocol):
    """An object that is watched: a bus."""

    def close_at_exit(self) -> None:
        """Finish, because the main thread has ended; after Ctrl-C give up instead."""

    def leave(self, error: BaseException | None) -> None:
        """Close because of an error. After Ctrl-C only the running handlers are finished."""

    def disown(self) -> None:
        """Note that this is a forked child and the bus belongs to its parent. Take no lock."""


def watch(bus: Watched) -> None:
    """Watch a bus that has started something, until `forget`."""
    with _lock:
        _open.add(bus)
    close_first()


def close_first() -> None:
    """Have open buses closed before the exit hooks registered so far."""
    try:
        threading._register_atexit(_at_exit)  # type: ignore[attr-defined]  # noqa: SLF001 - see above; concurrent.futures and loky do so too
    except RuntimeError:
        return  # the main thread has ended already: code that still uses a bus closes it


def call_afterwards(hook: Callable[[], object]) -> None:
    """Have a hook called at the end of the script, once all buses are closed; not after Ctrl-C.

    Args:
        hook: called once, even if you pass it several times.
    """
    _afterwards[hook] = None
    close_first()


def forget(bus: Watched) -> None:
    """Stop watching a bus, because it was closed."""
    with _lock:
        _open.discard(bus)


def watches(bus: Watched) -> bool:
    """Whether a bus has started something and is not closed. Takes no lock."""
    return bus in _open


def close_open() -> None:
    """Close all open buses, because the script has ended.

    Raises:
        KeyboardInterrupt: you pressed Ctrl-C meanwhile. The buses are closed all the same.
    """
    global ending, over
    ending = True
    with _lock:
        buses = list(_open)
    interrupt: KeyboardInterrupt | SystemExit | None = None
    for bus in buses:
        try:
            if interrupt is None:
                bus.close_at_exit()
            else:
                bus.leave(interrupt)
        except (KeyboardInterrupt, SystemExit) as error:
            interrupt = error
    over = True
    if isinstance(interrupt, KeyboardInterrupt):
        raise interrupt


def _at_exit() -> None:
    close_open()
    for hook in list(_afterwards):
        hook()


def starts_threads_to_the_end(version: tuple[int, ...] = sys.version_info[:2]) -> bool:
    """Whether a thread can be started after the script has ended: not on Python 3.12."""
    return version != (3, 12)


def may_replace(version: tuple[int, ...] = sys.version_info[:2], *, ended: bool = False) -> bool:
    """Whether another worker can be started in place of one that ended.

    loky needs a thread for a worker.

    Args:
        version: of Python.
        ended: whether to answer for the time after the script's end, even if the script still runs.
    """
    return starts_threads_to_the_end(version) or not (ended or ending)


def _after_fork_in_child() -> None:
    global _lock  # replaced, because the parent's is useless here
    _lock = Lock()  # the old one may be held by a thread that does not exist here
    buses = list(_open)
    _open.clear()
    for bus in buses:
        bus.disown()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
