# SPDX-License-Identifier: MIT
"""A subscription: one handler on one bus, with what that bus knows of it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from time import monotonic
from typing import Any, Protocol

from procbus.core.delivery import Delivery
from procbus.core.handler import Handler
from procbus.core.histogram import Histogram
from procbus.core.introspection import identity_of
from procbus.core.meter import STIR_S, Meter

#: What a delivery costs besides its handler's own run time (coding, pipe, settling), in seconds:
#: measured at 2 to 4 us; it keeps batches of very short handlers from growing without end.
OVERHEAD_S = 3e-6

#: Weight of the newest run in the running average of a handler's run time.
NEWEST = 0.2

#: Of a handler that runs shorter than this, in seconds, only one delivery in `SAMPLE` is timed for
#: the statistics once it succeeded `FEW` times, and counts for all of them: timing each would take
#: a tenth of the time that a short io handler takes in all.
SAMPLED_BELOW_S = 100e-6
SAMPLE = 16
FEW = 1_000


class Lane(Protocol):
    """Everything for one kind of work: its queue and its pool."""

    def put(self, delivery: Delivery) -> None:
        """Queue a delivery that was admitted to the bus."""

    def release(self, delivery: Delivery) -> None:
        """Take note that a delivery of this lane was settled."""

    def step_aside(self, delivery: Delivery) -> None:
        """Take note that a delivery of this lane waits for its next attempt."""

    def put_again(self, delivery: Delivery) -> None:
        """Queue a delivery for its next attempt."""

    def stir(self) -> None:
        """Have somebody see what was measured."""

    def is_running(self, delivery: Delivery) -> bool:
        """Whether a worker is in the handler with this delivery just now."""

    def withdraw(self, delivery: Delivery) -> bool:
        """Take a delivery back for good that no worker has begun; False when there is none."""


_COUNTERS = (
    "published",
    "unqueued",
    "succeeded",
    "failed",
    "cancelled",
    "stopped",
    "retried",
    "timed_out",
    "crashed",
    "over_memory",
)


class Subscription:
    """One handler on one bus.

    `published` is guarded by the lane's lock; `average_s` and the other counters by the
    settlement's.
    """

    __slots__ = (
        "_free",
        "answered",
        "average_s",
        "cancelled",
        "crashed",
        "decided",
        "failed",
        "gated",
        "give_up",
        "group",
        "handler",
        "key",
        "lane",
        "meter",
        "over_memory",
        "plain",
        "priority",
        "published",
        "put",
        "queued",
        "ran",
        "retried",
        "stopped",
        "succeeded",
        "taken",
        "takes",
        "timed_out",
        "unqueued",
    )

    def __init__(self, handler: Handler, lane: Lane, *, answered: bool = False) -> None:
        self.handler = handler
        self.lane = lane
        #: Whether somebody waits for each outcome: a failure is told to him and to nobody else.
        self.answered = answered
        self.priority = handler.priority
        #: Queues a delivery in the lane.
        self.put = lane.put
        #: Whether there is nothing to ask the user's functions before queueing.
        self.plain = handler.where is None and handler.key is None and not handler.once
        #: Asked whether the handler takes an event; None where it takes all.
        self.takes: Callable[[Any], object] | None = handler.where
        #: Has a delivery that nobody wants any more cancelled, running or not.
        self.give_up: Callable[[Delivery], object] | None = None
        #: The same for all subscriptions of one function under one name.
        self.key: Hashable = (handler.name, identity_of(handler.function))
        #: Where one function was subscribed several times under one name, the same for all of them,
        #: since an event goes to it once; else None.
        self.group: int | None = None
        #: Holds one thing until an event has it, where there may be one event only.
        self._free = [True]
        #: Whether that event has been queued.
        self.taken = False
        if handler.once:
            self.takes = self._claim
            self.put = self._put_the_one
        #: Whether its deliveries pass a gate of its lane, which may keep them back.
        self.gated = handler.gated
        #: Running average of the handler's run time in seconds; None until it has run once.
        self.average_s: float | None = None
        self.published = 0
        #: Published, but failed by `where` or `key` before they got into the lane.
        self.unqueued = 0
        self.succeeded = 0
        self.failed = 0
        #: Cancelled before the handler began, and in the middle of it.
        self.cancelled = 0
        self.stopped = 0
        #: Attempts that were followed by another, and those that ended in these ways.
        self.retried = 0
        self.timed_out = 0
        self.crashed = 0
        self.over_memory = 0
        #: Why it is on this lane, where it was declared "auto" and moved there.
        self.decided = ""
        #: What its runs do with the machine.
        self.meter = Meter()
        #: Seconds from publish to the first attempt, and seconds of each attempt.
        self.queued = Histogram()
        self.ran = Histogram()

    def _claim(self, event: Any) -> bool:
        """Whether this is the one event that the handler takes: true once, whoever asks."""
        where = self.handler.where
        if where is not None and not where(event):
            return False
        try:
            return self._free.pop()  # one step for other threads
        except IndexError:
            return False

    def _put_the_one(self, delivery: Delivery) -> None:
        self.taken = True
        self.lane.put(delivery)

    def give_back(self) -> None:
        """An event that the handler took is not published after all: it may take another."""
        if self.handler.once and not self._free:
            self._free.append(True)

    @property
    def open(self) -> bool:
        """Whether it takes events: no longer where one was to be taken, and is."""
        return bool(self._free)

    @property
    def over(self) -> bool:
        """Whether it took the one event that it was for, and that is published."""
        return not self._free and (self.taken or bool(self.unqueued))

    @property
    def idle(self) -> bool:
        """Whether all that was published is settled; exact while nothing is being published."""
        ended = self.succeeded + self.failed + self.cancelled + self.stopped
        return ended == self.published + self.unqueued

    def is_running(self, delivery: Delivery) -> bool:
        """Whether a worker is in the handler with this delivery just now."""
        return self.lane.is_running(delivery)

    def absorb(self, other: Subscription) -> None:
        """Add the counters of another, which is idle and is let go, to this one's."""
        for name in _COUNTERS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.queued.merge(other.queued)
        self.ran.merge(other.ran)
        if other.average_s is not None:
            self.average_s = other.average_s

    def note_sums(self, *sums: Any) -> None:
        """Take in what runs in a worker process took, see `Meter.note_sums`."""
        self.meter.note_sums(monotonic(), *sums)
        if self.meter.fresh_s > STIR_S:
            self.lane.stir()

    def note_run(self, run_s: float) -> None:
        """Take one more run time into the average. Call it under the settlement's lock."""
        average_s = self.average_s
        if average_s is None:
            self.average_s = run_s
        elif run_s < average_s:
            self.average_s = average_s + NEWEST * (run_s - average_s)
        else:
            # Bounded growth: one run that was held up (by the GIL, say) says little of the next.
            self.average_s = min(average_s + NEWEST * (run_s - average_s), 1.25 * average_s + 1e-6)

    def note_times(
        self, delivery: Delivery, started_at: float, ended_at: float, weight: int = 1
    ) -> None:
        """Take the times of an attempt into the statistics, as if there were `weight` of it.

        Call it under the settlement's lock.
        """
        self.ran.add(ended_at - started_at, weight)
        if not delivery.earlier:
            self.queued.add(started_at - delivery.queued_at, weight)
