# SPDX-License-Identifier: MIT
"""A companion: the thread in the parent that feeds one worker.

Straight-line blocking code: take a batch, send it, receive what became of it, settle, next. To
keep the worker busy it sends the next batch before the last is through, where that surely cannot
block. A stuck worker blocks its companion, and nobody else.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Sequence
from math import inf
from time import monotonic
from typing import TYPE_CHECKING

from procbus.core.delivery import Delivery
from procbus.core.errors import ProcbusError
from procbus.core.log import log
from procbus.core.outcome import Outcome, OutcomeKind
from procbus.core.user_objects import shown
from procbus.lanes.attempt import Verdict
from procbus.lanes.lane_thread import LaneThread
from procbus.lanes.recycling import too_grown_for
from procbus.pool.interface import NO_WORDS, Ended, Message, Report, Worker, WorkerGone
from procbus.pool.outcomes import describe_exit
from procbus.supervision.stall import Progress
from procbus.system import forked_children
from procbus.system.footprint import FootprintMeter

if TYPE_CHECKING:
    from procbus.lanes.cpu import CpuLane
    from procbus.system.process import Probe, Sample

#: After so many deaths in a row before a worker began what it had been given, the next is charged.
BARREN_DEATHS = 3

#: How long a companion waits for room in shared memory before it asks again, in seconds.
ROOM_S = 0.1

#: A batch is overdue after twice the time that it should take, and so many seconds.
GRACE_S = 0.010
#: Bytes that surely get to a worker, and into its memory, in a second.
TRANSFER_BYTES_S = 50e6

_batch_numbers = itertools.count(1)


class Batch:
    """Deliveries that a worker was given together."""

    __slots__ = (
        "deliveries",
        "due_at",
        "ended",
        "expected_s",
        "message",
        "number",
        "sent",
        "settled",
    )

    def __init__(self, number: int, message: Message, expected_s: float) -> None:
        self.number = number
        self.message = message
        #: Those that are this worker's. Guarded by the lane's lock: others take from the end.
        self.deliveries = list(message.deliveries)
        #: How many of them have ended, and how many of those are settled. Written by the companion.
        self.ended = 0
        self.settled = 0
        self.expected_s = expected_s
        #: When the worker should be through with it, once it is the worker's first.
        self.due_at = inf
        self.sent = False

    def patience_s(self) -> float | None:
        """How long to wait for a report before looking what is finished; None: as it takes.

        The worker sends nothing while it is in a handler. What it finished before should not wait
        for one that takes long.
        """
        if self.due_at == inf or len(self.deliveries) - self.ended < 2:
            return None
        return max(0.0, self.due_at - monotonic())

    def open(self) -> list[Delivery]:
        """Those that have not ended."""
        return self.deliveries[self.ended :]


class Companion(LaneThread):
    """Feeds one worker, and replaces it when it dies, until the lane is through.

    `in_flight`, `due_at` and `recalled` are guarded by the lane's lock. The other public fields
    are written by this thread alone and may be read by any.
    """

    def __init__(self, lane: CpuLane, number: int) -> None:
        super().__init__(f"procbus-companion-{number}")
        self._lane = lane
        #: The worker, once it is ready; and one that is not yet, and when it was launched.
        self.worker: Worker | None = None
        self.starting: Worker | None = None
        self.starting_since = 0.0
        self.in_flight: deque[Batch] = deque()
        #: When the first batch in flight should be through, in seconds of `time.monotonic()`:
        #: past that, others may take back what is not begun.
        self.due_at = inf
        #: Something was taken back and the worker has not said so yet: it gets nothing new, lest
        #: it uses the tokens of that for what was taken back.
        self.recalled = False
        self.events_done = 0
        self.restarts = 0
        self.last_exit = ""
        #: Set once the first worker was launched, or could not be.
        self.launched = threading.Event()
        self.started_at = monotonic()
        #: What the supervisor keeps here: how the worker gets on, its last sample, its memory, and
        #: why it is being killed. The verdict is given with the worker halted, before the kill;
        #: this thread reads it after that.
        self.progress = Progress()
        self.last_sample: Sample | None = None
        self.footprint = FootprintMeter()
        self.verdict: Verdict | None = None
        #: Deliveries that the present worker has finished, and why it wants no more.
        self._worker_done = 0
        self._unwanted = ""
        self._barren = 0
        #: Whether this is a copy of the thread, in a child that user code forked.
        self._forked = False

    @property
    def probe(self) -> Probe | None:
        """The process of the present worker, to be looked at."""
        worker = self.worker
        return None if worker is None else worker.probe

    def run(self) -> None:
        """Thread body."""
        forked_children.watch(self._note_fork)
        try:
            while (worker := self._start()) is not None:
                try:
                    worn_out = self._feed(worker)
                except WorkerGone as gone:
                    self.worker = None
                    try:
                        self._bury(gone)
                    finally:
                        worker.stop()  # it takes loky 0.1 s, and the outcome does not wait for that
                except BaseException as error:  # noqa: BLE001 - whatever it is, nothing is lost
                    self._check_here()
                    log.exception("procbus itself failed in %s; its worker is replaced", self.name)
                    self.worker = None
                    self._give_up(error)
                    worker.kill()
                    worker.stop()
                else:
                    self.worker = None
                    worker.stop()
                    if not worn_out:
                        return
                    self.restarts += 1
                    self.last_exit = f"replaced after {worn_out}"
                    log.info("worker %s replaced after %s", worker.pid, worn_out)
        finally:
            self.launched.set()
            self._lane.leave(self)

    def _start(self) -> Worker | None:
        """Start a worker; None when the lane wants none any more, or none can be started."""
        while self._lane.wants_workers():
            try:
                worker = self._lane.pool.start(self._launched)
            except WorkerGone as gone:
                self._note_exit(gone)
                if not self._lane.may_try_again(gone):
                    self._lane.cannot_start(self, gone)
                    return None
            except BaseException as error:  # noqa: BLE001 - whatever it is, nothing is lost
                log.exception("procbus itself failed to start a worker in %s", self.name)
                fault = WorkerGone(None, None, NO_WORDS, hopeless=True)
                fault.__cause__ = error
                self._lane.cannot_start(self, fault)
                return None
            else:
                self._lane.note_start()
                self._worker_done, self._unwanted = 0, ""
                self.last_sample = self.verdict = None
                self.progress = Progress()
                self.footprint = FootprintMeter()
                self.worker = worker
                return worker
            finally:
                self.starting = None
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
        self.starting_since = monotonic()
        self.starting = worker
        self.launched.set()
        if not self._lane.wants_workers():  # it was killed before there was anything to kill
            worker.kill()

    def _feed(self, worker: Worker) -> str:
        """Keep one worker busy until the lane has no more work, or the worker is worn out.

        Returns:
            What wore the worker out; empty when the lane has no more work.

        Raises:
            WorkerGone: the worker died.
        """
        wear = self._lane.wear
        limited = wear.limited
        # Nothing here may keep a batch alive while there is no other.
        while True:
            if self._forked:  # what settles runs callbacks
                self._check_here()
            if not self.in_flight:
                most = None
                if self._unwanted:
                    return self._unwanted
                if limited:
                    if worn_out := wear.worn_out(self._worker_done, worker.probe):
                        return worn_out
                    most = wear.left(self._worker_done)
                if not self._give_next(worker, wait=True, most=most):
                    return ""
            elif self._may_take_ahead():
                self._give_next(worker, wait=False)
            if self.in_flight:
                if not self.in_flight[0].sent:
                    self._send_first(worker)
                self._hear(worker, self.in_flight[0])

    def _may_take_ahead(self) -> bool:
        # A second batch in flight keeps the worker busy; an unsent one is waiting already.
        in_flight = self.in_flight
        if (
            len(in_flight) == 1
            and in_flight[0].sent
            and not self.recalled
            and not self._unwanted
            and self._lane.queue.seems_ready()
            and not self._lane.wear.limited
        ):
            self._lane.look_ahead()
            return True
        return False

    def _give_next(self, worker: Worker, *, wait: bool, most: int | None = None) -> bool:
        """Give the worker the next batch; False when there is none."""
        deliveries = self._lane.sharing.next_batch(wait=wait, most=most)
        if deliveries:
            self._give(worker, deliveries)
        return bool(deliveries)

    def _hear(self, worker: Worker, batch: Batch) -> None:
        """Wait for the next report of the first batch, and take it in."""
        report = worker.receive(batch.patience_s())
        if self._forked:  # to read it runs user code
            self._check_here()
        self._take_in(worker, batch, report)

    def _give(self, worker: Worker, deliveries: Sequence[Delivery]) -> None:
        message = self._prepare(worker, next(_batch_numbers), deliveries)
        while message.no_room and not self.in_flight and not self._lane.queue.cancelled:
            # It is this one's turn: handed back, it might be passed over for ever.
            first, *others = message.rest
            self._lane.put_back(others)
            try:
                worker.wait_for_room(ROOM_S)
            except WorkerGone:
                self._lane.put_back([first])
                raise
            message = self._prepare(worker, message.batch, [first])
        try:
            batch = Batch(message.batch, message, self._lane.expected_s(message.deliveries))
            dropped = self._lane.sharing.hand_out(self, worker, batch)
        except BaseException as error:
            self._fail([*message.deliveries, *message.rest], error)
            raise
        if dropped:
            self._lane.cancel_all(dropped)
        if batch.deliveries and (len(self.in_flight) == 1 or worker.fits_ahead(message)):
            batch.sent = True
            worker.send(message)

    def _prepare(self, worker: Worker, number: int, deliveries: Sequence[Delivery]) -> Message:
        try:
            message = worker.prepare(number, deliveries)
            if self._forked:  # to pickle events runs user code
                self._check_here()
        except BaseException as error:  # noqa: BLE001 - whatever it is, it fails one delivery alone
            self._check_here()
            log.exception("procbus itself failed to encode a batch in %s", self.name)
            first, *others = deliveries
            if others:  # the fault is in one of them: each goes alone
                self._lane.put_back(others)
                return self._prepare(worker, number, [first])
            self._lane.settle([(first, _own_fault(error))])
            return Message(number)
        if message.failed:
            self._lane.settle(message.failed)
        return message

    def _send_first(self, worker: Worker) -> None:
        """Send the batch that did not fit into the pipe behind another, now that it is next."""
        batch = self.in_flight[0]
        batch.sent = True
        worker.send(batch.message)

    def _take_in(self, worker: Worker, batch: Batch, report: Report) -> None:
        if batch.number != report.batch:
            raise ProcbusError(f"worker reports batch {report.batch}, {batch.number} is its first")
        times, values = report.successes
        if times:
            ended = self._ended(batch, len(times))
            self._lane.settle_successes(ended, times, values, worker.pid)
            batch.settled = batch.ended
        if report.ends:
            self._settle(batch, report.ends)
        if report.returned:
            self._lane.put_back(self._lane.sharing.returned(self, report.returned))
        elif report.complete:
            if unwanted := self._lane.sharing.complete(self):
                self._unwanted = too_grown_for(unwanted[0])
                self._lane.put_back(unwanted)
        elif times or report.ends:
            batch.due_at = due_at(batch)
        else:
            batch.due_at = inf  # it is in one handler all the time, and will send its result
            self._lane.relieve(self)

    def _settle(self, batch: Batch, ends: Sequence[Ended]) -> None:
        if not ends:
            return
        deliveries = self._ended(batch, len(ends))
        settled = [(d, outcome) for d, (outcome, _) in zip(deliveries, ends, strict=True)]
        published = [(index, events) for index, (_, events) in enumerate(ends) if events]
        self._lane.settle(settled, published)
        batch.settled = batch.ended

    def _ended(self, batch: Batch, count: int) -> list[Delivery]:
        """Take note that the next deliveries of a batch have ended, and give them."""
        first = batch.ended
        batch.ended = first + count
        self.events_done += count
        self._worker_done += count
        self._barren = 0
        self._lane.breaker.note_survival()
        return batch.deliveries[first : batch.ended]

    def _bury(self, gone: WorkerGone) -> None:
        """Account for every delivery that a dead worker had."""
        verdict, self.verdict = self.verdict, None
        self._note_exit(gone, "" if verdict is None else f"; killed because {verdict.error}")
        batches = self._lane.sharing.take_all(self)
        try:
            self._account_for(batches, gone, verdict)
        except BaseException as error:  # noqa: BLE001 - whatever it is, nothing is lost
            self._check_here()
            log.exception("procbus itself failed in %s; its worker is replaced", self.name)
            for batch in batches:
                self._fail(batch.deliveries, error)

    def _account_for(
        self, batches: Sequence[Batch], gone: WorkerGone, verdict: Verdict | None
    ) -> None:
        words = gone.last_words
        if verdict is None and not gone.left:
            self._lane.breaker.note_death(self._last_of(gone, batches))
        for batch in batches:
            if batch.number == words.batch:
                self._settle(batch, words.ends)
                if verdict is not None and verdict.is_for(batch.number, batch.ended):
                    self._end_first(batch, verdict.outcome(gone.pid))
                elif words.ran_s is not None:
                    self._charge(batch, gone, words.ran_s)
        waiting = [batch for batch in batches if batch.open()]
        if waiting and words.ran_s is None and not gone.left:
            self._barren += 1
            if self._barren >= BARREN_DEATHS:
                # It dies again and again before it begins anything, so it must be the next one
                # (reading it, say), which would otherwise kill workers for ever.
                self._charge(waiting[0], gone, 0.0)
        self._lane.put_back([delivery for batch in waiting for delivery in batch.open()])

    @staticmethod
    def _last_of(gone: WorkerGone, batches: Sequence[Batch]) -> str:
        """What a dead worker was at, in words."""
        words = gone.last_words
        how = f"{gone.pid} ({describe_exit(gone.exit_code)})"
        for batch in batches:
            index = batch.ended + len(words.ends)
            if batch.number == words.batch and words.ran_s is not None:
                delivery = batch.deliveries[index]
                return f"{how} while it ran {delivery.handler.name} with event {delivery.event_id}"
        return f"{how} between two deliveries"

    def _charge(self, batch: Batch, gone: WorkerGone, ran_s: float) -> None:
        sample = self.last_sample
        self._end_first(
            batch, self._lane.died(batch.open()[0], gone, ran_s, sample.rss if sample else 0)
        )

    def _end_first(self, batch: Batch, outcome: Outcome) -> None:
        delivery = batch.open()[0]
        batch.ended += 1
        self._barren = 0
        self._lane.settle_dead(delivery, outcome)
        batch.settled = batch.ended

    def _give_up(self, error: BaseException) -> None:
        for batch in self._lane.sharing.take_all(self):
            self._fail(batch.deliveries[batch.settled :], error)

    def _fail(self, deliveries: Sequence[Delivery], error: BaseException) -> None:
        """Settle those deliveries that are not settled, one by one, since procbus itself failed."""
        for delivery in deliveries:
            try:
                self._lane.settle([(delivery, _own_fault(error))])
            except BaseException:  # noqa: BLE001 - the others must not suffer for it
                log.exception("procbus itself failed to settle event %d", delivery.event_id)

    def _note_exit(self, gone: WorkerGone, why: str = "") -> None:
        self.restarts += 1
        self.last_exit = f"{gone}{why}"
        log.debug("%s: %s", self.name, gone)


def due_at(batch: Batch) -> float:
    """When a worker should be through with a batch that it has from now on."""
    transfer_s = len(batch.message.data) / TRANSFER_BYTES_S
    return monotonic() + 2 * batch.expected_s + transfer_s + GRACE_S


def _own_fault(error: BaseException) -> Outcome:
    fault = ProcbusError(f"procbus itself failed on this delivery: {shown(error)}")
    fault.__cause__ = error
    return Outcome(OutcomeKind.RAISED, error=fault)
