# SPDX-License-Identifier: MIT
"""Deliveries that wait for their next attempt. They occupy no worker meanwhile."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from math import inf
from time import monotonic

from procbus.core.delivery import Delivery
from procbus.core.locks import Bell, Lock


class RetryQueue:
    """Deliveries by the time at which they are due. Thread-safe.

    Its size is bounded by the admission of the bus, because a waiting delivery is still pending.
    The lock `_lock` guards all fields. `_bell` is rung when the supervisor, the only thread that
    waits here, has to look again.

    Args:
        clock: replaces `time.monotonic`.
    """

    def __init__(self, *, clock: Callable[[], float] = monotonic) -> None:
        self._now = clock
        self._lock = Lock()
        self._bell = Bell()
        self._waiting: list[tuple[float, int, Delivery]] = []
        self._numbers = itertools.count()
        self._cancelled = False
        self._woken = False

    def __len__(self) -> int:
        """Number of waiting deliveries."""
        return len(self._waiting)

    def add(self, delivery: Delivery, wait_s: float) -> bool:
        """Keep a delivery for `wait_s` seconds; False, without keeping it, after `cancel`."""
        return self.add_due(delivery, self._now() + wait_s)

    def add_due(self, delivery: Delivery, due_at: float) -> bool:
        """Keep a delivery until a time; False, without keeping it, after `cancel`."""
        with self._lock:
            if self._cancelled:
                return False
            heapq.heappush(self._waiting, (due_at, next(self._numbers), delivery))
            if self._waiting[0][2] is delivery:
                self._locked_wake()
            return True

    def wait(self, timeout: float) -> list[Delivery]:
        """Wait until a delivery is due, at most `timeout` seconds; return the due ones."""
        look_again_at = self._now() + timeout
        while True:
            with self._lock:
                now = self._now()
                due: list[Delivery] = []
                while self._waiting and self._waiting[0][0] <= now:
                    due.append(heapq.heappop(self._waiting)[2])
                if due or self._woken or now >= look_again_at:
                    self._woken = False
                    return due
                next_due = self._waiting[0][0] if self._waiting else inf
            self._bell.wait(max(0.0, min(next_due, look_again_at) - now))

    def waiting(self) -> list[Delivery]:
        """The waiting deliveries, in no particular order."""
        with self._lock:
            return [delivery for _, _, delivery in self._waiting]

    def withdraw(self, delivery: Delivery) -> bool:
        """Take a delivery out; False if it does not wait here."""
        if not self._waiting:  # the usual case
            return False
        with self._lock:
            kept = [entry for entry in self._waiting if entry[2] is not delivery]
            found = len(kept) < len(self._waiting)
            if found:
                heapq.heapify(kept)
                self._waiting = kept
            return found

    def next_due(self) -> float:
        """The time at which the next delivery is due; infinite if none waits."""
        with self._lock:
            return self._waiting[0][0] if self._waiting else inf

    def pop_due(self, now: float) -> tuple[float, Delivery] | None:
        """Take out the next delivery that is due by then, with its time."""
        with self._lock:
            if not self._waiting or self._waiting[0][0] > now:
                return None
            due_at, _, delivery = heapq.heappop(self._waiting)
            return due_at, delivery

    def wake(self) -> None:
        """Have `wait` return now."""
        with self._lock:
            self._locked_wake()

    def _locked_wake(self) -> None:
        self._woken = True
        self._bell.ring()

    def cancel(self) -> list[Delivery]:
        """Return all waiting deliveries, and keep none from now on."""
        with self._lock:
            self._cancelled = True
            out = [delivery for _, _, delivery in self._waiting]
            self._waiting.clear()
            return out
