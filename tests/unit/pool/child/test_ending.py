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


#: The interpreter reaches the exit hooks once the thread that waited for it has run them all.
TOO_LATE = """
import atexit, os, sys, threading
from procbus.pool.child import ending

ending._LEFT_S = 0.01
flushed, never = threading.Event(), threading.Event()
exit_at_once = os._exit

def exit_late(status):
    flushed.set()
    never.wait(0.5)
    exit_at_once(status)

os._exit = exit_late
atexit.register(print, "hook", flush=True)
ending.end_in_order()
flushed.wait()
sys.exit(9)
"""


def test_exit_hooks_run_once_although_the_interpreter_is_late() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", LATE], capture_output=True, text=True, timeout=60, check=False
    )

    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "hook\n", "")


def test_the_interpreter_does_not_end_beside_the_thread_that_ran_the_exit_hooks() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", TOO_LATE], capture_output=True, text=True, timeout=60, check=False
    )

    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "hook\n", "")
