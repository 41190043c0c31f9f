# SPDX-License-Identifier: MIT
"""A companion: the thread in the parent that feeds one worker.

Its code is a plain loop of blocking calls: take a batch, send it, receive its results, settle them.
To keep the worker busy, the companion sends the next batch before the last one is finished, if
sending certainly cannot block. A stuck worker blocks only its own companion.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Protocol

from procbus.core.delivery import Delivery, LastAttempt
from procbus.core.errors import ProcbusError
from procbus.core.listeners import Listeners
from procbus.core.log import pool_log as log
from procbus.core.moments import WorkerEnded, WorkerStarted
from procbus.core.outcome import Outcome, OutcomeKind
from procbus.core.own_thread import OwnThread
from procbus.core.user_objects import short_repr
from procbus.lanes.lane_thread import LaneThread
from procbus.lanes.recycling import RecyclingPolicy, too_grown_for
from procbus.lanes.slot import Batch, Slot
from procbus.pool.interface import NO_WORDS, Ended, Message, Pool, Report, Worker, WorkerGone
from procbus.pool.outcomes import describe_exit
from procbus.system import forked_children

if TYPE_CHECKING:
    from procbus.core.flow import Children, SettleSuccesses
    from procbus.lanes.attempt import Verdict
    from procbus.lanes.batching import Batching, Breaker
    from procbus.pool.interface import Prepared

#: Number of workers in a row that died before they began a delivery, after which the first delivery
#: is charged.
BARREN_DEATHS = 3

#: Interval at which a companion that waits for room in shared memory asks again, in seconds.
ROOM_S = 0.1

#: Interval at which a companion looks for a handler that has begun, while there are listeners, in
#: seconds; because a person who watches sees no such delay.
STARTED_LOOK_S = 0.1

#: A number of deliveries above that of any batch.
MORE_THAN_A_BATCH = 1 << 20

_batch_numbers = itertools.count(1)


class Port(Protocol):
    """The part of the lane that a companion uses, in the companion's thread."""

    @property
    def listeners(self) -> Listeners:
        """The listeners of the bus."""

    def settle(
        self, settled: list[LastAttempt], published: Sequence[tuple[int, Children]] = ()
    ) -> None:
        """Settle deliveries, after publishing the events of their handlers.

        Args:
            settled: deliveries and their outcomes.
            published: index into `settled`, and the events that the handler published.
        """

    @property
    def settle_successes(self) -> SettleSuccesses:
        """Settles deliveries that succeeded and published nothing."""

    def cancel_all(self, deliveries: Sequence[Delivery]) -> None:
        """Settle deliveries that must not run any more."""

    def died(self, delivery: Delivery, gone: WorkerGone, ran_s: float, rss: int) -> Outcome:
        """Make the outcome of the delivery that a worker died with.

        Args:
            delivery: the delivery that it ran.
            gone: the facts of its death.
            ran_s: time that it had been running, in seconds.
            rss: last reading of its memory in bytes; 0 if there was none.
        """

    def settle_dead(self, delivery: Delivery, outcome: Outcome) -> None:
        """Settle the delivery that a worker died with."""

    def look_ahead(self) -> None:
        """Note that a companion takes further deliveries, which another worker may have to run."""

    def relieve(self, slot: Slot) -> None:
        """Note that a worker is in one handler for long, so that others may take its deliveries."""

    def note_start(self) -> None:
        """Note that a worker is ready."""

    def may_try_again(self, gone: WorkerGone) -> bool:
        """Whether to try another start, after a worker died before it was ready."""

    def cannot_start(self, slot: Slot, gone: WorkerGone) -> None:
        """Fail the ready deliveries if no worker can be started and no other is left."""

    def leave(self, slot: Slot) -> None:
        """Note that a companion ends."""


class Companion(LaneThread):
    """Feeds the worker of one slot, and replaces it when it dies, until the lane is finished.

    Args:
        slot: the slot to fill with workers.
        pool: makes the workers.
        batching: distributes the deliveries.
        breaker: counts deaths and survivals.
        recycling: rules for replacing a worker between two deliveries.
        port: settles ended deliveries, and starts other companions.
    """

    def __init__(
        self,
        slot: Slot,
        pool: Pool,
        batching: Batching,
        breaker: Breaker,
        recycling: RecyclingPolicy,
        port: Port,
    ) -> None:
        super().__init__(slot.name)
        self.slot = slot
        self._pool = pool
        self._batching = batching
        self._queue = batching.queue
        self._breaker = breaker
        self._recycling = recycling
        self._port = port
        self._listeners = port.listeners
        #: The delivery whose start listeners were told before its end: its batch, and its place
        #: there.
        self._told = (0, 0)
        #: The slot's own list; guarded by the lane's lock.
        self._in_flight = slot.in_flight
        #: Number of deliveries that the present worker has finished, and the reason to replace it.
        self._worker_done = 0
        self._unwanted = ""
        self._barren = 0
        #: Approximate number of deliveries that fit into a message; the rest would be put back.
        self._fit = MORE_THAN_A_BATCH
        #: Whether this is a copy of the thread, in a child that user code forked.
        self._forked = False
        #: A process that will be the next worker. The lane may set this before the thread starts.
        self.prepared: Prepared | None = None
        #: Threads that release dead workers.
        self._releasing: list[OwnThread] = []

    def run(self) -> None:
        """Thread body."""
        forked_children.watch(self._note_fork)
        try:
            while (worker := self._start()) is not None:
                try:
                    reason = self._feed(worker)
                except WorkerGone as gone:
                    self.slot.worker = None
                    try:
                        self._tell_died(gone, self._bury(gone))
                    finally:
                        self._release(worker)
                except BaseException as error:  # noqa: BLE001 - after any error nothing may be lost
                    self._check_here()
                    log.exception("procbus itself failed in %s; its worker is replaced", self.name)
                    self.slot.worker = None
                    self._give_up(error)
                    worker.kill()
                    worker.stop()
                    self._tell_ended(worker.pid, f"procbus itself failed: {short_repr(error)}")
                else:
                    self.slot.worker = None
                    worker.stop()
                    self._tell_ended(worker.pid, reason or "the bus no longer needs it")
                    if not reason:
                        return
                    self.slot.restarts += 1
                    self.slot.last_exit = f"replaced after {reason}"
                    log.info("worker %s replaced after %s", worker.pid, reason)
        finally:
            if self.prepared is not None:
                self.prepared.abandon()
            for thread in self._releasing:
                thread.join()
            self.slot.launched.set()
            self._port.leave(self.slot)

    def _release(self, worker: Worker) -> None:
        """Release the remains of a dead worker, which takes loky 0.1 s, while another starts."""
        self._releasing = [thread for thread in self._releasing if thread.is_alive()]
        thread = OwnThread(f"{self.name}-release", worker.stop)
        try:
            thread.start()
        except RuntimeError:  # no thread can be started: Python 3.12 starts none while it ends
            worker.stop()
        else:
            self._releasing.append(thread)

    def _start(self) -> Worker | None:
        """Start a worker; None if the lane wants no worker any more, or if none can be started."""
        while self._batching.wants_workers():
            source, self.prepared = self.prepared or self._pool, None
            try:
                worker = source.start(self._launched, self.slot.place)
            except WorkerGone as gone:
                self._note_exit(gone)
                self._tell_died(gone, "it could not start")
                if not self._port.may_try_again(gone):
                    self._port.cannot_start(self.slot, gone)
                    return None
            except BaseException as error:  # noqa: BLE001 - after any error nothing may be lost
                log.exception("procbus itself failed to start a worker in %s", self.name)
                fault = WorkerGone(None, None, NO_WORDS, hopeless=True)
                fault.__cause__ = error
                self._port.cannot_start(self.slot, fault)
                return None
            else:
                self._port.note_start()
                self._worker_done, self._unwanted = 0, ""
                self.slot.settle_in(worker)
                if ears := self._listeners.worker_started:
                    now = monotonic()
                    took_s = now - self.slot.starting_since
                    started = WorkerStarted(self.name, worker.pid, now, took_s)
                    self._listeners.tell_worker(ears, started)
                return worker
            finally:
                self.slot.starting = None
        return None

    def _note_fork(self) -> None:
        self._forked = True

    def _check_here(self) -> None:
        """End this process if it is a child that user code forked in this thread."""
        if self._forked:
            forked_children.end_child(
                None, f"code of an event, a result or a callback on {self.name}"
            )

    def _launched(self, worker: Worker) -> None:
        self.slot.starting_since = monotonic()
        self.slot.starting = worker
        self.slot.launched.set()
        if not self._batching.wants_workers():  # a kill came before there was a process to kill
            worker.kill()

    def _feed(self, worker: Worker) -> str:
        """Keep one worker busy until the lane has no more work, or the worker must be replaced.

        Returns:
            The reason to replace the worker; empty if the lane has no more work.

        Raises:
            WorkerGone: the worker died.
        """
        recycling = self._recycling
        limited = recycling.limited
        # No variable here may keep a batch alive while there is no other.
        while True:
            if self._forked:  # settling runs callbacks
                self._check_here()
            if not self._in_flight:
                most = None
                if self._unwanted:
                    return self._unwanted
                if limited:
                    reason = recycling.reason_to_replace(self._worker_done, worker.probe)
                    if reason:
                        return reason
                    most = recycling.left(self._worker_done)
                if not self._give_next(worker, wait=True, most=most):
                    return ""
            elif self._may_take_ahead():
                self._give_next(worker, wait=False)
            if self._in_flight:
                if not self._in_flight[0].sent:
                    self._send_first(worker)
                self._hear(worker, self._in_flight[0])

    def _may_take_ahead(self) -> bool:
        # A second batch in flight keeps the worker busy; an unsent one is waiting already.
        in_flight = self._in_flight
        if (
            len(in_flight) == 1
            and in_flight[0].sent
            and not self.slot.recalled
            and not self._unwanted
            and self._queue.seems_ready()
            and not self._recycling.limited
        ):
            self._port.look_ahead()
            return True
        return False

    def _give_next(self, worker: Worker, *, wait: bool, most: int | None = None) -> bool:
        """Give the worker the next batch; False when there is none."""
        fit = self._fit if most is None or most > self._fit else most
        deliveries = self._batching.next_batch(wait=wait, most=fit)
        if deliveries:
            self.slot.preparing = deliveries
            try:
                self._give(worker, deliveries)
            finally:
                self.slot.preparing = ()
        return bool(deliveries)

    def _hear(self, worker: Worker, batch: Batch) -> None:
        """Wait for the next report on the first batch, and take it in."""
        patience_s = batch.patience_s()
        if self._listeners.started and self._told != (batch.number, batch.ended):
            report = worker.receive(min(STARTED_LOOK_S, inf if patience_s is None else patience_s))
            ended = report.successes.times or report.ends or report.complete or report.returned
            if not ended and monotonic() < batch.due_at:
                self._tell_running(worker, batch)
                return
        else:
            report = worker.receive(patience_s)
        if self._forked:  # reading it runs user code
            self._check_here()
        self._take_in(worker, batch, report)

    def _give(self, worker: Worker, deliveries: Sequence[Delivery]) -> None:
        message = self._prepare(worker, next(_batch_numbers), deliveries)
        while message.no_room and not self._in_flight and not self._queue.cancelled:
            # It is this batch's turn: if the batch were handed back, others might overtake it for
            # ever.
            first, *others = message.rest
            self._put_back(others)
            try:
                worker.wait_for_room(ROOM_S)
            except WorkerGone:
                self._put_back([first])
                raise
            message = self._prepare(worker, message.batch, [first])
        if not message.rest:
            self._fit = min(2 * self._fit, MORE_THAN_A_BATCH)
        elif not message.no_room:
            self._fit = len(message.deliveries) + len(message.deliveries) // 4 + 1
        try:
            batch = Batch(message)
            dropped = self._batching.hand_out(self.slot, worker, batch)
        except BaseException as error:
            self._fail([*message.deliveries, *message.rest], error)
            raise
        if dropped:
            self._port.cancel_all(dropped)
        if batch.deliveries and (len(self._in_flight) == 1 or worker.fits_ahead(message)):
            batch.sent = True
            worker.send(message)

    def _prepare(self, worker: Worker, number: int, deliveries: Sequence[Delivery]) -> Message:
        try:
            message = worker.prepare(number, deliveries)
            if self._forked:  # pickling events runs user code
                self._check_here()
        except BaseException as error:  # noqa: BLE001 - any error fails one delivery alone
            self._check_here()
            log.exception("procbus itself failed to encode a batch in %s", self.name)
            first, *others = deliveries
            if others:  # the fault is in one of them: each is encoded alone
                self._put_back(others)
                return self._prepare(worker, number, [first])
            self._port.settle([(first, _own_fault(error))])
            return Message(number)
        if message.failed:
            self._port.settle(message.failed)
        return message

    def _send_first(self, worker: Worker) -> None:
        """Send a batch that did not fit into the pipe behind another: its turn has come."""
        batch = self._in_flight[0]
        batch.sent = True
        worker.send(batch.message)

    def _take_in(self, worker: Worker, batch: Batch, report: Report) -> None:
        if batch.number != report.batch:
            raise ProcbusError(f"worker reports batch {report.batch}, {batch.number} is its first")
        times, values = report.successes
        if times:
            ended = self._ended(batch, len(times))
            if self._listeners.started:
                self._tell_started(batch, ended, [each[0] for each in times], worker.pid)
            self._port.settle_successes(ended, times, values, worker.pid)
            batch.settled = batch.ended
        if report.ends:
            self._settle(batch, report.ends)
        if report.returned:
            self._put_back(self._batching.returned(self.slot, report.returned))
        elif report.complete:
            if unwanted := self._batching.complete(self.slot):
                self._unwanted = too_grown_for(unwanted[0])
                self._put_back(unwanted)
        elif times or report.ends:
            batch.due_at = batch.due_from(monotonic())
        else:
            batch.due_at = inf  # the worker is in one handler throughout, and will send that result
            self._port.relieve(self.slot)

    def _settle(self, batch: Batch, ends: Sequence[Ended]) -> None:
        if not ends:
            return
        deliveries = self._ended(batch, len(ends))
        settled = [(d, outcome) for d, (outcome, _) in zip(deliveries, ends, strict=True)]
        if self._listeners.started:
            pid = next((outcome.worker_pid for outcome, _ in ends), None)
            self._tell_started(batch, deliveries, [o.started_at for o, _ in ends], pid)
        published = [(index, events) for index, (_, events) in enumerate(ends) if events]
        self._port.settle(settled, published)
        batch.settled = batch.ended

    def _ended(self, batch: Batch, count: int) -> list[Delivery]:
        """Note that the next deliveries of a batch have ended, and return them."""
        first = batch.ended
        batch.ended = first + count
        self.slot.events_done += count
        self._worker_done += count
        self._barren = 0
        if self._breaker.troubled:
            self._breaker.note_survival()
        return batch.deliveries[first : batch.ended]

    def _bury(self, gone: WorkerGone) -> str:
        """Account for every delivery of a dead worker; return why it was killed, if it was."""
        verdict, self.slot.verdict = self.slot.verdict, None
        why = "" if verdict is None else str(verdict.error_of(gone.last_words.progress))
        self._note_exit(gone, why and f"; killed because {why}")
        batches = self._batching.take_all(self.slot)
        try:
            self._account_for(batches, gone, verdict)
        except BaseException as error:  # noqa: BLE001 - after any error nothing may be lost
            self._check_here()
            log.exception("procbus itself failed in %s; its worker is replaced", self.name)
            for batch in batches:
                self._fail(batch.deliveries, error)
        return why

    def _account_for(
        self, batches: Sequence[Batch], gone: WorkerGone, verdict: Verdict | None
    ) -> None:
        words = gone.last_words
        if verdict is None and not gone.left:
            self._breaker.note_death(self._last_of(gone, batches))
        for batch in batches:
            if batch.number == words.batch:
                self._settle(batch, words.ends)
                if verdict is not None and verdict.is_for(batch.number, batch.ended):
                    self._end_first(batch, verdict.outcome(gone))
                elif words.ran_s is not None:
                    self._charge(batch, gone, words.ran_s)
        waiting = [batch for batch in batches if batch.open()]
        if waiting and words.ran_s is None and not gone.left:
            self._barren += 1
            if self._barren >= BARREN_DEATHS:
                # Workers die again and again before they begin anything. So the next delivery must
                # be the cause, for example while a worker reads it. It would kill workers for ever.
                self._charge(waiting[0], gone, 0.0)
        self._put_back([delivery for batch in waiting for delivery in batch.open()])

    @staticmethod
    def _last_of(gone: WorkerGone, batches: Sequence[Batch]) -> str:
        """Describe a dead worker's end and its delivery."""
        words = gone.last_words
        how = f"{gone.pid} ({describe_exit(gone.exit_code)})"
        for batch in batches:
            index = batch.ended + len(words.ends)
            if batch.number == words.batch and words.ran_s is not None:
                delivery = batch.deliveries[index]
                return f"{how} while it ran {delivery.handler.name} with event #{delivery.event_id}"
        return f"{how} between two deliveries"

    def _charge(self, batch: Batch, gone: WorkerGone, ran_s: float) -> None:
        delivery = batch.open()[0]
        self._end_first(batch, self._port.died(delivery, gone, ran_s, self.slot.seen_bytes))

    def _end_first(self, batch: Batch, outcome: Outcome) -> None:
        delivery = batch.open()[0]
        batch.ended += 1
        self._barren = 0
        if self._listeners.started:
            self._tell_started(batch, [delivery], [outcome.started_at], outcome.worker_pid)
        self._port.settle_dead(delivery, outcome)
        batch.settled = batch.ended

    def _put_back(self, deliveries: list[Delivery]) -> None:
        """Queue deliveries again, in front, that the worker had not begun."""
        self._port.cancel_all(self._batching.put_back(deliveries))

    def _give_up(self, error: BaseException) -> None:
        for batch in self._batching.take_all(self.slot):
            self._fail(batch.deliveries[batch.settled :], error)

    def _fail(self, deliveries: Sequence[Delivery], error: BaseException) -> None:
        """Settle the deliveries not settled yet, one by one, because procbus itself failed."""
        for delivery in deliveries:
            try:
                self._port.settle([(delivery, _own_fault(error))])
            except BaseException:  # noqa: BLE001 - the other deliveries must be settled too
                log.exception("procbus itself failed to settle event #%d", delivery.event_id)

    # Telling listeners.

    def _tell_running(self, worker: Worker, batch: Batch) -> None:
        """Tell listeners which handler the worker is in, if they do not know yet."""
        at = worker.running()
        if at is None or at[:2] != (batch.number, batch.ended) or at[2] > monotonic():
            return
        self._told = at[:2]
        delivery = batch.deliveries[batch.ended]
        if delivery.receipt is not None:
            self._listeners.tell_started(delivery, delivery.receipt, at[2], worker.pid)

    def _tell_started(
        self, batch: Batch, ended: Sequence[Delivery], starts: Sequence[float], pid: int | None
    ) -> None:
        """Tell listeners of starts that they do not know yet, before they are told of the ends.

        Args:
            batch: the batch, which counts the deliveries as ended.
            ended: the deliveries of the batch that ended last.
            starts: the start of each ended delivery; 0.0 for one that never began.
            pid: their process.
        """
        first = batch.ended - len(ended)
        for index, (delivery, at) in enumerate(zip(ended, starts, strict=True), first):
            receipt = delivery.receipt
            if receipt is not None and at and self._told != (batch.number, index):
                self._listeners.tell_started(delivery, receipt, at, pid)

    def _tell_died(self, gone: WorkerGone, why: str) -> None:
        reason = str(gone.__cause__ or "") or why or describe_exit(gone.exit_code)
        self._tell_ended(gone.pid, reason, died=True, exit_code=gone.exit_code)

    def _tell_ended(
        self, pid: int | None, reason: str, *, died: bool = False, exit_code: int | None = None
    ) -> None:
        if ears := self._listeners.worker_ended:
            ended = WorkerEnded(self.name, pid, monotonic(), died, reason, exit_code)
            self._listeners.tell_worker(ears, ended)

    def _note_exit(self, gone: WorkerGone, why: str = "") -> None:
        self.slot.restarts += 1
        self.slot.last_exit = f"{gone}{why}"
        log.debug("%s: %s", self.name, gone)


def _own_fault(error: BaseException) -> Outcome:
    fault = ProcbusError(f"procbus itself failed on this delivery: {short_repr(error)}")
    fault.__cause__ = error
    return Outcome(OutcomeKind.RAISED, error=fault)
