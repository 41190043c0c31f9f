# SPDX-License-Identifier: MIT
"""The three handlers of the index, called as plain functions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bench.index_job import (
    FileFound,
    FileMeasured,
    FileSkipped,
    SourceRead,
    measure,
    read,
    store,
)
from bench.open_indexes import index_at, open_index
from procbus.demo import DemoError
from procbus.demo.metrics import FunctionMetrics
from procbus.routing.registry import default_registry


def published_by_read(path: Path) -> object:
    published: list[object] = []
    read(FileFound(str(path), "index"), publish=published.append)
    (event,) = published
    return event


def published_by_measure(text: str) -> object:
    published: list[object] = []
    measure(SourceRead("x.py", text, "index"), publish=published.append)
    (event,) = published
    return event


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("x = 'é'\n".encode(), "x = 'é'\n"),
        (b"\xef\xbb\xbfx = 1\n", "x = 1\n"),
        (b"# coding: latin-1\nx = '\xe9'\n", "# coding: latin-1\nx = 'é'\n"),
        (b"x = 1\r\ny = 2\r\n", "x = 1\ny = 2\n"),
        (b"", ""),
    ],
)
def test_a_file_is_decoded_as_the_interpreter_does(
    tmp_path: Path, content: bytes, text: str
) -> None:
    path = tmp_path / "x.py"
    path.write_bytes(content)
    assert published_by_read(path) == SourceRead(str(path), text, "index")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\n\n\nx = '\xe9'\n", "not utf-8"),
        (b"# coding: ascii\n\n\nx = '\xe9'\n", "not ascii"),
        (b"# coding: no-such-encoding\n", "no-such-encoding"),
        (b"x = '\xe9'\n", "encoding"),
    ],
)
def test_a_file_that_cannot_be_decoded_is_skipped_with_a_reason(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    path = tmp_path / "x.py"
    path.write_bytes(content)
    event = published_by_read(path)
    assert isinstance(event, FileSkipped)
    assert event.path == str(path)
    assert reason in event.reason
    assert "\n" not in event.reason


def test_a_file_that_is_gone_is_skipped_with_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "gone.py"
    assert published_by_read(path) == FileSkipped(str(path), "No such file or directory", "index")


def test_the_functions_of_a_file_are_measured() -> None:
    assert published_by_measure("def f(a): return a or 1\n") == FileMeasured(
        "x.py", (FunctionMetrics("f", 1, 2, 1, 0),), "index"
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x = 1\ndef f(:\n", "line 2: "),
        ("print 'x'\n", "line 1: Missing parentheses"),
        ("x = '\0'\n", "null bytes"),
        ("x = '\ud800'\n", "surrogates"),
    ],
)
def test_a_file_that_cannot_be_parsed_is_skipped_with_a_reason(text: str, reason: str) -> None:
    event = published_by_measure(text)
    assert isinstance(event, FileSkipped)
    assert reason in event.reason


def test_results_are_stored_in_the_index_that_the_event_names_while_it_is_open(
    tmp_path: Path,
) -> None:
    path = str(tmp_path / "index.sqlite")
    with open_index(path) as index:
        assert index_at(path) is index
        store(FileMeasured("a.py", (FunctionMetrics("f", 3, 2, 4, 1),), path))
        store(FileSkipped("b.py", "why", path))
        assert [function.name for function in index.most_complex(10)] == ["f"]
        assert index.skipped(10) == [("b.py", "why")]
    with pytest.raises(DemoError, match="is not open"):
        index_at(path)


def test_the_handlers_are_subscribed_as_they_say() -> None:
    described = {
        handler.function: (handler.kind, handler.topics, handler.concurrency)
        for function in (read, measure, store)
        for handler in default_registry.of_function(function)
    }
    assert described == {
        read: ("io", (FileFound,), None),
        measure: ("cpu", (SourceRead,), None),
        store: ("io", (FileMeasured, FileSkipped), 1),
    }


def test_a_worker_imports_no_sqlite_for_the_handlers() -> None:
    script = (
        "import sys, bench.index_job\n"
        "print(sorted({'sqlite3', 'procbus.demo.store'} & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=150, check=True
    )
    assert run.stdout.strip() == "[]"
