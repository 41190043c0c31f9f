# SPDX-License-Identifier: MIT
"""The index: an SQLite file of functions and of files that were skipped."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterable
from contextlib import closing
from typing import NamedTuple

from procbus.demo import DemoError
from procbus.demo.job import FileMeasured
from procbus.demo.metrics import FunctionMetrics

# Marks the file as one that the demo may overwrite (PRAGMA application_id; "proc" in ASCII).
_APPLICATION_ID = 0x70726F63
_FILES_PER_COMMIT = 100  # a commit waits for the disk: one for each file would dominate the run

_SCHEMA = f"""
PRAGMA application_id = {_APPLICATION_ID};
DROP TABLE IF EXISTS functions;
DROP TABLE IF EXISTS files;
CREATE TABLE files (path TEXT PRIMARY KEY, functions INTEGER NOT NULL, skipped TEXT);
CREATE TABLE functions (
    path TEXT NOT NULL REFERENCES files, name TEXT NOT NULL, line INTEGER NOT NULL,
    complexity INTEGER NOT NULL, length INTEGER NOT NULL, nesting INTEGER NOT NULL
);
"""


class Totals(NamedTuple):
    """The numbers of an index: equal for two indexes of the same files."""

    files: int
    skipped: int
    functions: int
    complexity: int


class RankedFunction(NamedTuple):
    """A function and its place, for the report."""

    path: str
    name: str
    line: int
    complexity: int
    length: int
    nesting: int


class Index:
    """An index open for writing. Any thread may call it; calls take turns.

    Args:
        path: the SQLite file: a new one, an empty one, or an older index, which is replaced.

    Raises:
        DemoError: the file cannot be written, or holds something else.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        # Guards the connection, which is opened here and used by any thread that runs the handler.
        self._lock = threading.Lock()
        self._files = 0
        try:
            self._connection = sqlite3.connect(path, check_same_thread=False)
        except sqlite3.Error as error:
            raise DemoError(f"cannot write the index {path}: {error}") from error
        try:
            self._check_is_ours()
            self._connection.executescript(_SCHEMA)
        except sqlite3.Error as error:
            self._connection.close()
            raise DemoError(f"cannot write the index {path}: {error}") from error
        except DemoError:
            self._connection.close()
            raise

    def _check_is_ours(self) -> None:
        # Any database that holds data has its schema in sqlite_master.
        tables = self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        application_id = self._connection.execute("PRAGMA application_id").fetchone()[0]
        if tables and application_id != _APPLICATION_ID:
            raise DemoError(
                f"{self.path} is a database that the demo did not write: choose another --output"
            )

    @property
    def files(self) -> int:
        """Files written so far, measured or skipped; read without the lock, for progress."""
        return self._files

    def store(self, measured: FileMeasured) -> None:
        """Write the functions of one file, or why it was skipped."""
        if measured.skipped is None:
            self.add(measured.path, measured.functions)
        else:
            self.skip(measured.path, measured.skipped)

    def add(self, path: str, functions: Iterable[FunctionMetrics]) -> None:
        """Write the functions of one file."""
        path = storable(path)
        rows = [(path, *function) for function in functions]
        with self._lock:
            self._connection.execute("INSERT INTO files VALUES (?, ?, NULL)", (path, len(rows)))
            self._connection.executemany("INSERT INTO functions VALUES (?, ?, ?, ?, ?, ?)", rows)
            self._wrote_a_file()

    def skip(self, path: str, reason: str) -> None:
        """Write that one file was skipped, with the reason."""
        row = (storable(path), 0, reason)
        with self._lock:
            self._connection.execute("INSERT INTO files VALUES (?, ?, ?)", row)
            self._wrote_a_file()

    def _wrote_a_file(self) -> None:
        self._files += 1
        if self._files % _FILES_PER_COMMIT == 0:
            self._connection.commit()

    def totals(self) -> Totals:
        """Count the contents of the index."""
        with self._lock:
            files, skipped = self._connection.execute(
                "SELECT count(*), count(skipped) FROM files"
            ).fetchone()
            functions, complexity = self._connection.execute(
                "SELECT count(*), coalesce(sum(complexity), 0) FROM functions"
            ).fetchone()
        return Totals(files, skipped, functions, complexity)

    def most_complex(self, count: int) -> list[RankedFunction]:
        """The functions of the highest complexity, longest first among equals."""
        with self._lock:
            rows = self._connection.execute(
                "SELECT path, name, line, complexity, length, nesting FROM functions"
                " ORDER BY complexity DESC, length DESC, path, line LIMIT ?",
                (count,),
            ).fetchall()
        return [RankedFunction(*row) for row in rows]

    def skipped(self, count: int) -> list[tuple[str, str]]:
        """The first skipped files, each with its reason."""
        with self._lock:
            return self._connection.execute(
                "SELECT path, skipped FROM files WHERE skipped IS NOT NULL ORDER BY path LIMIT ?",
                (count,),
            ).fetchall()

    def close(self) -> None:
        """Commit and close the file.

        Raises:
            DemoError: the last additions cannot be written.
        """
        with self._lock, closing(self._connection):
            try:
                self._connection.commit()
            except sqlite3.Error as error:
                raise DemoError(f"cannot write the index {self.path}: {error}") from error


def storable(path: str) -> str:
    """A path as text. Bytes of a file name that are no text become escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
