"""How tests and handlers in other processes tell each other things, without sleeping.

All of these travel to a worker inside an event.
"""

from __future__ import annotations

import fcntl
import glob
import os
import select
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import psutil
import pytest

from tests.processes import alive_after

ROOT = Path(__file__).parents[2]

#: Maximum wait of a test for an event that a fault would keep from coming, in seconds; because a
#: new worker takes seconds to start beside four busy processes. No test asserts on time.
PATIENCE_S = 60.0


#: For a script whose main thread is sent a signal. One that comes in the moment before the thread
#: sleeps does not wake it; this one comes again and again, and has the other handled.
WAKING = """
import atexit, signal
signal.signal(signal.SIGALRM, lambda *_: None)
signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
atexit.register(signal.setitimer, signal.ITIMER_REAL, 0)
"""


@dataclass(frozen=True)
class Tally:
    """A file to which any process appends lines, which tell the real runs after any death."""

    path: str

    def note(self, line: object) -> None:
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(fd, f"{line}\n".encode())
        finally:
            os.close(fd)

    def lines(self) -> list[str]:
        try:
            return Path(self.path).read_text().splitlines()
        except FileNotFoundError:
            return []

    def counts(self) -> Counter[str]:
        return Counter(self.lines())


@dataclass(frozen=True)
class Bell:
    """A named pipe that a handler rings and a test waits for."""

    path: str

    @classmethod
    def make(cls, path: Path) -> Bell:
        os.mkfifo(path)
        return cls(str(path))

    def ring(self, word: object = "") -> None:
        """Never blocks: the test holds the other end open."""
        fd = os.open(self.path, os.O_WRONLY)
        try:
            os.write(fd, f"{word}\n".encode())
        finally:
            os.close(fd)

    @contextmanager
    def heard(self) -> Iterator[Listener]:
        fd = os.open(self.path, os.O_RDWR | os.O_NONBLOCK)
        try:
            yield Listener(fd)
        finally:
            os.close(fd)


class Listener:
    """The test's end of a bell."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._rest = b""

    def wait(self, rings: int = 1) -> list[str]:
        """Wait for a number of rings; return the word of each."""
        deadline = monotonic() + PATIENCE_S
        while self._rest.count(b"\n") < rings:
            ready, _, _ = select.select([self._fd], [], [], max(0.0, deadline - monotonic()))
            assert ready, f"not {rings} rings within {PATIENCE_S} s, only {self._rest!r}"
            self._rest += os.read(self._fd, 65536)
        *words, self._rest = self._rest.split(b"\n", rings)
        return [word.decode() for word in words]


@dataclass(frozen=True)
class Door:
    """A file lock: while the test keeps it shut, handlers wait in front of it."""

    path: str

    @contextmanager
    def shut(self) -> Iterator[None]:
        with open(self.path, "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def go_through(self) -> None:
        """From any process or thread: wait until the door is open."""
        with open(self.path) as file:
            fcntl.flock(file, fcntl.LOCK_SH)

    def opened(self) -> threading.Event:
        """An event that is set once the door is open, for a handler that works until then."""
        opened = threading.Event()

        def wait() -> None:
            self.go_through()
            opened.set()

        threading.Thread(target=wait).start()
        return opened


@dataclass(frozen=True)
class Job:
    """An event whose handler tells the test that it runs, and waits for the test."""

    number: int
    tally: Tally
    #: The behaviour of the handler, in the words of the test.
    how: str = ""
    door: Door | None = None
    bell: Bell | None = None

    def begin(self) -> None:
        """In the handler: note the number, ring with the process id, and go through the door."""
        self.tally.note(self.number)
        if self.bell is not None:
            self.bell.ring(os.getpid())
        if self.door is not None:
            self.door.go_through()


class Program:
    """A script that runs in a process and process group of its own."""

    def __init__(self, path: Path, *arguments: str, **environment: str) -> None:
        self._popen = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", str(path), *arguments],
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **environment},
            cwd=path.parent,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.pid = self._popen.pid

    def read_line(self) -> str:
        """Read the next line that it, or one of its workers, prints."""
        assert self._popen.stdout is not None
        return self._popen.stdout.readline().rstrip("\n")

    def read_error_line(self) -> str:
        """Read the next line of its stderr."""
        assert self._popen.stderr is not None
        return self._popen.stderr.readline().rstrip("\n")

    def interrupt_group(self) -> None:
        """As the terminal does at Ctrl-C."""
        os.killpg(self.pid, signal.SIGINT)

    def descendants(self) -> list[psutil.Process]:
        return psutil.Process(self.pid).children(recursive=True)

    def finish(self) -> Ended:
        """Wait until it has ended, and no process holds its stdout and stderr open."""
        try:
            out, err = self._popen.communicate(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._popen.send_signal(signal.SIGABRT)  # faulthandler prints the stacks
            self._popen.wait(30)
            self.kill_group()
            out, err = self._popen.communicate()
            pytest.fail(f"the program did not end within {PATIENCE_S} s\n{out}\n{err}")
        return Ended(self._popen.returncode, out, err)

    def kill_group(self) -> None:
        """Kill it, and the processes that it leaves behind.

        Not all at once: the trackers of multiprocessing and loky notice its end, and unlink the
        semaphores that it leaves in /dev/shm. Otherwise these would stay.
        """
        group = [each for each in psutil.process_iter() if group_of(each) == self.pid]
        self._popen.kill()
        self._popen.wait(30)
        alive_after(group, 5.0)
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Leave nothing behind, whatever the test did."""
        if self._popen.poll() is None:
            self.kill_group()
        self._popen.wait(30)
        for stream in (self._popen.stdout, self._popen.stderr):
            assert stream is not None
            stream.close()


@dataclass(frozen=True)
class Ended:
    """How a program ended."""

    code: int
    out: str
    err: str

    def check(self) -> str:
        """Give its stdout; it must have ended well, and have nothing to complain about."""
        assert self.code == 0, f"exit code {self.code}\n{self.out}\n{self.err}"
        assert self.err == ""
        return self.out


def group_of(process: psutil.Process) -> int | None:
    """Its process group; None when it is gone."""
    try:
        return os.getpgid(process.pid)
    except ProcessLookupError:
        return None


def wait_gone(processes: Iterable[psutil.Process], within_s: float = PATIENCE_S) -> None:
    """Wait until all of them have ended."""
    alive = alive_after(list(processes), within_s)
    assert not alive, f"still there: {[(p.pid, p.cmdline()) for p in alive]}"


def semaphores_of(pid: int) -> list[str]:
    """Names of the semaphores that a process made, and that are there."""
    return [
        name for who in ("loky", "procbus") for name in glob.glob(f"/dev/shm/sem.{who}-{pid}-*")
    ]
