# SPDX-License-Identifier: MIT
"""Forks in the middle of another thread's imports."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waits import BOUND_S

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

#: A module that is forked in the middle of its import.
SLOW = """
import time
import __main__

__main__.begun.set()
time.sleep(0.3)  # a slow import
whole = True
"""

SCRIPT = """
import os, signal, threading
from procbus.system.no_fork import no_fork

begun = threading.Event()


def load():
    with no_fork:
        import slow


thread = threading.Thread(target=load)
thread.start()
begun.wait()
child = os.fork()
if not child:
    signal.alarm(30)
    import slow

    with no_fork:
        os._exit(0 if slow.whole else 1)
assert os.waitpid(child, 0)[1] == 0
thread.join()
"""


def test_a_child_that_is_forked_during_an_import_can_import_the_module(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    (tmp_path / "script.py").write_text(SCRIPT)
    run = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=BOUND_S
    )
    assert run.returncode == 0, run.stderr


def test_a_child_that_is_forked_by_the_importing_thread_can_import(tmp_path: Path) -> None:
    code = (
        "import os\n"
        "from procbus.system.no_fork import no_fork\n"
        "with no_fork:\n"
        "    child = os.fork()\n"
        "if not child:\n"
        "    with no_fork: os._exit(0)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=BOUND_S
    )
    assert run.returncode == 0, run.stderr
