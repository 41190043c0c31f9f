# SPDX-License-Identifier: MIT
"""How the deliveries of the cpu lane are shared out between its workers.

Batches are sized by time, so that short handlers are not drowned in overhead. A batch that turns
out long gives back what its worker has not begun, to whoever is free.
"""

from __future__ import annotations

from math import inf
from time import monotonic

from procbus.brake import Brake
from procbus.companion import Batch, Companion, due_at
from procbus.delivery import Delivery
from procbus.pool.seam import BATCH_S, At, Worker
from procbus.queue import LaneQueue


class Sharing:
    """Who has which deliveries. Thread-safe.

    The lock of `queue` is the lane's. It guards the queue and gates, the brake, the list of
    companions, and of each companion what its class says.

    Args:
        batch_s: seconds of work in one batch.
    """

    def __init__(self, batch_s: float = BATCH_S) -> None:
        self._batch_s = batch_s
        self.queue = LaneQueue()
        self.brake = Brake()
        self.companions: list[Companion] = []
        #: No batch is overdue before then.
        self._none_due_before = inf

    def running(self) -> list[tuple[Companion, Worker, Delivery, At]]:
        """Each worker that is in a handler, its companion, and what it is at."""
        found: list[tuple[Companion, Worker, Delivery, At]] = []
        with self.queue.lock:
            for companion in self.companions:
                worker = companion.worker
                at = None if worker is None else worker.running()
                if worker is None or at is None:
                    continue
                number, index, _ = at
                for batch in companion.in_flight:
                    if batch.number == number and index < len(batch.deliveries):
                        found.append((companion, worker, batch.deliveries[index], at))
        return found

    def at_hand(self) -> list[tuple[Companion, Delivery | None, float]]:
        """Each companion, what its worker is running, and since when (`time.monotonic()`)."""
        running = {companion: (delivery, at[2]) for companion, _, delivery, at in self.running()}
        return [(c, *running.get(c, (None, 0.0))) for c in list(self.companions)]

    def all(self) -> list[Companion]:
        """The companions just now."""
        with self.queue.lock:
            return list(self.companions)

    def with_work(self) -> list[Companion]:
        """The companions whose workers have something to do."""
        with self.queue.lock:
            return [companion for companion in self.companions if companion.in_flight]

    def next_batch(self, *, wait: bool, most: int | None = None) -> list[Delivery]:
        """Take the next batch; empty when there is none, or with `wait` when the lane is closed.

        Args:
            wait: for a batch, if there is none.
            most: deliveries to take at most.
        """
        queue = self.queue
        with queue.lock:
            while True:
                queue.missed = False
                now = monotonic()
                if now >= self._none_due_before:
                    self._recall_overdue(now)
                if not wait and (queue.waiting or queue.locked_ready() <= self.locked_free()):
                    return []  # a free worker was woken for what is ready, or will take it
                batch = self._take_batch(most, now)
                if batch or not wait or queue.closed:
                    return batch
                next_look = self._none_due_before
                queue.locked_wait(None if next_look == inf else max(0.0, next_look - now))

    def hand_out(self, companion: Companion, worker: Worker, batch: Batch) -> list[Delivery]:
        """Let a worker begin a batch; what it cannot have goes back.

        Returns:
            Those that are not to be run any more. What the worker got is left in the batch.
        """
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
        return dropped

    def complete(self, companion: Companion) -> list[Delivery]:
        """The worker is through with its first batch.

        Returns:
            What it did not want of it.
        """
        with self.queue.lock:
            batch = companion.in_flight.popleft()
            if companion.in_flight:
                self._set_due(companion)
            else:
                companion.due_at = inf
                companion.recalled = False
            return batch.open()

    def returned(self, companion: Companion, count: int) -> list[Delivery]:
        """A worker that was asked to gives so many back, only now."""
        with self.queue.lock:
            return _part_with(companion, count)

    def take_all(self, companion: Companion) -> list[Batch]:
        """Take all batches from a companion whose worker is gone."""
        with self.queue.lock:
            batches = list(companion.in_flight)
            companion.in_flight.clear()
            companion.due_at = inf
            companion.recalled = False
            return batches

    def put_back(self, deliveries: list[Delivery]) -> list[Delivery]:
        """Queue deliveries again that a worker had not begun, in front.

        Returns:
            Those that are not to be run any more.
        """
        with self.queue.lock:
            if self.queue.cancelled:
                return deliveries
            if deliveries:
                self.queue.locked_put_back(deliveries)
            return []

    # Inside, under the lock.

    def locked_free(self) -> int:
        """How many workers have nothing to do, or will be there soon."""
        return self.queue.waiting + sum(each.worker is None for each in self.companions)

    def locked_held_up(self, companion: Companion) -> bool:
        """Whether a worker has something that it has not begun behind what it is in."""
        return sum(len(batch.open()) for batch in companion.in_flight) > 1

    def locked_withdraw(self, delivery: Delivery) -> bool:
        """Take one delivery back from the worker that has it, unless it has begun it.

        Which ones a worker begins is known by their number alone, so all that it has not begun is
        taken back, and the others are queued again.
        """
        for companion in self.companions:
            if any(delivery in batch.open() for batch in companion.in_flight):
                taken = self._take_back(companion)
                found = delivery in taken
                if found:
                    taken.remove(delivery)
                if taken:
                    self.queue.locked_put_back(taken)
                return found
        return False

    def _take_batch(self, most: int | None, now: float) -> list[Delivery]:
        queue = self.queue
        share = max(1, -(-queue.locked_ready() // max(1, len(self.companions))))
        allowed = self.brake.most()
        for bound in (most, allowed):
            if bound is not None:
                share = min(share, bound)
        batch = queue.locked_take_batch(self._batch_s, share)
        if batch and allowed is not None:
            self.brake.begin(now)
        elif batch and queue.locked_ready():
            queue.locked_wake()
        return batch

    def locked_take_all_back(self) -> list[Delivery]:
        """Take back what no worker has begun; the lock is held."""
        return [delivery for c in self.companions for delivery in self._take_back(c)]

    def _set_due(self, companion: Companion) -> None:
        batch = companion.in_flight[0]
        batch.due_at = companion.due_at = due_at(batch)
        self._none_due_before = min(self._none_due_before, companion.due_at)

    def _recall_overdue(self, now: float) -> None:
        self._none_due_before = inf
        if self.queue.cancelled:
            return  # nothing may get into the queue any more
        for companion in self.companions:
            if companion.due_at <= now:
                self.queue.locked_put_back(self._take_back(companion))
        self._none_due_before = min((c.due_at for c in self.companions), default=inf)

    def _take_back(self, companion: Companion) -> list[Delivery]:
        """Take back what the worker of a companion has not begun."""
        companion.due_at = inf  # once is enough: what is begun stays there
        worker = companion.worker
        if worker is None:
            return []
        waiting = sum(len(batch.open()) for batch in companion.in_flight)
        taken = _part_with(companion, worker.take_back(waiting))
        companion.recalled = companion.recalled or bool(taken) or worker.recalling
        return taken


def _part_with(companion: Companion, count: int) -> list[Delivery]:
    """Take the last deliveries from what the worker of a companion has."""
    taken: list[Delivery] = []
    for batch in reversed(companion.in_flight):
        keep = max(0, len(batch.deliveries) - (count - len(taken)))
        taken = batch.deliveries[keep:] + taken
        del batch.deliveries[keep:]
    return taken
