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
        assert self.process.stderr is not None
        read = []
        for line in self.process.stderr:
            read.append(line)
            if line.startswith(begin):
                return
        pytest.fail(f"ended without a line that begins with {begin!r}: {read}")

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def workers(self) -> list[psutil.Process]:
        return [each for each in self.children() if "procbus-worker" in each.cmdline()]

    def ends(self) -> tuple[int, str, list[str]]:
        """Its exit status, its report, and its other output beside progress."""
        output, errors = self.process.communicate(timeout=ENDED_WITHIN_S)
        said = [line for line in errors.splitlines() if not line.endswith(" files")]
        return self.process.returncode, output, said


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


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("whole_group", [False, True], ids=["process", "group"])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_run_at_once_and_leaves_nothing(
    tmp_path: Path, temporary: Path, number: signal.Signals, status: int, whole_group: bool
) -> None:
    demo = Demo(temporary, tree(tmp_path / "tree", files=400))
    demo.read_until("procbus: ")
    children = demo.children()
    assert len(children) >= 2  # workers, and the trackers that multiprocessing has

    (os.killpg if whole_group else os.kill)(demo.process.pid, number)

    ended, output, said = demo.ends()
    assert_gone(children)
    assert ended == status
    assert output == ""
    (line,) = said
    assert line.startswith("procbus: stopped; ")
    assert line.endswith(" of 400 files were not indexed")
    assert list(temporary.glob("procbus-demo-*")) == []


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("bus", ["thread-pool bus", "ProcessPoolExecutor"])
@pytest.mark.parametrize("whole_group", [False, True], ids=["process", "group"])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_comparison_at_once_and_leaves_nothing(
    tmp_path: Path,
    temporary: Path,
    number: signal.Signals,
    status: int,
    whole_group: bool,
    bus: str,
) -> None:
    demo = Demo(temporary, tree(tmp_path / "tree", files=100))
    demo.read_until(f"{bus}: ")
    children = demo.children()

    (os.killpg if whole_group else os.kill)(demo.process.pid, number)

    ended, output, said = demo.ends()
    assert_gone(children)
    assert ended == status
    assert output == ""
    (line,) = said
    assert line.startswith(f"{bus}: stopped; ")
    assert list(temporary.glob("procbus-demo-*")) == []


def test_index_stored_before_a_signal_is_kept_if_its_path_was_given(
    tmp_path: Path, temporary: Path
) -> None:
    index = tmp_path / "index.sqlite"
    demo = Demo(temporary, tree(tmp_path / "tree", files=400), "--output", index)
    demo.read_until("procbus: ")
    children = demo.children()

    demo.process.terminate()

    _, _, said = demo.ends()
    assert_gone(children)
    left = int(said[0].split()[2].replace(",", ""))
    assert 0 < left <= 300
    assert stored_files(index) == 400 - left


def test_a_file_whose_worker_is_killed_is_reported_and_the_others_are_indexed(
    tmp_path: Path, temporary: Path
) -> None:
    root = tree(tmp_path / "tree", files=3)
    # Read first, and measured for as long as the others take together and more.
    (root / "0000_big.py").write_text("def f(a):\n  return a and 1\n" * 80_000)
    index = tmp_path / "index.sqlite"
    demo = Demo(temporary, root, "--output", index, "--cpu-workers", "2")
    demo.read_until("procbus: 3 of 4 files")
    # Found by their present activity: at their start others may have used as much CPU time.
    busiest = max(demo.workers(), key=lambda process: process.cpu_percent(interval=0.1))

    busiest.kill()

    ended, output, _ = demo.ends()
    assert ended == 1
    failed = [line for line in output.splitlines() if line.startswith("procbus: failed: ")]
    assert len(failed) == 1
    assert "0000_big.py: WorkerDied(" in failed[0]
    assert "different things" not in output  # the comparison leaves that file out
    assert stored_files(index) == 3


def stored_files(index: Path) -> int:
    with closing(sqlite3.connect(index)) as database:
        (count,) = database.execute("SELECT count(*) FROM files").fetchone()
    return int(count)
