# SPDX-License-Identifier: MIT
"""The state of a job, and the event that tells its end."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

from procbus.core.cancelling import CancelRequest
from procbus.jobs.tree import Node
from procbus.jobs.waiting import Waiters


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
        id: an id that no other job has.
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
    """The state of one job. The lock of its book guards all but the first fields."""

    def __init__(
        self, book: object, name: str, id: str, max_failed: int | None, keep_results: int
    ) -> None:
        self.book = book
        self.name = name
        self.id = id
        self.max_failed = max_failed
        self.keep_results = keep_results
        self.waiters = Waiters()
        #: The jobs that it belongs to, inner ones first.
        self.above: tuple[JobState, ...] = ()
        self.open = self.succeeded = self.failed = self.cancelled = 0
        #: Number of jobs in it that are not over.
        self.inner = 0
        self.in_block = True
        #: Whether it is over, and whether `JobDone` was published too.
        self.over = self.told = False
        self.too_many = False
        self.error: BaseException | None = None
        self.cancelled_by: CancelRequest | None = None
        self.results: dict[str, deque[Any]] = {}
        self.dropped: set[str] = set()
        self.nodes: dict[int, Node] = {}
        self.unshown = 0
        self.last_unshown = 0

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
