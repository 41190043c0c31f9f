# SPDX-License-Identifier: MIT
"""The state of a job, and the event that tells its end."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any

from procbus.core.cancelling import CancelRequest
from procbus.jobs.tree import Node
from procbus.jobs.waiting import Waiters

if TYPE_CHECKING:
    from procbus.journal.job_records import JobRow


#: The reason for cancelling the deliveries of a cancelled job, as words of an error message.
CANCELLED = "its job {} was cancelled"


@dataclass(frozen=True, slots=True)
class JobDone:
    """The event that a bus publishes once a job is done: all its deliveries are settled.

    Example:
        ```python
        from procbus import EventBus, JobDone

        bus = EventBus(handlers=[])


        @bus.subscribe
        def finish(done: JobDone) -> None:
            print(done.name, done.succeeded, done.failed)


        with bus:
            bus.subscribe("word", len)
            with bus.job("count words"):
                bus.publish("word", "hello")
        ```

    Attributes:
        name: name of the job.
        id: an id that no other job has; with a journal the id of `EventBus.job`.
        succeeded: number of deliveries that succeeded.
        failed: number of deliveries that failed.
        cancelled: number of deliveries that were cancelled.
    """

    name: str
    id: str
    succeeded: int
    failed: int
    cancelled: int


class JobState:
    """The state of one job. The lock of its book guards all fields but the first ones."""

    def __init__(
        self, book: object, name: str, id: str, max_failed: int | None, keep_results: int
    ) -> None:
        self.book = book
        self.name = name
        self.id = id
        self.max_failed = max_failed
        self.keep_results = keep_results
        self.waiters = Waiters()
        #: The jobs to which this job belongs, inner jobs first.
        self.above: tuple[JobState, ...] = ()
        self.open = self.succeeded = self.failed = self.cancelled = 0
        #: Number of jobs inside this job that are not over.
        self.inner = 0
        self.in_block = True
        #: Whether the job is over, whether its block need not wait any longer, and whether
        #: `JobDone` was published.
        self.over = self.ended = self.told = False
        #: Its number in the journal; 0 without a journal.
        self.number = 0
        #: Number of the job's deliveries that the journal keeps, and that are not in this bus: not
        #: yet, or no longer.
        self.kept = 0
        #: Whether this run entered its block; whether the journal knows that it was left.
        self.begun = self.left = False
        #: Whether its block was left by an exception.
        self.cut_short = False
        #: Whether the book counts the job as open, and whether the jobs around it count it.
        self.listed = self.counted = False
        #: Number of deliveries of earlier blocks, and of failed deliveries of these.
        self.earlier = self.failed_earlier = 0
        self.too_many = False
        self.error: BaseException | None = None
        #: The request that cancels each delivery of the job; whether a call made it, so that a
        #: journal remembers it.
        self.cancelled_by: CancelRequest | None = None
        self.cancelled_for_good = False
        self.results: dict[str, deque[Any]] = {}
        self.dropped: set[str] = set()
        self.nodes: dict[int, Node] = {}
        self.unshown = 0
        self.last_unshown = 0

    def restore(self, recorded: JobRow) -> None:
        """Take over the counts of earlier blocks."""
        self.number = recorded.number
        self.succeeded = recorded.succeeded
        self.failed = self.failed_earlier = recorded.failed
        self.cancelled = recorded.cancelled
        self.kept = recorded.open
        self.earlier = self.total
        self.left = bool(recorded.left_block)
        self.told = recorded.done_at is not None
        if recorded.cancelled_at is not None:
            self.cancel_for_good()

    def cancel_for_good(self) -> None:
        """Cancel each delivery that the job gets from now on."""
        self.cancelled_for_good = True
        if self.cancelled_by is None:
            why = CANCELLED.format(self.name)
            self.cancelled_by = CancelRequest(monotonic(), why, for_good=True)

    def row(self) -> JobRow:
        """The job as the journal has it."""
        from procbus.journal.job_records import row_of  # only with a journal

        ends = self.succeeded, self.failed, self.cancelled, self.kept
        return row_of(
            self.number,
            self.id,
            self.name,
            ends,
            left=self.left,
            done=self.told,
            cancelled=self.cancelled_for_good,
        )

    def take_options_of(self, other: JobState) -> None:
        """Take over the options of a new block."""
        self.name = other.name
        self.max_failed, self.keep_results = other.max_failed, other.keep_results
        if other.cancelled_for_good:
            self.cancel_for_good()

    @property
    def total(self) -> int:
        """Number of deliveries of the job so far."""
        return self.open + self.kept + self.succeeded + self.failed + self.cancelled

    @property
    def failed_here(self) -> int:
        """Number of deliveries that failed since the journal was opened."""
        return self.failed - self.failed_earlier

    @property
    def idle(self) -> bool:
        """Whether all that was published so far is settled."""
        return not self.open and not self.inner

    def keep(self, handler: str, result: Any) -> None:
        """Keep a result until it is taken."""
        kept = self.results.get(handler)
        if kept is None:
            kept = self.results[handler] = deque()
        if len(kept) >= self.keep_results:
            self.dropped.add(handler)
        else:
            kept.append(result)

    def summary(self) -> JobDone:
        """The counts so far."""
        return JobDone(self.name, self.id, self.succeeded, self.failed, self.cancelled)
