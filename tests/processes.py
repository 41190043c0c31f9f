"""Whether processes have ended: a zombie has, also where its parent is slow to take it away.

`psutil.wait_procs` waits for the parent of a zombie too. The first process of a container, which
inherits every orphan, may take seconds.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import psutil

from tests.waits import BOUND_S

#: Interval between two looks at a process that is to end, in seconds.
LOOK_S = 0.005


def is_alive(process: psutil.Process | int) -> bool:
    """Whether a process, or the one that has a process id now, can still do anything."""
    try:
        if isinstance(process, int):
            process = psutil.Process(process)
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def alive_after(processes: Iterable[psutil.Process], within_s: float) -> list[psutil.Process]:
    """Wait until all of them have ended, up to a maximum; return the ones that have not."""
    deadline = time.monotonic() + within_s
    while (alive := [each for each in processes if is_alive(each)]) and time.monotonic() < deadline:
        processes = alive
        time.sleep(LOOK_S)
    return alive


@contextmanager
def child_of_a_thread() -> Iterator[int]:
    """The process id of a process that another thread of this process has started."""
    started: list[subprocess.Popen[bytes]] = []
    has_started, go = threading.Event(), threading.Event()

    def start_and_wait() -> None:
        started.append(subprocess.Popen(["sleep", "60"]))
        has_started.set()
        go.wait(BOUND_S)

    thread = threading.Thread(target=start_and_wait)
    thread.start()
    try:
        assert has_started.wait(BOUND_S)
        yield started[0].pid
    finally:
        go.set()
        thread.join(BOUND_S)
        for process in started:
            process.kill()
            process.wait(BOUND_S)
