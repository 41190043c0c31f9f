# SPDX-License-Identifier: MIT
"""The database of a journal: the one module that knows of SQLite.

One connection belongs to the writer, and each query has its own. Each statement carries many rows:
Python releases the GIL for each step of SQLite, and getting the GIL back from a busy thread may
take 5 ms.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from itertools import chain
from time import time
from typing import Any, Literal, Self
from urllib.parse import quote

from procbus.core.errors import JournalError
from procbus.journal.storage.changes import Changes
from procbus.journal.storage.files import guard_rollback, trouble
from procbus.journal.storage.records import SHIFT, JobStep
from procbus.journal.storage.schema import APPLICATION_ID, MIGRATIONS, VERSION

#: First bytes of each database.
_SQLITE = b"SQLite format 3\0"
#: Numbers of rows in one statement, the largest first.
_CHUNKS = (256, 16, 1)
#: Maximum of pages in SQLite's write-ahead log before they are moved into the main file.
_CHECKPOINT_PAGES = 4_000
#: Maximum wait for another process (the command line), in seconds.
_BUSY_S = 30.0

Beside = Literal["look", "change"]
#: Options for opening the connection for reading.
_READING: dict[Beside | None, str] = {
    None: "",
    "look": "?mode=ro&readonly_shm=1",
    "change": "?mode=ro",
}

_EVENT = "events(id, parent_id, published_at, topic, type_name, given_id, form, data)"
_PENDING = "pending(number, attempts, due_at, outcomes)"
_DONE = "done(number, succeeded, attempts, finished_at, form, data)"


class Store:
    """The database of one journal.

    `write` and `close` are called by one thread at a time. The reading methods are thread-safe.
    A query takes a connection that no other query uses, so that no lock is held, and code that
    interrupts a query, in a signal handler for example, may make another one.

    Args:
        path: path of the file, which exists, though it may be empty.
        beside: the purpose of opening the database while a bus of another process uses it: "look"
            or "change". Neither removes files that the bus writes to, even if SQLite's locks on
            these files are lost, as when the bus's script has copied the file. "look" does not even
            write to the memory that the two processes share.

    Raises:
        JournalError: the file is no journal, or is damaged.
    """

    def __init__(self, path: str, *, beside: Beside | None = None) -> None:
        self.path = path
        self._beside = beside
        #: Connections that no query uses. Each operation on it is atomic.
        self._readers: deque[sqlite3.Connection] = deque()
        self._closed = False
        reader = self._writing = self._connect(_READING[beside])
        self._readers.append(reader)
        try:
            self._check_file(reader.execute)
            if beside is not None:
                _hold_files(reader)
            if beside != "look":
                self._writing = self._connect()
            self._prepare(write=beside is None)
            if beside is None:
                guard_rollback(path)
        except sqlite3.Error as error:
            self.close()
            raise trouble(path, error) from error
        except BaseException:
            self.close()
            raise
        #: Files that must stay in place, each as device and inode; None for a missing file.
        names = (path, path + "-wal", path + "-intake")
        self._there = {name: _place(name) for name in names}

    def check_there(self) -> None:
        """Check that the journal's files are still in place: writes to removed files would be lost.

        Raises:
            JournalError: a file was moved or removed.
        """
        for name, place in self._there.items():
            if _place(name) != place:
                raise JournalError(
                    f"{name} was moved or deleted while the bus has it: put it back, or "
                    "close this bus and make a new one"
                )

    def _connect(self, how: str = "") -> sqlite3.Connection:
        # Transactions are begun and ended by explicit statements.
        uri = f"file:{quote(self.path)}{how}"
        return sqlite3.connect(
            uri, timeout=_BUSY_S, isolation_level=None, check_same_thread=False, uri=True
        )

    def _check_file(self, get: Callable[[str], sqlite3.Cursor]) -> None:
        """Refuse a file that is not a journal before anything is written to it."""
        size = os.path.getsize(self.path)
        with open(self.path, "rb") as file:
            head = file.read(100)
        if not size:
            return
        if not head.startswith(_SQLITE):
            raise JournalError(
                f"{self.path} is not a journal, but some other file; nothing was written to it. "
                "Give the journal a name of its own"
            )
        if not os.path.exists(self.path + "-wal") and size < (whole := _size_in(head)):
            raise JournalError(
                f"{self.path} is truncated: {size:,} of {whole:,} bytes are there. "
                "Put an undamaged copy in its place, or begin a new journal"
            )
        (application_id,) = get("PRAGMA application_id").fetchone()
        (tables,) = get("SELECT count(*) FROM sqlite_schema").fetchone()
        if application_id != APPLICATION_ID and (application_id or tables):
            raise JournalError(
                f"{self.path} is a database of another program; nothing was written to it. Give "
                "the journal a name of its own"
            )

    def _prepare(self, *, write: bool) -> None:
        do = self._writing.execute
        (version,) = do("PRAGMA user_version").fetchone()
        if version > VERSION:
            raise JournalError(
                f"{self.path} was written by a newer procbus (schema {version}, and this one knows "
                f"{VERSION}): update procbus, or begin a new journal"
            )
        if not write:
            return
        do("PRAGMA journal_mode = WAL")
        # Records moved to the database have to be on the disk before their half of the intake is
        # used again.
        do("PRAGMA synchronous = FULL")
        do(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
        if version < VERSION:
            do("BEGIN IMMEDIATE")
            for script in MIGRATIONS[version:]:
                for statement in script.split(";"):
                    if statement.strip():
                        do(statement)
            do(f"PRAGMA application_id = {APPLICATION_ID}")
            do(f"PRAGMA user_version = {VERSION}")
            do("COMMIT")

    # Reading.

    def rows(self, sql: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> list[Any]:
        """All rows of a query.

        Raises:
            JournalError: the database cannot be read.
        """
        reader = None
        try:
            reader = self._free_reader()
            return reader.execute(sql, parameters).fetchall()
        except sqlite3.Error as error:
            raise trouble(self.path, error) from error
        finally:
            if reader is not None:
                self._readers.append(reader)
            if self._closed:  # closed meanwhile, and `close` did not see this connection
                self._close_readers()

    def _free_reader(self) -> sqlite3.Connection:
        if self._closed:
            raise sqlite3.ProgrammingError("it was closed")
        with suppress(IndexError):
            return self._readers.pop()
        reader = self._connect(_READING[self._beside])
        if self._beside is not None:
            _hold_files(reader)
        return reader

    # Writing.

    def write(self, changes: Changes, meta: dict[str, Any]) -> None:
        """Write changes, all or none.

        Raises:
            JournalError: nothing was written.
        """
        with self._transaction():
            self._write(changes, meta)

    def _write(self, changes: Changes, meta: dict[str, Any]) -> None:
        do = self._writing.execute
        self._insert("handlers(number, kind, name)", changes.handlers, "OR REPLACE")
        self._insert(_EVENT, changes.event_rows())
        self._insert("ids(given_id, event_id)", changes.ids, "OR IGNORE")
        self._insert(
            _PENDING,
            [(n, p.attempts, p.due_at, p.outcomes) for n, p in changes.pending.items()],
        )
        self._insert(_DONE, changes.done_rows(), "OR REPLACE")
        self._write_jobs(changes)
        if changes.revived:
            self._revive(changes.revived)
        for number, p in changes.progressed.items():
            do(
                "UPDATE pending SET attempts = ?, due_at = ?, outcomes = ? WHERE number = ?",
                (p.attempts, p.due_at, p.outcomes, number),
            )
        self._finish(changes)
        for number, failed in changes.dead.items():
            do(
                "INSERT OR REPLACE INTO dead SELECT ?, ?, ?, ?, ? "
                "WHERE EXISTS (SELECT 1 FROM events WHERE id = ?)",
                (
                    number,
                    failed.attempts,
                    failed.failed_at,
                    failed.quarantined,
                    failed.outcomes,
                    number >> SHIFT,
                ),
            )
        if changes.dead:
            self._delete("pending", changes.dead)
        self._discard(changes)
        for name, tick in changes.ticks.items():
            if tick.at:
                do("INSERT OR REPLACE INTO schedules VALUES (?, ?, ?)", tick)
            else:
                do("DELETE FROM schedules WHERE name = ?", (name,))
        if changes.last_id:
            meta = meta | {"last_id": max(changes.last_id, self._last_id_written())}
        self._insert("meta(name, value)", list(meta.items()), "OR REPLACE")

    def _write_jobs(self, changes: Changes) -> None:
        """Write the steps of jobs, and count the ends of their deliveries."""
        do = self._writing.execute
        for step in changes.jobs:
            if step.step == JobStep.ENTERED:
                inside = " ".join(map(str, step.above))
                do(
                    "INSERT INTO jobs VALUES (?, ?, ?, ?, 0, ?, NULL, 0, 0, 0, NULL) "
                    "ON CONFLICT DO UPDATE SET inside = excluded.inside, left_block = 0, "
                    "touched_at = excluded.touched_at",
                    (step.job, step.id, step.name, inside, step.at),
                )
            elif step.step == JobStep.CANCELLED:
                do("UPDATE jobs SET cancelled_at = ? WHERE number = ?", (step.at, step.job))
            else:
                do(
                    "UPDATE jobs SET left_block = 1, touched_at = ?, "
                    "done_at = ifnull(?, done_at) WHERE number = ?",
                    (step.at, step.at if step.step == JobStep.DONE else None, step.job),
                )
        counts = [(job, *ends) for job, ends in changes.counts.items()]
        if changes.ends and do("SELECT EXISTS (SELECT 1 FROM owned)").fetchone()[0]:
            counts += do(
                "SELECT job, sum(value = 0), sum(value = 1), sum(value = 2) FROM json_each(?) "
                "JOIN owned ON number = key GROUP BY job",
                (json.dumps(changes.ends),),
            ).fetchall()
            do(
                "DELETE FROM owned WHERE number IN (SELECT value FROM json_each(?))",
                (_numbers(changes.ends),),
            )
        for job, succeeded, failed, cancelled in counts:
            do(
                "UPDATE jobs SET succeeded = succeeded + ?, failed = failed + ?, "
                "cancelled = cancelled + ? WHERE number = ?",
                (succeeded, failed, cancelled, job),
            )
        owned = [(number, job) for number, jobs in changes.owned.items() for job in jobs]
        self._insert("owned(number, job)", owned, "OR IGNORE")

    def _last_id_written(self) -> int:
        row = self._writing.execute("SELECT value FROM meta WHERE name = 'last_id'").fetchone()
        return int(row[0]) if row else 0

    def _finish(self, changes: Changes) -> None:
        """Remove finished deliveries from the pending ones."""
        if not changes.finished:
            return
        plain: dict[float, list[int]] = {}
        for number, done in changes.finished.items():
            if done.form:
                self._keep(done.finished_at, done.form, done.data, [number], changes.keep_all)
            else:
                plain.setdefault(round(done.finished_at), []).append(number)
        for finished_at, numbers in plain.items():
            self._keep(finished_at, 0, None, numbers, changes.keep_all)
        self._delete("pending", changes.finished)
        if not changes.keep_all:
            self._forget_events(changes.finished)

    def _keep(
        self, finished_at: float, form: int, data: bytes | None, numbers: list[int], keep_all: bool
    ) -> None:
        """Keep finished deliveries: all of them, or only the ones whose event has a given id."""
        self._writing.execute(
            "INSERT OR REPLACE INTO done SELECT number, 1, attempts + 1, ?, ?, ? FROM pending "
            "WHERE number IN (SELECT value FROM json_each(?)) AND (? OR EXISTS "
            "(SELECT 1 FROM events WHERE id = number >> ? AND given_id IS NOT NULL))",
            (finished_at, form, data, _numbers(numbers), keep_all, SHIFT),
        )

    def _discard(self, changes: Changes) -> None:
        if not changes.discarded:
            return
        self._writing.execute(
            "INSERT OR REPLACE INTO done SELECT number, 0, attempts, ?, 0, NULL FROM dead "
            "WHERE number IN (SELECT value FROM json_each(?)) AND (? OR EXISTS "
            "(SELECT 1 FROM events WHERE id = number >> ? AND given_id IS NOT NULL))",
            (time(), _numbers(changes.discarded), changes.keep_all, SHIFT),
        )
        self._delete("dead", changes.discarded)
        if not changes.keep_all:
            self._forget_events(changes.discarded)

    def _forget_events(self, numbers: Iterable[int]) -> None:
        """Delete the events of these deliveries that have no other open delivery."""
        self._writing.execute(
            "DELETE FROM events WHERE id IN (SELECT value FROM json_each(?)) "  # noqa: S608 - no user's words
            f"AND NOT {_has('pending', 'id')} AND NOT {_has('dead', 'id')}",
            (_numbers({number >> SHIFT for number in numbers}),),
        )

    def _delete(self, table: str, numbers: Iterable[int]) -> None:
        self._writing.execute(
            f"DELETE FROM {table} WHERE number IN (SELECT value FROM json_each(?))",  # noqa: S608 - no user's words
            (_numbers(numbers),),
        )

    def _insert(self, target: str, rows: Sequence[Sequence[Any]], how: str = "") -> None:
        """Insert rows, many in each statement."""
        if not rows:
            return
        row = f"({', '.join('?' * len(rows[0]))})"
        at = 0
        for size in _CHUNKS:
            sql = f"INSERT {how} INTO {target} VALUES {', '.join([row] * size)}"  # noqa: S608 - no user's words
            while len(rows) - at >= size:
                flat = tuple(chain.from_iterable(rows[at : at + size]))
                self._writing.execute(sql, flat)
                at += size

    def purge(self, before: float, *, dead: bool = False) -> None:
        """Delete deliveries that finished before a time (`time.time()`), and their ids.

        Args:
            before: the time.
            dead: whether to delete dead letters from before it too.

        Raises:
            JournalError: nothing was deleted.
        """
        with self._transaction() as do:
            do("DELETE FROM done WHERE finished_at < ?", (before,))
            if dead:
                do("DELETE FROM dead WHERE failed_at < ?", (before,))
            do(
                "DELETE FROM jobs WHERE touched_at < ? AND number NOT IN (SELECT job FROM owned)",
                (before,),
            )
            for sql in _PURGE:
                do(sql)

    def reserve_ids(self, upto: int, *, in_use: str) -> None:
        """Note that ids up to this one may be given, and which bus has an intake, if there is one.

        Raises:
            JournalError: nothing was noted.
        """
        with self._transaction() as do:
            do(
                "INSERT OR REPLACE INTO meta VALUES ('reserved', ?), ('in_use', ?)",
                (upto, in_use),
            )

    def ask(self, numbers: Iterable[int]) -> None:
        """Ask the bus that has the journal to run dead letters again."""
        with self._transaction() as do:
            do("INSERT OR IGNORE INTO asked SELECT value FROM json_each(?)", (_numbers(numbers),))

    def forget_asked(self, numbers: Iterable[int]) -> None:
        """Remove requests for dead letters, because they are being carried out."""
        with self._transaction() as do:
            do(
                "DELETE FROM asked WHERE number IN (SELECT value FROM json_each(?))",
                (_numbers(numbers),),
            )

    def revive(self, numbers: Collection[int]) -> None:
        """Turn dead letters into pending deliveries, for the next bus to run."""
        with self._transaction():
            self._revive(numbers)

    def _revive(self, numbers: Collection[int]) -> None:
        wanted = (_numbers(numbers),)
        self._writing.execute(
            "INSERT OR IGNORE INTO pending SELECT number, 0, 0, NULL FROM dead "
            "WHERE number IN (SELECT value FROM json_each(?))",
            wanted,
        )
        self._delete("dead", numbers)

    def copy_to(self, path: str) -> None:
        """Copy the database as it is at one moment, without holding up the writer.

        Args:
            path: path of an empty file.

        Raises:
            JournalError: the database cannot be read, or the copy not written.
        """
        try:
            with (
                closing(self._connect(_READING[self._beside])) as source,
                closing(sqlite3.connect(path, isolation_level=None)) as dest,
            ):
                source.backup(dest)
        except sqlite3.Error as error:
            raise trouble(path, error) from error

    def data_version(self) -> int:
        """A number that changes with each change of the database by another process."""
        (version,) = self._writing.execute("PRAGMA data_version").fetchone()
        return int(version)

    @contextmanager
    def _transaction(self) -> Iterator[Callable[..., object]]:
        do = self._writing.execute
        try:
            do("BEGIN IMMEDIATE")
            try:
                yield do
                do("COMMIT")
            except BaseException:
                if self._writing.in_transaction:  # a full disk ends the transaction by itself
                    do("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise trouble(self.path, error) from error

    def close(self) -> None:
        """Close all connections. When the last connection is closed, one file is left."""
        self._closed = True
        self._writing.close()
        self._close_readers()

    def _close_readers(self) -> None:
        with suppress(IndexError):
            while True:
                self._readers.pop().close()


def _hold_files(reader: sqlite3.Connection) -> None:
    """Read, so that SQLite keeps all files when a process beside a bus ends its connections."""
    reader.execute("SELECT count(*) FROM sqlite_schema").fetchone()


class Image:
    """A journal's database in memory: the bytes of a file that is written or read as a whole.

    A context manager; not thread-safe.

    Args:
        data: the bytes of the file; None for a new database with the tables of a journal.

    Raises:
        JournalError: the bytes are no sound database. The methods raise it too.
    """

    def __init__(self, data: bytes | None = None) -> None:
        self._connection = sqlite3.connect(":memory:", isolation_level=None)
        if data is None:
            self._connection.executescript("".join(MIGRATIONS))
            self.run(f"PRAGMA application_id = {APPLICATION_ID}")
            self.run(f"PRAGMA user_version = {VERSION}")
            return
        # A database in memory has no write-ahead log. These bytes say which kind of log the file
        # has.
        with self._in_words():
            self._connection.deserialize(data[:18] + b"\1\1" + data[20:])

    def __enter__(self) -> Self:
        """Use it for the length of a block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Free the memory."""
        self._connection.close()

    @staticmethod
    def is_journal(data: bytes) -> bool:
        """Whether the bytes begin like a journal's file."""
        return data.startswith(_SQLITE) and data[68:72] == APPLICATION_ID.to_bytes(4, "big")

    @staticmethod
    def size_of(data: bytes) -> int:
        """The size of a file in bytes, as its head tells it."""
        return _size_in(data)

    def newer_version(self) -> int | None:
        """The version of the tables, if it is newer than this procbus knows."""
        version: int = self.rows("PRAGMA user_version")[0][0]
        return version if version > VERSION else None

    def damage(self) -> str:
        """The first thing that SQLite finds wrong with the file; empty for nothing."""
        found: str = self.rows("PRAGMA quick_check(1)")[0][0]
        return "" if found == "ok" else found.replace("\n", " ")

    def run(self, sql: str) -> None:
        """Run one statement."""
        with self._in_words():
            self._connection.execute(sql)

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[Any]:
        """All rows of a query."""
        with self._in_words():
            return self._connection.execute(sql, parameters).fetchall()

    def insert(self, into: str, rows: Iterable[tuple[Any, ...]]) -> None:
        """Insert rows into the named columns of a table."""
        marks = ", ".join("?" * (into.count(",") + 1))
        with self._in_words():
            self._connection.execute("BEGIN")
            self._connection.executemany(f"INSERT INTO {into} VALUES ({marks})", rows)  # noqa: S608 - no user's words
            self._connection.execute("COMMIT")

    def data(self) -> bytes:
        """The bytes of the file."""
        return self._connection.serialize()

    @staticmethod
    @contextmanager
    def _in_words() -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, UnicodeError) as error:
            raise JournalError(str(error)) from error


def _size_in(head: bytes) -> int:
    """The size of a database in bytes, as the first bytes of its file tell it."""
    page_size = int.from_bytes(head[16:18], "big")
    page_size = 1 << 16 if page_size == 1 else page_size
    return page_size * int.from_bytes(head[28:32], "big")


def _place(name: str) -> tuple[int, int] | None:
    try:
        status = os.stat(name)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _has(table: str, event: str) -> str:
    """SQL that says whether a table has a delivery of an event."""
    last = (1 << SHIFT) - 1
    return (
        f"EXISTS (SELECT 1 FROM {table} WHERE number BETWEEN {event} << {SHIFT} "  # noqa: S608 - no user's words
        f"AND ({event} << {SHIFT}) + {last})"
    )


_PURGE = (
    f"DELETE FROM events WHERE NOT {_has('pending', 'id')} AND NOT {_has('dead', 'id')} "  # noqa: S608 - no user's words
    f"AND NOT {_has('done', 'id')}",
    "DELETE FROM ids WHERE NOT EXISTS (SELECT 1 FROM events WHERE id = event_id) "  # noqa: S608 - as above
    f"AND NOT {_has('done', 'event_id')}",
)


def _numbers(numbers: Iterable[int]) -> str:
    return json.dumps(list(numbers))
