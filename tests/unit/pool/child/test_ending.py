# SPDX-License-Identifier: MIT
"""The end of a worker: its exit hooks."""

import subprocess
import sys

#: The interpreter reaches the exit hooks while the thread that waited for it runs them already.
LATE = """
import atexit, threading
from procbus.pool.child import ending

ending._LEFT_S = 0.01
begun = threading.Event()

def hook():
    print("hook", flush=True)
    begun.set()
    threading.Event().wait(0.5)

atexit.register(hook)
ending.end_in_order()
begun.wait()
"""


def test_exit_hooks_run_once_although_the_interpreter_is_late() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", LATE], capture_output=True, text=True, timeout=60, check=False
    )

    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "hook\n", "")
