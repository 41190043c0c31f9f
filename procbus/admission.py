# SPDX-License-Identifier: MIT
"""How many deliveries may be pending on a bus, and who waits for room."""

from __future__ import annotations

import threading
from collections.abc import Callable
from math import inf
from time import monotonic
from typing import Literal

from procbus.errors import BusClosed, QueueFull
from procbus.locks import LOOK_UP_S, acquire

OnFull = Literal["block", "raise"]

#: Handlers may publish into a full bus (blocking them could deadlock it), up to so many times
#: `max_pending`; then it is an avalanche, and publishing from a handler raises QueueFull too.
AVALANCHE = 10

#: A publisher that found the bus full, and room again, waits so long at most, in seconds, for more
#: room: otherwise it would be woken, and fill the bus up again, for a few events at a time.
GATHER_S = 0.005


class Disturbed(Exception):
    """Raised in a publisher that waits for room: it may be refused now, so it has to look again."""


class Admission:
    """Counts pending deliveries. Thread-safe.

    `_lock` belongs to this object and guards all of its fields; nothing blocks while it is held.
    """

    def __init__(self, max_pending: int, on_full: OnFull) -> None:
        self.max_pending = max_pending
        self._on_full = on_full
        self._lock = threading.Lock()
        self._try_lock = self._lock.acquire
        self._unlock = self._lock.release
        self._room = threading.Condition(self._lock)
        #: Notified when pending falls to `_low_water`, for those that gather room.
        self._much_room = threading.Condition(self._lock)
        self._low_water = max_pending - max_pending // 8
        self._empty = threading.Condition(self._lock)
        self._pending = 0
        #: Threads that wait for room, for more room, and for emptiness.
        self._blocked = 0
        self._gathering = 0
        self._draining = 0
        self._callbacks: list[Callable[[], object]] = []
        self._refusing = False
        #: How often those that wait were told to look again.
        self._disturbed = 0
        #: At this many pending, `enter` looks closer: `max_pending`, or 0 when refusing.
        self._limit = max_pending

    @property
    def pending(self) -> int:
        """Deliveries published and not yet settled."""
        return self._pending

    @property
    def disturbed(self) -> int:
        """How often `disturb` was called."""
        return self._disturbed

    def enter(self, count: int, nested: bool, seen: int = 0, patient: bool = False) -> None:
        """Count `count` new deliveries in, waiting for room if need be.

        Args:
            count: how many.
            nested: whether they come from inside a handler: then it never waits.
            seen: what `disturbed` was before the caller saw to it that these may be published.
            patient: wait even where the bus was made with `on_full="raise"`.

        Raises:
            QueueFull: no room, and waiting is not wanted or not possible.
            BusClosed: the bus was closed, before or while waiting.
            Disturbed: it has to wait, and `disturb` was called before or while it does.
        """
        if not self._try_lock(False):
            acquire(self._lock)
        try:
            if self._pending >= self._limit:
                if nested:
                    self._check_nested()
                else:
                    self._wait_for_room(count, seen, patient)
            self._pending += count
        finally:
            self._unlock()

    def try_enter(self, count: int, when_room: Callable[[], object]) -> bool:
        """Count deliveries in if there is room, else call `when_room` once there may be.

        Raises:
            QueueFull: no room, and the bus was made with `on_full="raise"`.
            BusClosed: the bus was closed.
        """
        with self._lock:
            if self._refusing:
                raise BusClosed(_CLOSED)
            if count and self._pending >= self.max_pending:
                if self._on_full == "raise":
                    raise QueueFull(self._full())
                self._callbacks.append(when_room)
                return False
            self._pending += count
            return True

    def leave(self, count: int) -> None:
        """Count settled deliveries out."""
        if not self._try_lock(False):
            acquire(self._lock)
        try:
            self._pending -= count
            if not self._pending and self._draining:
                self._empty.notify_all()
            if self._pending >= self.max_pending:
                return
            if self._blocked:
                self._room.notify_all()
            if self._gathering and self._pending <= self._low_water:
                self._much_room.notify_all()
            if not self._callbacks:
                return
            callbacks, self._callbacks = self._callbacks, []
        finally:
            self._unlock()
        for callback in callbacks:
            callback()

    def wait_empty(self, timeout: float | None) -> bool:
        """Wait until nothing is pending; say whether that came about within `timeout` seconds."""
        with self._lock:
            self._draining += 1
            deadline = inf if timeout is None else monotonic() + timeout
            try:
                while self._pending and (left_s := deadline - monotonic()) > 0:
                    self._empty.wait(min(left_s, LOOK_UP_S))
                return not self._pending
            finally:
                self._draining -= 1

    def disturb(self) -> None:
        """Have those that wait for room look again whether they may publish."""
        with self._lock:
            self._disturbed += 1
            self._room.notify_all()
            self._much_room.notify_all()
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def refuse(self) -> None:
        """Take nothing more from outside handlers, and let waiting publishers go. Idempotent."""
        with self._lock:
            self._refusing = True
            self._limit = 0
            self._room.notify_all()
            self._much_room.notify_all()
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def _wait_for_room(self, count: int, seen: int, patient: bool) -> None:
        while count and self._pending >= self.max_pending and not self._refusing:
            if self._disturbed != seen:
                raise Disturbed
            if self._on_full == "raise" and not patient:
                raise QueueFull(self._full())
            self._blocked += 1
            try:
                self._room.wait(LOOK_UP_S)
            finally:
                self._blocked -= 1
            self._gather()
        if self._refusing:
            raise BusClosed(_CLOSED)

    def _gather(self) -> None:
        if self._pending <= self._low_water:
            return
        self._gathering += 1
        try:
            self._much_room.wait_for(
                lambda: self._pending <= self._low_water or self._refusing, GATHER_S
            )
        finally:
            self._gathering -= 1

    def _check_nested(self) -> None:
        if self._refusing and not self._pending:
            # From a thread or task that a handler left behind: no handler is running any more.
            raise BusClosed(_CLOSED)
        full = self._pending >= self.max_pending
        if full and (self._on_full == "raise" or self._pending >= AVALANCHE * self.max_pending):
            raise QueueFull(self._full())

    def _full(self) -> str:
        return (
            f"{self._pending} deliveries are pending (max_pending={self.max_pending}): publish "
            'more slowly, raise max_pending, or use on_full="block" or bus.stream()'
        )


_CLOSED = "the bus is closed and takes no more events: publish before close(), or make a new bus"
