# SPDX-License-Identifier: MIT
"""The jobs of one journal: their steps and their deliveries, in this run and in earlier ones."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import time

from procbus.core.delivery import Delivery
from procbus.core.errors import JournalError
from procbus.journal.journal import Journal
from procbus.journal.storage.queries import JobRow as JobRow
from procbus.journal.storage.records import JobStep, pack_job


def row_of(
    number: int,
    id: str,
    name: str,
    ends: tuple[int, int, int, int],
    *,
    left: bool,
    done: bool,
    cancelled: bool,
) -> JobRow:
    """A job as the journal has it.

    Args:
        number: number of the job.
        id: id of the job.
        name: name of the job.
        ends: number of deliveries that succeeded, failed, were cancelled, and are open.
        left: whether its block is left.
        done: whether it is done.
        cancelled: whether a call cancelled it.
    """
    now = time()
    done_at, cancelled_at = now if done else None, now if cancelled else None
    return JobRow(number, id, name, "", left, done_at, *ends, cancelled_at)


class JobRecords:
    """Writes the steps of jobs, and knows the jobs of earlier blocks. Thread-safe.

    Each delivery of a job is recorded with its event, and its end is counted with its own record:
    see `Journal.published` and `Changes`. So no kill can separate a delivery from its job, or an
    end from its count.

    Args:
        journal: the journal of the bus.

    Attributes:
        open: the jobs that were not done when the journal was opened, or had open deliveries.
        resumed: the jobs of deliveries that are being resumed, by number; filled just before
            listeners are told of a delivery.
        fed: called after unfinished deliveries were fed to their handlers.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self.open: Sequence[JobRow] = journal.open_jobs
        self._next = itertools.count(journal.last_job + 1).__next__
        #: Jobs whose last steps the database may not have yet, by id, with the generation of the
        #: intake that has these steps. Each operation on the dict is atomic.
        self._recent: dict[str, tuple[int, JobRow]] = {}
        self.resumed: dict[Delivery, tuple[int, ...]] = {}
        self.fed: Callable[[], object] = int

    def own_by(self, owners: Callable[[int | None], Sequence[int]]) -> None:
        """Record the jobs of each event from now on; the function returns them for its parent."""
        self._journal.owners = owners

    def find(self, id: str) -> JobRow | None:
        """The job with this id, which no block of this run has.

        Raises:
            JournalError: the journal cannot be read.
        """
        recent = self._recent.get(id)
        return self._journal.queries.job(id) if recent is None else recent[1]

    def enter(self, number: int, above: Sequence[int], id: str, name: str) -> int:
        """Write that the block of a job is entered; return the number of the job.

        Args:
            number: number of the job; 0 for a job that is not in the journal.
            above: the outer jobs that this job belongs to.
            id: id of the job.
            name: name of the job.

        Raises:
            JournalError: the journal cannot be written.
        """
        number = number or self._next()
        self._journal.write(pack_job(number, JobStep.ENTERED, time(), above, id, name))
        return number

    def leave(self, number: int) -> None:
        """Write that the block of a job is left."""
        self._note(pack_job(number, JobStep.LEFT, time()))

    def done(self, number: int) -> None:
        """Write that a job is done."""
        self._note(pack_job(number, JobStep.DONE, time()))

    def cancel(self, number: int) -> None:
        """Write that a job is cancelled, in later runs too."""
        self._note(pack_job(number, JobStep.CANCELLED, time()))

    def _note(self, record: bytes) -> None:
        if not self._journal.closed:
            with suppress(JournalError):  # the writer has logged the reason
                self._journal.write(record)

    def let_go(self, job: JobRow) -> None:
        """Remember a job until the database has all of its steps."""
        written, moved = self._journal.generations
        for id, (generation, _) in list(self._recent.items()):
            if generation <= moved:
                self._recent.pop(id, None)
        self._recent[job.id] = written, job
