"""The leak check finds each kind of leak, tried once for real and cleaned up afterwards."""

from __future__ import annotations

import _thread
import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import psutil
import pytest

from tests import leaks
from tests.processes import alive_after

linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
WAIT_FOR_INPUT = [sys.executable, "-c", "input()"]


@contextlib.contextmanager
def process_waiting_for_input(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_test_that_leaves_nothing_has_no_leaks() -> None:
    before = leaks.Snapshot.take()

    assert not leaks.leaks_since(before, patience_s=0)


def test_a_process_left_running_is_found_and_named() -> None:
    before = leaks.Snapshot.take()
    with process_waiting_for_input(*WAIT_FOR_INPUT) as process:
        left = leaks.leaks_since(before, patience_s=0)

        assert {found.pid for found in left.processes} == {process.pid}
        assert f"process {process.pid}" in str(left)
        assert "input()" in str(left)


def test_a_process_left_running_can_be_killed() -> None:
    before = leaks.Snapshot.take()
    with process_waiting_for_input(*WAIT_FOR_INPUT) as process:
        leaks.leaks_since(before, patience_s=0).kill_processes()

        assert not psutil.pid_exists(process.pid)
    assert not leaks.leaks_since(before, patience_s=0)


@linux_only
def test_a_process_whose_parent_is_gone_is_found() -> None:
    parent = "import subprocess, sys; print(subprocess.Popen(sys.argv[1:]).pid); input()"
    before = leaks.Snapshot.take()
    with process_waiting_for_input(sys.executable, "-uc", parent, *WAIT_FOR_INPUT) as process:
        assert process.stdout is not None
        orphan = psutil.Process(int(process.stdout.readline()))
        process.kill()
        process.wait(timeout=60)
        # It still holds the pipe that its parent had as standard input, and so waits on.
        left = leaks.leaks_since(before, patience_s=0)
        orphan.kill()

    assert orphan in left.processes


def test_a_thread_left_running_is_found_and_named() -> None:
    before = leaks.Snapshot.take()
    end = threading.Event()
    thread = threading.Thread(target=end.wait, name="left-behind")
    thread.start()
    left = leaks.leaks_since(before, patience_s=0)
    end.set()
    thread.join()

    assert left.threads == {thread}
    assert "left-behind" in str(left)


class EndsWhenJoined(threading.Thread):
    def __init__(self, and_then: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self._joined = threading.Event()
        self._and_then = and_then

    def run(self) -> None:
        self._joined.wait()
        self._and_then()

    def join(self, timeout: float | None = None) -> None:
        self._joined.set()
        super().join(timeout)


def test_a_thread_that_is_about_to_end_is_waited_for() -> None:
    before = leaks.Snapshot.take()

    EndsWhenJoined().start()

    assert not leaks.leaks_since(before)


def test_thread_that_an_ending_thread_starts_is_waited_for() -> None:
    before = leaks.Snapshot.take()

    EndsWhenJoined(EndsWhenJoined().start).start()

    assert not leaks.leaks_since(before)


class AsksAtItsEnd:
    """A variable of a thread that asks for the current thread when it is freed, as a log record."""

    def __del__(self) -> None:
        threading.current_thread()


def test_the_stand_in_of_a_thread_that_has_ended_is_no_leak() -> None:
    before = leaks.Snapshot.take()
    own = threading.local()

    def work() -> None:
        own.late = AsksAtItsEnd()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()

    assert not leaks.leaks_since(before)


def test_a_thread_that_threading_did_not_start_is_found_until_it_ends() -> None:
    before = leaks.Snapshot.take()
    known, go = threading.Event(), threading.Event()

    def work() -> None:
        threading.current_thread()
        known.set()
        go.wait(60)

    _thread.start_new_thread(work, ())
    try:
        assert known.wait(60)
        assert len(leaks.leaks_since(before, patience_s=0).threads) == 1
    finally:
        go.set()
    assert not leaks.leaks_since(before)


@linux_only
def test_a_file_descriptor_left_open_is_found_and_named(tmp_path: Path) -> None:
    before = leaks.Snapshot.take()
    descriptor = os.open(tmp_path / "left-open", os.O_CREAT | os.O_WRONLY)
    left = leaks.leaks_since(before, patience_s=0)
    os.close(descriptor)

    assert left.descriptors == {(descriptor, str(tmp_path / "left-open"))}
    assert f"file descriptor {descriptor}" in str(left)


@linux_only
def test_a_file_descriptor_number_used_for_another_file_is_found(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path / "closed", os.O_CREAT | os.O_WRONLY)
    before = leaks.Snapshot.take()
    os.close(descriptor)
    again = os.open(tmp_path / "left-open", os.O_CREAT | os.O_WRONLY)
    left = leaks.leaks_since(before, patience_s=0)
    os.close(again)

    assert again == descriptor
    assert left.descriptors == {(again, str(tmp_path / "left-open"))}


@linux_only
def test_shared_memory_left_behind_is_found_and_named() -> None:
    before = leaks.Snapshot.take()
    memory = SharedMemory(create=True, size=1)
    left = leaks.leaks_since(before, patience_s=0)
    memory.close()
    left_unmapped = leaks.leaks_since(before, patience_s=0)
    memory.unlink()

    assert memory.name in left.shared_memory & left_unmapped.shared_memory
    assert f"shared memory /dev/shm/{memory.name}" in str(left)


@linux_only
def test_semaphore_that_was_being_made_when_its_process_was_killed_is_not_theirs() -> None:
    before = leaks.Snapshot.take()
    unfinished = Path("/dev/shm/sem.aB3xY_")
    unfinished.touch()
    left = leaks.leaks_since(before, patience_s=0)
    unfinished.unlink()

    assert not left.shared_memory


@linux_only
def test_shared_memory_of_a_process_outside_the_tests_is_not_theirs() -> None:
    stranger = """if True:
        import os, pathlib
        from multiprocessing.shared_memory import SharedMemory
        mapped = SharedMemory(create=True, size=1)
        named = pathlib.Path(f"/dev/shm/sem.loky-{os.getpid()}-named")
        named.touch()
        print(os.getpid(), mapped.name, named.name, flush=True)
        input()
        mapped.close()
        mapped.unlink()
        named.unlink()
    """
    # Started by a process that ends at once, with nothing of the tests in its environment.
    parent = "import subprocess, sys; subprocess.Popen(sys.argv[1:], env={})"
    before = leaks.Snapshot.take()
    with process_waiting_for_input(
        sys.executable, "-c", parent, sys.executable, "-c", stranger
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        pid, *names = process.stdout.readline().decode().split()
        outsider = psutil.Process(int(pid))
        process.wait(timeout=60)
        now = leaks.Snapshot.take()
        left = leaks.leaks_since(before, patience_s=0)
        process.stdin.write(b"\n")
        process.stdin.close()
        alive_after([outsider], 10)

    assert now.shared_memory - before.shared_memory >= set(names)
    assert not left.shared_memory & set(names)


@linux_only
def test_shared_memory_of_a_stranger_with_the_pid_of_an_ended_test_process_is_not_the_tests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stranger = "import os; print(os.getpid(), flush=True); input()"
    parent = "import subprocess, sys; subprocess.Popen(sys.argv[1:], env={'MINE': 'no'})"
    with process_waiting_for_input(
        sys.executable, "-c", parent, sys.executable, "-c", stranger
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        outsider = psutil.Process(pid)
        process.wait(timeout=60)
        monkeypatch.setattr(leaks, "OWN_PIDS", {*leaks.OWN_PIDS, pid})
        before = leaks.Snapshot.take()
        named = Path(f"/dev/shm/sem.loky-{pid}-again")
        named.touch()
        left = leaks.leaks_since(before, patience_s=0)
        named.unlink()
        process.stdin.write(b"\n")
        process.stdin.close()
        alive_after([outsider], 10)

    assert named.name not in left.shared_memory


@linux_only
def test_shared_memory_of_a_worker_that_is_gone_is_found() -> None:
    with process_waiting_for_input(sys.executable, "-c", "pass") as worker:
        worker.wait(timeout=60)
    before = leaks.Snapshot.take()
    memory = Path(f"/dev/shm/sem.loky-{worker.pid}-test")
    memory.touch()
    left = leaks.leaks_since(before, patience_s=0)
    memory.unlink()

    assert left.shared_memory >= {memory.name}


@linux_only
def test_shared_memory_of_a_stranger_that_is_gone_is_not_the_tests() -> None:
    # The tests do not know the grandchild's parent: it ends before it prints its pid.
    stranger = """if True:
        import os, pathlib
        named = pathlib.Path(f"/dev/shm/sem.loky-{os.getpid()}-left")
        named.touch()
        print(os.getpid(), flush=True)
    """
    parent = "import subprocess, sys; subprocess.Popen(sys.argv[1:], env={})"
    before = leaks.Snapshot.take()
    with process_waiting_for_input(
        sys.executable, "-c", parent, sys.executable, "-c", stranger
    ) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.wait(timeout=60)
    named = Path(f"/dev/shm/sem.loky-{pid}-left")
    left = leaks.leaks_since(before, patience_s=0)
    existed = named.exists()
    named.unlink()

    assert existed
    assert named.name not in left.shared_memory


@linux_only
def test_the_trackers_and_their_pipes_are_no_leaks() -> None:
    from loky.backend import resource_tracker as loky_tracker

    before = leaks.Snapshot.take()
    resource_tracker.ensure_running()
    loky_tracker.ensure_running()

    assert not leaks.leaks_since(before, patience_s=0)


def test_a_leak_fails_the_test_that_made_it_and_no_other(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    pytester.makeconftest(
        """
        from functools import partial
        from tests import leaks
        from tests.conftest import nothing_left_behind

        leaks.leaks_since = partial(leaks.leaks_since, patience_s=0)
        """
    )
    pytester.makepyfile(
        """
        import subprocess, sys, threading
        import psutil

        end = threading.Event()
        held = []

        def test_leaks():
            held.append(subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE))
            threading.Thread(target=end.wait, name="left-behind", daemon=True).start()

        def test_after_it():
            assert not psutil.pid_exists(held[0].pid)
            held.pop().stdin.close()
            end.set()
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")

    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(
        ["*ERROR at teardown of test_leaks*", "the test left behind:", "process *", "thread *"]
    )


def test_object_kept_by_a_log_record_is_no_leak_of_the_test(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    pytester.makeconftest("from tests.conftest import nothing_left_behind")
    pytester.makepyfile(
        """
        import logging, socket

        def test_logs_an_error_whose_traceback_holds_a_socket():
            def connect():
                held = socket.socket()
                raise OSError("no route to host")
            try:
                connect()
            except OSError:
                logging.exception("cannot connect")
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")

    result.assert_outcomes(passed=1)


def test_a_child_with_a_lower_pid_than_its_parent_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Listed:
        """A process of a machine whose pids have begun anew: 7 is a child of 9, a child of ours."""

        def __init__(self, pid: int) -> None:
            self.pid = pid

        def ppid(self) -> int:
            return {9: os.getpid(), 7: 9, 8: 1}[self.pid]

        def environ(self) -> dict[str, str]:
            return {"PATH": "/bin"}

        def is_running(self) -> bool:
            return True

        def status(self) -> str:
            return psutil.STATUS_RUNNING

        def cmdline(self) -> list[str]:
            return ["sleep"]

    monkeypatch.setattr(leaks, "OWN_PIDS", {os.getpid()})
    monkeypatch.setattr(leaks, "_STRANGERS", set())
    monkeypatch.setattr(psutil, "pids", lambda: [7, 8, 9])
    monkeypatch.setattr(psutil, "Process", Listed)

    for _ in range(2):  # the second look knows the stranger already
        assert {process.pid for process in leaks.Snapshot.take().processes} == {7, 9}
