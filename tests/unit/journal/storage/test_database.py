# SPDX-License-Identifier: MIT
"""The records that are kept, for how long, and two processes that meet in one journal."""

from __future__ import annotations

import os
import shutil
import sqlite3
import threading
import time
from contextlib import closing
from datetime import timedelta
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import pytest

from procbus import EventBus, JournalError
from procbus.assembly import Makers
from procbus.core.validation import parse_keep
from procbus.journal.journal import Journal
from procbus.journal.storage.changes import Changes
from procbus.journal.storage.database import Store
from procbus.journal.storage.files import trouble
from tests.parts import BusWith

BOUND_S = 60.0


def count(path: Path) -> dict[str, int]:
    """Rows of each table."""
    with closing(sqlite3.connect(path)) as connection:
        return {
            table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            for table in ("events", "pending", "dead", "done", "ids")
        }


def fill(path: Path, **options: Any) -> None:
    """Ten events without an id, five with one, and one that fails."""

    def fail(_: str) -> None:
        raise ValueError

    with EventBus([], journal=path, **options) as bus:
        bus.subscribe(int, abs, name="abs")
        bus.subscribe(str, fail, name="fail")
        for number in range(10):
            bus.publish(number)
        for number in range(5):
            bus.publish(number, id=str(number))
        bus.publish("x")


@pytest.mark.parametrize(
    ("keep", "rows"),
    [
        ("unfinished", {"events": 1, "pending": 0, "dead": 1, "done": 5, "ids": 5}),
        ("all", {"events": 16, "pending": 0, "dead": 1, "done": 15, "ids": 5}),
        ("7 days", {"events": 16, "pending": 0, "dead": 1, "done": 15, "ids": 5}),
    ],
)
def test_finished_deliveries_are_kept_as_requested(tmp_path: Path, keep: str, rows: dict[str, int]):
    fill(tmp_path / "run.db", keep=keep)
    assert count(tmp_path / "run.db") == rows


def test_old_deliveries_are_deleted_with_their_ids(tmp_path: Path):
    path = tmp_path / "run.db"
    fill(path, keep="7 days")
    with closing(sqlite3.connect(path)) as connection:
        week_ago = time.time() - 8 * 86_400
        connection.execute("UPDATE done SET finished_at = ?", (week_ago,))
        connection.commit()
    make = Makers(journal=partial(Journal, tidy_s=0.0))
    with BusWith(make, journal=path, keep="7 days") as bus:
        bus.subscribe(int, abs, name="abs")
        bus.publish(1)
    assert count(path) == {"events": 2, "pending": 0, "dead": 1, "done": 1, "ids": 0}


def test_the_file_does_not_grow_for_ever(tmp_path: Path):
    path = tmp_path / "run.db"
    rounds, of_one = 6, 50 * 100_000
    for _ in range(rounds):
        with EventBus([], journal=path) as bus:
            bus.subscribe(bytes, len, name="len")
            for _ in range(50):
                bus.publish(os.urandom(100_000))
    # All of one round may be open at once, and then is written to the database; but no more.
    assert path.stat().st_size < 2 * of_one < rounds * of_one


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("unfinished", 0.0),
        ("all", inf),
        (90, 90.0),
        ("7 days", 604_800.0),
        ("36 h", 129_600.0),
        ("1.5 hours", 5_400.0),
        ("10 min", 600.0),
        (timedelta(days=2), 172_800.0),
    ],
)
def test_keep_takes_a_duration_in_many_forms(value: Any, seconds: float):
    assert parse_keep(value) == seconds


@pytest.mark.parametrize("value", ["", "ever", "7 moons", 0, -1, True, None, inf, timedelta(0)])
def test_value_that_is_no_duration_is_refused(value: Any):
    with pytest.raises(ValueError, match=r'must be "unfinished", "all", or how long'):
        parse_keep(value)


def test_ids_of_events_never_come_again_though_nothing_is_left(tmp_path: Path):
    seen: list[int] = []
    for _ in range(3):
        with EventBus([], journal=tmp_path / "run.db") as bus:
            bus.subscribe(int, abs, name="abs")
            seen += [bus.publish(number).id for number in range(3)]
    assert seen == list(range(1, 10))


def test_ids_never_come_again_after_a_loss_of_power_either(tmp_path: Path):
    """It may cost unflushed pages, and so all writes of this bus except its reservation."""
    before, after = tmp_path / "before.db", tmp_path / "after.db"
    with EventBus([], journal=before) as bus:
        bus.subscribe(int, abs, name="abs")
        for suffix in ("", "-wal"):
            shutil.copy(f"{before}{suffix}", f"{after}{suffix}")
        lost = [bus.publish(number).id for number in range(100)]
    with EventBus([], journal=after) as bus:
        bus.subscribe(int, abs, name="abs")
        assert bus.publish(1).id > max(lost)


def test_more_ids_are_reserved_before_they_run_out(tmp_path: Path):
    path = tmp_path / "run.db"
    with BusWith(Makers(journal=partial(Journal, reserved=40)), journal=path) as bus:
        bus.subscribe(int, abs, name="abs")
        for _ in range(3):
            last = max(bus.publish(number).id for number in range(15))
            until_reserved(path, last + 20)


def until_reserved(path: Path, least: int) -> None:
    pause = threading.Event()
    for _ in range(int(BOUND_S / 0.05)):
        with closing(sqlite3.connect(path)) as connection:
            row = connection.execute("SELECT value FROM meta WHERE name = 'reserved'").fetchone()
        if row[0] >= least:
            return
        pause.wait(0.05)
    pytest.fail(f"ids are reserved up to {row[0]} and not {least}")


def test_the_database_is_sound_after_all_of_it(tmp_path: Path):
    fill(tmp_path / "run.db", keep="all")
    with closing(sqlite3.connect(tmp_path / "run.db")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_transaction_that_fails_writes_nothing(tmp_path: Path):
    path = tmp_path / "run.db"
    path.touch(0o600)
    store = Store(str(path))
    changes = Changes(keep_all=True)
    changes.handlers = [(1, "io", "one"), (2, None, "two")]  # type: ignore[list-item] # it fails
    with pytest.raises(JournalError, match="NOT NULL"):
        store.write(changes, {"generation": 1})
    assert store.rows("SELECT count(*) FROM handlers") == [(0,)]
    store.write(Changes(keep_all=True), {"generation": 2})
    store.close()


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("SQLITE_FULL", "make room on it"),
        ("SQLITE_READONLY_DBMOVED", "writable for you"),
        ("SQLITE_CORRUPT_VTAB", "take a copy that is sound"),
        ("SQLITE_BUSY", "another program holds it"),
        ("SQLITE_IOERR_READ", "look at the system's log"),
        ("SQLITE_ERROR", "cannot be used"),
    ],
)
def test_every_trouble_has_its_advice(tmp_path: Path, name: str, advice: str):
    error = sqlite3.OperationalError("what SQLite says")
    error.sqlite_errorname = name
    message = str(trouble(str(tmp_path / "run.db"), error))
    assert advice in message
    assert "what SQLite says" in message
    assert "run.db" in message


def test_journal_that_is_opened_again_writes_neither_its_id_nor_its_handlers(
    tmp_path: Path,
):
    """Each write is a flush of the disk."""
    path = tmp_path / "run.db"
    written: list[tuple[list[tuple[int, str, str]], bool]] = []

    class Watched(Store):
        def write(self, changes: Changes, meta: dict[str, Any]) -> None:
            written.append((changes.handlers, "id" in meta))
            super().write(changes, meta)

    make = Makers(journal=partial(Journal, make_store=Watched))
    for new in (True, False):
        written.clear()
        with BusWith(make, journal=path) as bus:
            bus.subscribe(int, abs, name="abs")
            assert bus.publish(-1).result() == 1
        assert any(handlers for handlers, _ in written) is new
        assert any(named for _, named in written) is new
