# SPDX-License-Identifier: MIT
"""The files under /proc of real processes, compared with psutil's answers."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from procbus.system import procfs
from tests.processes import child_of_a_thread
from tests.waits import eventually

pytestmark = pytest.mark.skipif(not procfs.READABLE, reason="there is no /proc")

#: Its name is as bad as one can be.
ODD = """
import ctypes, sys
ctypes.CDLL(None).prctl(15, b"a) R 1 (b", 0, 0, 0)
kept = bytearray(b"x") * (32 << 20)
print("ready", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def odd() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", ODD], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    yield process
    process.kill()
    process.communicate()


def test_readings_equal_psutils_for_any_process_name(
    odd: subprocess.Popen[bytes],
) -> None:
    theirs = psutil.Process(odd.pid)
    assert theirs.name() == "a) R 1 (b"
    eventually(lambda: theirs.status() == psutil.STATUS_SLEEPING)

    stat = procfs.read_stat(odd.pid)

    own_io = procfs.read_io_bytes(os.getpid())
    assert own_io is not None
    assert own_io > 0
    times, memory = theirs.cpu_times(), theirs.memory_info()
    assert stat is not None
    assert stat.state == "S"
    assert stat.cpu_s == pytest.approx(times.user + times.system)
    assert stat.children_cpu_s == 0
    assert stat.rss == pytest.approx(memory.rss, rel=0.05), "the kernel rounds one of the two"
    own = procfs.read_own_bytes(odd.pid)
    assert own is not None
    assert 32 << 20 < own < stat.rss
    assert own == pytest.approx(memory.rss - memory.shared, rel=0.05)


def test_of_a_zombie_there_is_no_memory(odd: subprocess.Popen[bytes]) -> None:
    odd.kill()
    os.waitid(os.P_PID, odd.pid, os.WEXITED | os.WNOWAIT)

    stat = procfs.read_stat(odd.pid)

    assert stat is not None
    assert (stat.state, stat.rss) == ("Z", 0)
    assert not procfs.read_own_bytes(odd.pid)


@pytest.mark.parametrize("pid", [-1, 2**31])
def test_of_a_process_that_is_gone_there_is_no_answer(pid: int) -> None:
    assert procfs.read_stat(pid) is None
    assert procfs.read_own_bytes(pid) is None
    assert procfs.read_io_bytes(pid) is None
    assert procfs.descendants(pid) == []
    assert procfs.descendants(pid, any_thread=False) == []


def test_children_of_the_main_thread_alone_or_of_any() -> None:
    with child_of_a_thread() as other, subprocess.Popen(["sleep", "60"]) as own:
        try:
            main_only = procfs.descendants(os.getpid(), any_thread=False)
            assert own.pid in main_only
            assert other not in main_only
            assert {own.pid, other} <= set(procfs.descendants(os.getpid()))
        finally:
            own.kill()


def test_more_children_than_the_kernel_lists_at_once_are_all_listed() -> None:
    code = """
import os, sys
for _ in range(700):
    if not os.fork():
        sys.stdin.read()
        os._exit(0)
print("ready", flush=True)
sys.stdin.read()
"""
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        assert len(set(procfs.descendants(process.pid))) == 700
    finally:
        process.communicate()  # ends them all: none reads anything more


def test_thread_that_runs_now_was_given_a_core() -> None:
    assert 0 <= procfs.no_core_s() < time.monotonic()
