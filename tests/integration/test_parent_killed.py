"""The script is killed with SIGKILL: nothing of it stays behind, and its stdout closes."""

import os
import signal
from pathlib import Path

import psutil
import pytest

from tests.integration.conftest import Start
from tests.integration.helpers import semaphores_of, wait_gone
from tests.matrix import quick_first
from tests.waits import eventually

BUSY = {
    "in C with the GIL": "print('started', flush=True); sum(range(10**12))",
    "idle": "print('started', flush=True)",
    "sleeping": "print('started', flush=True); import time; time.sleep(1000)",
    "waiting for a signal": "print('started', flush=True); import signal; signal.pause()",
    "in a Python loop": "print('started', flush=True)\n    while True: pass",
    "printing": "print('started', flush=True)\n    while True: print('x' * 1000, flush=True)",
}


@pytest.mark.parametrize("busy", quick_first(BUSY))
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
    assert semaphores_of(program.pid) == []


def test_a_worker_that_takes_no_orders_leaves_no_semaphore_behind(
    start: Start, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import signal, socket, sys\n"
        "def never(*about): signal.pause()\n"
        "if '--pipe' in sys.orig_argv: socket.recv_fds = never\n"
    )
    program = start(
        f"""
import os, threading
from procbus import EventBus
os.environ["PYTHONPATH"] = {str(tmp_path)!r}
bus = EventBus([], cpu_workers=1)
bus.subscribe("n", abs, kind="cpu")
bus.start()
print("started", flush=True)
threading.Event().wait()
"""
    )
    assert program.read_line() == "started"
    descendants = program.descendants()
    eventually(lambda: len(semaphores_of(program.pid)) == 1)  # until the worker has opened it
    os.kill(program.pid, signal.SIGKILL)
    program.finish()
    wait_gone(descendants)
    # One of them was the tracker, which unlinks what the script could not.
    assert semaphores_of(program.pid) == []


def test_the_semaphore_of_a_worker_has_no_name_while_that_works(start: Start) -> None:
    program = start(
        """
from procbus import EventBus
with EventBus([], cpu_workers=1) as bus:
    bus.subscribe("n", abs, kind="cpu")
    print(bus.publish("n", -7).result(), flush=True)
    input()
"""
    )
    assert program.read_line() == "7"
    assert semaphores_of(program.pid) == []


def test_repeatedly_killed_workers_leave_nothing_behind(start: Start) -> None:
    program = start(
        """
import logging, os
from procbus import EventBus
logging.getLogger("procbus").setLevel(logging.CRITICAL)
bus = EventBus([], cpu_workers=2)
bus.subscribe("n", lambda n: os.kill(os.getpid(), n), kind="cpu")
for _ in range(4):
    bus.publish("n", 9).wait()
bus.publish("n", 0).wait()
print("dead", flush=True)
os.kill(os.getpid(), 19)
"""
    )
    assert program.read_line() == "dead"
    eventually(lambda: psutil.Process(program.pid).status() == psutil.STATUS_STOPPED)
    workers = 2
    assert len(semaphores_of(program.pid)) <= workers, "those of the dead are gone"
    descendants = program.descendants()
    os.kill(program.pid, signal.SIGKILL)
    assert program.finish().code == -signal.SIGKILL
    wait_gone(descendants)
    assert semaphores_of(program.pid) == []
