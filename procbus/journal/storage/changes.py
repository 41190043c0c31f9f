# SPDX-License-Identifier: MIT
"""The effect of records on the database: rows, computed before the database is touched.

Most deliveries finish soon after they are published. If the records of both are in one half of the
intake, and the delivery need not be kept, the database gets nothing at all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from procbus.journal.storage.records import (
    SHIFT,
    CancelledRecord,
    DiscardedRecord,
    FailedRecord,
    HandlerRecord,
    JobRecord,
    OwnedRecord,
    PublishedRecord,
    Record,
    RecordKind,
    ResultRecord,
    RetryRecord,
    RevivedRecord,
    SucceededRecord,
    TickRecord,
    records_in,
    sole_delivery_in,
    succeeded_in,
)

_PUBLISHED, _SUCCEEDED = RecordKind.PUBLISHED, RecordKind.SUCCEEDED
#: Stands for no deliveries in a comparison.
_NO_DELIVERY = (0,)
#: Columns of `jobs` that count the ends of its deliveries.
SUCCEEDED, FAILED, CANCELLED = range(3)


@dataclass(slots=True)
class Pending:
    """A delivery that is not finished, with its progress."""

    attempts: int = 0
    due_at: float = 0.0
    outcomes: bytes | None = None


@dataclass(slots=True)
class Done:
    """A delivery that is finished."""

    succeeded: bool
    finished_at: float
    form: int = 0
    data: bytes | None = None


@dataclass(slots=True)
class Changes:
    """Rows to write.

    Args:
        keep_all: whether all finished deliveries are kept.
    """

    keep_all: bool
    #: Number, kind and name of new handlers.
    handlers: list[tuple[int, str, str]] = field(default_factory=list)
    #: New events by id.
    events: dict[int, PublishedRecord] = field(default_factory=dict)
    #: Ids from publishers: pairs of id and event.
    ids: list[tuple[str, int]] = field(default_factory=list)
    #: New unfinished deliveries, by number.
    pending: dict[int, Pending] = field(default_factory=dict)
    #: Changes of deliveries that are pending in the database.
    progressed: dict[int, Pending] = field(default_factory=dict)
    finished: dict[int, Done] = field(default_factory=dict)
    #: Deliveries that failed for good, new or not, by number.
    dead: dict[int, FailedRecord] = field(default_factory=dict)
    #: Dead letters in the database that are unfinished again. This change is made before the
    #: changes in the fields below.
    revived: set[int] = field(default_factory=set)
    #: Dead letters that were cleared: of the database, or of `dead`.
    discarded: dict[int, DiscardedRecord] = field(default_factory=dict)
    #: New deliveries that are finished and kept: the end, and the number of attempts before the
    #: last.
    done: dict[int, tuple[Done, int]] = field(default_factory=dict)
    #: Steps of jobs, in order.
    jobs: list[JobRecord] = field(default_factory=list)
    #: Jobs of open deliveries, by number.
    owned: dict[int, tuple[int, ...]] = field(default_factory=dict)
    #: Number of deliveries that ended in these records, for each end, by job.
    counts: dict[int, list[int]] = field(default_factory=dict)
    #: Ends of deliveries that the database may have jobs for, by number.
    ends: dict[int, int] = field(default_factory=dict)
    #: Deliveries that were cancelled for good.
    cancelled: set[int] = field(default_factory=set)
    #: The last tick of each schedule, by the schedule's name.
    ticks: dict[str, TickRecord] = field(default_factory=dict)
    #: The largest id of an event.
    last_id: int = 0
    #: Deliveries of new events that are open, by event.
    _open: dict[int, int] = field(default_factory=dict)

    @property
    def nothing(self) -> bool:
        """Whether there is nothing to write except new ids of events.

        Ids are reserved on the disk ahead of time, so they need no write.
        """
        return not (
            self.events
            or self.ids
            or self.pending
            or self.progressed
            or self.finished
            or self.dead
            or self.revived
            or self.discarded
            or self.done
            or self.handlers
            or self.jobs
            or self.counts
            or self.ticks
        )

    def add_frames(self, frames: Iterable[bytes]) -> None:
        """Take in frames of records, in order.

        Most deliveries were published and succeeded among these frames, and need not be kept. Such
        pairs are skipped quickly.
        """
        frames = list(frames)
        succeeded: set[int] = set()
        if not self.keep_all:
            for frame in frames:
                if frame[0] == _SUCCEEDED:
                    succeeded.update(succeeded_in(frame))
        over: set[int] = set()
        for frame in frames:
            if succeeded:
                kind = frame[0]
                if kind == _PUBLISHED:
                    number = sole_delivery_in(frame)
                    if number in succeeded:
                        over.add(number)
                        continue
                elif kind == _SUCCEEDED and over.issuperset(succeeded_in(frame) or _NO_DELIVERY):
                    continue
            for record in records_in(frame):
                self.add(record)
        if over:
            self.last_id = max(self.last_id, max(over) >> SHIFT)

    def add(self, record: Record) -> None:
        """Take in one record."""
        match record:
            case PublishedRecord():
                self._published(record)
            case SucceededRecord(finished_at, numbers):
                for number in numbers:
                    self._finished(number, Done(True, finished_at))
            case ResultRecord(number, finished_at, form, data):
                self._finished(number, Done(True, finished_at, form, data))
            case RetryRecord(number, attempts, due_at, outcomes):
                rows = self.pending if number in self.pending else self.progressed
                rows[number] = Pending(attempts, due_at, outcomes or None)
            case FailedRecord(number):
                self.pending.pop(number, None)
                self.progressed.pop(number, None)
                self.dead[number] = record
                self._count(number, CANCELLED if number in self.cancelled else FAILED)
            case DiscardedRecord(number, at):
                if number in self.dead and number >> SHIFT in self.events:
                    del self.dead[number]
                    self._end_of_new(number, Done(False, at), 0)
                else:
                    self.discarded[number] = record
            case RevivedRecord(number):
                self._revived(number)
            case HandlerRecord(number, kind, name):
                self.handlers.append((number, kind, name))
            case CancelledRecord(number):
                self.cancelled.add(number)
            case OwnedRecord(jobs, numbers):
                self.owned.update(dict.fromkeys(numbers, jobs))
            case JobRecord():
                self.jobs.append(record)
            case TickRecord(name):
                self.ticks[name] = record

    def _published(self, record: PublishedRecord) -> None:
        event_id, given_id = record.event_id, record.given_id
        self.last_id = max(self.last_id, event_id)
        if record.handlers or self.keep_all:
            self.events[event_id] = record
            self._open[event_id] = len(record.handlers)
        for handler in record.handlers:
            self.pending[(event_id << SHIFT) | handler] = Pending()
        if given_id is not None:
            self.ids.append((given_id, event_id))

    def _revived(self, number: int) -> None:
        if self.dead.pop(number, None) is None:
            self.revived.add(number)
        elif number >> SHIFT in self.events:
            self.pending[number] = Pending()
        else:  # the delivery failed in these records, and is pending in the database
            self.progressed[number] = Pending()

    def _count(self, number: int, end: int) -> None:
        """Count the end of a delivery for its jobs; only its first end counts."""
        jobs = self.owned.pop(number, None)
        if jobs is None:
            self.ends.setdefault(number, end)
            return
        for job in jobs:
            self.counts.setdefault(job, [0, 0, 0])[end] += 1

    def _finished(self, number: int, done: Done) -> None:
        if number in self.owned:
            self._count(number, SUCCEEDED)
        before = self.pending.pop(number, None)
        if before is not None:
            self._end_of_new(number, done, before.attempts)
        elif number in self.done:  # recorded twice: with its published events, and with its result
            if done.form:
                self.done[number] = (done, self.done[number][1])
        elif number >> SHIFT not in self.events:
            self.ends.setdefault(number, SUCCEEDED)
            known = self.finished.get(number)
            if known is None or done.form:
                self.finished[number] = done

    def _end_of_new(self, number: int, done: Done, attempts: int) -> None:
        """Note that a delivery was both published and finished among these records."""
        event_id = number >> SHIFT
        event = self.events[event_id]
        if self.keep_all or event.given_id is not None:
            self.done[number] = (done, attempts)
        self._open[event_id] -= 1
        if not self._open[event_id] and not self.keep_all:
            # If the publisher gave an id, the id and the end are kept.
            del self.events[event_id], self._open[event_id]

    def event_rows(self) -> list[tuple[Any, ...]]:
        """Rows of new events."""
        return [
            (
                e.event_id,
                e.parent_id or None,
                e.published_at,
                e.topic,
                e.type_name,
                e.given_id,
                e.form,
                e.data,
            )
            for e in self.events.values()
        ]

    def done_rows(self) -> list[tuple[Any, ...]]:
        """Rows of new deliveries that are finished and kept."""
        return [
            (
                number,
                done.succeeded,
                attempts + done.succeeded,
                done.finished_at,
                done.form,
                done.data,
            )
            for number, (done, attempts) in self.done.items()
        ]
