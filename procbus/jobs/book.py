# SPDX-License-Identifier: MIT
"""The book of the jobs of one bus: which delivery belongs to which job.

The book listens to the bus while a job is open. Without jobs it costs nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

from procbus.core.cancelling import CancelRequest
from procbus.core.context import HandlerContext, Run, running, running_context
from procbus.core.delivery import Delivery, DeliveryState, asked_of
from procbus.core.errors import BusClosed, ProcbusError
from procbus.core.listeners import Listeners, Listening
from procbus.core.locks import Lock
from procbus.core.log import log
from procbus.core.moments import Accepted, Settled
from procbus.core.outcome import OutcomeKind
from procbus.core.receipt import Receipt
from procbus.core.waiting import refuse_endless
from procbus.dispatch.cancellation import Cancellation
from procbus.dispatch.dispatcher import Dispatcher
from procbus.jobs.state import CANCELLED, JobDone, JobState
from procbus.jobs.tree import Leaf, Node

if TYPE_CHECKING:
    from procbus.journal.job_records import JobRecords

#: Number of events of a job that its tree shows.
SHOWN = 1_000

#: The jobs whose blocks the calling code is in, on any bus, the innermost first.
inside: ContextVar[tuple[JobState, ...]] = ContextVar("procbus_jobs", default=())

# Reasons for cancelling a delivery, as words of an error message.
FAILED = "its job {} had more than {} failed deliveries"
LEFT = "the block of its job {} was left by an exception"


class _Event:
    """An event of jobs that has open deliveries. Its handlers' events belong to the same jobs."""

    __slots__ = ("jobs", "node", "open")

    def __init__(self, jobs: tuple[JobState, ...], node: Node) -> None:
        self.jobs = jobs
        self.node = node
        self.open = 0


class JobBook:
    """Knows the owner of each open delivery of the jobs of one bus. Thread-safe.

    A job is over once its block is left, no delivery of it is open, and no job in it is open. With
    a journal it is done only if the journal keeps no delivery of it either, and if no exception
    left its block. There `JobDone` has an id, so that it is published only once, even if a run is
    cut short.

    The lock `_lock` guards the dicts, the counts of all jobs, and their trees and results.

    Args:
        listeners: of the bus.
        dispatcher: publishes `JobDone`.
        cancellation: takes deliveries back.
        takes: whether a handler takes events of a class.
        records: the jobs of the bus's journal; None without a journal.
    """

    def __init__(
        self,
        listeners: Listeners,
        dispatcher: Dispatcher,
        cancellation: Cancellation,
        takes: Callable[[type], bool],
        records: JobRecords | None = None,
    ) -> None:
        self._listeners = listeners
        self._dispatcher = dispatcher
        self._cancellation = cancellation
        self._takes = takes
        self._records = records
        self._lock = Lock()
        self._events: dict[int, _Event] = {}
        self._open: dict[Delivery, tuple[tuple[JobState, ...], Leaf | None]] = {}
        self._jobs = 0
        self._listening: Listening | None = None
        self._numbers = itertools.count(1)
        #: With a journal: the jobs that are not over, by id, and by number.
        self._known: dict[str, JobState] = {}
        self._numbered: dict[int, JobState] = {}

    def id_for(self, name: str, id: str | None) -> str:
        """The id of a job: the given id, or an id that no other job has, on this bus or another.

        With a journal the name is the id. In a handler the id also names the handler and its event.
        """
        if id is not None:
            return id
        if self._records is None:
            run: Run = self._dispatcher.run
            return f"{run.id}-{run.first_id}-{next(self._numbers)}"
        by = self._publisher()
        return name if by is None or not by.event_id else f"{name}@{by.handler}#{by.event_id}"

    # Jobs of a journal.

    def record(self) -> None:
        """Have the journal record the jobs of each event from now on. Idempotent."""
        if self._records is not None:
            self._records.own_by(self._numbers_of)
            self._records.fed = self._finish_left

    def restore(self) -> None:
        """Take up the jobs of earlier runs that are not done. Called once, before any event."""
        if self._records is None:
            return
        for row in self._records.open:
            job = JobState(self, row.name, row.id, None, 0)
            job.in_block = False
            job.restore(row)
            self._known[job.id] = self._numbered[job.number] = job
        for row in self._records.open:
            job = self._numbered[row.number]
            around = map(self._numbered.get, map(int, row.inside.split()))
            job.above = tuple(each for each in around if each is not None)
            if job.left and not job.told:
                self._count_in(job)
            if job.kept:
                self._list(job)
        self._listen()

    def _numbers_of(self, parent_id: int | None) -> Sequence[int]:
        """The numbers of the jobs that a new event belongs to."""
        return [job.number for job in self._owners(parent_id) if not job.over] if self._jobs else ()

    def _finish_left(self) -> None:
        """End the jobs of earlier runs that have no delivery left."""
        self._finish([job for job in list(self._known.values()) if not job.begun])

    def _take_up(self, records: JobRecords, job: JobState) -> JobState:
        """Find the job of this id, as earlier blocks left it, and give it to this block.

        Raises:
            ProcbusError: another block has the job.
        """
        while True:
            with self._lock:
                known = self._known.setdefault(job.id, job)
                if known is job:
                    break
                if not known.over:
                    if known.begun:
                        raise ProcbusError(
                            f"a block with the job id {job.id!r} is open: a journal knows a job by "
                            "its name, so give each its own id, with "
                            f"bus.job({job.name!r}, id=...)"
                        )
                    known.take_options_of(job)
                    known.begun = known.in_block = True
                    return known
            known.waiters.wait(partial(getattr, known, "ended"), None, "make the job in a thread")
        job.begun = True
        if (recorded := records.find(job.id)) is not None:
            job.restore(recorded)
        return job

    def _enter(self, records: JobRecords, job: JobState, above: Sequence[JobState]) -> JobState:
        """Write to the journal that a block is entered."""
        job = self._take_up(records, job)
        numbers = [each.number for each in above]
        try:
            job.number = records.enter(job.number, numbers, job.id, job.name)
        except BaseException:
            with self._lock:
                job.begun = job.in_block = False
                if not job.listed:
                    self._known.pop(job.id, None)
            raise
        job.left = False
        self._numbered[job.number] = job
        if job.cancelled_for_good:
            records.cancel(job.number)  # anew, for a call before the block
            log.warning(
                "the job %r was cancelled with the id %r, and stays cancelled: so is all that this "
                "block publishes. To begin anew, give the job another id, with bus.job(..., id=)",
                job.name,
                job.id,
            )
        return job

    # The blocks.

    def begin(self, job: JobState) -> JobState:
        """Count a job in. It belongs to the same jobs as the calling code.

        Returns:
            The state of the job. With a journal it may be the state of an earlier run.
        """
        above = tuple(each for each in self._owners(None) if not each.over)
        if self._records is not None:
            job = self._enter(self._records, job, above)
        with self._lock:
            job.begun = True
            self._count_out(job)
            job.above = tuple(each for each in above if not each.over)
            self._count_in(job)
            self._list(job)
        self._listen()
        return job

    def resume(self) -> None:
        """Feed the unfinished deliveries of earlier runs: a job may have some of them."""
        if self._records is not None:
            self._dispatcher.resume()

    def _count_in(self, job: JobState) -> None:
        job.counted = True
        for each in job.above:
            each.inner += 1

    def _count_out(self, job: JobState) -> None:
        if job.counted:
            job.counted = False
            for each in job.above:
                each.inner -= 1

    def _list(self, job: JobState) -> None:
        self._jobs += not job.listed
        job.listed = True

    def _listen(self) -> None:
        """Listen to the bus while a job is open."""
        with self._lock:
            if not self._jobs or self._listening is not None:
                return
        listening = self._listeners.add(self)
        with self._lock:
            unwanted, self._listening = self._listening, listening
        if unwanted is not None:
            unwanted.stop()

    def leave(self, job: JobState, *, cut_short: bool) -> None:
        """Note that the block of a job is left, perhaps by an exception."""
        if self._records is not None and not cut_short:
            self._records.leave(job.number)
        with self._lock:
            job.left = not cut_short
            job.cut_short = cut_short
            job.in_block = False
        self._finish((job,))

    def cancel_for_good(self, job: JobState) -> int:
        """Cancel a job, with a journal in later runs too; return how many deliveries were open."""
        with self._lock:
            if job.over:
                return 0
            job.cancel_for_good()
        if self._records is not None and job.number:
            self._records.cancel(job.number)
        return self.cancel(job, CANCELLED.format(job.name), waiting_only=False, for_good=True)

    def cancel(self, job: JobState, why: str, *, waiting_only: bool, for_good: bool) -> int:
        """Cancel the open deliveries of a job, and all that it publishes from now on.

        Args:
            job: the job.
            why: the reason, as words of an error message.
            waiting_only: whether running handlers go on.
            for_good: whether a journal drops the deliveries.

        Returns:
            The number of deliveries that were open.
        """
        request = CancelRequest(monotonic(), why, for_good)
        with self._lock:
            if job.over:
                return 0
            job.cancelled_by = job.cancelled_by or request
            found = [each for each, (jobs, _) in self._open.items() if job in jobs]
        if waiting_only:
            mine = [each for each in found if each.subscription.cancel is not None]
            self._cancellation.cancel_waiting(mine, request)
        else:
            for each in found:
                each.ask_to_cancel(request)
        return len(found)

    def take_results(self, job: JobState, handler: str) -> tuple[Sequence[Any], bool]:
        """Take the results of a handler so far, and tell whether more may come."""
        with self._lock:
            more = not job.idle
            return job.results.pop(handler, ()), more

    def nodes(self, job: JobState) -> tuple[dict[int, Node], int]:
        """The first events of a job, and the number of further events."""
        with self._lock:
            return dict(job.nodes), job.unshown

    def check_wait(self, job: JobState) -> None:
        """Refuse the wait of a handler for a job that it belongs to, or that waits for the handler.

        Raises:
            ProcbusError: the handler would wait for itself.
        """
        by = self._publisher()
        if by is not None and job in self._jobs_of(by.event_ids):
            raise ProcbusError(
                f"{by.handler} waits in event #{by.event_id} for the job {job.name!r}, which "
                "cannot end before this handler has: subscribe a handler to JobDone in its place"
            )
        refuse_endless(partial(self._open_receipts, job))

    def _open_receipts(self, job: JobState) -> list[Receipt]:
        """The receipts of the open deliveries of a job, each once."""
        with self._lock:
            mine = [delivery for delivery, (jobs, _) in self._open.items() if job in jobs]
        found = {each.id: each for delivery in mine if (each := delivery.receipt) is not None}
        return list(found.values())

    # The moments.

    def accepted(self, moment: Accepted) -> None:
        """Add a delivery to the jobs of its publisher."""
        delivery, receipt = moment.delivery, moment.receipt
        resumed = None if self._records is None else self._records.resumed.pop(delivery, None)
        if resumed is None:
            owners = self._owners(receipt.parent_id)
        else:
            owners = tuple(self._numbered[each] for each in resumed if each in self._numbered)
        if not owners:
            return
        by = self._publisher()
        request = None
        with self._lock:
            jobs = tuple(job for job in owners if not job.over)
            if not jobs or delivery in self._open:
                return
            event = self._events.get(receipt.id)
            if event is None:
                node = Node(receipt, "" if by is None else by.handler)
                event = self._events[receipt.id] = _Event(jobs, node)
            leaf = None
            event.open += 1
            for job in jobs:
                job.open += 1
                job.kept -= resumed is not None
                if receipt.id not in job.nodes:
                    if len(job.nodes) >= SHOWN:
                        job.unshown += receipt.id != job.last_unshown
                        job.last_unshown = receipt.id
                        continue
                    # An event that had no open delivery for a moment is in the tree already.
                    job.nodes[receipt.id] = event.node
                if leaf is None:
                    leaf = Leaf(delivery)
                    job.nodes[receipt.id].leaves.append(leaf)
            self._open[delivery] = jobs, leaf
            for job in jobs:
                request = request or job.cancelled_by
        if request is not None:
            delivery.ask_to_cancel(request)

    def settled(self, moment: Settled) -> None:
        """Count the end of a delivery, and finish the jobs whose last delivery it was."""
        delivery, receipt = moment.delivery, moment.receipt
        self._adopt_broken(moment)
        state = delivery.state
        request = asked_of(delivery)
        for_good = delivery.subscription.answered or (request is not None and request.for_good)
        too_many: list[JobState] = []
        with self._lock:
            jobs, leaf = self._open.pop(delivery, ((), None))
            if not jobs:
                return
            event = self._events[receipt.id]
            event.open -= 1
            if not event.open:
                del self._events[receipt.id]
            if leaf is not None:
                leaf.end()
            for job in jobs:
                job.open -= 1
                if state is DeliveryState.SUCCEEDED:
                    job.succeeded += 1
                    job.keep(delivery.handler.name, delivery.value)
                elif state is DeliveryState.FAILED:
                    job.failed += 1
                    job.error = job.error or moment.outcome.error
                    most = job.max_failed
                    if most is not None and job.failed_here > most and not job.too_many:
                        job.too_many = True
                        too_many.append(job)
                elif for_good or not job.number:
                    job.cancelled += 1
                else:  # the journal keeps it for the next run
                    job.kept += 1
        for job in too_many:
            why = FAILED.format(job.name, job.max_failed)
            self.cancel(job, why, waiting_only=False, for_good=True)
        self._finish(jobs)

    def _adopt_broken(self, moment: Settled) -> None:
        """Count in a delivery that failed at its publishing, because `where` raised."""
        delivery, outcome = moment.delivery, moment.outcome
        failed = outcome.kind not in (OutcomeKind.SUCCEEDED, OutcomeKind.CANCELLED)
        if failed and not outcome.started_at and not getattr(delivery, "queued", False):
            self.accepted(Accepted(delivery, moment.receipt, delivery.queued_at))

    # Owners and ends.

    def _publisher(self) -> HandlerContext | None:
        """The handler of this bus that the calling code belongs to."""
        by = running_context()
        return by if by is not None and by.owner is self._dispatcher else None

    def _owners(self, parent_id: int | None) -> tuple[JobState, ...]:
        """The jobs of the calling code, the inner ones first."""
        found: dict[JobState, None] = {}
        for job in inside.get():
            if job.book is self:
                found.update(dict.fromkeys((job, *job.above)))
        by = self._publisher()
        ids = () if by is None else by.event_ids
        found.update(dict.fromkeys(self._jobs_of((*ids, parent_id or 0))))
        return tuple(found)

    def _jobs_of(self, event_ids: Iterable[int]) -> list[JobState]:
        # Without the lock: code that interrupts procbus publishes too, and each step is atomic.
        events = [self._events.get(id) for id in event_ids]
        return [job for event in events if event is not None for job in event.jobs]

    def _finish(self, jobs: Iterable[JobState]) -> None:
        """Wake the waiters of these jobs, and end the jobs that are over, the inner ones first."""
        for job in jobs:
            taken = job.begun or self._takes(JobDone)
            with self._lock:
                ends = job.idle and not job.in_block and not job.over
                if ends and not job.begun:  # no block of this run: it may have to wait for one
                    ends = taken and job.left and not job.kept and not job.told
                if ends:
                    job.over = True
            if ends:
                try:
                    self._tell(job)
                finally:
                    self._end(job)
            job.waiters.wake()

    def _end(self, job: JobState) -> None:
        """Let go of a job that is over, and look whether the jobs around it are over now."""
        if self._records is not None:
            self._records.let_go(job.row())
        with self._lock:
            job.ended = True
            job.told = job.told or not job.number
            self._count_out(job)
            self._jobs -= job.listed
            job.listed = False
            self._known.pop(job.id, None)
            self._numbered.pop(job.number, None)
            listening = None
            if not self._jobs:
                listening, self._listening = self._listening, None
        if listening is not None:
            listening.stop()
        job.waiters.wake()
        self._finish(job.above)

    def _tell(self, job: JobState) -> None:
        """Publish `JobDone`. It belongs to the jobs around the job, and never waits for room."""
        if job.told and job.total > job.earlier:
            log.warning(
                "the job %r was done before with the id %r, and has %d new deliveries now: JobDone "
                "is not published again. Give each job its own id, with bus.job(..., id=)",
                job.name,
                job.id,
                job.total - job.earlier,
            )
        if job.told or job.kept or (job.cut_short and job.number):
            return
        done = job.summary()
        before = running.set(self._dispatcher.seat_of(None, None))
        jobs_before = inside.set(job.above)
        try:
            if self._takes(type(done)):
                if job.number:
                    self._dispatcher.publish_once(done, None, f"job:{job.id}")
                else:
                    self._dispatcher.publish(done, None)
            job.told = True
            if self._records is not None:
                self._records.done(job.number)
        except BusClosed:
            log.info("the bus was closed before the job %r was done", job.name)
        except ProcbusError:
            log.exception("JobDone of the job %r could not be published", job.name)
        finally:
            inside.reset(jobs_before)
            running.reset(before)
