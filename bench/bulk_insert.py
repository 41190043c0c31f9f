"""How much faster does a batch handler insert rows into SQLite than a handler of single rows?"""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from .model import LIMIT, PROCBUS, Question, Row, Settings, Target

FULL_COUNT = 1_000_000
#: A transaction for each row takes minutes for as many rows: it is measured with fewer.
FEWER = 200
BATCH = 1_000
ROW = "rows inserted into SQLite, a transaction for each call"
ONE_BY_ONE = "procbus, one by one"


@dataclass(frozen=True)
class Item:
    """A row."""

    id: int
    name: str


def items(count: int) -> Iterator[Item]:
    """The rows to insert."""
    return (Item(number, f"name {number}") for number in range(count))


@contextmanager
def table() -> Iterator[tuple[sqlite3.Connection, Callable[[int], None]]]:
    """Make a file with an empty table; give a connection, and a check of the number of rows."""
    with (
        tempfile.TemporaryDirectory(prefix="procbus-bench-") as directory,
        closing(sqlite3.connect(Path(directory, "rows.db"), check_same_thread=False)) as db,
    ):
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT)")

        def check(count: int) -> None:
            if db.execute("SELECT count(*) FROM item").fetchone() != (count,):
                raise RuntimeError("rows are missing")

        yield db, check


def insert(db: sqlite3.Connection, rows: Iterable[Item]) -> None:
    """Insert rows in one transaction."""
    with db:
        db.executemany("INSERT INTO item VALUES (?, ?)", [(row.id, row.name) for row in rows])


def by_batches(settings: Settings) -> dict[str, float]:
    """Stream the rows to a batch handler."""
    from procbus import EventBus

    count = settings.count(FULL_COUNT)
    with table() as (db, check), EventBus([]) as bus:
        bus.subscribe(Item, lambda rows: insert(db, rows), batch=BATCH, concurrency=1)
        began = perf_counter()
        for receipt in bus.stream(items(count)):
            receipt.result()
        took_s = perf_counter() - began
        check(count)
    return {ROW: count / took_s}


def one_by_one(settings: Settings) -> dict[str, float]:
    """Stream fewer rows to a handler of single rows."""
    from procbus import EventBus

    count = settings.count(FULL_COUNT // FEWER)
    with table() as (db, check), EventBus([]) as bus:
        bus.subscribe(Item, lambda row: insert(db, (row,)), concurrency=1)
        began = perf_counter()
        for receipt in bus.stream(items(count)):
            receipt.result()
        took_s = perf_counter() - began
        check(count)
    return {ROW: count / took_s}


def plain_loop(settings: Settings) -> dict[str, float]:
    """Insert lists of rows in a loop, without a bus."""
    count = settings.count(FULL_COUNT)
    with table() as (db, check):
        began = perf_counter()
        batch: list[Item] = []
        for row in items(count):
            batch.append(row)
            if len(batch) == BATCH:
                insert(db, batch)
                batch = []
        insert(db, batch)
        took_s = perf_counter() - began
        check(count)
    return {ROW: count / took_s}


QUESTION = Question(
    name="bulk_insert",
    asks="How much faster does a batch handler insert rows than a handler of single rows?",
    rows=(Row(ROW, "rows/s", (Target(20, at_least=True, against=ONE_BY_ONE),)),),
    contenders={PROCBUS: by_batches, ONE_BY_ONE: one_by_one, LIMIT: plain_loop},
    limit=f"a loop that inserts lists of {BATCH:,} rows",
    rounds=3,
)
