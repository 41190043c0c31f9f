# SPDX-License-Identifier: MIT
"""The book of the jobs of one bus: which delivery belongs to which job.

It listens to the bus while a job is open. Without jobs it costs nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from time import monotonic
from typing import Any

from procbus.core.cancelling import CancelRequest
from procbus.core.context import HandlerContext, Run, running, running_context
from procbus.core.delivery import Delivery, DeliveryState
from procbus.core.errors import BusClosed, ProcbusError
from procbus.core.listeners import Listeners, Listening
from procbus.core.locks import Lock
from procbus.core.log import log
from procbus.core.moments import Accepted, Settled
from procbus.core.outcome import OutcomeKind
from procbus.dispatch.cancellation import Cancellation
from procbus.dispatch.dispatcher import Dispatcher
from procbus.jobs.state import JobState
from procbus.jobs.tree import Leaf, Node

#: Number of events of a job that its tree shows.
SHOWN = 1_000

#: The jobs whose blocks the calling code is in, on any bus, the innermost first.
inside: ContextVar[tuple[JobState, ...]] = ContextVar("procbus_jobs", default=())

# Reasons for cancelling a delivery, as words of an error message.
CANCELLED = "its job {} was cancelled"
FAILED = "its job {} had more than {} failed deliveries"
LEFT = "the block of its job {} was left by an exception"


class _Event:
    """An event of jobs that has open deliveries: its handlers' events belong to its jobs."""

    __slots__ = ("jobs", "node", "open")

    def __init__(self, jobs: tuple[JobState, ...], node: Node) -> None:
        self.jobs = jobs
        self.node = node
        self.open = 0


class JobBook:
    """Knows the owner of each open delivery of the jobs of one bus. Thread-safe.

    A job is over once its block is left, no delivery of it is open, and no job in it is open.

    The lock `_lock` guards the dicts, the counts of all jobs, and their trees and results.

    Args:
        listeners: of the bus.
        dispatcher: publishes `JobDone`.
        cancellation: takes deliveries back.
        takes: whether a handler takes events of a class.
    """

    def __init__(
        self,
        listeners: Listeners,
        dispatcher: Dispatcher,
        cancellation: Cancellation,
        takes: Callable[[type], bool],
    ) -> None:
        self._listeners = listeners
        self._dispatcher = dispatcher
        self._cancellation = cancellation
        self._takes = takes
        self._lock = Lock()
        self._events: dict[int, _Event] = {}
        self._open: dict[Delivery, tuple[tuple[JobState, ...], Leaf | None]] = {}
        self._jobs = 0
        self._listening: Listening | None = None
        self._numbers = itertools.count(1)

    def next_id(self) -> str:
        """Make an id that no other job has, on this bus or another."""
        run: Run = self._dispatcher.run
        return f"{run.id}-{run.first_id}-{next(self._numbers)}"

    # The blocks.

    def begin(self, job: JobState) -> None:
        """Count a job in; it belongs to the jobs that the calling code belongs to."""
        above = self._owners(None)
        with self._lock:
            above = tuple(each for each in above if not each.over)
            job.above = above
            for each in above:
                each.inner += 1
            self._jobs += 1
            first = self._jobs == 1
        if first:
            listening = self._listeners.add(self)
            with self._lock:
                unwanted, self._listening = self._listening, listening
            if unwanted is not None:
                unwanted.stop()

    def leave(self, job: JobState) -> None:
        """Note that the block of a job is left."""
        with self._lock:
            job.in_block = False
        self._finish((job,))

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
        """Take the results of a handler that have come; and tell whether more may come."""
        with self._lock:
            more = not job.idle
            return job.results.pop(handler, ()), more

    def nodes(self, job: JobState) -> tuple[dict[int, Node], int]:
        """The first events of a job, and the number of further ones."""
        with self._lock:
            return dict(job.nodes), job.unshown

    def check_wait(self, job: JobState) -> None:
        """Refuse the wait of a handler for a job that it belongs to.

        Raises:
            ProcbusError: it would wait for itself.
        """
        by = self._publisher()
        if by is not None and job in self._jobs_of(by.event_ids):
            raise ProcbusError(
                f"{by.handler} waits in event #{by.event_id} for the job {job.name!r}, which "
                "cannot end before this handler has: subscribe a handler to JobDone in its place"
            )

    # The moments.

    def accepted(self, moment: Accepted) -> None:
        """Let a delivery belong to the jobs of its publisher."""
        delivery, receipt = moment.delivery, moment.receipt
        owners = self._owners(receipt.parent_id)
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
        """Count the end of a delivery, and finish the jobs that it was the last one of."""
        delivery, receipt = moment.delivery, moment.receipt
        self._adopt_broken(moment)
        state = delivery.state
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
                    if most is not None and job.failed > most and not job.too_many:
                        job.too_many = True
                        too_many.append(job)
                else:
                    job.cancelled += 1
        for job in too_many:
            why = FAILED.format(job.name, job.max_failed)
            self.cancel(job, why, waiting_only=False, for_good=True)
        self._finish(jobs)

    def _adopt_broken(self, moment: Settled) -> None:
        """Count in a delivery that failed at its publishing, as `where` raised: it has no start."""
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
        with self._lock:
            events = [self._events.get(id) for id in event_ids]
            return [job for event in events if event is not None for job in event.jobs]

    def _finish(self, jobs: Iterable[JobState]) -> None:
        """Wake who waits for these jobs, and end the ones that are over; inner ones first."""
        for job in jobs:
            with self._lock:
                ends = job.idle and not job.in_block and not job.over
                if ends:
                    job.over = True
            if ends:
                try:
                    self._tell(job)
                finally:
                    self._end(job)
            job.waiters.wake()

    def _end(self, job: JobState) -> None:
        """Let go of a job that is over: the ones around it may be over now."""
        with self._lock:
            job.told = True
            for each in job.above:
                each.inner -= 1
            self._jobs -= 1
            listening = None
            if not self._jobs:
                listening, self._listening = self._listening, None
        if listening is not None:
            listening.stop()
        self._finish(job.above)

    def _tell(self, job: JobState) -> None:
        """Publish `JobDone`: it belongs to the jobs around, and never waits for room."""
        done = job.summary()
        before = running.set(self._dispatcher.seat_of(None, None))
        jobs_before = inside.set(job.above)
        try:
            if self._takes(type(done)):
                self._dispatcher.publish(done, None)
        except BusClosed:
            log.info("the bus was closed before the job %r was done", job.name)
        except ProcbusError:
            log.exception("JobDone of the job %r could not be published", job.name)
        finally:
            inside.reset(jobs_before)
            running.reset(before)
