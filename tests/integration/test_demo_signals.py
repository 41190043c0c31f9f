# SPDX-License-Identifier: MIT
"""Real signals to a real `procbus demo`: it ends at once, reports, and leaves nothing."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import IO

import psutil
import pytest

from tests.processes import alive_after

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="signals are those of POSIX"),
]

# The promise is 2 s; the rest is for a machine that is busy with other things.
ENDED_WITHIN_S = 2 + 118


class Demo:
    """A running `procbus demo`."""

    def __init__(self, temporary: Path, *arguments: str | Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "procbus", "demo", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a process group of its own, as a terminal gives it
            env={**os.environ, "TMPDIR": str(temporary)},
        )

    def read_until(self, begin: str) -> None:
        """Wait for a line of its progress that begins so."""
        _read_until(self.process.stderr, begin)

    def show_until(self, begin: str) -> None:
        """Wait for a line of its report that begins so."""
        _read_until(self.process.stdout, begin)

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def ends(self) -> tuple[int, str, list[str]]:
        """Its exit status, its report, and its other output beside progress."""
        output, errors = self.process.communicate(timeout=ENDED_WITHIN_S)
        said = [line for line in errors.splitlines() if not line.endswith(" files")]
        return self.process.returncode, output, said


def _read_until(stream: IO[str] | None, begin: str) -> None:
    assert stream is not None
    read = []
    for line in stream:
        read.append(line)
        if line.startswith(begin):
            return
    pytest.fail(f"ended without a line that begins with {begin!r}: {read}")


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Let children take SIGINT, also where these tests run in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    directory = tmp_path / "temporary"
    directory.mkdir()
    return directory


def tree(root: Path, files: int) -> Path:
    """Many Python files, of the size that files have."""
    root.mkdir()
    source = Path(sysconfig.get_path("stdlib"), "argparse.py")
    for number in range(files):
        (root / f"{number:04}.py").symlink_to(source)
    return root


def assert_gone(processes: list[psutil.Process]) -> None:
    assert alive_after(processes, ENDED_WITHIN_S) == []


SIGNALS = pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)]
)
TO = pytest.mark.parametrize("whole_group", [False, True], ids=["process", "group"])


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("way", ["plain loop", "ProcessPoolExecutor", "thread-pool bus", "procbus"])
@TO
@SIGNALS
def test_a_signal_ends_a_way_at_once_and_leaves_nothing(
    tmp_path: Path,
    temporary: Path,
    number: signal.Signals,
    status: int,
    whole_group: bool,
    way: str,
) -> None:
    demo = Demo(temporary, tree(tmp_path / "tree", files=100))
    demo.read_until(f"{way}: ")
    children = demo.children()
    assert way not in ("ProcessPoolExecutor", "procbus") or len(children) >= 2

    (os.killpg if whole_group else os.kill)(demo.process.pid, number)

    ended, _, said = demo.ends()
    assert_gone(children)
    assert ended == status
    (line,) = said
    assert line.startswith(f"{way}: stopped; ")
    assert line.endswith(" of 100 files were not measured")
    assert list(temporary.glob("procbus-demo-*")) == []


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("scene", [2, 3, 4, 5])
@TO
@SIGNALS
def test_a_signal_ends_an_accident_at_once_and_leaves_nothing(
    temporary: Path, number: signal.Signals, status: int, whole_group: bool, scene: int
) -> None:
    demo = Demo(temporary, "--limit", "8")
    demo.show_until(f"{scene}. ")
    demo.show_until("")  # its rule: it is about to begin
    children = demo.children()

    (os.killpg if whole_group else os.kill)(demo.process.pid, number)

    ended, output, said = demo.ends()
    assert_gone(children)
    assert ended == status
    assert "How to go on" not in output
    assert len([line for line in said if "not shown to the end" in line]) == 1, said
    assert "Traceback" not in "".join(said)
    assert list(temporary.glob("procbus-demo-*")) == []


def test_index_stored_before_a_signal_is_kept_if_its_path_was_given(
    tmp_path: Path, temporary: Path
) -> None:
    index = tmp_path / "index.sqlite"
    demo = Demo(temporary, tree(tmp_path / "tree", files=400), "--output", index, "--no-compare")
    demo.read_until("procbus: ")
    children = demo.children()

    demo.process.terminate()

    _, _, said = demo.ends()
    assert_gone(children)
    assert said[0].startswith("procbus: stopped; ")
    assert 100 <= stored_files(index) < 400


def stored_files(index: Path) -> int:
    with closing(sqlite3.connect(index)) as database:
        (count,) = database.execute("SELECT count(*) FROM files").fetchone()
    return int(count)
