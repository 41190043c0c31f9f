# SPDX-License-Identifier: MIT
"""The cpu lane: its queue, its companions, and how work is shared out between them.

Batches are sized by time, so that short handlers are not drowned in overhead. A batch that turns
out long gives back what its worker has not begun, to whoever is free.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from math import inf
from time import monotonic
from typing import Any

from procbus.companion import Batch, Companion, due_at
from procbus.delivery import Delivery, cancelled
from procbus.errors import WorkerDied
from procbus.outcome import Outcome, OutcomeKind
from procbus.pool import outcomes
from procbus.pool.outcomes import Settled
from procbus.pool.seam import NO_WORDS, Pool, Worker, WorkerGone
from procbus.queue import LaneQueue
from procbus.stats import LaneStats
from procbus.subscription import OVERHEAD_S

#: Seconds of work in one batch.
BATCH_S = 0.005
#: How long `close` waits for a companion that should be through, in seconds.
JOIN_S = 10.0
#: How long the first publish waits for the first worker to be launched, in seconds.
LAUNCH_S = 30.0
#: Whether a publish waits for the launch of every worker that it makes necessary, not only of the
#: first (15 ms each). Python 3.12 starts no thread once the script has ended, so that loky would
#: lose a process half launched then, which would complain on stdout.
LAUNCH_EACH = sys.version_info[:2] == (3, 12)

Published = list[tuple[str | None, Any]]
#: Publishes what a cpu handler published, all or none; returns the error if none.
PublishChildren = Callable[[Delivery, Published], Exception | None]


class CpuLane:
    """The cpu lane of one bus. Thread-safe.

    The lock of `queue` is the lane's. It guards the queue and gates, the list of companions, and
    of each companion what its class says.
    """

    def __init__(
        self,
        pool: Pool,
        settle: Callable[[Sequence[Settled]], None],
        publish_children: PublishChildren,
    ) -> None:
        self.pool = pool
        self.queue = LaneQueue()
        self._settle = settle
        self._publish_children = publish_children
        self._companions: list[Companion] = []
        self._started = 0
        self._restarts = 0
        self._all_started = False
        #: No batch is overdue before then. Guarded by the lane's lock.
        self._none_due_before = inf

    # What the bus calls.

    def put(self, delivery: Delivery) -> None:
        """Queue a delivery, and start one more worker where none is free for it."""
        if not self.queue.put(delivery):
            self._settle([(delivery, cancelled(delivery))])
        elif not self._all_started:
            self._grow()

    def start(self) -> None:
        """Start all workers, in parallel, and wait until each is launched."""
        companions = self._grow(self.pool.size())
        for companion in companions:
            companion.launched.wait(LAUNCH_S)

    @property
    def launched(self) -> bool:
        """Whether `put` no longer waits for the launch of a first worker."""
        return bool(self._companions)

    def launch(self) -> None:
        """Launch a first worker, if there is none."""
        if not self._companions:
            self._grow(1)

    def release(self, delivery: Delivery) -> None:
        """Let those go that waited at the gate behind a settled delivery."""
        if self.queue.release(delivery) and not self._all_started:
            self._grow()

    def is_running(self, delivery: Delivery) -> bool:
        """Whether a worker is in the handler with this delivery just now."""
        return any(delivery is d for _, d, _ in self.at_hand())

    def at_hand(self) -> list[tuple[Companion, Delivery | None, float]]:
        """Each companion, what its worker is running, and since when (`time.monotonic()`)."""
        found: list[tuple[Companion, Delivery | None, float]] = []
        with self.queue.lock:
            for companion in self._companions:
                worker = companion.worker
                at = None if worker is None else worker.running()
                delivery, since = None, 0.0
                if at is not None:
                    number, index, since = at
                    for batch in companion.in_flight:
                        if batch.number == number and index < len(batch.deliveries):
                            delivery = batch.deliveries[index]
                found.append((companion, delivery, since))
        return found

    def stats(self) -> LaneStats:
        """The lane just now."""
        at_hand = self.at_hand()
        busy = sum(delivery is not None for _, delivery, _ in at_hand)
        restarts = self._restarts + sum(companion.restarts for companion, _, _ in at_hand)
        return LaneStats(self.queue.depth(), len(at_hand), busy, restarts)

    def close(self) -> None:
        """End all workers once nothing is left for them. Idempotent."""
        self.queue.close()
        for companion in list(self._companions):
            companion.join(JOIN_S)

    def cancel(self) -> None:
        """Settle as cancelled all that no worker has begun. Idempotent."""
        out = self.queue.clear()
        with self.queue.lock:
            for companion in self._companions:
                out += self._take_back(companion)
        self._settle([(delivery, cancelled(delivery)) for delivery in out])

    def kill(self) -> None:
        """End all workers at once; what they are running is settled as cancelled."""
        self.queue.close()
        for companion in list(self._companions):
            worker = companion.worker
            if worker is not None:
                worker.kill()

    # What companions call.

    def wants_workers(self) -> bool:
        """Whether there is or may come work."""
        with self.queue.lock:
            return not self.queue.closed or self.queue.locked_ready() > 0

    def next_batch(self, *, wait: bool) -> list[Delivery]:
        """Take the next batch; empty when there is none, or with `wait` when the lane is closed."""
        queue = self.queue
        with queue.lock:
            while True:
                now = monotonic()
                if now >= self._none_due_before:
                    self._recall_overdue(now)
                if not wait and queue.waiting:
                    return []  # a free worker was woken for what is ready
                share = -(-queue.locked_ready() // max(1, len(self._companions)))
                batch = queue.locked_take_batch(BATCH_S, max(1, share))
                if batch and queue.locked_ready():
                    queue.locked_wake()
                if batch or not wait or queue.closed:
                    return batch
                next_look = self._none_due_before
                queue.locked_wait(None if next_look == inf else max(0.0, next_look - now))

    def hand_out(self, companion: Companion, worker: Worker, batch: Batch) -> bool:
        """Let a worker begin a batch; what it cannot have goes back. False if that is all of it."""
        message = batch.message
        back, dropped = message.rest, []
        with self.queue.lock:
            # Only now is it sure that nothing was taken back from this worker meanwhile. Tokens
            # know no batch: with these it would begin what was taken back.
            if companion.recalled or self.queue.cancelled:
                back = batch.deliveries + back
                batch.deliveries = []
            if self.queue.cancelled:
                back, dropped = [], back
            if back:
                self.queue.locked_put_back(back)
            if batch.deliveries:
                # At once, in the same breath: whoever takes back counts on it.
                worker.offer(message)
                companion.in_flight.append(batch)
                if len(companion.in_flight) == 1:
                    self._set_due(companion)
                    if len(batch.deliveries) > 1 and self.queue.waiting:
                        self.queue.locked_wake()  # somebody idle has to know when it is due
        if dropped:
            self._settle([(delivery, cancelled(delivery)) for delivery in dropped])
        return bool(batch.deliveries)

    def complete(self, companion: Companion) -> None:
        """The worker is through with its first batch."""
        with self.queue.lock:
            companion.in_flight.popleft()
            if companion.in_flight:
                self._set_due(companion)
            else:
                companion.due_at = inf
                companion.recalled = False

    def take_all(self, companion: Companion) -> list[Batch]:
        """Take all batches from a companion whose worker is gone."""
        with self.queue.lock:
            batches = list(companion.in_flight)
            companion.in_flight.clear()
            companion.due_at = inf
            companion.recalled = False
            return batches

    def put_back(self, deliveries: list[Delivery]) -> None:
        """Queue deliveries again that a dead worker had not begun, in front."""
        with self.queue.lock:
            if not self.queue.cancelled:
                if deliveries:
                    self.queue.locked_put_back(deliveries)
                return
        self._settle([(delivery, cancelled(delivery)) for delivery in deliveries])

    def expected_s(self, deliveries: Sequence[Delivery]) -> float:
        """How long these deliveries should take one after the other."""
        return sum((d.subscription.average_s or 0.0) + OVERHEAD_S for d in deliveries)

    def settle(
        self, settled: list[Settled], published: Sequence[tuple[int, Published]] = ()
    ) -> None:
        """Settle deliveries; first publish what their handlers published.

        Args:
            settled: deliveries and their outcomes.
            published: index into `settled`, and the events published by that handler.
        """
        for index, events in published:
            delivery, outcome = settled[index]
            error = self._publish_children(delivery, events)
            if error is not None:
                failed = outcome._replace(
                    kind=OutcomeKind.RAISED, value=None, error=error, dropped_events=len(events)
                )
                settled[index] = (delivery, failed)
        self._settle(settled)

    def settle_dead(self, delivery: Delivery, gone: WorkerGone, ran_s: float) -> None:
        """Settle the delivery that a worker died with."""
        if self.queue.cancelled:
            outcome = cancelled(delivery, ran_s)
        else:
            outcome = outcomes.died(delivery, gone, ran_s)
        self._settle([(delivery, outcome)])

    def cannot_start(self, companion: Companion, gone: WorkerGone) -> None:
        """No worker can be started: if nobody else is left to do it, fail what is ready."""
        with self.queue.lock:
            self._remove(companion)
            if self._companions:
                return
        how = outcomes.describe_exit(gone.exit_code)
        error = WorkerDied(
            f"no worker process can be started ({gone.__cause__ or how}): see what it wrote to "
            "stderr; the events waiting for a cpu handler fail with this error",
            pid=gone.pid,
            exit_code=gone.exit_code,
        )
        error.__cause__ = gone.__cause__
        waiting = self.queue.clear_ready()
        self._settle([(d, Outcome(OutcomeKind.WORKER_DIED, error=error)) for d in waiting])

    def leave(self, companion: Companion) -> None:
        """A companion ends."""
        with self.queue.lock:
            self._remove(companion)

    # Inside, under the lane's lock.

    def _remove(self, companion: Companion) -> None:
        if companion in self._companions:
            self._companions.remove(companion)
            self._restarts += companion.restarts
            self._all_started = False

    def _set_due(self, companion: Companion) -> None:
        batch = companion.in_flight[0]
        batch.due_at = companion.due_at = due_at(batch)
        self._none_due_before = min(self._none_due_before, companion.due_at)

    def _recall_overdue(self, now: float) -> None:
        self._none_due_before = inf
        if self.queue.cancelled:
            return  # nothing may get into the queue any more
        for companion in self._companions:
            if companion.due_at <= now:
                self.queue.locked_put_back(self._take_back(companion))
        self._none_due_before = min((c.due_at for c in self._companions), default=inf)

    def _take_back(self, companion: Companion) -> list[Delivery]:
        """Take back what the worker of a companion has not begun."""
        companion.due_at = inf  # once is enough: what is begun stays there
        worker = companion.worker
        if worker is None:
            return []
        waiting = sum(len(batch.open()) for batch in companion.in_flight)
        count = worker.take_back(waiting)
        taken: list[Delivery] = []
        for batch in reversed(companion.in_flight):
            keep = max(0, len(batch.deliveries) - (count - len(taken)))
            taken = batch.deliveries[keep:] + taken
            del batch.deliveries[keep:]
        companion.recalled = companion.recalled or bool(taken)
        return taken

    def _grow(self, least: int = 0) -> list[Companion]:
        """Start a companion if more is ready than workers are free for, or `least` of them."""
        size = self.pool.size()
        started: list[Companion] = []
        with self.queue.lock:
            free = self.queue.waiting + sum(c.worker is None for c in self._companions)
            missing = max(least, min(1, self.queue.locked_ready() - free))
            while len(self._companions) < size and len(started) < missing:
                self._started += 1
                companion = Companion(self, self._started)
                self._companions.append(companion)
                started.append(companion)
            self._all_started = len(self._companions) >= size
            first = len(started) == len(self._companions)
        for companion in started:
            try:
                companion.start()
            except RuntimeError:  # no thread is to be had: Python 3.12 refuses them as it ends
                companion.launched.set()
                self.cannot_start(companion, WorkerGone(None, None, NO_WORDS, hopeless=True))
        if started and (first or LAUNCH_EACH):
            # An interpreter that ends starts nothing any more, so the first worker has to be
            # launched before `publish` returns: a script may end right after it.
            started[-1].launched.wait(LAUNCH_S)
        return started
