# SPDX-License-Identifier: MIT
"""A process that loky starts, watches and ends: its one long task is the worker's loop."""

from __future__ import annotations

import contextlib
import io
import multiprocessing.resource_tracker
import os
import re
import socket
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from multiprocessing import active_children, current_process, process
from multiprocessing.connection import Connection
from multiprocessing.context import set_spawning_popen
from time import monotonic
from typing import TYPE_CHECKING, Any

import loky
import loky.process_executor
from loky.backend import get_context, reduction
from loky.backend.context import LokyContext
from loky.backend.process import LokyProcess as ProcessOfLoky

from procbus.pool.birth import Newborn, interrupts_blocked, module_path, start_tracker
from procbus.pool.child import entry
from procbus.pool.child.birth import Number
from procbus.pool.child.ending import WORKER_STOP_S
from procbus.pool.child.own_locks import OwnLock, OwnSemaphore
from procbus.pool.tokens import SharedTokens
from procbus.system import exit_hooks
from procbus.system.no_fork import no_fork

if TYPE_CHECKING:
    from multiprocessing.synchronize import Semaphore

    from procbus.system.process import Probe


# Finds out whether a worker is dead, and its exit code. The kernel knows first, and loky some
# 0.1 s later.

#: Interval between two looks whether a process with a broken pipe is dead, in seconds.
_DEATH_LOOK_S = 0.001


def wait_dead(probe: Probe | None, ended: threading.Event, deadline: float) -> int | None:
    """Wait until a process is dead or loky says so; return the exit code, if the kernel has it.

    Args:
        probe: probe of the process; None if its pid is not known.
        ended: set once loky says that the task has ended.
        deadline: time at which to stop waiting, in seconds of `time.monotonic()`.
    """
    while probe is not None and monotonic() < deadline:
        exit_code = probe.exit_code()
        if exit_code is not None or ended.wait(_DEATH_LOOK_S):
            return exit_code
    ended.wait(max(0.0, deadline - monotonic()))
    return None


def break_pipe(pipe: Connection) -> None:
    """Have the reader of a pipe find its end, even if another process holds the other side open."""
    if not pipe.closed and sys.platform != "win32":
        with socket.socket(fileno=os.dup(pipe.fileno())) as end:
            end.shutdown(socket.SHUT_RDWR)


def exit_code_in(error: BaseException | None) -> int | None:
    """Find the exit code in the text of an error of loky, which puts it nowhere else."""
    found = re.search(r"exit codes of the workers are \{\w*\((-?\d+)\)", str(error))
    return int(found[1]) if found else None


def make_tokens() -> SharedTokens | Semaphore:
    """Make a semaphore that can travel to a process of loky."""
    if sys.platform == "win32":  # untested
        start_tracker()
        made: Semaphore = get_context("loky").Semaphore(0)
        return made
    return SharedTokens.unnamed()


def _take_over_exit_hook() -> None:
    """Have loky's exit hook run after the buses are closed, wherever the script ends.

    The hook waits for all workers to end, but workers of an open bus go on. loky registers the hook
    at the start of each process. If the script ended right then, the hook would run first.
    """
    module = loky.process_executor
    if module.process_pool_executor_at_exit is None:
        hook = module._python_exit  # noqa: SLF001 - there is no public way to it
        module.process_pool_executor_at_exit = hook  # loky takes it for registered
        exit_hooks.call_afterwards(hook)


class LokyProcess:
    """The process of one worker. The process belongs to the companion, except for `kill`.

    Args:
        newborn: the process, if it is started already; with None loky starts one.
        prepared_with: arguments of `prepare`, which the process runs first.
        init: the user's set-up of each worker, pickled; empty for none.
        environment: environment variables added to this process's.
    """

    def __init__(
        self,
        newborn: Newborn | None,
        prepared_with: tuple[Any, ...],
        init: bytes,
        environment: dict[str, str],
    ) -> None:
        self._newborn = newborn
        self._init = init
        self._executor = loky.ProcessPoolExecutor(
            max_workers=1,
            context=LokyContext() if newborn is None else _Context(newborn),
            initializer=entry.prepare,
            initargs=prepared_with,
            env=environment,
        )
        self._task: Future[None] | None = None
        #: Set once loky reports the end of the task, or another thread the death of the process.
        self.ended = threading.Event()
        #: Whether it was killed by this process, or is known to be dead.
        self.killed = False
        #: Probe of the process, once its pid is known.
        self.probe: Probe | None = None
        #: loky's thread that watches the process, once the thread was started.
        self._watcher: threading.Thread | None = None

    def start(self) -> int | None:
        """Start the process, or hand the newborn to loky. If this raises, call `abandon`.

        Returns:
            The pid; None if only the process itself can tell it.

        Raises:
            RuntimeError: the interpreter ends.
            OSError: the machine is full.
        """
        start_tracker()  # now, because a start along with the worker would unblock interrupts
        _take_over_exit_hook()
        with interrupts_blocked():
            self._task = self._executor.submit(entry.serve, self._init)
        # `kill` in another thread has loky forget its thread, at any moment from here on.
        self._watcher = self._executor._executor_manager_thread  # noqa: SLF001 - no public way
        return None if self._newborn is None else self._newborn.pid

    def deliver(self, prepare: Callable[[], object]) -> None:
        """Send the process its task once it is ready; wait until it has read this, or is dead.

        Args:
            prepare: called once the process is ready, before the task is sent.
        """
        if self._newborn is not None:
            self._newborn.deliver(prepare)
            self._newborn = None

    def tell_end(self, ended: Callable[[], None]) -> None:
        """Have loky's thread call a function once the task has ended. The function sets `ended`."""
        assert self._task is not None
        self._task.add_done_callback(lambda _: ended())

    def know(self, pid: int) -> None:
        """Note the pid of the process."""
        with no_fork:
            from procbus.system.process import Probe  # while it starts: it imports psutil

        self.probe = Probe(pid)

    def await_death(self, noticed_at: float) -> int | None:
        """Wait until the process, whose pipe is broken, is dead; return its exit code, if known.

        Args:
            noticed_at: time when the broken pipe was noticed, in seconds of `time.monotonic()`.
        """
        exit_code = wait_dead(self.probe, self.ended, noticed_at + WORKER_STOP_S)
        self.killed = True
        if exit_code is None:
            exit_code = self._exit_code()
            # The pipe may be broken while the process still lives: loky reports the end of a task
            # before it kills the process. The logbook may be read only when nothing changes it.
            self.shut_down()
        return exit_code

    def _exit_code(self) -> int | None:
        if self._task is None:
            return None
        if not self._task.done():  # loky waits for a pipe to break that another process holds open
            return None if self.probe is None else self.probe.exit_code()
        return exit_code_in(self._task.exception())

    def await_end(self, deadline: float) -> None:
        """Wait until the task has ended; at `deadline` (`monotonic()`) kill the process."""
        if not self.ended.wait(max(0.0, deadline - monotonic())):
            self.kill()
            self.ended.wait(WORKER_STOP_S)

    def kill(self) -> None:
        """Kill the process and its descendants. From any thread."""
        self.killed = True
        if self.probe is not None:
            self.probe.kill_tree()
        with contextlib.suppress(AttributeError):  # its companion has just released it
            self._executor.shutdown(wait=False, kill_workers=True)

    def shut_down(self) -> None:
        """Wait until the process is dead, and loky has released all its resources."""
        with contextlib.suppress(AttributeError):  # `kill` in another thread was faster
            self._executor.shutdown(wait=True, kill_workers=self.killed)
        # After `kill`, loky's `shutdown` no longer waits, because loky has forgotten its thread.
        if self._watcher is not None and self._watcher is not threading.current_thread():
            self._watcher.join()
        # If loky found the process dead, it leaves a pipe and a semaphore behind until the next
        # look at the children of this process. loky's thread must have ended before that look:
        # while the thread reads the exit code, no other thread learns that the process has ended.
        active_children()

    def abandon(self) -> None:
        """Have loky release a process that could not be started."""
        with contextlib.suppress(RuntimeError):  # loky's thread was not even started
            self._executor.shutdown(wait=False, kill_workers=True)

    def let_go(self) -> None:
        """Drop every resource of the machine, and every object that holds one."""
        self._task = self._watcher = self._newborn = None
        del self._executor


class WorkerProcess(ProcessOfLoky):  # type: ignore[misc] # loky is not typed
    """A process of loky's that was started before: the newborn is that process."""

    #: None once the newborn has its orders, and if the executor has used it up.
    newborn: Newborn | None

    @staticmethod
    def _Popen(process_obj: WorkerProcess) -> Newborn:  # noqa: N802 - `multiprocessing` calls it so
        newborn, process_obj.newborn = process_obj.newborn, None
        if newborn is None:
            raise RuntimeError("the only process of this executor was used before")
        newborn.order(_orders(process_obj, newborn))
        return newborn

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as a process of loky's, so that the new process need not import this module."""
        fields = {name: value for name, value in self.__dict__.items() if name != "newborn"}
        return object.__new__, (ProcessOfLoky,), fields


class _Context(LokyContext):  # type: ignore[misc] # loky is not typed
    """loky's context, whose only process is the newborn.

    loky's own locks have names. To remove these names in the end, loky starts a tracker: one more
    process, which imports all of loky. An executor with a single worker needs no lock between
    processes.
    """

    def __init__(self, newborn: Newborn) -> None:
        super().__init__()
        self._newborn: Newborn | None = newborn

    def Process(self, *args: Any, **options: Any) -> WorkerProcess:  # noqa: N802 - loky calls it so
        made = WorkerProcess(*args, **options)
        made.newborn, self._newborn = self._newborn, None
        return made

    def Lock(self) -> OwnLock:  # noqa: N802 - loky calls it so
        return OwnLock()

    def BoundedSemaphore(self, value: int = 1) -> OwnSemaphore:  # noqa: N802 - loky calls it so
        return OwnSemaphore(value)


def _orders(worker: WorkerProcess, newborn: Newborn) -> bytes:
    """The settings that `loky.backend.spawn.prepare` makes in the new process, and the task."""
    tracker = multiprocessing.resource_tracker.getfd()
    assert tracker is not None
    settings = {
        "name": worker.name,
        "authkey": bytes(current_process().authkey),
        "sys_path": module_path(),
        "sys_argv": sys.argv,
        "orig_dir": getattr(process, "ORIGINAL_DIR", None),
        "mp_tracker_fd": Number(newborn.duplicate_for_child(tracker)),
    }
    orders = io.BytesIO()
    spawning: Any = newborn
    set_spawning_popen(spawning)
    try:
        reduction.dump(settings, orders)
        reduction.dump(worker, orders)
    finally:
        set_spawning_popen(None)
    return orders.getvalue()
