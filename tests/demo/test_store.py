# SPDX-License-Identifier: MIT
"""The index that the demo writes."""

from __future__ import annotations

import os
import sqlite3
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from procbus.demo import DemoError
from procbus.demo.metrics import FunctionMetrics
from procbus.demo.store import Index, RankedFunction, Totals


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "index.sqlite")


@pytest.fixture
def index(path: str) -> Iterator[Index]:
    with closing(Index(path)) as index:
        yield index


def function(name: str, complexity: int = 1, length: int = 1, line: int = 1) -> FunctionMetrics:
    return FunctionMetrics(name, line, complexity, length, 0)


def test_the_most_complex_functions_come_first_and_longer_ones_before_shorter(index: Index) -> None:
    index.add("a.py", [function("simple"), function("short", 9, 10), function("long", 9, 20)])
    index.add("b.py", [function("worst", 12)])
    assert [each.name for each in index.most_complex(3)] == ["worst", "long", "short"]
    assert index.most_complex(1) == [RankedFunction("b.py", "worst", 1, 12, 1, 0)]


def test_totals_count_files_skipped_files_functions_and_complexity(index: Index) -> None:
    assert index.totals() == Totals(0, 0, 0, 0)
    index.add("a.py", [function("f", 3), function("g", 4)])
    index.add("empty.py", [])
    index.skip("bad.py", "line 1: invalid syntax")
    assert index.totals() == Totals(files=3, skipped=1, functions=2, complexity=7)
    assert index.files == 3
    assert index.skipped(5) == [("bad.py", "line 1: invalid syntax")]


def test_a_closed_index_is_complete_on_disk(path: str) -> None:
    with closing(Index(path)) as index:
        index.add("a.py", [FunctionMetrics("f", 3, 2, 4, 1)])
    with closing(sqlite3.connect(path)) as database:
        rows = database.execute("SELECT * FROM functions").fetchall()
    assert rows == [("a.py", "f", 3, 2, 4, 1)]


def test_an_older_index_is_replaced(path: str) -> None:
    with closing(Index(path)) as index:
        index.add("old.py", [function("old")])
    with closing(Index(path)) as index:
        index.add("new.py", [function("new")])
        assert [each.name for each in index.most_complex(10)] == ["new"]


def test_an_empty_file_becomes_an_index(path: str) -> None:
    Path(path).touch()
    with closing(Index(path)) as index:
        index.add("a.py", [])
        assert index.totals().files == 1


def test_database_of_another_program_is_refused_and_left_as_it_is(path: str) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE files (precious TEXT)")
    before = Path(path).read_bytes()
    with pytest.raises(DemoError, match="did not write"):
        Index(path)
    assert Path(path).read_bytes() == before


def test_a_file_that_is_no_database_is_refused_and_left_as_it_is(path: str) -> None:
    Path(path).write_text("precious" * 1000)
    with pytest.raises(DemoError, match="cannot write the index"):
        Index(path)
    assert Path(path).read_text() == "precious" * 1000


def test_an_index_in_a_directory_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DemoError, match="cannot write the index"):
        Index(str(tmp_path / "nowhere" / "index.sqlite"))


def test_threads_take_turns(index: Index) -> None:
    start = threading.Barrier(4)

    def write(writer: int) -> None:
        start.wait(60)
        for number in range(150):
            index.add(f"{writer}/{number}.py", [function("f", 2)])

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(55)
    assert index.totals() == Totals(600, 0, 600, 1200)
    assert index.files == 600


def test_a_file_name_that_is_no_text_is_stored_with_escapes(index: Index) -> None:
    index.skip(os.fsdecode(b"caf\xe9.py"), "why")
    assert index.skipped(1) == [("caf\\xe9.py", "why")]


@pytest.mark.skipif(sys.platform == "win32", reason="limits are those of POSIX")
def test_an_index_that_the_disk_has_no_room_for_is_said_to_be_unwritable(path: str) -> None:
    import resource  # not on Windows

    index = Index(path)
    for number in range(50):
        index.add(f"{number}.py", [function("f" * 100)] * 50)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, before[1]))
    try:
        with pytest.raises(DemoError, match="cannot write the index"):
            index.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
