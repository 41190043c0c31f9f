"""The script is killed with SIGKILL: nothing of it stays behind, and its stdout closes."""

import os
import signal

import pytest

from tests.integration.conftest import Start
from tests.integration.helpers import wait_gone

BUSY = {
    "idle": "print('started', flush=True)",
    "sleeping": "print('started', flush=True); import time; time.sleep(1000)",
    "waiting for a signal": "print('started', flush=True); import signal; signal.pause()",
    "in a Python loop": "print('started', flush=True)\n    while True: pass",
    "in C with the GIL": "print('started', flush=True); sum(range(10**12))",
    "printing": "print('started', flush=True)\n    while True: print('x' * 1000, flush=True)",
}


@pytest.mark.parametrize("busy", BUSY)
def test_no_worker_outlives_a_killed_script(start: Start, busy: str) -> None:
    program = start(
        f"""
from procbus import EventBus
def work(n):
    {BUSY[busy]}
bus = EventBus([], cpu_workers=2)
bus.subscribe("n", work, kind="cpu")
bus.start()
bus.publish("n", 0)
import threading
threading.Event().wait()
"""
    )
    assert program.read_line() == "started"
    descendants = program.descendants()
    assert len(descendants) >= 2
    os.kill(program.pid, signal.SIGKILL)
    # Reads stdout and stderr to their end, as `x=$(python job.py)` does: someone who still held
    # them open would keep it from ending.
    assert program.finish().code == -signal.SIGKILL
    wait_gone(descendants)
