# SPDX-License-Identifier: MIT
"""How the deliveries of the cpu lane are shared out between its workers.

Batches are sized by time, so that short handlers are not drowned in overhead. A batch that turns
out long gives back what its worker has not begun, to whoever is free.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from time import monotonic

from procbus.core.delivery import Delivery
from procbus.core.errors import CircuitOpen
from procbus.core.flow import Flow
from procbus.core.locks import acquire
from procbus.core.log import log
from procbus.core.outcome import Outcome, OutcomeKind
from procbus.lanes.breaker import CircuitBreaker, CircuitState
from procbus.lanes.queue import LaneQueue
from procbus.lanes.slot import Batch, Slot
from procbus.pool.interface import BATCH_S, At, Worker


class Batching:
    """Who has which deliveries. Thread-safe.

    The lock of `queue` is the lane's. It guards the queue and gates, the circuit, the list of
    slots, and of each slot what its class says.

    Args:
        batch_s: seconds of work in one batch.
    """

    def __init__(self, batch_s: float = BATCH_S) -> None:
        self._batch_s = batch_s
        self.queue = LaneQueue()
        self.circuit = CircuitBreaker()
        self.slots: list[Slot] = []
        #: No batch is overdue before then.
        self._none_due_before = inf

    def running(self) -> list[tuple[Slot, Worker, Delivery, At]]:
        """Each worker that is in a handler, its slot, and what it is at."""
        found: list[tuple[Slot, Worker, Delivery, At]] = []
        with self.queue.lock:
            for slot in self.slots:
                worker = slot.worker
                at = None if worker is None else worker.running()
                if worker is None or at is None:
                    continue
                number, index, _ = at
                for batch in slot.in_flight:
                    if batch.number == number and index < len(batch.deliveries):
                        found.append((slot, worker, batch.deliveries[index], at))
        return found

    def at_hand(self) -> list[tuple[Slot, Delivery | None, float]]:
        """Each slot, what its worker is running, and since when (`time.monotonic()`)."""
        running = {slot: (delivery, at[2]) for slot, _, delivery, at in self.running()}
        return [(slot, *running.get(slot, (None, 0.0))) for slot in list(self.slots)]

    def all(self) -> list[Slot]:
        """The slots just now."""
        with self.queue.lock:
            return list(self.slots)

    def with_work(self) -> list[Slot]:
        """The slots whose workers have something to do."""
        with self.queue.lock:
            return [slot for slot in self.slots if slot.in_flight]

    def next_batch(self, *, wait: bool, most: int | None = None) -> list[Delivery]:
        """Take the next batch; empty when there is none, or with `wait` when the lane is closed.

        Args:
            wait: for a batch, if there is none.
            most: deliveries to take at most.
        """
        queue, lock = self.queue, self.queue.lock
        if not lock.acquire(False):
            acquire(lock)
        try:
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
        finally:
            lock.release()

    def hand_out(self, slot: Slot, worker: Worker, batch: Batch) -> list[Delivery]:
        """Let a worker begin a batch; what it cannot have goes back.

        Returns:
            Those that are not to be run any more. What the worker got is left in the batch.
        """
        message, lock = batch.message, self.queue.lock
        back, dropped = message.rest, []
        if not lock.acquire(False):
            acquire(lock)
        try:
            # Only now is it sure that nothing was taken back from this worker meanwhile. Tokens
            # know no batch: with these it would begin what was taken back.
            if slot.recalled or self.queue.cancelled:
                back = batch.deliveries + back
                batch.deliveries = []
            if self.queue.cancelled:
                back, dropped = [], back
            if back:
                self.queue.locked_put_back(back)
            if batch.deliveries:
                # At once, in the same breath: whoever takes back counts on it.
                worker.offer(message)
                slot.in_flight.append(batch)
                if len(slot.in_flight) == 1:
                    self._set_due(slot)
                    if len(batch.deliveries) > 1 and self.queue.waiting:
                        self.queue.locked_wake()  # somebody idle has to know when it is due
        finally:
            lock.release()
        return dropped

    def complete(self, slot: Slot) -> list[Delivery]:
        """The worker is through with its first batch.

        Returns:
            What it did not want of it.
        """
        lock = self.queue.lock
        if not lock.acquire(False):
            acquire(lock)
        try:
            batch = slot.in_flight.popleft()
            if slot.in_flight:
                self._set_due(slot)
            else:
                slot.due_at = inf
                slot.recalled = False
            return batch.open()
        finally:
            lock.release()

    def returned(self, slot: Slot, count: int) -> list[Delivery]:
        """A worker that was asked to gives so many back, only now."""
        with self.queue.lock:
            return slot.locked_part_with(count)

    def take_all(self, slot: Slot) -> list[Batch]:
        """Take all batches from a slot whose worker is gone."""
        with self.queue.lock:
            return slot.locked_clear()

    def wants_workers(self) -> bool:
        """Whether there is or may come work."""
        with self.queue.lock:
            return not self.queue.closed or self.queue.locked_ready() > 0

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
        return self.queue.waiting + sum(each.worker is None for each in self.slots)

    def locked_withdraw(self, delivery: Delivery) -> bool:
        """Take one delivery back from the worker that has it, unless it has begun it.

        Which ones a worker begins is known by their number alone, so all that it has not begun is
        taken back, and the others are queued again.
        """
        for slot in self.slots:
            if any(delivery in batch.open() for batch in slot.in_flight):
                taken = slot.locked_take_back()
                found = delivery in taken
                if found:
                    taken.remove(delivery)
                if taken:
                    self.queue.locked_put_back(taken)
                return found
        return False

    def _take_batch(self, most: int | None, now: float) -> list[Delivery]:
        queue = self.queue
        ready = queue.locked_ready()
        if not ready:
            return []
        share = -(-ready // (len(self.slots) or 1))
        allowed = self.circuit.most()
        for bound in (most, allowed):
            if bound is not None and bound < share:
                share = bound
        batch = queue.locked_take_batch(self._batch_s, share)
        if batch and allowed is not None:
            self.circuit.begin(now)
        elif batch and queue.locked_ready():
            queue.locked_wake()
        return batch

    def locked_take_all_back(self) -> list[Delivery]:
        """Take back what no worker has begun; the lock is held."""
        return [delivery for slot in self.slots for delivery in slot.locked_take_back()]

    def _set_due(self, slot: Slot) -> None:
        batch = slot.in_flight[0]
        batch.due_at = slot.due_at = batch.due_from_now()
        self._none_due_before = min(self._none_due_before, slot.due_at)

    def _recall_overdue(self, now: float) -> None:
        self._none_due_before = inf
        if self.queue.cancelled:
            return  # nothing may get into the queue any more
        for slot in self.slots:
            if slot.due_at <= now:
                self.queue.locked_put_back(slot.locked_take_back())
        self._none_due_before = min((slot.due_at for slot in self.slots), default=inf)


# Stops the cpu lane from beginning work while that would harm, and lets it go on after that.

#: When the bus is closing, what waits fails after so many trials that did.
TRIALS_AT_CLOSE = 3


class Breaker:
    """Works the circuit of one lane. Thread-safe; its fields are guarded by the lane's lock.

    Args:
        batching: has the circuit, and takes back what workers have not begun when that opens.
        flow: has publishing raise while workers die and die.
        fail_ready: settles all that is ready for a worker.
    """

    def __init__(
        self, batching: Batching, flow: Flow, fail_ready: Callable[[Outcome], object]
    ) -> None:
        self._batching = batching
        self._circuit = batching.circuit
        self._guard = flow.guard
        self._fail_ready = fail_ready
        #: A worker died since the last time that one survived a delivery, or the circuit is not
        #: closed: a glance without the lock tells `note_survival` whether there is a thing to note.
        self._troubled = False
        self._closing = False
        #: What all that is ready fails with, once a closing bus has tried enough.
        self.given_up: Outcome | None = None

    def reason(self) -> str:
        """Why nothing is begun; empty while all may be."""
        with self._batching.queue.lock:
            return self._circuit.reason()

    def look(self, now: float, short: str) -> None:
        """See whether work may begin again, or must not. The supervisor calls it.

        Args:
            now: the time, in seconds of `time.monotonic()`.
            short: why there is too little memory; empty when there is enough.
        """
        began = [at[2] for _, _, _, at in self._batching.running()]
        queue = self._batching.queue
        with queue.lock:
            found = self._circuit.look(now, short, began)
            if found.stops:
                self._take_all_back()
            if found.wakes:
                queue.locked_wake()
        if found.trial:
            self._guard(None)

    def expect_close(self) -> None:
        """The bus is closing: do not keep it from that for longer than some trials take."""
        with self._batching.queue.lock:
            self._closing = True
            self._circuit.hurry()

    def note_survival(self) -> None:
        """A worker came through deliveries."""
        if not self._troubled:
            return
        with self._batching.queue.lock:
            closed = self._circuit.note_survival()
            # While the circuit is open the next survival, that of a trial, has to be noted too.
            self._troubled = self._circuit.state is not CircuitState.CLOSED
            if closed:
                self.given_up = None
                self._batching.queue.locked_wake()
        if closed:
            self._guard(None)
            log.warning("a worker survived a delivery: the cpu lane works again")

    def note_death(self, last: str) -> None:
        """A worker died, and it was not the supervisor that killed it.

        Args:
            last: which one, how, and what it was at, in words.
        """
        queue, circuit = self._batching.queue, self._circuit
        now = monotonic()
        with queue.lock:
            self._troubled = True
            if queue.cancelled or not self._circuit.note_death(now):
                return
            self._take_all_back()
            wait_s = circuit.trial_at - now
            text = (
                f"{circuit.deaths} worker processes died, and no delivery between them was "
                f"survived; the last one was {last}"
            )
            if self._closing and circuit.failed_trials >= TRIALS_AT_CLOSE:
                error = CircuitOpen(f"{text}. The bus was closing, so no more were tried")
                self.given_up = Outcome(OutcomeKind.WORKER_DIED, error=error)
            given_up = self.given_up
        if given_up is not None:
            self._fail_ready(given_up)
            return
        text += f". The cpu lane takes no new work for {wait_s:.0f} s, then it tries one delivery"
        # Before the log, which may be slow: by the time that it said so, a trial may be through.
        self._guard(lambda: CircuitOpen(f"{text}: see to what kills workers, and publish again"))
        log.error("%s; what is pending waits", text)

    def _take_all_back(self) -> None:
        back = self._batching.locked_take_all_back()
        if back:
            self._batching.queue.locked_put_back(back)
