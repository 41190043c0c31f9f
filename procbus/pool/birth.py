# SPDX-License-Identifier: MIT
"""The birth of a worker process, up to the moment when it has its orders.

1. The pool asks whether a process may start at all: `check_may_launch`.
2. The pool makes a `Newborn`: a process that starts Python and imports the modules of every worker.
   From its first moment it has a worker's environment, niceness and interpreter flags. No interrupt
   reaches the newborn before it can handle one.
3. Meanwhile this process imports loky, and makes the pipe and the memory of the worker.
4. To loky the newborn looks like a process that loky starts itself. So loky writes the orders of
   the newborn: see `procbus/pool/loky_process.py`.
5. `Newborn.deliver` sends the orders, once the newborn is ready for them. The worker says hello.

`procbus/pool/child/birth.py` is the process's own side.
"""

from __future__ import annotations

import contextlib
import multiprocessing.resource_tracker
import os
import signal
import socket
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from multiprocessing import current_process, process
from multiprocessing.popen_fork import Popen
from multiprocessing.spawn import get_command_line
from typing import Any

from procbus.core.errors import ProcbusError
from procbus.pool.child.birth import FORK, ORDERS, READY, Passed
from procbus.system.cores import usable_cores
from procbus.system.no_fork import no_fork
from procbus.system.surroundings import inherited

# Tells whether a process may start, and with which settings it starts.

#: Maximum length of the module path on the command line, in characters; Linux takes 128 KiB there.
_LONGEST_PATH = 100_000
_THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "POLARS_MAX_THREADS",
    "RAYON_NUM_THREADS",
)


def check_may_launch() -> None:
    """Raise an error if this process cannot start workers, or cannot use them.

    Raises:
        ProcbusError: the message gives the reason, and the remedy.
    """
    if current_process().daemon:
        raise ProcbusError(
            f"{current_process().name} is a daemonic process of multiprocessing, which may start "
            "no others: make it with daemon=False, or use concurrent.futures.ProcessPoolExecutor, "
            "whose processes may have a bus with cpu handlers"
        )
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("threading"):
        raise ProcbusError(
            "gevent has patched threading, and the threads that feed worker processes must be real "
            "ones: call patch_all(thread=False), or have no handlers of kind='cpu' in this process"
        )


def thread_caps(cores: int, workers: int) -> dict[str, str]:
    """Environment variables that cap the threads of numeric libraries, unless the user set them.

    Environment variables are used because they take effect before such a library is loaded, and
    setting them costs no import.
    """
    threads = str(max(1, cores // workers))
    return {name: threads for name in _THREADS if name not in os.environ}


def nice_of_workers(more: int) -> int | None:
    """Niceness of workers that are `more` nicer than this process; None for the same niceness."""
    if not more or not hasattr(os, "getpriority"):
        return None
    return os.getpriority(os.PRIO_PROCESS, 0) + more


def interpreter_flags() -> list[str]:
    """Flags of this interpreter that a worker's should have: -O, -W, -X and others."""
    if getattr(sys, "frozen", False):
        return []
    # `multiprocessing` knows most of them, and offers them only in this public function.
    flags = get_command_line()[1:-3]
    given = {flag.partition("=")[0] for flag in flags}
    for name, value in sys._xoptions.items():  # noqa: SLF001 - documented so
        if name not in given:
            flags += ["-X", name if value is True else f"{name}={value}"]
    return flags


def module_path() -> list[Any]:
    """The script's `sys.path`, with the first working directory in place of the empty string."""
    return [place or getattr(process, "ORIGINAL_DIR", None) for place in sys.path]


def _path() -> list[str]:
    """`module_path()`, with procbus's and loky's directories: the script may have removed them."""
    path = [place for place in module_path() if isinstance(place, str)]
    files = [getattr(sys.modules.get(name), "__file__", None) for name in ("procbus", "loky")]
    roots = [os.path.dirname(os.path.dirname(file)) for file in files if file is not None]
    path += [root for root in roots if root not in path]
    if len(ascii(path)) > _LONGEST_PATH:  # the worker gets all of it with its orders
        found = [find_spec(name) for name in ("loky", "cloudpickle", "psutil")]
        roots += [os.path.dirname(os.path.dirname(spec.origin or "")) for spec in found if spec]
        path = [place for place in path if place in roots or place.startswith(sys.base_prefix)]
    return path


@contextlib.contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Keep Ctrl-C and SIGTERM from a process that is being started: it inherits this thread's mask.

    The worker unblocks them once it has set its own signal handlers.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# The process.

#: Maximum time for the birth of a sibling, in seconds; a process that takes longer is stopped.
BIRTH_S = 10.0

#: The program of a newborn. It looks for modules where the script finds them, and never imports a
#: file of the working directory by mistake. The garbage collector is off while modules load,
#: because nothing of them is garbage; `prepare` switches it on. loky works without psutil, and has
#: no use for it in a worker: importing psutil would take a seventh of the worker's start.
PROGRAM = (
    "import sys; sys.path[:] = {path}; import gc; gc.disable(); "
    "from procbus.pool.child.birth import await_orders, follow_orders; "
    "sys.modules['psutil'] = None; "
    "import loky.process_executor; from loky.backend.spawn import prepare; "
    "del sys.modules['psutil']; "
    "await_orders({channel}, {parent}, {end}); follow_orders({channel}, prepare)"
)


class Newborn:
    """A process that waits for its orders. The process belongs to the thread that made it.

    The process ends with that thread. For loky this object is the `Popen` of a process, in the
    terms of `multiprocessing`. loky's own class ignores the flags of the interpreter. It also needs
    an existing working directory, and a stdout and stderr that can be flushed, which the script may
    have closed.

    Args:
        born_with: the settings that the process inherits.
        launch: starts the process, with two descriptors to inherit: its ends of a socket and of a
            pipe. Returns None if the process itself tells its pid, through the socket.

    Raises:
        OSError: the machine is full.
        RuntimeError: the interpreter ends.
    """

    #: The class of a descriptor on its way to the process.
    DupFd = Passed

    def __init__(
        self,
        born_with: object,
        launch: Callable[[int, int], subprocess.Popen[bytes] | None],
    ) -> None:
        #: Descriptors that are passed on to the process.
        self._passed: list[int] = []
        #: The orders of the process, once loky has made them.
        self._orders = b""
        self._born_with = born_with
        #: All bytes that the process has sent by the socket.
        self._heard = b""
        self._process: subprocess.Popen[bytes] | Forked | None
        with no_fork:  # a child would hold these descriptors open, and so hide its death
            self._ours, theirs = socket.socketpair()
            with theirs:
                try:
                    #: A pipe that can be read once the process has ended.
                    self.sentinel, end = os.pipe()
                    weakref.finalize(self, os.close, self.sentinel)
                    try:
                        self._process = launch(theirs.fileno(), end)
                    finally:
                        os.close(end)
                except BaseException:
                    self._ours.close()
                    raise

    @classmethod
    def start(
        cls,
        environment: dict[str, str],
        nice: int | None,
        flags: Callable[[], list[str]] = interpreter_flags,
    ) -> Newborn:
        """Start a newborn.

        Args:
            environment: environment variables added to this process's.
            nice: niceness of the newborn from its first moment; None for this process's. A worker
                also sets its niceness itself, but only after its imports. These would until then
                hold up the workers that have work.
            flags: returns the flags of the interpreter.
        """

        def launch(channel: int, end: int) -> subprocess.Popen[bytes]:
            return _launch(channel, end, environment, flags())

        made = cls(inherited(), launch)
        if nice is not None:
            with contextlib.suppress(OSError):  # it is dead
                os.setpriority(os.PRIO_PROCESS, made.pid, nice)
        return made

    def sibling(self) -> Newborn:
        """Have this newborn fork another one, once it is ready: a fork takes 2 ms, a start 60 ms.

        Any thread may call this, until this newborn has its orders. Both newborns belong to the
        thread that made this one. Call `born` of the new one to see whether it exists.

        Raises:
            OSError: it has ended, or the machine is full.
        """

        def ask(channel: int, end: int) -> None:
            socket.send_fds(self._ours, [FORK], [channel, end])

        return Newborn(self._born_with, ask)

    @property
    def pid(self) -> int:
        """Pid of the process, once it is `born`."""
        assert self._process is not None
        return self._process.pid

    def born(self) -> bool:
        """Whether the process exists and has not ended. Waits for the birth of a sibling."""
        self._ours.settimeout(BIRTH_S)
        try:
            while self._process is None:
                if b"\n" in self._heard:
                    self._process = Forked(int(self._heard.partition(b"\n")[0]), self.sentinel)
                elif not self._hear():
                    return False
            return self.poll() is None
        finally:
            self._ours.settimeout(None)

    def fits(self) -> bool:
        """Whether a process that this thread started now would have the same settings."""
        return self._born_with == inherited()

    # Its orders.

    def duplicate_for_child(self, fd: int) -> int:
        """Pass a descriptor on to the process; return the descriptor's index, for `Passed`."""
        self._passed.append(fd)
        return len(self._passed) - 1

    def order(self, orders: bytes) -> None:
        """Keep the orders of the process until `deliver`."""
        self._orders = orders

    def deliver(self, prepare: Callable[[], object]) -> None:
        """Send the process its orders once it is ready; wait until it has read them, or is dead.

        Args:
            prepare: called once the process is ready: makes the objects that the orders only name.
        """
        with self._ours:
            while READY not in self._heard:
                if not self._hear():
                    return
            prepare()
            try:
                socket.send_fds(self._ours, [ORDERS], self._passed)
                self._ours.sendall(self._orders)
            except OSError:  # it is dead, and the sentinel shows that
                return
            while self._hear():
                pass

    def _hear(self) -> bool:
        """Wait for bytes from the process; return False if it has closed its end of the socket."""
        try:
            said = self._ours.recv(64)
        except OSError:
            return False
        self._heard += said
        return bool(said)

    def abandon(self) -> None:
        """End the process, unless loky knows it already. Idempotent."""
        with self._ours:
            if not self._orders and self._ours.fileno() >= 0 and self.born():
                self.kill()
                self.wait()

    # The end of the process, by the methods that `multiprocessing` calls.

    @property
    def returncode(self) -> int | None:
        """Exit code of the process, once the code was read."""
        return None if self._process is None else self._process.returncode

    def poll(self) -> int | None:
        """Exit code of the process; None while it runs."""
        return None if self._process is None else self._process.poll()

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for the end of the process; return None if it does not end in `timeout` seconds."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return None if self._process is None else self._process.wait(timeout)
        return None

    def terminate(self) -> None:
        """Send it SIGTERM."""
        if self._process is not None:
            self._process.terminate()

    def kill(self) -> None:
        """Send it SIGKILL."""
        if self._process is not None:
            self._process.kill()

    def close(self) -> None:
        """Do nothing: the sentinel is closed with this object."""


class Forked(Popen):
    """The process of a sibling, in the terms of `multiprocessing`.

    Args:
        pid: its pid. That process is a child of this one.
        sentinel: a descriptor that can be read once it has ended.
    """

    def __init__(self, pid: int, sentinel: int) -> None:  # no call of the base class: it would fork
        self.pid = pid
        self.sentinel = sentinel
        self.returncode: int | None = None


def _launch(
    channel: int, end: int, environment: dict[str, str], flags: list[str]
) -> subprocess.Popen[bytes]:
    program = PROGRAM.format(path=ascii(_path()), channel=channel, parent=os.getpid(), end=end)
    with interrupts_blocked():
        return subprocess.Popen(  # noqa: S603 - all of it is ours
            [
                sys.executable,
                *flags,
                *("-c", program),
                *("--process-name", "procbus-worker"),
                *("--pipe", str(channel)),
            ],
            pass_fds=[channel, end],
            env={**os.environ, **environment},
            restore_signals=False,
        )


def give_birth(workers: int | None, nice: int) -> Newborn:
    """Start a process that can become one of several workers.

    Args:
        workers: maximum of workers, which share the cores; None for one worker on each core.
        nice: how much nicer the workers are than this process.

    Raises:
        ProcbusError: this process cannot start workers, or cannot use them.
        OSError: the machine is full.
        RuntimeError: the interpreter ends.
    """
    check_may_launch()
    cores = usable_cores()
    return Newborn.start(thread_caps(cores, workers or cores), nice_of_workers(nice))


# The tracker of `multiprocessing`, whose descriptor a newborn gets.


class _NoDescriptor:
    """A stream without a descriptor: `multiprocessing` goes on if `fileno` raises."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def fileno(self) -> int:
        raise OSError("this stream has no descriptor")


@contextlib.contextmanager
def _stderr_with_descriptor() -> Iterator[None]:
    """For a moment, have `sys.stderr.fileno()` return an open descriptor, or raise.

    The trackers of `multiprocessing` and loky pass this descriptor on to their processes. A stream
    of the user's may return any number. Other writers to the stream do not notice the exchange.
    """
    stream = sys.stderr
    try:
        os.fstat(stream.fileno())
        odd = False
    except AttributeError:  # for example None
        odd = False
    except Exception:  # noqa: BLE001 - the user's object
        odd = stream is not None
    if not odd:
        yield
        return
    stand_in: Any = _NoDescriptor(stream)
    sys.stderr = stand_in
    try:
        yield
    finally:
        if sys.stderr is stand_in:
            sys.stderr = stream


def start_tracker() -> None:
    """Start the tracker that cleans up after this process, unless it is running."""
    with no_fork, _stderr_with_descriptor():
        multiprocessing.resource_tracker.ensure_running()
