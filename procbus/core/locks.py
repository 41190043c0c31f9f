# SPDX-License-Identifier: MIT
"""The locks of procbus, and what a thread may do that was interrupted while it has one.

A signal handler, and a `__del__` that the garbage collector calls, run in the midst of whatever
their thread is doing: perhaps while it has a lock of ours. They may publish. So each lock may be
taken again by the thread that has it, and each section under one is written so that another may run
within it wherever Python runs such code: after a call has returned.

Two threads may be interrupted so at once, each while it has the lock that the other one wants. Then
the one that waits gives up with `Tangled`, and what it wanted to do is done by another thread a
moment later (`later`). Nothing that lasts is waited for by a thread that has a lock: see `holding`.

All this is for locks that are held for microseconds, and not while another of them is taken. One
that is held while a lane is made, or a thread started, is a plain `threading.RLock`.

A blocking `acquire` waits without the GIL. It can then own the lock while it still waits for
the GIL, so that the thread that runs blocks on the lock at once, and so on: the two hand lock and
GIL to and fro for every event (20,000 switches for 100,000 events were seen, and half the speed).
Tried without blocking, a lock changes hands only when a thread is interrupted while it holds it.
`with` does so. Where that would cost too much, write it out:

    if not self._try_lock(False):
        acquire(self._lock)
    try:
        ...
    finally:
        self._unlock()

Ctrl-C may come as the lock is taken. Where the main thread does this for every event, the lines are
inside the `try`, and what is raised there asks whether the lock is `owned`.
"""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from _thread import RLock
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from procbus.core.errors import ProcbusError
from procbus.core.log import log

#: Ctrl-C that comes in the moment before the main thread goes to sleep on a lock does not wake it.
#: So waits that may last look up so often, in seconds: then Python runs its signal handlers.
LOOK_UP_S = 0.5

#: A lock is only ever held for microseconds. A thread that asked for one so often without getting
#: it looks whether it has one itself.
_PATIENCE = 20

#: Every lock there is, by its identity.
_known: dict[int, weakref.ref[Lock]] = {}

#: What is to be done by another thread, oldest first; and the lock that one has which does it.
_deferred: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
_doing = threading.Lock()


class Tangled(ProcbusError):
    """A thread that has one lock cannot get another, whose owner may be waiting for the first."""

    def __init__(self) -> None:
        super().__init__(
            "this was called by a signal handler or a __del__ that interrupted procbus itself, in "
            "two threads at once: call it again in a moment, or from ordinary code"
        )


class Lock(RLock):  # type: ignore[misc] # final in the stubs alone
    """A lock that is only ever held for microseconds. Its thread may take it again."""

    __slots__ = ("_asks",)

    def __init__(self) -> None:
        self._asks: threading.Condition | None = None
        key = id(self)
        _known[key] = weakref.ref(self, partial(_forget, key))

    def __enter__(self) -> bool:  # type: ignore[override] # it is called by `with` alone
        """Take the lock, as `acquire` does."""
        try:
            if not self.acquire(False):
                acquire(self)
        except BaseException:  # Ctrl-C, which may come as the lock is taken
            if self.owned():
                self.release()
            raise
        return True

    def owned(self) -> bool:
        """Whether the calling thread has it."""
        if self._asks is None:
            self._asks = threading.Condition(self)
        try:
            self._asks.notify(0)
        except RuntimeError:
            return False
        return True


def _forget(key: int, _: object) -> None:
    _known.pop(key, None)


def acquire(lock: Lock) -> None:
    """Take a lock, holding the GIL when it is taken.

    Raises:
        Tangled: the thread has another lock, and waiting might last for ever.
    """
    asked = 0
    while not lock.acquire(False):
        time.sleep(0)  # lets the owner have the GIL: it was interrupted while it held the lock
        asked += 1
        if asked == _PATIENCE and holding():
            raise Tangled


def holding() -> bool:
    """Whether the calling thread has a lock of ours: it was interrupted, and must not wait."""
    locks = [reference() for reference in list(_known.values())]
    return any(lock is not None and lock.owned() for lock in locks)


def check_may_wait() -> None:
    """Refuse to wait where that might last for ever.

    Raises:
        ProcbusError: the thread has a lock of ours.
    """
    if holding():
        raise ProcbusError(
            "a signal handler or a __del__ interrupted procbus itself and wants to wait for it: "
            "publish there, and wait in ordinary code"
        )


def in_main_thread() -> bool:
    """Whether this is the thread that Python tells of Ctrl-C."""
    return threading.get_ident() == threading.main_thread().ident


class Bell:
    """Wakes one thread that waits. It may be rung from anywhere, and before anybody waits."""

    __slots__ = ("_silent",)

    def __init__(self) -> None:
        self._silent = threading.Lock()
        self._silent.acquire()

    def ring(self, _: object = None) -> None:
        """Wake who waits, or whoever waits next. It may be the callback of a receipt."""
        try:  # noqa: SIM105 - three calls on the way of a result
            self._silent.release()
        except RuntimeError:  # it was rung already
            pass

    def wait(self, timeout: float) -> bool:
        """Wait until it is rung, at most so many seconds; say whether it was."""
        return self._silent.acquire(timeout=timeout)


def later(function: Callable[..., object], *args: Any) -> None:
    """Have another thread call something, which this one cannot since it is `Tangled`.

    What is called so is called one after the other, in order.
    """
    _deferred.append((function, args))
    with contextlib.suppress(RuntimeError):  # the interpreter ends: whoever closes the bus does it
        threading.Thread(target=catch_up, name="procbus-later", daemon=True).start()


def catch_up() -> None:
    """Do what was left for later. A thread that holds nothing calls this."""
    while _deferred:
        with _doing:
            try:
                function, args = _deferred.popleft()
            except IndexError:  # another thread took it
                return
            try:
                function(*args)
            except Exception:  # noqa: BLE001 - the next one must not suffer for it
                log.exception("procbus itself failed in what a signal handler or __del__ began")
