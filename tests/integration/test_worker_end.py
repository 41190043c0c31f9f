"""A worker that is told to stop ends in order, whatever its handlers left behind."""

import os
import signal

import pytest

from tests.integration.conftest import Run, Start
from tests.matrix import quick_first
from tests.processes import is_alive

SCRIPT = """
import atexit, concurrent.futures, logging, multiprocessing, os, subprocess, sys, threading, time
from procbus import EventBus
logging.basicConfig(format="%(message)s")
kept = []

def at_exit():
    with open("hooks", "a") as file:
        print("hook", file=file)
    logging.warning("logged by an exit hook")

def leave():
    LEAVE

def handler(n):
    atexit.register(at_exit)
    file = open("buffered", "w")
    file.write("in the buffer")
    kept.append(file)
    leave()
    return n

with EventBus([], cpu_workers=1) as bus:
    bus.subscribe("n", handler, kind="cpu")
    print(bus.publish("n", 7).result(55))
print(open("hooks").read().split(), open("buffered").read())
"""


PROCESSES = (
    "kept.append(concurrent.futures.ProcessPoolExecutor(1)); kept[-1].submit(abs, 1).result()"
)
THREADS = PROCESSES.replace("ProcessPoolExecutor(1)", "ThreadPoolExecutor()")
LEFT = [
    PROCESSES,
    "threading.Thread(target=threading.Event().wait).start()",
    "threading.Thread(target=threading.Event().wait, daemon=True).start()",
    THREADS,
    "multiprocessing.Process(target=time.sleep, args=(300,)).start()",
    "multiprocessing.Process(target=time.sleep, args=(300,), daemon=True).start()",
    "p = subprocess.Popen(['sleep', '300']); threading.Thread(target=p.wait).start()",
    "kept.append(EventBus([], cpu_workers=1)); kept[-1].subscribe('m', abs, kind='cpu'); "
    "kept[-1].publish('m', -1).result(55)",
    "pass",
]


@pytest.mark.parametrize("left", quick_first(LEFT, 2))
def test_exit_hooks_run_and_buffers_are_flushed_and_nothing_is_left(run: Run, left: str) -> None:
    """`run` waits until no process has the script's stdout any more."""
    ended = run(SCRIPT.replace("LEAVE", left))
    assert (ended.code, ended.out) == (0, "7\n['hook'] in the buffer\n"), ended.err
    assert ended.err.startswith("WARNING:root:")
    assert ended.err.endswith("logged by an exit hook\n")


def test_a_child_in_a_session_of_its_own_outlives_the_bus(start: Start) -> None:
    program = start(
        """
        import subprocess
        from procbus import EventBus
        def handler(apart):
            null = subprocess.DEVNULL
            return subprocess.Popen(
                ["sleep", "300"], start_new_session=apart, stdout=null, stderr=null
            ).pid
        with EventBus([], cpu_workers=1) as bus:
            bus.subscribe("n", handler, kind="cpu")
            print(bus.publish("n", False).result(55), bus.publish("n", True).result(55))
        """
    )
    same, apart = map(int, program.finish().check().split())
    try:
        assert not is_alive(same)
        assert is_alive(apart)
    finally:
        os.kill(apart, signal.SIGKILL)


def test_an_idle_worker_holds_nothing_of_its_last_batch(run: Run) -> None:
    ended = run(
        """
        import os, time
        from procbus import EventBus

        class Noted:
            def __init__(self, name): self.name = name
            def __reduce__(self): return Noted, (self.name,)
            def __del__(self):
                with open("gone", "a") as file:
                    print(os.getpid(), self.name, file=file)

        def handler(event):
            if event.name == "raises":
                raise ValueError(event)
            return Noted("result of " + event.name)

        with EventBus([], cpu_workers=1) as bus:
            bus.subscribe(Noted, handler, kind="cpu")
            names = ["one", "raises", "two"]
            receipts = [bus.publish(Noted(name)) for name in names]
            for receipt in receipts:
                receipt.wait(55)
            [pid] = {d.worker_pid for r in receipts for d in r.deliveries}
            wanted = {f"{pid} {name}" for name in (*names, "result of one", "result of two")}
            deadline = time.monotonic() + 55
            while not wanted <= set(open("gone").read().splitlines()):
                assert time.monotonic() < deadline, open("gone").read()
                time.sleep(0.01)
        print("end")
        """
    )
    assert (ended.code, ended.out) == (0, "end\n"), ended.err
