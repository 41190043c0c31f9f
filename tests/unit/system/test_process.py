# SPDX-License-Identifier: MIT
"""Looking at processes and sending them signals, on real ones: they may be gone at any moment."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from procbus.system import procfs
from procbus.system.cooperative import in_turn
from procbus.system.process import (
    STOPPED,
    Probe,
    fair_bytes,
    machine_memory,
    own_bytes,
    thread_cpu_s,
)
from tests.parts import BOUND_S
from tests.processes import child_of_a_thread
from tests.waits import eventually

#: Prints its pid and its descendants' pids, each on a line, and then repeats its input. Each
#: process holds the writing end of the output, which ends only when the last of them is dead.
FAMILY = """
import os, sys
def descend(depth):
    for _ in range(2 if depth else 0):
        if not os.fork():
            descend(depth - 1)
            sys.stdin.read()
            os._exit(0)
    os.write(1, b"%d\\n" % os.getpid())
descend(int(sys.argv[1]))
for line in sys.stdin:
    print(line, end="", flush=True)
"""
#: Starts processes as fast as it can.
SPAWNER = """
import os, time
print(os.getpid(), flush=True)
for n in range(200):
    if not os.fork():
        time.sleep(60)
        os._exit(0)
time.sleep(60)
"""
#: Has a child that burns CPU, and waits for it when it is told to.
BOSS = """
import subprocess, sys
code = "import time\\nwhile time.process_time() < 0.3: pass\\nprint(1, flush=True); input()"
child = subprocess.Popen([sys.executable, "-S", "-c", code], stdin=subprocess.PIPE)
input()
child.communicate(b"\\n")
print(2, flush=True)
input()
"""


class Child:
    """A process that the test talks to by lines."""

    def __init__(self, code: str, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-S", "-c", code, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.probe = Probe(self.process.pid)

    def read(self) -> bytes:
        """Its next line; empty when it and all who share its output are dead."""
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], BOUND_S)
        assert ready, "it says nothing"
        line = b""
        while not line.endswith(b"\n") and (byte := os.read(self.process.stdout.fileno(), 1)):
            line += byte
        return line

    def tell(self, line: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line)
        self.process.stdin.flush()

    def wait_all_dead(self) -> None:
        while self.read():
            pass

    def end(self) -> None:
        self.probe.kill_tree()
        self.wait_all_dead()
        self.process.communicate()


Start = Callable[..., Child]


@pytest.fixture
def start() -> Iterator[Start]:
    children: list[Child] = []

    def start_one(code: str, *arguments: str) -> Child:
        children.append(Child(code, *arguments))
        return children[-1]

    yield start_one
    for child in children:
        child.end()


def start_family(start: Start, depth: int) -> tuple[Child, set[int]]:
    """A process and its descendants: two children, which have two, and so on."""
    child = start(FAMILY, str(depth))
    pids = {int(child.read()) for _ in range(2 ** (depth + 1) - 1)}
    return child, pids - {child.process.pid}


def stop(probe: Probe) -> bool | None:
    [halted] = in_turn([probe.stop()])
    return halted


# Looking.


def test_a_sample_tells_memory_and_cpu() -> None:
    before = Probe(os.getpid()).sample()
    after = Probe(os.getpid()).sample()

    assert before is not None
    assert after is not None
    assert before.rss > 1_000_000
    assert 0 < before.cpu_s <= after.cpu_s
    assert before.at <= after.at
    assert before.io_bytes == 0, "not asked for"


def test_a_closer_sample_tells_who_wants_a_core(start: Start) -> None:
    own = Probe(os.getpid()).sample(closer=True)
    assert own is not None
    assert own.runnable
    child, _ = start_family(start, 0)

    def waits() -> bool:
        sample = child.probe.sample(closer=True)
        return sample is not None and not sample.runnable

    eventually(waits)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts all reads and writes")
def test_a_sample_counts_bytes_on_request(tmp_path: Path) -> None:
    probe = Probe(os.getpid())
    before = probe.sample(closer=True)
    (tmp_path / "file").write_bytes(bytes(1_000_000))
    (tmp_path / "file").read_bytes()
    after = probe.sample(closer=True)

    assert before is not None
    assert after is not None
    assert after.io_bytes - before.io_bytes >= 2_000_000


@pytest.mark.parametrize("readable", [True, False], ids=["by its files", "by psutil"])
def test_usage_is_shown_wherever_it_is_read(monkeypatch: Any, readable: bool) -> None:
    monkeypatch.setattr(procfs, "READABLE", readable and procfs.READABLE)
    probe = Probe(os.getpid())
    sample, own = probe.sample(), probe.own_bytes()

    assert sample is not None
    assert own is not None
    assert 1_000_000 < own <= sample.rss
    assert sample.cpu_s > 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells it")
def test_memory_that_a_forked_process_has_in_common_counts_for_its_part(start: Start) -> None:
    code = """
import os, sys
kept = bytearray(b"x") * (64 << 20)
if not os.fork():
    sys.stdin.read()
    os._exit(0)
print(os.getpid(), flush=True)
input()
"""
    boss = start(code)
    boss.read()
    (child,) = boss.probe.children()
    family = [boss.process.pid, child]

    assert sum(own_bytes(pid) or 0 for pid in family) > 128 << 20, "in both, by what is cheap"
    fair = sum(fair_bytes(pid) or 0 for pid in family)
    assert 64 << 20 < fair < 100 << 20


def test_of_a_process_that_is_gone_no_memory_is_known() -> None:
    assert own_bytes(2**31) is None
    assert fair_bytes(2**31) is None


def test_details_of_a_process_are_read(start: Start) -> None:
    child, descendants = start_family(start, 2)

    details = child.probe.details()

    assert details is not None
    assert details.status != STOPPED
    assert details.uss is not None
    assert 0 < details.uss <= details.rss
    assert details.children == len(descendants) == 6
    assert details.open_files is not None
    assert details.open_files >= 3
    assert details.age_s >= 0


@pytest.mark.parametrize("listed", [True, False])
def test_descendants_are_found(start: Start, monkeypatch: Any, listed: bool) -> None:
    if not listed:  # as where the kernel does not list them
        monkeypatch.setattr(procfs, "LISTS_CHILDREN", False)
    child, descendants = start_family(start, 2)

    assert set(child.probe.children()) == descendants
    assert len(child.probe.children()) == 6


def test_children_of_any_thread_are_found() -> None:
    with child_of_a_thread() as pid:
        assert pid in Probe(os.getpid()).children()


def test_the_tree_has_the_cpu_of_descendants(start: Start) -> None:
    boss = start(BOSS)
    assert boss.read() == b"1\n"
    sample = boss.probe.sample()
    busy = boss.probe.tree_cpu_s()
    boss.tell(b"\n")
    assert boss.read() == b"2\n"

    assert sample is not None
    assert busy >= sample.cpu_s + 0.2
    # The kernel rounds each of them down to steps of 10 ms.
    assert boss.probe.tree_cpu_s() > busy - 0.03, "also when they have ended"


def test_cpu_time_of_threads_is_read() -> None:
    seconds = thread_cpu_s()
    assert seconds[threading.get_native_id()] >= 0


def test_memory_of_the_machine_is_read() -> None:
    memory = machine_memory()
    assert 0 < memory.available <= memory.total


# Signals.


def test_a_process_is_halted_and_goes_on(start: Start) -> None:
    child, _ = start_family(start, 0)
    assert not child.probe.stopped()

    assert stop(child.probe)
    eventually(child.probe.stopped)
    assert child.probe.alive()
    details = child.probe.details()
    assert details is not None
    assert details.status == STOPPED
    assert stop(child.probe), "twice"

    child.probe.resume()
    child.tell(b"hello\n")
    assert child.read() == b"hello\n"
    assert not child.probe.stopped()


def test_a_process_that_is_not_seen_to_halt_runs_nothing_either(
    start: Start, monkeypatch: Any
) -> None:
    child, _ = start_family(start, 0)
    with monkeypatch.context() as patch:
        patch.setattr(Probe, "stopped", lambda _: False)
        assert stop(child.probe)

    child.tell(b"hello\n")
    eventually(child.probe.stopped)
    child.probe.resume()
    assert child.read() == b"hello\n"


def test_a_signal_is_sent(start: Start) -> None:
    child, _ = start_family(start, 0)

    assert child.probe.send_signal(signal.SIGTERM)

    assert child.process.wait(BOUND_S) == -signal.SIGTERM
    assert not child.probe.send_signal(signal.SIGTERM)


def test_a_tree_is_killed(start: Start) -> None:
    child, descendants = start_family(start, 3)

    child.probe.kill_tree()
    child.wait_all_dead()

    assert child.process.wait(BOUND_S) == -signal.SIGKILL
    deadline = time.monotonic() + BOUND_S
    while any(Probe(pid).alive() for pid in descendants):  # their output is closed just before
        assert time.monotonic() < deadline
        os.sched_yield()
    child.probe.kill_tree()


def test_a_halted_tree_is_killed(start: Start) -> None:
    child, descendants = start_family(start, 1)
    for pid in descendants:
        os.kill(pid, signal.SIGSTOP)
    assert stop(child.probe)

    child.probe.kill_tree()

    child.wait_all_dead()


def test_a_process_that_keeps_starting_others_is_killed_with_them(start: Start) -> None:
    child = start(SPAWNER)
    child.read()

    child.probe.kill_tree()

    child.wait_all_dead()


# Gone.


def assert_dead(probe: Probe) -> None:
    assert probe.sample() is None
    assert probe.sample(closer=True) is None
    assert probe.own_bytes() is None
    assert probe.details() is None
    assert not probe.alive()
    assert not probe.stopped()
    assert probe.children() == []


def test_of_a_process_that_is_gone_nothing_is_known(start: Start) -> None:
    child, _ = start_family(start, 0)
    child.process.kill()
    child.process.wait(BOUND_S)

    for probe in (child.probe, Probe(child.process.pid)):
        assert_dead(probe)
        assert probe.tree_cpu_s() == 0
        assert not stop(probe)
        assert not probe.send_signal(signal.SIGTERM)
        probe.resume()
        probe.kill_tree()


def test_a_zombie_is_dead(start: Start) -> None:
    child, _ = start_family(start, 0)
    child.process.kill()
    os.waitid(os.P_PID, child.process.pid, os.WEXITED | os.WNOWAIT)  # leaves it a zombie

    assert_dead(child.probe)
    assert_dead(Probe(child.process.pid))
    assert not stop(child.probe)
    child.probe.kill_tree()


@pytest.mark.parametrize("pid", [0, -1, 2**31])
def test_a_pid_that_cannot_be_is_of_a_process_that_is_gone(pid: int) -> None:
    assert_dead(Probe(pid))


@pytest.mark.parametrize(
    "error",
    [
        psutil.NoSuchProcess(1),
        psutil.AccessDenied(1),
        OSError("no such file"),
        RuntimeError("file was empty"),
        ValueError("no such field"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_error_of_psutil_means_no_answer(monkeypatch: Any, error: Exception) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    probe = Probe(os.getpid())
    monkeypatch.setattr(psutil.Process, "memory_full_info", fail)
    monkeypatch.setattr(psutil.Process, "num_fds", fail)
    sample, details = probe.sample(closer=True), probe.details()
    assert sample is not None
    assert details is not None
    assert (details.uss, details.open_files) == (None, None)

    monkeypatch.setattr(psutil.Process, "cpu_times", fail)
    monkeypatch.setattr(procfs, "READABLE", False)
    assert probe.sample() is None
    assert probe.tree_cpu_s() == 0
    monkeypatch.setattr(psutil.Process, "threads", fail)
    assert thread_cpu_s() == {}
