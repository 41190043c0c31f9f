# SPDX-License-Identifier: MIT
"""The script itself is killed, and started again."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from procbus.demo import DemoError
from procbus.demo.page import Printout
from procbus.demo.scenes import night_job

_KILLED_AFTER = night_job.COUNT // 2
_LONGEST_S = 60.0  # time for the script, on a busy machine


def play(page: Printout, workers: int) -> None:  # noqa: ARG001 - the script has two
    """Kill a script that has a journal in the middle of its work, and start it again."""
    page.say(
        f"Another script converts {night_job.COUNT} films, with EventBus(journal=FILE). Half way "
        "through it gets kill -9. Then it is started again, with no change."
    )
    with tempfile.TemporaryDirectory(prefix="procbus-demo-", ignore_cleanup_errors=True) as folder:
        done = Path(folder, "done.txt")
        done.touch()
        with _script(Path(folder, "journal.db"), done) as script:
            while len(_lines(done)) < _KILLED_AFTER and script.poll() is None:
                time.sleep(0.01)
            script.kill()
        _wait_until_quiet(done)
        before = _lines(done)
        with _script(Path(folder, "journal.db"), done) as script:
            status = script.wait(_LONGEST_S)
        after = _lines(done)
    if status != 0:
        raise DemoError(f"the script {night_job.__name__} ended with status {status}")
    twice = len(after) - len(set(after))
    page.table(
        ["", "films converted"],
        [
            ["first start, until kill -9", str(len(before))],
            ["second start", str(len(after) - len(before))],
            ["films missing at the end", str(night_job.COUNT - len(set(after)))],
            ["films converted twice", str(twice)],
        ],
        left=[""],
    )
    page.say(
        "Finished work is not repeated. Work that was under way at the kill, at most one film for "
        "each worker, runs again. With a plain loop or a pool you would write that bookkeeping "
        "yourself, or begin again at film 0."
    )


@contextmanager
def _script(journal: Path, done: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start the script; end it with the block, however the block is left."""
    command = [sys.executable, "-m", night_job.__name__, str(journal), str(done)]
    script = subprocess.Popen(  # noqa: S603 - it is ours
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield script
    finally:
        script.kill()
        script.wait()


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines()


def _wait_until_quiet(done: Path) -> None:
    """Wait until the killed script's workers have ended too, as they do at once."""
    count = -1
    while count != (count := len(_lines(done))):
        time.sleep(0.2)
