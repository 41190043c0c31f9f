# SPDX-License-Identifier: MIT
"""A visit to a journal by the command line, without a bus.

If a bus has the journal, the visitor reads the database while the bus uses it. The records of the
last second may be missing there. A request to run a dead letter again goes to that bus. If no bus
has the journal, the visitor takes the journal's lock for the duration of the visit, and first moves
the intake of a dead bus into the database. Nothing is unpickled unless the user asks for it.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from time import time
from typing import Any

from procbus.core.errors import JournalError
from procbus.journal.backup import back_up
from procbus.journal.codec import DataForm
from procbus.journal.reading import loaded, names_in, plain_outcomes
from procbus.journal.storage.database import Beside, Store
from procbus.journal.storage.files import SUFFIXES, check_files, place, prepare_files, tidy
from procbus.journal.storage.frames import Half
from procbus.journal.storage.lock import JournalLock, JournalTaken
from procbus.journal.storage.names import name_of_nameless
from procbus.journal.storage.opening import lost_in, read_left, recover
from procbus.journal.storage.queries import JobRow, Queries
from procbus.journal.storage.records import MOST_HANDLERS, SHIFT

STATES = ("pending", "delayed", "retrying", "dead", "succeeded", "discarded")


@dataclass(frozen=True, slots=True)
class Line:
    """One delivery in the journal."""

    number: int
    state: str
    attempts: int
    #: Time when the delivery is due, failed, or ended; None if it waits for no time.
    at: float | None
    handler: str
    event_id: int
    topic: str | None
    type_name: str | None
    given_id: str | None
    published_at: float | None

    @property
    def name(self) -> str:
        """The name of the delivery on the command line: `EVENT:HANDLER`."""
        return f"{self.event_id}:{self.handler}"

    def plain(self) -> dict[str, Any]:
        """The line as plain data."""
        return {
            "id": self.name,
            "event_id": self.event_id,
            "handler": self.handler,
            "state": self.state,
            "attempts": self.attempts,
            "at": iso(self.at),
            "topic": self.topic,
            "type": self.type_name,
            "given_id": self.given_id,
            "published_at": iso(self.published_at),
        }


class Visit:
    """A journal opened for inspection. A context manager; not thread-safe.

    Args:
        path: path of the journal.
        change: whether the visit changes the journal.

    Raises:
        JournalError: the journal does not exist, or cannot be used.
    """

    def __init__(self, path: str, *, change: bool = False) -> None:
        self.path = os.path.realpath(path)
        if not os.path.exists(self.path):
            raise JournalError(f"there is no journal {path}: give the file that journal= names")
        place(path)
        check_files(self.path)
        #: Process id of the bus that has the journal; None if no bus has it, 0 if not known.
        self.owner: int | None = None
        self._lock: JournalLock | None = None
        beside: Beside | None = None
        try:
            self._lock = JournalLock(self.path)
        except JournalTaken as taken:
            if taken.pid == os.getpid():
                raise
            self.owner = taken.pid
            beside = "change" if change else "look"
        try:
            if self._lock is not None:
                prepare_files(self.path)
            self._store = Store(self.path, beside=beside)
        except BaseException:
            self._unlock(moved=False)
            raise
        self._queries = Queries(self._store)
        try:
            self.codec = self._queries.meta("codec", "pickle")
            if self._lock is not None:
                keep_all = bool(self._queries.meta("keep_all", True))
                left = read_left(self._lock.fd, self._lock.name)
                recover(self._store, self._queries, left, self._lock.name, keep_all=keep_all)
            #: Losses of the journal that no bus has reported yet.
            self.lost = lost_in(self._queries)
            found = self._queries.handlers()
        except BaseException:
            self.close(moved=False)
            raise
        self._names = {number: name for number, _, name in found}

    def _name(self, number: int) -> str:
        return self._names.get(number) or name_of_nameless(number)

    def __enter__(self) -> Visit:
        """Use the visit for the length of a block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the journal."""
        self.close(moved=True)

    def close(self, *, moved: bool) -> None:
        """Close the journal; `moved` says whether all of the intake is in the database."""
        self._store.close()
        self._unlock(moved=moved)

    def _unlock(self, *, moved: bool) -> None:
        if self._lock is not None:
            tidy(self.path)
            self._lock.release(remove=moved or self._lock.fresh)

    # Methods that look.

    def status(self) -> dict[str, Any]:
        """The numbers of deliveries, events and ids, as plain data."""
        rows = self._store.rows
        now = time()
        handlers: dict[str, dict[str, int]] = {}
        for state, sql in _COUNTS.items():
            for handler, count in rows(sql, (now,) * sql.count("?")):
                counts = handlers.setdefault(self._name(handler), dict.fromkeys(STATES, 0))
                counts[state] += count
        return {
            "path": self.path,
            "id": self._queries.meta("id", None),
            "codec": self.codec,
            "owner": self.owner,
            "bytes": sum(
                os.path.getsize(self.path + s) for s in SUFFIXES if os.path.exists(self.path + s)
            ),
            "events": rows("SELECT count(*) FROM events")[0][0],
            "given_ids": rows("SELECT count(*) FROM ids")[0][0],
            "handlers": handlers,
            "schedules": [
                {"name": name, "times": spec, "last_at": iso(at)}
                for name, spec, at in self._queries.schedules()
            ],
            "lost": self.lost,
        }

    def lines(self, state: str | None = None, handler: str | None = None) -> Iterator[Line]:
        """Yield deliveries in order of their events.

        Args:
            state: only deliveries in this state.
            handler: only deliveries of handlers with this name; `*` and `?` are wildcards.
        """
        after = 0
        now = time()
        while True:
            found = self._store.rows(_LINES, {"after": after, "now": now})
            for row in found:
                line = self._line(row)
                after = line.number
                if state in (None, line.state) and _is_like(handler, line.handler):
                    yield line
            if not found:
                return

    def jobs(self) -> list[dict[str, Any]]:
        """The jobs as plain data, in the order of their first blocks."""
        return [
            {
                "id": job.id,
                "name": job.name,
                "state": _state_of(job),
                "succeeded": job.succeeded,
                "failed": job.failed,
                "cancelled": job.cancelled,
                "pending": job.open,
                "done_at": iso(job.done_at),
            }
            for job in self._queries.jobs()
        ]

    def jobs_of(self, line: Line) -> list[str]:
        """The ids of the jobs that an open delivery belongs to."""
        which = "number IN (SELECT job FROM owned WHERE owned.number = ?)"
        return [job.id for job in self._queries.jobs(which, (line.number,))]

    def newest_dead(self, most: int) -> list[Line]:
        """The dead letters that failed last, the newest first.

        Args:
            most: maximum number.
        """
        return [self._line(row) for row in self._store.rows(_NEWEST_DEAD, (most,))]

    def find(self, names: Sequence[str]) -> list[Line]:
        """Find deliveries by name: `EVENT` for all deliveries of an event, `EVENT:HANDLER` for one.

        Raises:
            JournalError: there is no such delivery.
        """
        found: list[Line] = []
        for name in names:
            event, _, handler = name.partition(":")
            if not event.isdecimal():
                raise JournalError(
                    f"{name} is no delivery: give the number of an event, or EVENT:HANDLER"
                )
            some = [line for line in self._of_event(int(event)) if handler in ("", line.handler)]
            if not some:
                raise JournalError(f"the journal {self.path} has no delivery {name}")
            found += some
        return found

    def _of_event(self, event_id: int) -> Iterator[Line]:
        span = {"after": (event_id << SHIFT) - 1, "now": time()}
        for row in self._store.rows(_LINES, span):
            if row[4] == event_id:
                yield self._line(row)

    def _line(self, row: tuple[Any, ...]) -> Line:
        number, state, attempts, at, *about = row
        event_id, topic, type_name, given_id, published_at = about
        name = self._name(number & MOST_HANDLERS)
        return Line(
            number, state, attempts, at, name, event_id, topic, type_name, given_id, published_at
        )

    def outcomes(self, line: Line) -> list[dict[str, Any]]:
        """How the attempts at a delivery failed, as plain data, without the errors themselves.

        This runs no code from the journal: bytes that are not plain data are only described.
        """
        for table in ("pending", "dead"):
            rows = self._store.rows(
                f"SELECT outcomes FROM {table} WHERE number = ?",  # noqa: S608 - no user's words
                (line.number,),
            )
            if rows and rows[0][0] is not None:
                return plain_outcomes(rows[0][0], self.codec)
        return []

    def event(self, line: Line, *, unpickle: bool = False) -> dict[str, Any]:
        """The event of a delivery, as plain data: the stored form, not the loaded object.

        Args:
            line: the delivery.
            unpickle: whether to load the event and show it as text; loading may run code from the
                file.
        """
        rows = self._store.rows(
            "SELECT parent_id, form, data FROM events WHERE id = ?", (line.event_id,)
        )
        if not rows:
            return {"kept": False}
        parent_id, form, data = rows[0]
        plain: dict[str, Any] = {"kept": True, "parent_id": parent_id, "bytes": len(data)}
        if form == DataForm.JSON:
            plain["json"] = json.loads(data)
        else:
            plain["pickle"] = data.hex()
            plain["names"] = names_in(data)
            if unpickle:
                plain["repr"] = loaded(data)
        return plain

    def back_up(self, dest: str) -> None:
        """Copy the journal, including the intake of a bus that has the journal.

        Raises:
            JournalError: the journal cannot be copied.
        """
        left: list[Half] = []
        if self._lock is None:
            name = self.path + "-intake"
            with contextlib.suppress(FileNotFoundError), open(name, "rb") as intake:
                left = read_left(intake.fileno(), name, live=True)
        back_up(self._store, left, dest)

    # Methods that change.

    def retry(self, lines: Sequence[Line]) -> int:
        """Have dead letters run again, by the bus that has the journal or at the next start."""
        numbers = [line.number for line in lines if line.state == "dead"]
        if self._lock is None:
            self._store.ask(numbers)
        else:
            self._store.revive(numbers)
        return len(numbers)

    def purge(self, before: float, *, dead: bool) -> None:
        """Delete deliveries that finished before a time; with `dead`, older dead letters too."""
        self._store.purge(before, dead=dead)


def _state_of(job: JobRow) -> str:
    if job.done_at is not None:
        return "done"
    if job.cancelled_at is not None:
        return "cancelled"
    return "block left" if job.left_block else "block open"


def iso(at: float | None) -> str | None:
    """A time of `time.time()` in ISO format; None for None."""
    return None if not at else datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")


def _is_like(pattern: str | None, name: str) -> bool:
    if pattern is None:
        return True
    from fnmatch import fnmatchcase

    return fnmatchcase(name, pattern)


_HANDLER = f"number & {MOST_HANDLERS}"
_COUNTS = {
    "pending": f"SELECT {_HANDLER}, count(*) FROM pending WHERE due_at <= ? GROUP BY 1",  # noqa: S608 - no user's words
    "delayed": f"SELECT {_HANDLER}, count(*) FROM pending WHERE due_at > ? AND NOT attempts "  # noqa: S608
    "GROUP BY 1",
    "retrying": f"SELECT {_HANDLER}, count(*) FROM pending WHERE due_at > ? AND attempts "  # noqa: S608
    "GROUP BY 1",
    "dead": f"SELECT {_HANDLER}, count(*) FROM dead GROUP BY 1",  # noqa: S608
    "succeeded": f"SELECT {_HANDLER}, count(*) FROM done WHERE succeeded GROUP BY 1",  # noqa: S608
    "discarded": f"SELECT {_HANDLER}, count(*) FROM done WHERE NOT succeeded GROUP BY 1",  # noqa: S608
}
#: One page of deliveries: the next deliveries of each table, and of all of these the first ones.
_LINES = f"""
    SELECT number, state, attempts, at, number >> {SHIFT}, topic, type_name,
        given_id, published_at
    FROM (
        SELECT * FROM (
            SELECT number, CASE WHEN due_at <= :now THEN 'pending' WHEN attempts THEN 'retrying'
                ELSE 'delayed' END AS state, attempts, nullif(due_at, 0) AS at
            FROM pending WHERE number > :after ORDER BY number LIMIT 500)
        UNION ALL SELECT * FROM (
            SELECT number, 'dead', attempts, failed_at
            FROM dead WHERE number > :after ORDER BY number LIMIT 500)
        UNION ALL SELECT * FROM (
            SELECT number, iif(succeeded, 'succeeded', 'discarded'), attempts, finished_at
            FROM done WHERE number > :after ORDER BY number LIMIT 500)
        ORDER BY number LIMIT 500
    ) LEFT JOIN events ON id = number >> {SHIFT} ORDER BY number
"""  # noqa: S608 - no user's words
_NEWEST_DEAD = f"""
    SELECT number, 'dead', attempts, failed_at, number >> {SHIFT}, topic, type_name,
        given_id, published_at
    FROM (SELECT * FROM dead ORDER BY failed_at DESC LIMIT ?)
    LEFT JOIN events ON id = number >> {SHIFT} ORDER BY failed_at DESC
"""  # noqa: S608 - no user's words
