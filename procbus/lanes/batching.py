# SPDX-License-Identifier: MIT
"""Distribution of the cpu lane's deliveries among its workers.

A batch is sized by time, so that the overhead of short handlers stays small. If a batch takes
longer than expected, free workers take back the deliveries that its worker has not begun.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from time import monotonic

from procbus.core.delivery import Delivery
from procbus.core.errors import CircuitOpen
from procbus.core.flow import Flow
from procbus.core.locks import acquire
from procbus.core.log import pool_log as log
from procbus.core.outcome import Outcome, OutcomeKind
from procbus.core.progress import Progress
from procbus.lanes.breaker import CIRCUIT_LIMITS, CircuitBreaker, CircuitLimits, CircuitState
from procbus.lanes.queue import LaneQueue
from procbus.lanes.slot import Batch, Slot
from procbus.pool.interface import BATCH_S, At, Worker

#: Maximum time for encoding a batch for a worker that has nothing else to do, as a share of the
#: work in a batch; because the worker waits for the batch, and other companions wait for the GIL.
#: With events of 1,000 records a longer batch takes a twentieth off the rate.
ENCODING = 0.2


class Batching:
    """Records which slot has which deliveries. Thread-safe.

    The lock of `queue` is the lane's lock. It guards the queue and its gates, the circuit, the list
    of slots, and the fields that `Slot` names.

    Args:
        batch_s: work in one batch, in seconds.
        limits: of the circuit.
        clock: replaces `time.monotonic`.
    """

    def __init__(
        self,
        batch_s: float = BATCH_S,
        *,
        limits: CircuitLimits = CIRCUIT_LIMITS,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._batch_s = batch_s
        self.clock = clock
        self.queue = LaneQueue()
        self.circuit = CircuitBreaker(limits)
        self.slots: list[Slot] = []
        #: Time before which no batch is overdue.
        self._none_due_before = inf

    def running(self) -> list[tuple[Slot, Worker, Delivery, At]]:
        """Each worker that is in a handler: its slot, its delivery, and the logbook's entry."""
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

    def at_hand(self) -> list[tuple[Slot, Delivery | None, float, Progress | None]]:
        """Each slot, its worker's running delivery, the start of that run, and its last report.

        The start is in seconds of `time.monotonic()`.
        """
        running = {
            slot: (delivery, at[2], worker.progress(at))
            for slot, worker, delivery, at in self.running()
        }
        return [(slot, *running.get(slot, (None, 0.0, None))) for slot in list(self.slots)]

    def all(self) -> list[Slot]:
        """The present slots."""
        with self.queue.lock:
            return list(self.slots)

    def with_work(self) -> list[Slot]:
        """The slots whose workers have deliveries."""
        with self.queue.lock:
            return [slot for slot in self.slots if slot.in_flight]

    def handed_out(self) -> list[Delivery]:
        """The deliveries that workers have, or will have in a moment."""
        with self.queue.lock:
            sent = [
                each for slot in self.slots for batch in slot.in_flight for each in batch.open()
            ]
            return sent + [each for slot in self.slots for each in slot.preparing]

    def next_batch(self, *, wait: bool, most: int | None = None) -> list[Delivery]:
        """Take the next batch; empty if there is none, or with `wait` when the lane is closed.

        Args:
            wait: whether to wait for a batch.
            most: maximum number of deliveries.
        """
        queue, lock = self.queue, self.queue.lock
        if not lock.acquire(False):
            acquire(lock)
        try:
            while True:
                queue.missed = False
                now = self.clock()
                if now >= self._none_due_before:
                    self._recall_overdue(now)
                if not wait and (queue.waiting or queue.locked_ready() <= self.locked_free()):
                    return []  # a free worker was woken for the ready deliveries, or will take them
                batch = self._take_batch(most, now, ENCODING * self._batch_s if wait else inf)
                if batch or not wait or queue.closed:
                    return batch
                next_look = self._none_due_before
                queue.locked_wait(None if next_look == inf else max(0.0, next_look - now))
        finally:
            lock.release()

    def hand_out(self, slot: Slot, worker: Worker, batch: Batch) -> list[Delivery]:
        """Let a worker begin a batch. Deliveries that the worker cannot have go back to the queue.

        Returns:
            Deliveries that must not run any more. The deliveries of this worker stay in the batch.
        """
        message, lock = batch.message, self.queue.lock
        back, dropped = message.rest, []
        if not lock.acquire(False):
            acquire(lock)
        try:
            # Only under this lock it is certain that no delivery was taken back from this worker
            # meanwhile. Tokens belong to no batch: with new tokens the worker would begin
            # deliveries that were taken back.
            if slot.recalled or self.queue.cancelled or self.queue.held:
                back = batch.deliveries + back
                batch.deliveries = []
            if self.queue.cancelled:
                back, dropped = [], back
            if back:
                self.queue.locked_put_back(back)
            if batch.deliveries:
                # These steps run without an interruption in between: taking deliveries back relies
                # on that.
                worker.offer(message)
                slot.in_flight.append(batch)
                if len(slot.in_flight) == 1:
                    self._set_due(slot)
                    if len(batch.deliveries) > 1 and self.queue.waiting:
                        self.queue.locked_wake()  # an idle companion has to learn the due time
        finally:
            lock.release()
        return dropped

    def complete(self, slot: Slot) -> list[Delivery]:
        """Note that the worker has finished its first batch.

        Returns:
            Deliveries of the batch that the worker left undone.
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
        """Note that a worker gave deliveries back, later than it was asked to."""
        with self.queue.lock:
            return slot.locked_part_with(count)

    def take_all(self, slot: Slot) -> list[Batch]:
        """Take all batches from a slot whose worker is dead."""
        with self.queue.lock:
            return slot.locked_clear()

    def wants_workers(self) -> bool:
        """Whether there is work, or may be."""
        with self.queue.lock:
            return not self.queue.closed or self.queue.locked_ready() > 0

    def put_back(self, deliveries: list[Delivery]) -> list[Delivery]:
        """Queue again, in front, deliveries that a worker had not begun.

        Returns:
            Deliveries that must not run any more.
        """
        with self.queue.lock:
            if self.queue.cancelled:
                return deliveries
            if deliveries:
                self.queue.locked_put_back(deliveries)
            return []

    # Private methods, called under the lock.

    def locked_free(self) -> int:
        """Number of workers that are idle, or will soon be ready."""
        return self.queue.waiting + sum(each.worker is None for each in self.slots)

    def locked_withdraw(self, delivery: Delivery) -> bool:
        """Take one delivery back from its worker, unless the worker has begun it.

        A worker knows only the number of deliveries it may begin. So all deliveries that it has not
        begun are taken back. All of them but this one are queued again.
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

    def _take_batch(self, most: int | None, now: float, encoding_s: float) -> list[Delivery]:
        queue = self.queue
        ready = queue.locked_ready()
        if not ready:
            return []
        share = -(-ready // (len(self.slots) or 1))
        allowed = self.circuit.most()
        for bound in (most, allowed):
            if bound is not None and bound < share:
                share = bound
        batch = queue.locked_take_batch(self._batch_s, share, encoding_s)
        if batch and allowed is not None:
            self.circuit.begin(now)
        elif batch and queue.locked_ready():
            queue.locked_wake()
        return batch

    def locked_take_all_back(self) -> list[Delivery]:
        """Take back all deliveries that no worker has begun; the lock is held."""
        return [delivery for slot in self.slots for delivery in slot.locked_take_back()]

    def _set_due(self, slot: Slot) -> None:
        batch = slot.in_flight[0]
        batch.due_at = slot.due_at = batch.due_from(self.clock())
        self._none_due_before = min(self._none_due_before, slot.due_at)

    def _recall_overdue(self, now: float) -> None:
        self._none_due_before = inf
        if self.queue.cancelled:
            return  # the queue accepts nothing any more
        for slot in self.slots:
            if slot.due_at <= now:
                self.queue.locked_put_back(slot.locked_take_back())
        self._none_due_before = min((slot.due_at for slot in self.slots), default=inf)


# Keeps the cpu lane from beginning work while new work would do harm.

#: Number of failed trials after which a closing bus fails its waiting deliveries.
TRIALS_AT_CLOSE = 3


class Breaker:
    """Operates the circuit of one lane. Thread-safe; the lane's lock guards its fields.

    Args:
        batching: has the circuit. When it opens, batching takes back the deliveries that are not
            begun.
        flow: makes publishing raise while workers keep dying.
        fail_ready: settles all deliveries that are ready for a worker.
    """

    def __init__(
        self, batching: Batching, flow: Flow, fail_ready: Callable[[Outcome], object]
    ) -> None:
        self._batching = batching
        self._circuit = batching.circuit
        self._guard = flow.guard
        #: Makes the error of publishing for cpu handlers while the circuit is open. The field is
        #: set under the lock. The flow is told afterwards and reads the field then, so two threads
        #: may tell the flow in either order.
        self.refusal: Callable[[], CircuitOpen] | None = None
        self._fail_ready = fail_ready
        #: Whether survivals must be noted: a worker died since the last survival, or the circuit is
        #: not closed. Read without the lock.
        self.troubled = False
        self._closing = False
        #: The outcome that all ready deliveries get, once a closing bus has made enough trials.
        self.given_up: Outcome | None = None

    def reason(self) -> str:
        """The reason why no delivery is begun; empty if deliveries are begun."""
        with self._batching.queue.lock:
            return self._circuit.reason()

    def look(self, now: float, short: str) -> None:
        """Check whether work may begin again, or must stop. Called by the supervisor.

        Args:
            now: the time, in seconds of `time.monotonic()`.
            short: reason why memory is short; empty if there is enough.
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
                self.refusal = None
        if found.trial:
            self._guard(self)

    def expect_close(self) -> None:
        """Note that the bus is closing. The lane may delay the close only for some trials."""
        with self._batching.queue.lock:
            self._closing = True
            self._circuit.hurry()

    def note_survival(self) -> None:
        """Note that a worker survived deliveries."""
        with self._batching.queue.lock:
            closed = self._circuit.note_survival()
            # While the circuit is open the next survival, a trial's, must be noted too.
            self.troubled = self._circuit.state is not CircuitState.CLOSED
            if closed:
                self.given_up = self.refusal = None
                self._batching.queue.locked_wake()
        if closed:
            self._guard(self)
            log.warning("a worker survived a delivery: the cpu lane works again")

    def note_death(self, last: str) -> None:
        """Note that a worker died, and that the supervisor did not kill it.

        Args:
            last: the worker, its end and its delivery, in words.
        """
        queue, circuit = self._batching.queue, self._circuit
        now = self._batching.clock()
        with queue.lock:
            self.troubled = True
            if queue.cancelled or not self._circuit.note_death(now):
                return
            self._take_all_back()
            wait_s = circuit.trial_at - now
            text = (
                f"{circuit.deaths} worker processes died, and none survived a delivery in "
                f"between; the last one was {last}"
            )
            if self._closing and circuit.failed_trials >= TRIALS_AT_CLOSE:
                error = CircuitOpen(f"{text}. The bus was closing, so no more were tried")
                self.given_up = Outcome(OutcomeKind.WORKER_DIED, error=error)
            text += (
                f". The cpu lane takes no new work for {wait_s:.0f} s, then it tries one delivery"
            )
            given_up = self.given_up
            if given_up is None:
                self.refusal = lambda: CircuitOpen(
                    f"{text}: find out why workers die, and publish again"
                )
        if given_up is not None:
            self._fail_ready(given_up)
            return
        # Before the log line, because writing it may be slow: a trial may be over by then.
        self._guard(self)
        log.error("%s; pending deliveries wait", text)

    def _take_all_back(self) -> None:
        back = self._batching.locked_take_all_back()
        if back:
            self._batching.queue.locked_put_back(back)
