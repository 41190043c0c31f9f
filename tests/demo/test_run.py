# SPDX-License-Identifier: MIT
"""`procbus demo` from end to end, as a person runs it."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

PLAIN = "def plain():\n    pass\n"
KNOTTY = """
class Knot:
    def tie(self, a, b):
        for x in a:
            if x and b:
                return [y for y in b if y]
        return None
"""


class Demo:
    def __init__(self, temporary: Path) -> None:
        self.environment = {
            **{k: v for k, v in os.environ.items() if k not in ("FORCE_COLOR", "COLUMNS")},
            "TMPDIR": str(temporary),
            "PYTHONIOENCODING": "utf-8",
        }

    def __call__(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "procbus", "demo", *map(str, arguments)],
            capture_output=True,
            encoding="utf-8",
            timeout=150,
            env=self.environment,
        )


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    """The directory for temporary files of the runs of a test."""
    directory = tmp_path / "temporary"
    directory.mkdir()
    return directory


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "pkg").mkdir(parents=True)
    (root / "plain.py").write_text(PLAIN)
    (root / "pkg/knot.py").write_text(KNOTTY)
    (root / "broken.py").write_text("x = 1\ndef f(:\n")
    (root / "latin.py").write_bytes(b"# one\n# two\n# three\ncaf\xe9 = 1\n")
    return root


@pytest.fixture
def demo(temporary: Path) -> Demo:
    return Demo(temporary)


def rows(index: Path, query: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(index)) as database:
        return database.execute(query).fetchall()


def test_a_tree_is_measured_four_ways_and_reported(demo: Demo, tree: Path, tmp_path: Path) -> None:
    index = tmp_path / "index.sqlite"
    run = demo(tree, "--output", index)
    assert run.returncode == 0, run.stderr
    assert rows(index, "SELECT * FROM functions ORDER BY complexity") == [
        (str(tree / "plain.py"), "plain", 1, 1, 2, 0),
        (str(tree / "pkg/knot.py"), "Knot.tie", 3, 6, 5, 2),
    ]
    lines = run.stdout.splitlines()
    assert any("Knot.tie" in line and "pkg/knot.py:3" in line for line in lines)
    assert "2 files could not be read or parsed:" in lines
    assert any(line.startswith("  broken.py: line 2: ") for line in lines)
    assert "  latin.py: not utf-8, which is its encoding by declaration or default" in lines
    table = lines[lines.index(next(line for line in lines if "a crash loses" in line)) :]
    names = [line[:19].strip() for line in table[1:5]]
    assert names == ["plain loop", "ProcessPoolExecutor", "thread-pool bus", "procbus"]
    assert f"The functions are in an SQLite file: {index}" in lines
    assert not any("killed" in line for line in lines)  # the accidents are for the whole demo


@pytest.mark.slow
def test_output_that_is_no_terminal_has_no_control_characters(demo: Demo, tree: Path) -> None:
    run = demo(tree, "--no-compare")
    assert run.returncode == 0, run.stderr
    for character in run.stdout + run.stderr:
        assert character == "\n" or character.isprintable()


@pytest.mark.slow
def test_without_comparison_nothing_is_said_of_anything_else(demo: Demo, tree: Path) -> None:
    run = demo(tree, "--no-compare")
    assert run.returncode == 0, run.stderr
    assert "thread-pool" not in run.stdout + run.stderr
    assert "ProcessPoolExecutor" not in run.stdout + run.stderr
    assert "a crash loses" not in run.stdout


def test_limits_on_files_and_workers_are_kept(demo: Demo, tree: Path) -> None:
    run = demo(tree, "--no-compare", "--limit", "2", "--cpu-workers", "1")
    assert run.returncode == 0, run.stderr
    assert "Parse 2 Python files" in run.stdout
    assert run.stdout.split("Cores: ")[1].startswith("1.")


def test_the_comparison_leaves_no_file(demo: Demo, tree: Path, temporary: Path) -> None:
    run = demo(tree, "--output", tree / "index.sqlite")
    assert run.returncode == 0, run.stderr
    assert list(temporary.glob("procbus-demo-*")) == []


def test_a_name_of_a_file_that_is_no_text_is_shown_with_escapes(
    demo: Demo, tree: Path, tmp_path: Path
) -> None:
    (tree / os.fsdecode(b"\xe9\x1b[31m.py")).write_text("def f(:")
    demo.environment["PYTHONIOENCODING"] = "ascii"
    run = demo(tree, "--no-compare", "--output", tmp_path / "index.sqlite")
    assert run.returncode == 0, run.stderr
    assert "\\xe9\\x1b[31m.py: line 1: " in run.stdout


def refused(run: subprocess.CompletedProcess[str], complaint: str) -> bool:
    """Whether the run ended with status 2, one line that complains, and nothing else."""
    lines = run.stderr.splitlines()
    return (
        run.returncode == 2
        and run.stdout == ""
        and len(lines) == 1
        and lines[0].startswith("procbus demo: ")
        and complaint in lines[0]
    )


def test_a_directory_that_does_not_exist_is_refused(demo: Demo, tree: Path) -> None:
    assert refused(demo(tree / "nowhere"), "nowhere does not exist")


def test_a_file_in_place_of_a_directory_is_refused(demo: Demo, tree: Path) -> None:
    assert refused(demo(tree / "plain.py"), "is not a directory")


def test_a_directory_without_python_files_is_refused(
    demo: Demo, tmp_path: Path, temporary: Path
) -> None:
    assert refused(demo(temporary, "--output", tmp_path / "index.sqlite"), "no Python files in")
    assert not (tmp_path / "index.sqlite").exists()


def test_an_output_that_cannot_be_written_is_refused(demo: Demo, tree: Path) -> None:
    assert refused(demo(tree, "--output", tree / "no/where.sqlite"), "cannot write the index")


def test_an_output_that_holds_something_else_is_refused(demo: Demo, tree: Path) -> None:
    assert refused(demo(tree, "--output", tree / "plain.py"), "cannot write the index")
    assert (tree / "plain.py").read_text() == PLAIN


PAGE = Path(__file__).parents[2] / "docs" / "demo.md"


def without_figures(line: str) -> str:
    return " ".join(re.sub(r"\d[\d.,]*", "N", line).split())


@pytest.mark.slow
def test_page_of_the_demo_shows_its_scenes_and_tables(demo: Demo) -> None:
    page = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"^```text\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    tables = [block for block in blocks if re.match(r" {10}", block)]
    run = demo()
    assert run.returncode == 0, run.stderr
    printed = run.stdout.splitlines()

    heads = [line for line in printed if re.match(r"\d\. ", line)]
    assert re.findall(r"^## (.*)", page, flags=re.MULTILINE) == heads
    assert len(tables) == 3
    shown = [line for table in tables for line in table.splitlines()]
    assert set(map(without_figures, shown)) <= set(map(without_figures, printed))
