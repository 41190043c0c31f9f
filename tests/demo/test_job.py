# SPDX-License-Identifier: MIT
"""Measuring one file, as each way of the demo does it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from procbus.demo.job import FileMeasured, measure_file
from procbus.demo.metrics import FunctionMetrics


def measured(tmp_path: Path, content: bytes) -> FileMeasured:
    path = tmp_path / "x.py"
    path.write_bytes(content)
    return measure_file(str(path))


def test_functions_of_a_file_are_measured_in_its_declared_encoding(tmp_path: Path) -> None:
    found = measured(tmp_path, b"# coding: latin-1\ndef f(a): return a or '\xe9'\n")
    assert found.functions == (FunctionMetrics("f", 2, 2, 1, 0),)
    assert found.skipped is None


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"# one\n# two\n# three\nx = '\xe9'\n", "not utf-8"),
        (b"# coding: no-such-encoding\n", "no-such-encoding"),
        (b"x = 1\ndef f(:\n", "line 2: "),
        (b"print 'x'\n", "line 1: Missing parentheses"),
        (b"x = '\0'\n", "null bytes"),
    ],
)
def test_file_that_cannot_be_read_or_parsed_is_skipped_with_a_reason(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    skipped = measured(tmp_path, content).skipped
    assert skipped is not None
    assert reason in skipped
    assert "\n" not in skipped


def test_file_that_is_gone_is_skipped_with_a_reason(tmp_path: Path) -> None:
    assert measure_file(str(tmp_path / "gone.py")).skipped == "No such file or directory"


def test_worker_imports_no_database_for_the_handler() -> None:
    script = "import sys, procbus.demo.job; print({'sqlite3', 'rich'} & set(sys.modules))"
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=150, check=True
    )
    assert run.stdout.strip() == "set()"
