# SPDX-License-Identifier: MIT
"""Queries to a journal: unfinished deliveries, dead letters, ids."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from procbus.journal.storage.database import Store
from procbus.journal.storage.records import SHIFT

_LOWEST = (1 << SHIFT) - 1


class Unfinished(NamedTuple):
    """A delivery to run, with its event."""

    number: int
    attempts: int
    due_at: float
    outcomes: bytes | None
    event_id: int
    parent_id: int | None
    topic: str | None
    type_name: str
    given_id: str | None
    form: int
    data: bytes
    #: Numbers of the jobs that the delivery belongs to, separated by spaces; None for no job.
    jobs: str | None


class Recorded(NamedTuple):
    """The state of a delivery whose event was published with an id."""

    number: int
    #: "pending", "succeeded", "dead" or "discarded".
    state: str
    attempts: int
    form: int
    data: bytes | None


#: An event that was published with an id, and the states of its deliveries.
SeenEvent = tuple[int, list[Recorded]]


class JobRow(NamedTuple):
    """A job in the journal."""

    number: int
    id: str
    name: str
    #: Numbers of the outer jobs that this job belongs to, separated by spaces, inner ones first.
    inside: str
    left_block: bool
    done_at: float | None
    succeeded: int
    failed: int
    cancelled: int
    #: Number of its deliveries that are not settled.
    open: int
    #: When a call cancelled the job; None for never.
    cancelled_at: float | None = None


class Queries:
    """Reads from the database of a journal. Thread-safe. Any query may raise JournalError."""

    def __init__(self, store: Store) -> None:
        self._rows = store.rows

    def meta(self, name: str, default: Any) -> Any:
        """A stored value, or the default."""
        rows = self._rows("SELECT value FROM meta WHERE name = ?", (name,))
        return rows[0][0] if rows else default

    def handlers(self) -> list[tuple[int, str, str]]:
        """Number, kind and name of each handler that has a number."""
        return self._rows("SELECT number, kind, name FROM handlers")

    def last_id(self) -> int:
        """The largest id that an event has, or may have had before a loss of power."""
        return max(self.last_event(), int(self.meta("reserved", 0)))

    def last_event(self) -> int:
        """The last event that was moved into the database."""
        (found,) = self._rows("SELECT max(id) FROM events")[0]
        return max(int(found or 0), int(self.meta("last_id", 0)))

    def handlers_of_finished(self) -> set[int]:
        """Numbers of handlers with finished deliveries that are kept."""
        rows = self._rows(f"SELECT DISTINCT number & {_LOWEST} FROM done")  # noqa: S608 - no user's words
        return {number for (number,) in rows}

    def counts(self) -> dict[str, dict[int, int]]:
        """Numbers of pending and of dead deliveries, by handler."""
        return {
            table: dict(
                self._rows(
                    f"SELECT number & {_LOWEST}, count(*) FROM {table} GROUP BY 1"  # noqa: S608 - no user's words
                )
            )
            for table in ("pending", "dead")
        }

    def unfinished(self, handlers: Iterable[int], before: int, page: int) -> Iterator[Unfinished]:
        """Yield deliveries to run, in order of their events, with a `page` of them in memory.

        Args:
            handlers: only deliveries of these handlers.
            before: only deliveries with smaller numbers.
            page: number of deliveries in a page.
        """
        wanted = json.dumps(list(handlers))
        after = 0
        while True:
            rows = self._rows(
                "SELECT number, attempts, due_at, outcomes, id, parent_id, topic, type_name, "
                "given_id, form, data, (SELECT group_concat(job, ' ') FROM owned "
                "WHERE owned.number = pending.number) FROM pending JOIN events ON id = number >> ? "
                "WHERE number > ? AND number < ? "
                "AND number & ? IN (SELECT value FROM json_each(?)) ORDER BY number LIMIT ?",
                (SHIFT, after, before, _LOWEST, wanted, page),
            )
            yield from map(Unfinished._make, rows)
            if len(rows) < page:
                return
            after = rows[-1][0]

    def event_of(self, given_id: str) -> int | None:
        """The event that was published with an id."""
        rows = self._rows("SELECT event_id FROM ids WHERE given_id = ?", (given_id,))
        return rows[0][0] if rows else None

    def given_id_of(self, event_id: int) -> str | None:
        """The id that an open event was published with."""
        rows = self._rows("SELECT given_id FROM events WHERE id = ?", (event_id,))
        return rows[0][0] if rows else None

    def seen(self, given_id: str) -> SeenEvent | None:
        """The event that was published with an id, and the states of its deliveries.

        One query finds finished deliveries, because nearly all are finished when a script is
        started again.
        """
        rows = self._rows(
            "SELECT event_id, number, succeeded, attempts, form, data, "
            "EXISTS (SELECT 1 FROM events WHERE id = event_id) FROM ids LEFT JOIN done "
            "ON number >= event_id << 16 AND number < (event_id + 1) << 16 WHERE given_id = ?",
            (given_id,),
        )
        if not rows:
            return None
        event_id, number, *_, open_too = rows[0]
        if open_too:
            return event_id, self.recorded(event_id)
        if number is None:
            return event_id, []
        return event_id, [
            Recorded(number, "succeeded" if succeeded else "discarded", attempts, form, data)
            for _, number, succeeded, attempts, form, data, _ in rows
        ]

    def seen_and_finished(self, given_ids: Sequence[str]) -> dict[str, SeenEvent]:
        """Like `seen`, for many ids whose events are finished: it takes a quarter of the time.

        An event without any delivery is not found here.
        """
        rows = self._rows(
            "SELECT given_id, event_id, number, succeeded, attempts, form, data "
            "FROM json_each(?) JOIN ids ON given_id = value "
            "JOIN done ON number >= event_id << 16 AND number < (event_id + 1) << 16 "
            "WHERE NOT EXISTS (SELECT 1 FROM events WHERE id = event_id)",
            (json.dumps(given_ids),),
        )
        found: dict[str, SeenEvent] = {}
        for given_id, event_id, number, succeeded, attempts, form, data in rows:
            state = "succeeded" if succeeded else "discarded"
            _, deliveries = found.setdefault(given_id, (event_id, []))
            deliveries.append(Recorded(number, state, attempts, form, data))
        return found

    def recorded(self, event_id: int) -> list[Recorded]:
        """The states of an event's deliveries."""
        first = event_id << SHIFT
        span = (first, first + _LOWEST)
        rows = self._rows(
            "SELECT number, iif(succeeded, 'succeeded', 'discarded'), attempts, form, data "
            "FROM done WHERE number BETWEEN ? AND ? UNION ALL "
            "SELECT number, 'dead', attempts, 0, outcomes FROM dead WHERE number BETWEEN ? AND ? "
            "UNION ALL SELECT number, 'pending', attempts, 0, NULL FROM pending "
            "WHERE number BETWEEN ? AND ? ORDER BY 1",
            span * 3,
        )
        return [Recorded(*row) for row in rows]

    def jobs(self, which: str = "TRUE", about: Sequence[Any] = ()) -> list[JobRow]:
        """Jobs, in order of their numbers; a journal of an older procbus has none.

        Args:
            which: a condition in SQL.
            about: its parameters.
        """
        columns = {name for (name,) in self._rows("SELECT name FROM pragma_table_info('jobs')")}
        if not columns:
            return []
        cancelled_at = "cancelled_at" if "cancelled_at" in columns else "NULL"
        rows = self._rows(
            "SELECT number, id, name, inside, left_block, done_at, succeeded, failed, cancelled, "  # noqa: S608 - no user's words
            f"ifnull(count, 0), {cancelled_at} FROM jobs LEFT JOIN "
            "(SELECT job, count(*) AS count FROM owned "
            f"GROUP BY job) ON job = number WHERE {which} ORDER BY number",
            about,
        )
        return [JobRow(*row) for row in rows]

    def open_jobs(self) -> list[JobRow]:
        """Jobs that are not done, or have deliveries that are not settled."""
        return self.jobs("done_at IS NULL OR count")

    def job(self, id: str) -> JobRow | None:
        """The job with an id."""
        return next(iter(self.jobs("id = ?", (id,))), None)

    def last_job(self) -> int:
        """The largest number of a job."""
        return int(self._rows("SELECT ifnull(max(number), 0) FROM jobs")[0][0])

    def schedules(self) -> list[tuple[str, str, float]]:
        """Name, times and last tick of each schedule."""
        if not self._rows("SELECT 1 FROM sqlite_schema WHERE name = 'schedules'"):
            return []  # the journal is in use by a bus of an older procbus
        return self._rows("SELECT name, spec, last_at FROM schedules ORDER BY name")

    def asked(self) -> list[int]:
        """Dead letters that the command line asks to run again."""
        return [number for (number,) in self._rows("SELECT number FROM asked ORDER BY number")]

    def dead_letters(self, most: int, numbers: Sequence[int] | None = None) -> list[Any]:
        """The newest dead letters, oldest first, each with its event.

        Args:
            most: maximum number.
            numbers: only the dead letters of these deliveries; None for all.
        """
        rows = self._rows(
            "SELECT number, failed_at, quarantined, outcomes, topic, type_name, form, data "
            "FROM dead JOIN events ON id = number >> ? "
            "WHERE ? IS NULL OR number IN (SELECT value FROM json_each(?)) "
            "ORDER BY failed_at DESC LIMIT ?",
            (SHIFT, wanted := None if numbers is None else json.dumps(list(numbers)), wanted, most),
        )
        return rows[::-1]
