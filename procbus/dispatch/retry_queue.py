# SPDX-License-Identifier: MIT
"""Deliveries that wait for their time: for their next attempt, or for a delayed first attempt.

A waiting delivery occupies no worker.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from math import inf
from time import monotonic, time
from typing import NamedTuple

from procbus.core.delivery import Delivery
from procbus.core.locks import Bell, Lock
from procbus.core.when import When

#: Minimum number of entries that were withdrawn before they are cleared out of a heap.
_FEW_GONE = 100


class Due(NamedTuple):
    """The time at which a delayed delivery is due, by the two clocks."""

    #: The time by the clock that cannot be set; None if the clock on the wall decides.
    at: float | None
    #: The time by the clock on the wall, in seconds as of `time.time()`.
    wall_at: float


class _Entry:
    """A place of a delivery in a heap. The place is empty once the delivery was withdrawn."""

    __slots__ = ("delivery",)

    def __init__(self, delivery: Delivery) -> None:
        self.delivery: Delivery | None = delivery


class _Heap:
    """Entries by their time. Guarded by the lock of the queue."""

    def __init__(self) -> None:
        self._entries: list[tuple[float, int, _Entry]] = []
        self._numbers = itertools.count()
        #: Number of entries whose delivery was withdrawn.
        self._gone = 0

    def push(self, at: float, entry: _Entry) -> bool:
        """Add an entry; return whether it is the first now."""
        heapq.heappush(self._entries, (at, next(self._numbers), entry))
        return self._entries[0][2] is entry

    def first_at(self) -> float:
        """The time of the first entry; infinite if there is none."""
        entries = self._entries
        while entries and entries[0][2].delivery is None:
            heapq.heappop(entries)
            self._gone -= 1
        return entries[0][0] if entries else inf

    def pop(self) -> Delivery:
        """Take out the first entry, which `first_at` has found."""
        delivery = heapq.heappop(self._entries)[2].delivery
        assert delivery is not None
        return delivery

    def note_gone(self) -> None:
        """Note that an entry's delivery was withdrawn; clear out such entries if there are many."""
        self._gone += 1
        if self._gone > _FEW_GONE and self._gone > len(self._entries) // 2:
            self._entries = [each for each in self._entries if each[2].delivery is not None]
            heapq.heapify(self._entries)
            self._gone = 0


class RetryQueue:
    """Deliveries by the time at which they are due. Thread-safe.

    Its size is bounded by the admission of the bus, because a waiting delivery is still pending.
    The lock `_lock` guards all fields. `_bell` is rung when the supervisor, the only thread that
    waits here, has to look again.

    A delivery that waits for its first attempt comes with a function that queues it. It may wait
    for a time of the clock on the wall, which may be set meanwhile.

    Args:
        clock: replaces `time.monotonic`.
        wall: replaces `time.time`.

    Attributes:
        now: returns the time of the clock that cannot be set.
        wall: returns the time of day, as `time.time()`.
    """

    def __init__(
        self, *, clock: Callable[[], float] = monotonic, wall: Callable[[], float] = time
    ) -> None:
        self.now = clock
        self.wall = wall
        self._lock = Lock()
        self._bell = Bell()
        #: Entries by each of the two clocks.
        self._waiting, self._dated = _Heap(), _Heap()
        #: The entry of each delivery, and the heap that it is in.
        self._entries: dict[Delivery, tuple[_Entry, _Heap]] = {}
        #: For each delivery that waits for its first attempt, the function that queues it. The
        #: entry stays until that function is called.
        self._firsts: dict[Delivery, Callable[[Delivery], object]] = {}
        self._cancelled = self._no_firsts = False
        self._woken = False

    def __len__(self) -> int:
        """Number of waiting deliveries."""
        return len(self._entries)

    @property
    def retrying(self) -> int:
        """Number of deliveries that wait for their next attempt."""
        return max(0, len(self._entries) - len(self._firsts))

    def due_of(self, when: When) -> Due | None:
        """The time at which an event that is published now is due; None if that time is over."""
        if when.in_s is not None:
            return Due(self.now() + when.in_s, self.wall() + when.in_s) if when.in_s else None
        assert when.at is not None
        return Due(None, when.at) if when.at > self.wall() else None

    def add(self, delivery: Delivery, wait_s: float) -> bool:
        """Keep a delivery for `wait_s` seconds; False, without keeping it, after `cancel`."""
        return self.add_due(delivery, self.now() + wait_s)

    def add_due(self, delivery: Delivery, due_at: float) -> bool:
        """Keep a delivery until a time; False, without keeping it, after `cancel`."""
        with self._lock:
            return self._locked_add(delivery, due_at, self._waiting)

    def add_first(self, delivery: Delivery, due: Due, go: Callable[[Delivery], object]) -> bool:
        """Keep a delivery until its first attempt; False, without it, after `cancel_firsts`.

        Args:
            delivery: the delivery.
            due: when that is due.
            go: `send` calls it with the delivery then.
        """
        with self._lock:
            if self._no_firsts:
                return False
            if due.at is None:
                added = self._locked_add(delivery, due.wall_at, self._dated)
            else:
                added = self._locked_add(delivery, due.at, self._waiting)
            if added:
                self._firsts[delivery] = go
                delivery.subscription.delayed += 1
            return added

    def _locked_add(self, delivery: Delivery, at: float, heap: _Heap) -> bool:
        if self._cancelled:
            return False
        self._locked_take_out(delivery)  # hardly ever needed: a delivery has one time, the latest
        entry = _Entry(delivery)
        self._entries[delivery] = entry, heap
        if heap.push(at, entry):
            self._locked_wake()
        return True

    def wait(self, timeout: float) -> list[Delivery]:
        """Wait until a delivery is due, at most `timeout` seconds; return the due ones for `send`.

        The due ones come in the order of their times.
        """
        look_again_at = self.now() + timeout
        while True:
            with self._lock:
                now = self.now()
                due: list[Delivery] = []
                while (found := self._locked_pop_due(now)) is not None:
                    due.append(found[1])
                if due or self._woken or now >= look_again_at:
                    self._woken = False
                    return due
                next_due = self._locked_next_due(now)
            self._bell.wait(max(0.0, min(next_due, look_again_at) - now))

    def send(self, delivery: Delivery) -> None:
        """Queue a delivery that is due: for its next attempt, or by the `go` of `add_first`."""
        go = None
        if self._firsts:
            with self._lock:
                go = self._locked_forget_first(delivery)
        if go is None:
            delivery.subscription.lane.put_again(delivery)
        else:
            go(delivery)

    def waiting(self) -> list[Delivery]:
        """The waiting deliveries, in no particular order."""
        with self._lock:
            return list(self._entries)

    def withdraw(self, delivery: Delivery) -> bool:
        """Take out a delivery that waits for its next attempt; False if it does not wait here."""
        if not self._entries:  # the usual case
            return False
        with self._lock:
            return delivery not in self._firsts and self._locked_take_out(delivery)

    def withdraw_first(self, delivery: Delivery) -> bool:
        """Take out a delivery that waits for its first attempt, so that it is never sent.

        Returns:
            False if it does not wait here.
        """
        if not self._firsts:  # the usual case
            return False
        go = None
        with self._lock:
            if delivery in self._firsts and self._locked_take_out(delivery):
                go = self._locked_forget_first(delivery)
        return go is not None  # freed without the lock, because `go` has objects of the user's

    def has_first(self, delivery: Delivery) -> bool:
        """Whether a delivery waits here for its first attempt, or is just being sent."""
        return delivery in self._firsts

    def _locked_take_out(self, delivery: Delivery) -> bool:
        found = self._entries.pop(delivery, None)
        if found is None:
            return False
        entry, heap = found
        entry.delivery = None
        heap.note_gone()
        return True

    def _locked_forget_first(self, delivery: Delivery) -> Callable[[Delivery], object] | None:
        go = self._firsts.pop(delivery, None)
        if go is not None:
            delivery.subscription.delayed -= 1
        return go

    def next_due(self) -> float:
        """The time at which the next delivery is due; infinite if none waits."""
        with self._lock:
            return self._locked_next_due(self.now())

    def _locked_next_due(self, now: float) -> float:
        at, wall_at = self._waiting.first_at(), self._dated.first_at()
        return at if wall_at == inf else min(at, now + (wall_at - self.wall()))

    def pop_due(self, now: float) -> tuple[float, Delivery] | None:
        """Take out the next delivery that is due by a time, and its due time; then call `send`."""
        with self._lock:
            return self._locked_pop_due(now)

    def _locked_pop_due(self, now: float) -> tuple[float, Delivery] | None:
        at, wall_at = self._waiting.first_at(), self._dated.first_at()
        heap = self._waiting
        if wall_at < inf:
            there_at = self.now() + (wall_at - self.wall())
            if there_at < at:
                at, heap = there_at, self._dated
        if at == inf or at > now:
            return None
        delivery = heap.pop()
        del self._entries[delivery]
        return at, delivery

    def wake(self) -> None:
        """Have `wait` return now."""
        with self._lock:
            self._locked_wake()

    def _locked_wake(self) -> None:
        self._woken = True
        self._bell.ring()

    def cancel(self) -> list[Delivery]:
        """Return all deliveries that wait for their next attempt; keep none from now on."""
        with self._lock:
            self._cancelled = True
            out = [each for each in self._entries if each not in self._firsts]
            for delivery in out:
                self._locked_take_out(delivery)
            return out

    def cancel_firsts(self) -> list[Delivery]:
        """Return the deliveries that wait for their first attempt; keep none of them any more."""
        freed: list[object] = []  # without the lock, as above
        with self._lock:
            self._no_firsts = True
            out = [each for each in self._entries if each in self._firsts]
            for delivery in out:
                self._locked_take_out(delivery)
                freed.append(self._locked_forget_first(delivery))
        return out
