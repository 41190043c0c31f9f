# SPDX-License-Identifier: MIT
"""A subscription: one handler on one bus, with the bus's counters and measurements of it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from time import monotonic
from typing import Any, Protocol

from procbus.core.cancelling import CancelRequest
from procbus.core.delivery import Delivery
from procbus.core.handler import Handler
from procbus.core.histogram import Histogram
from procbus.core.introspection import identity_of
from procbus.core.meter import STIR_S, Meter
from procbus.core.progress import Progress

#: Minimum time that a delivery costs besides its handler's run time, in seconds; because 2 to 4 us
#: were measured. It bounds the batches of very short handlers.
OVERHEAD_S = 3e-6

#: Weight of the newest run in the running average of a handler's run time.
NEWEST = 0.2
#: Maximum growth of that average by one run: a factor, and seconds; because a run that was held up
#: (by the GIL, say) says little of the next one.
GROWTH, GROWTH_S = 1.25, 1e-6

#: Threshold of the run time below which only one delivery in `SAMPLE` is timed for the statistics,
#: in seconds; because timing each takes a tenth of a short io handler's time. It applies once the
#: handler succeeded `FEW` times, while its average is below too; the one timed stands for all.
SAMPLED_BELOW_S = 100e-6
#: The same without a GIL; because threads that write the same figures in turn hold each other up.
SAMPLED_BELOW_FREE_S = 1e-3
SAMPLE = 16
FEW = 1_000

#: Maximum of a number that is counted up for each event; because Python has one object for each
#: number below 257, and without a GIL it takes long if one thread frees a number of another one.
SMALL = 255


#: Queues deliveries of one subscription, in order.
PutAll = Callable[[Sequence[Delivery]], None]


class Lane(Protocol):
    """Everything for one kind of work: its queue and its pool."""

    def put(self, delivery: Delivery) -> None:
        """Queue a delivery that was admitted to the bus."""

    def release(self, delivery: Delivery) -> None:
        """Note that a delivery of this lane was settled."""

    def step_aside(self, delivery: Delivery) -> None:
        """Note that a delivery of this lane waits for its next attempt."""

    def put_again(self, delivery: Delivery) -> None:
        """Queue a delivery for its next attempt."""

    def stir(self) -> None:
        """Have the advisor evaluate the measurements."""

    def is_running(self, delivery: Delivery) -> bool:
        """Whether a worker is running this delivery now."""

    def progress_of(self, delivery: Delivery) -> Progress | None:
        """The last report of a delivery's handler; None if it is not running, or made none."""

    def ran_s(self, delivery: Delivery) -> float | None:
        """Time for which a delivery's handler has run, in seconds; None if it is not running."""

    def withdraw(self, delivery: Delivery) -> bool:
        """Take a delivery back for good; False if a worker has begun it."""

    def stop(self, delivery: Delivery) -> None:
        """Ask the running handler of a cancelled delivery to stop. Never blocks. Idempotent."""

    def cut_off(self, delivery: Delivery) -> None:
        """Settle a cancelled delivery whose handler goes on, unless that takes a kill."""


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
    "untimed",
)


def _towards(average_s: float, newest_s: float) -> float:
    """Return a new average. It falls fast and grows slowly, because one slow run says little."""
    weight = NEWEST if newest_s > average_s else 1 - NEWEST
    return average_s + weight * (newest_s - average_s)


class Subscription:
    """One handler on one bus.

    `published` is guarded by the lane's lock; `average_s` and the other counters by the
    settlement's.
    """

    __slots__ = (
        "__weakref__",
        "_free",
        "after_s",
        "answered",
        "apart",
        "average_s",
        "before_s",
        "calls",
        "cancel",
        "cancelled",
        "crashed",
        "decided",
        "delayed",
        "failed",
        "gated",
        "group",
        "handler",
        "held",
        "key",
        "lane",
        "meter",
        "over_memory",
        "plain",
        "priority",
        "published_since",
        "published_sum",
        "put",
        "put_all",
        "queued",
        "ran",
        "retried",
        "stopped",
        "succeeded_since",
        "succeeded_sum",
        "taken",
        "takes",
        "timed_out",
        "unqueued",
        "untimed",
        "withdrawn",
    )

    def __init__(self, handler: Handler, lane: Lane, *, answered: bool = False) -> None:
        self.handler = handler
        self.lane = lane
        #: Whether a caller waits for each outcome: a failure is then reported to the caller alone.
        self.answered = answered
        self.priority = handler.priority
        #: Queues a delivery in the lane.
        self.put = lane.put
        #: Whether a delivery can be queued without a call of the user's functions.
        functions = handler.where, handler.key, handler.rate_key
        self.plain = functions == (None, None, None) and not handler.once
        #: Says whether the handler takes an event; None if it takes all.
        self.takes: Callable[[Any], object] | None = handler.where
        #: Cancels a delivery of it; None if it has none that could be cancelled.
        self.cancel: Callable[[Delivery, CancelRequest], object] | None = None
        #: The subscription of its calls, which are measured, if it takes its events in batches and
        #: has had one; else None.
        self.calls: Subscription | None = None
        #: Equal for all subscriptions of one function under one name.
        self.key: Hashable = (handler.name, identity_of(handler.function))
        #: If one function was subscribed several times under one name, a number that these
        #: subscriptions share, since an event goes to the function once; else None.
        self.group: int | None = None
        #: For `once`: holds one token, which the one event takes.
        self._free = [True]
        #: Whether that event has been queued.
        self.taken = False
        if handler.once:
            self.takes = self._claim
            self.put = self._put_the_one
        #: Whether its deliveries pass a gate of the lane, which may hold them back.
        self.gated = handler.gated
        #: Queues several deliveries in the lane; None if each has to be queued alone.
        self.put_all: PutAll | None = None
        if self.plain and not self.gated:
            self.put_all = getattr(lane, "put_all", None)
        #: Running average of the handler's run time in seconds; None before its first run.
        self.average_s: float | None = None
        #: Time that a delivery takes before its run in a worker, for encoding the event; and after
        #: it, for encoding the result and reading it; in seconds. Written by companions, without a
        #: lock: losing one figure between two does no harm.
        self.before_s = self.after_s = 0.0
        #: Published and succeeded deliveries: sums, and the deliveries since the last sum, at most
        #: `SMALL`.
        self.published_sum = self.published_since = 0
        self.succeeded_sum = self.succeeded_since = 0
        #: Published deliveries that are not in their lane: `where` or `key` has failed them, their
        #: delay is not over, or they were cancelled before that.
        self.unqueued = 0
        #: Deliveries that a `Pacer` holds now; and these together with the ones that were cancelled
        #: while it held them. Guarded by its lock.
        self.held = self.apart = 0
        #: Deliveries that wait for their delay to be over. Guarded by the lock of `RetryQueue`.
        self.delayed = 0
        #: Deliveries cancelled while a `LaneSwitch` held them, before a lane counted them.
        #: Guarded by its lock.
        self.withdrawn = 0
        self.failed = 0
        #: Cancelled before the handler began, and in the middle of it.
        self.cancelled = 0
        self.stopped = 0
        #: Attempts that another attempt followed, and attempts that ended in these ways.
        self.retried = 0
        self.timed_out = 0
        self.crashed = 0
        self.over_memory = 0
        #: The reason for this lane, if the handler moved there, or if the bus chose the lane.
        self.decided = ""
        #: Measures how its runs use the machine.
        self.meter = Meter()
        #: Seconds from publishing to the first attempt, and seconds of each attempt.
        self.queued = Histogram()
        self.ran = Histogram()
        #: Number of successes that `queued` and `ran` do not include yet, until the next sample.
        self.untimed = 0

    def _claim(self, event: Any) -> bool:
        """Whether this is the one event that the handler takes: true once, for the first caller."""
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
        """Allow another event: the one that the handler took is not published after all."""
        if self.handler.once and not self._free:
            self._free.append(True)

    @property
    def published(self) -> int:
        """Number of deliveries that got into the lane, or that its pacer or switch took."""
        return self.published_sum + self.published_since + self.apart + self.withdrawn

    @published.setter
    def published(self, count: int) -> None:
        self.published_sum, self.published_since, self.apart, self.withdrawn = count, 0, 0, 0

    @property
    def succeeded(self) -> int:
        """Number of deliveries whose handler succeeded."""
        return self.succeeded_sum + self.succeeded_since

    @succeeded.setter
    def succeeded(self, count: int) -> None:
        self.succeeded_sum, self.succeeded_since = count, 0

    @property
    def open(self) -> bool:
        """Whether the handler takes events: false once a `once` handler has its one event."""
        return bool(self._free)

    @property
    def over(self) -> bool:
        """Whether a `once` handler took its one event, and that event is published."""
        return not self._free and (self.taken or bool(self.unqueued))

    @property
    def left(self) -> int:
        """Number of open deliveries; exact while no thread publishes."""
        ended = self.succeeded + self.failed + self.cancelled + self.stopped
        return self.published + self.unqueued - ended

    @property
    def idle(self) -> bool:
        """Whether every published delivery is settled; exact while no thread publishes."""
        return not self.left

    def is_running(self, delivery: Delivery) -> bool:
        """Whether a worker is running this delivery now."""
        return self.lane.is_running(delivery)

    def absorb(self, other: Subscription) -> None:
        """Add the counters of another subscription, which is idle and about to be dropped."""
        for name in _COUNTERS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.queued.merge(other.queued)
        self.ran.merge(other.ran)
        if other.average_s is not None:
            self.average_s = other.average_s

    def note_sums(self, *sums: Any) -> None:
        """Add the sums of runs in a worker process, see `Meter.note_sums`."""
        self.meter.note_sums(monotonic(), *sums)
        if self.meter.fresh_s > STIR_S:
            self.lane.stir()

    def note_before(self, before_s: float) -> None:
        """Note the time for encoding one event."""
        self.before_s = _towards(self.before_s, before_s)

    def note_after(self, after_s: float) -> None:
        """Note the time for encoding one result and reading it."""
        self.after_s = _towards(self.after_s, after_s)

    def expected_s(self) -> float:
        """Time from the start of a delivery until its result is read, as far as it is known."""
        after_s = self.after_s
        return (self.average_s or 0.0) + (after_s if after_s > OVERHEAD_S else OVERHEAD_S)

    def note_run(self, run_s: float) -> None:
        """Add one run time to the average. Call it under the settlement's lock."""
        average_s = self.average_s
        if average_s is None:
            self.average_s = run_s
        else:
            new_s = average_s + NEWEST * (run_s - average_s)
            self.average_s = min(new_s, GROWTH * average_s + GROWTH_S)

    def note_times(
        self, delivery: Delivery, started_at: float, ended_at: float, weight: int = 1
    ) -> None:
        """Add the times of an attempt to the statistics, with a weight.

        Call it under the settlement's lock.
        """
        self.ran.add(ended_at - started_at, weight)
        if not delivery.earlier:
            self.queued.add(started_at - delivery.queued_at, weight)

    def note_untimed(self, short_s: float = SAMPLED_BELOW_S) -> None:
        """Add the successes since the last sample to the statistics, by the figures so far.

        Call it under the settlement's lock.

        Args:
            short_s: the time that each of them took at most.
        """
        untimed, self.untimed = self.untimed, 0
        if untimed:
            self.ran.add(min(self.average_s or 0.0, short_s), untimed)
            self.queued.add(self.queued.quantile(0.5) or 0.0, untimed)
