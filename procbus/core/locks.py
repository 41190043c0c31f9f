# SPDX-License-Identifier: MIT
"""The locks of procbus, and the rules for a thread that is interrupted while it holds one.

A signal handler, or a `__del__` that the garbage collector calls, runs in the middle of whatever
its thread is doing. The thread may hold one of our locks at that moment, and the signal handler may
publish. Each lock may therefore be taken again by the thread that holds it. Each section under a
lock is written so that another section may run in its middle, at every place where Python runs such
code: after a call has returned.

Two threads may be interrupted in this way at once, while each holds the lock that the other wants.
Then the thread that waits gives up with `Tangled`, and another thread does its work a moment later
(`later`). A thread that holds a lock never waits for anything that lasts: see `holding`.

These rules are for locks that are held for microseconds, one at a time. A lock that is held while a
lane is made or a thread is started is a plain `threading.RLock`.

Why locks are first tried without blocking: a blocking `acquire` waits without the GIL. It can own
the lock while it still waits for the GIL. The thread that runs then blocks on the lock at once, and
the two threads hand lock and GIL to and fro for every event (measured: 20,000 switches for 100,000
events, and half the speed). A lock that is tried without blocking changes hands only when its owner
is interrupted while it holds it. `with` does so. On paths where `with` costs too much, write:

    if not self._try_lock(False):
        acquire(self._lock)
    try:
        ...
    finally:
        self._unlock()

Without the GIL there is no such convoy, and nothing that the waiting thread could leave to the
owner. There it blocks.

Ctrl-C may arrive while the lock is being taken. Code that the main thread runs for every event
takes the lock inside the `try`, and its handler asks whether the lock is `owned`.
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
from procbus.core.gil import gil_is_on
from procbus.core.log import log
from procbus.core.own_thread import OwnThread

#: Interval at which a wait that may last looks up, in seconds; because Ctrl-C in the moment before
#: the main thread falls asleep on a lock does not wake it. Looking up lets Python run its signal
#: handlers.
LOOK_UP_S = 0.5

#: Maximum of failed tries to take a lock before the thread checks whether it holds another lock
#: itself; because locks are held only for microseconds. The same without the GIL, in seconds.
_PATIENCE = 20
_PATIENCE_S = 0.01

#: All living locks, by identity.
_known: dict[int, weakref.ref[Lock]] = {}

#: Work left for another thread, oldest first; and the lock of the one thread that does it.
_deferred: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
_doing = threading.Lock()


class Tangled(ProcbusError):
    """A thread that holds a lock cannot get another lock, whose owner may wait for the first."""

    def __init__(self) -> None:
        super().__init__(
            "this was called by a signal handler or a __del__ that interrupted procbus itself, in "
            "two threads at once: call it again in a moment, or from ordinary code"
        )


class Lock(RLock):  # type: ignore[misc] # final in the stubs alone
    """A lock that is only ever held for microseconds. Its owner may take it again."""

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
        except BaseException:  # Ctrl-C, which may arrive while the lock is being taken
            if self.owned():
                self.release()
            raise
        return True

    def owned(self) -> bool:
        """Whether the calling thread holds this lock."""
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
    """Take a lock after a first try has failed.

    With the GIL the lock is only tried, never waited for, so that the thread has the GIL when it
    gets the lock.

    Raises:
        Tangled: the thread holds another lock, and waiting might last for ever.
    """
    if not gil_is_on():
        while not lock.acquire(timeout=_PATIENCE_S):
            if holding():
                raise Tangled
        return
    asked = 0
    while not lock.acquire(False):
        time.sleep(0)  # lets the owner have the GIL: it was interrupted while it held the lock
        asked += 1
        if asked == _PATIENCE and holding():
            raise Tangled


def holding() -> bool:
    """Whether the calling thread holds a lock of ours: it was interrupted, and must not wait."""
    locks = [reference() for reference in list(_known.values())]
    return any(lock is not None and lock.owned() for lock in locks)


def check_may_wait(*, interrupts: bool = False) -> None:
    """Refuse to wait where that might last for ever.

    Args:
        interrupts: whether this thread is known to have been interrupted in procbus.

    Raises:
        ProcbusError: the thread was interrupted in procbus, or it holds a lock of ours.
    """
    if interrupts or holding():
        raise ProcbusError(
            "a signal handler or a __del__ interrupted procbus itself and wants to wait for it: "
            "publish there, and wait in ordinary code"
        )


def in_main_thread() -> bool:
    """Whether this is the thread that receives Ctrl-C."""
    return threading.get_ident() == threading.main_thread().ident


class Bell:
    """Wakes one waiting thread. Any thread may ring it, even before the wait begins."""

    __slots__ = ("_silent",)

    def __init__(self) -> None:
        self._silent = threading.Lock()
        self._silent.acquire()

    def ring(self, _: object = None) -> None:
        """Wake the thread that waits, or the next one that does. Usable as a receipt's callback."""
        try:  # noqa: SIM105 - three calls on the way of a result
            self._silent.release()
        except RuntimeError:  # it was rung already
            pass

    def wait(self, timeout: float) -> bool:
        """Wait until it is rung, for at most `timeout` seconds; return whether it was."""
        return self._silent.acquire(timeout=timeout)


def later(function: Callable[..., object], *args: Any) -> None:
    """Have another thread call a function, because this one is `Tangled`.

    Such calls are made one after the other, in order.
    """
    _deferred.append((function, args))
    with contextlib.suppress(RuntimeError):  # the interpreter ends: closing the bus does it
        OwnThread("procbus-later", catch_up).start()


def catch_up() -> None:
    """Do the work that `later` left. Called by a thread that holds no lock."""
    while _deferred:
        with _doing:
            try:
                function, args = _deferred.popleft()
            except IndexError:  # another thread took it
                return
            try:
                function(*args)
            except Exception:  # noqa: BLE001 - the next one must not suffer for it
                log.exception(
                    "procbus itself failed in work that a signal handler or __del__ began"
                )
