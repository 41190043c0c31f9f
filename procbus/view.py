# SPDX-License-Identifier: MIT
"""The view of a bus from outside: its statistics, health, state and progress."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sized
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING

from procbus.advice.advisor import Advisor
from procbus.core.stats import BusStats, collect_stats
from procbus.core.subscription import Subscription
from procbus.dispatch.admission import Admission
from procbus.dispatch.retry_queue import RetryQueue
from procbus.dispatch.settlement import Settlement
from procbus.dispatch.unrouted import Unrouted
from procbus.lanes.lanes import Lanes
from procbus.lifecycle import Lifecycle
from procbus.progress.bar import BusFacts, LaneCounts, Standing
from procbus.progress.show import ShowProgress, check_progress, is_wanted, showing
from procbus.routing.subscriptions import Subscriptions
from procbus.stream import ShowCounts, StreamCounts
from procbus.supervision.supervisor import Supervisor

if TYPE_CHECKING:
    from procbus.supervision.health import BusHealth


class BusView:
    """The figures of one bus, for its users and for the live view. Thread-safe.

    A view changes nothing, and keeps nothing: it reads the parts of the bus when it is asked.

    Args:
        admission: counts the pending deliveries.
        settlement: has the dead letters.
        unrouted: counts the events without a handler.
        subscriptions: the handlers of the bus.
        counted: returns all subscriptions whose deliveries count, also of executors.
        lanes: the lanes.
        retries: has the deliveries that wait for their next attempt.
        supervisor: knows the workers.
        advisor: advises on the kind of handlers.
        lifecycle: knows whether the bus is open.
    """

    def __init__(
        self,
        admission: Admission,
        settlement: Settlement,
        unrouted: Unrouted,
        subscriptions: Subscriptions,
        counted: Callable[[], tuple[Subscription, ...]],
        lanes: Lanes,
        retries: RetryQueue,
        supervisor: Supervisor,
        advisor: Advisor,
        lifecycle: Lifecycle,
    ) -> None:
        self.admission = admission
        self.settlement = settlement
        self.lanes = lanes
        self.advisor = advisor
        self._unrouted = unrouted
        self._subscriptions = subscriptions
        self._counted = counted
        self._retries = retries
        self._supervisor = supervisor
        self._lifecycle = lifecycle
        #: Shown beside the bars of the bus.
        self.facts = BusFacts(self._lane_counts, self._reports, lambda: lifecycle.closed)

    def stats(self) -> BusStats:
        """The counters and times of the bus so far, and the present state of its lanes."""
        subscriptions = self._counted()
        running: Counter[str] = Counter()
        for delivery, _ in self.lanes.at_hand():
            running[delivery.handler.name] += delivery.weight
        self.settlement.note_untimed(subscriptions)
        return collect_stats(
            self.pending,
            self._unrouted.count,
            subscriptions,
            self.lanes.snapshot(subscriptions),
            running=running,
            place_of=self.lanes.place_of,
            retrying=self._retries.retrying,
            dead_letters=len(self.settlement.dead_letters),
            shared_memory=self.lanes.shared_memory(),
        )

    @property
    def pending(self) -> int:
        """Deliveries published and not yet settled."""
        return max(0, self.admission.pending - self.lanes.tickets)

    def health(self, *, brief: bool = False) -> BusHealth:
        """The present state of each worker: the processes first, then the threads.

        Args:
            brief: leave out the facts that take long to find.
        """
        from procbus.supervision.health import (  # only now: it imports psutil
            BusHealth,
            cpu_health,
            io_health,
        )

        return BusHealth(
            (
                *cpu_health(self.lanes.cpu_lanes, self._supervisor.observed, brief=brief),
                *io_health(self.lanes.io, self.lanes.loop),
            )
        )

    @property
    def closing(self) -> bool:
        """Whether the bus is being closed, or is closed."""
        return self._lifecycle.closing

    def state(self) -> str:
        """The state of the bus for people: open or closed, pending deliveries, workers."""
        state = "closed" if self._lifecycle.closed else "open"
        handlers = len(self._subscriptions.all())
        lanes = self.lanes.snapshot(())
        return (
            f"{state}: {handlers} handlers, {self.pending} pending, "
            f"{lanes['cpu'].workers} cpu workers, {lanes['io'].workers} io workers"
        )

    def counting(
        self, progress: ShowProgress, topic: str | None, events: object, total: int | None
    ) -> tuple[StreamCounts | None, ShowCounts]:
        """Return the counters of a stream, if its progress is wanted, and a function to show it."""
        option = check_progress(progress, total)
        show = partial(showing, option, topic or "events", bus=self.facts)
        if not is_wanted(option):
            return None, show
        if total is None and isinstance(events, Sized):
            total = len(events)
        return StreamCounts(total, self.settlement.dead_letters), show

    def progress(
        self, progress: ShowProgress, label: str, total: int | None = None
    ) -> AbstractContextManager[None]:
        """Show the progress of all deliveries in a `with` block; see `EventBus.progress`."""
        option = check_progress(progress, total)
        if not is_wanted(option):
            return nullcontext()
        return showing(option, label, self._counts_from_now(total), self.facts)

    def _counts_from_now(self, total: int | None) -> Callable[[], Standing]:
        """Return a function that counts deliveries which are pending now or published later.

        Args:
            total: number of these deliveries; None to count those published so far.
        """
        _, settled_before, failed_before = self._totals()

        def count() -> Standing:
            published, settled, failed = self._totals()
            known = published - settled_before if total is None else total
            return Standing(settled - settled_before, known, failed - failed_before)

        return count

    def _totals(self) -> tuple[int, int, int]:
        """Number of deliveries published so far, settled ones and failed ones."""
        settled = failed = published = 0
        for each in self._counted():
            failed += each.failed
            # Settled deliveries are read before published ones, so that they are never more.
            settled += each.succeeded + each.failed + each.cancelled + each.stopped
            published += each.published + each.unqueued
        return published, settled, failed

    def _reports(self) -> list[str]:
        """A line for each running handler that reports its progress."""
        return [f"{each.handler.name}: {report}" for each, report in self.lanes.progress()]

    def _lane_counts(self) -> list[LaneCounts]:
        return [
            LaneCounts(kind, lane.busy, lane.depth)
            for kind, lane in self.lanes.snapshot(()).items()
            if lane.workers
        ]
