# SPDX-License-Identifier: MIT
"""Workers that loky owns: one single-worker executor each, and a private pipe.

loky starts the process, watches it and ends it. What it runs there is one long task, the worker's
loop; events and results go through the pipe, so that nothing of one worker can hurt another.
"""

from __future__ import annotations

import contextlib
import multiprocessing.resource_tracker
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from multiprocessing import Pipe, active_children
from time import monotonic
from typing import TYPE_CHECKING, NoReturn

import loky
import loky.backend.resource_tracker
from loky.backend import get_context

from procbus import exit_watch
from procbus.codec import decode
from procbus.context import ONLY_RUN, Run
from procbus.delivery import Delivery
from procbus.errors import ProcbusError, WorkerTraceback
from procbus.pool import worker_process
from procbus.pool.blocks import EventMemory
from procbus.pool.channel import Channel
from procbus.pool.death import break_pipe, exit_code_in, wait_dead
from procbus.pool.definitions import Definitions
from procbus.pool.forward import levels_here, take_in
from procbus.pool.launching import (
    buffer_size,
    nice_of_workers,
    start_process,
    thread_caps,
)
from procbus.pool.logbook import Logbook
from procbus.pool.parent_end import ParentEnd
from procbus.pool.result_memory import ResultReader
from procbus.pool.seam import NO_WORDS, At, Message, Report, SetUpFailed, WorkerGone
from procbus.pool.stack import StackPage
from procbus.pool.wire import STOP, Tag
from procbus.pool.worker_process import STOP_S, WorkerSettings
from procbus.stats import SharedMemoryStats
from procbus.turns import Steps

if TYPE_CHECKING:
    from procbus.processes import Probe


class LokyPool:
    """Workers in processes of this machine.

    Args:
        workers: how many the lane will start; they share the cores for BLAS and OpenMP threads.
        init: the user's set-up of each worker, pickled; empty for none.
        memory: shared with the workers, for what is large.
        run: of the bus, for `current()` in workers.
    """

    elastic, waits_for = False, ""

    def __init__(
        self,
        workers: int | None = None,
        init: bytes = b"",
        memory: EventMemory | None = None,
        run: Run = ONLY_RUN,
    ) -> None:
        self.run = run
        cores: int = loky.cpu_count()
        self.workers = workers or cores
        self.environment = thread_caps(cores, self.workers)
        self.init = init
        self.definitions = Definitions()
        self.memory = EventMemory() if memory is None else memory

    def close(self) -> None:
        """Let go of the shared memory. Idempotent."""
        self.memory.close()

    def shared_memory(self) -> SharedMemoryStats:
        """What is large, on its way to workers and back."""
        return self.memory.stats()

    def size(self) -> int:
        """The cores that this process may use (affinity and cgroup quotas count)."""
        return self.workers

    def start(self, launched: Callable[[LokyWorker], None]) -> LokyWorker:
        """Start a worker process and wait until it is ready."""
        try:
            return LokyWorker(self, launched)
        except OSError as error:  # no more file descriptors, for one
            raise WorkerGone(None, None, NO_WORDS, hopeless=True) from error


class LokyWorker:
    """One worker process, seen from its companion. See `procbus.pool.seam.Worker`."""

    #: What it gives back it gives at once.
    recalling, details = False, None

    def __init__(self, pool: LokyPool, launched: Callable[[LokyWorker], None]) -> None:
        memory = pool.memory
        results = ResultReader(memory, pool.workers)
        self._end = ParentEnd(pool.definitions, memory, results)
        self._init = pool.init
        self._unread_bytes: dict[int, int] = {}
        #: The process, once it is known.
        self.probe: Probe | None = None
        self._logbook = Logbook.create()
        self._stack = StackPage.create()
        nice = nice_of_workers()
        context = get_context("loky")
        self._tokens = context.Semaphore(0)
        self._pipe, theirs = Pipe()
        self._channel = Channel(self._pipe)
        self._room = buffer_size(self._pipe) // 2
        #: Guards the closing: loky's thread hangs up, others look, the companion closes.
        self._closing = threading.Lock()
        self._executor = loky.ProcessPoolExecutor(
            max_workers=1,
            context=context,
            initializer=worker_process.prepare,
            initargs=(
                theirs,
                self._logbook,
                self._stack,
                (memory.room, results.room, memory.large),
                self._tokens,
                WorkerSettings(self._end.number, os.getpid(), nice, pool.run, levels_here()),
            ),
            env=pool.environment,
        )
        self._task: Future[None] | None = None
        self._ended = threading.Event()
        #: Whether it was killed from here; whether its companion knows that it is dead.
        self._killed = self._dead = False
        #: loky's thread that watches the process, once the task has ended.
        self._watcher: threading.Thread | None = None
        # Both would be started along with the worker, and unblock interrupts in between.
        multiprocessing.resource_tracker.ensure_running()
        loky.backend.resource_tracker.ensure_running()
        try:
            task, self._end.pid = start_process(self._submit, nice)
            self._task = task
            theirs.close()
            exit_watch.close_first()
            launched(self)
            task.add_done_callback(self._task_ended)
            self._read_hello()
        except WorkerGone:
            self._close()
            raise
        except (RuntimeError, OSError) as error:  # the interpreter ends, or the machine is full
            theirs.close()
            with contextlib.suppress(RuntimeError):  # loky's thread was not even started
                self._executor.shutdown(wait=False, kill_workers=True)
            self._let_go()
            raise WorkerGone(None, None, NO_WORDS, hopeless=True) from error

    @property
    def pid(self) -> int | None:
        """Its process id; None until it is known: where the kernel does not tell, it does."""
        return self._end.pid

    def _submit(self) -> Future[None]:
        """Have loky start the process, and run its loop there."""
        task: Future[None]
        try:
            task = self._executor.submit(worker_process.serve, self._init)
        except RuntimeError as error:
            if "atexit" not in str(error):
                raise
            # The interpreter is ending. loky did start it, and failed then to register its exit
            # hook. Asking again gives the future that this lost; to serve twice does nothing.
            task = self._executor.submit(worker_process.serve, self._init)
        return task

    # From the lane to the worker.

    def prepare(self, batch: int, deliveries: Sequence[Delivery]) -> Message:
        """Encode a batch: each event alone, each handler once for this worker."""
        return self._end.prepare(batch, deliveries)

    def offer(self, message: Message) -> None:
        """Give the worker a token for each delivery."""
        release = self._tokens.release
        for _ in message.deliveries:
            release()

    def fits_ahead(self, message: Message) -> bool:
        """Whether it fits into the pipe on top of what the worker may not have read yet."""
        return sum(self._unread_bytes.values()) + len(message.data) <= self._room

    def send(self, message: Message) -> None:
        """Write a batch into the pipe. Where the worker is dead, `receive` finds out.

        Not here: it may have sent reports before it died, and they have to be read first.
        """
        self._end.sent(message)
        self._unread_bytes[message.batch] = len(message.data)
        with contextlib.suppress(OSError):
            self._channel.send(message.data)

    def wait_for_room(self, timeout_s: float) -> None:
        """Wait until a block of shared memory has come free."""
        self._end.wait_for_room(timeout_s)

    def take_back(self, most: int) -> int:
        """Take tokens, so that the worker finds none for the last deliveries it has."""
        taken = 0
        while taken < most and self._tokens.acquire(False):
            taken += 1
        return taken

    # From the worker to the lane.

    def receive(self, patience_s: float | None = None) -> Report:
        """Read until there is a report; log records on the way go to the parent's logging."""
        while True:
            message = self._read(patience_s)
            if message is None:
                return self._end.glance(self._logbook.glance())
            if message[:1] == Tag.RESULTS.value:
                report = self._end.report(message)
                self._unread_bytes[report.batch] = 0
                if report.complete:
                    del self._unread_bytes[report.batch]
                return report
            if message[:1] == Tag.MEASURED.value:
                self._end.costs.take_in(memoryview(message)[1:])
            else:
                take_in(Tag(message[:1]), memoryview(message)[1:])

    def _read(self, timeout: float | None = None) -> bytes | bytearray | None:
        try:
            return self._channel.receive(timeout)
        except (EOFError, OSError):
            raise self._gone() from None

    def _read_hello(self) -> None:
        from procbus.processes import Probe  # while the worker starts: psutil takes time to import

        self.probe = None if self._end.pid is None else Probe(self._end.pid)
        while (message := self._read() or b"")[:1] != Tag.HELLO.value:
            if message[:1] == Tag.BROKEN.value:
                self._refuse(message[1:])
            take_in(Tag(message[:1]), memoryview(message)[1:])
        if self.probe is None:
            self._end.pid = int(message[1:])
            self.probe = Probe(self._end.pid)

    def _refuse(self, data: bytes | bytearray) -> NoReturn:
        summary, traceback = decode(bytes(data))
        error = ProcbusError(f"worker_init failed: {summary}")
        error.__cause__ = WorkerTraceback(traceback)
        raise SetUpFailed(None) from error

    def running(self) -> At | None:
        """What the logbook says just now."""
        with self._closing:
            return None if self._task is None else self._logbook.running()

    def set_up_since(self) -> float | None:
        """What the logbook says just now."""
        with self._closing:
            return None if self._task is None else self._logbook.set_up_since()

    def ask_stack(self) -> Steps[str]:
        """Have the worker write its stack."""
        probe = self.probe
        if probe is None or probe.stopped():
            return ""
        yield from self._stack.ask(probe.send_signal)
        return self._stack.read()

    def kill_in(self, at: At, condemn: Callable[[str], None]) -> Steps[bool]:
        """Have the worker write its stack, halt it, and kill it if it is still at that delivery."""
        probe = self.probe
        if probe is None or self._killed or self.running() != at:
            return False
        if not probe.stopped():
            yield from self._stack.ask(probe.send_signal)
        halted = yield from probe.stop()
        stack = self._stack.read()  # before the lock, which others wait for: it reads files
        still = False
        try:
            with self._closing:
                still = self._task is not None and self._logbook.running() == at
                if still:
                    condemn(stack)
        finally:
            if still:
                self._killed = True
                probe.kill_tree()
            elif halted:
                probe.resume()
        return still

    # The end.

    def _gone(self) -> WorkerGone:
        """Collect what a dead worker leaves to its companion; `stop` does away with the rest."""
        noticed_at = monotonic()
        exit_code = wait_dead(self.probe, self._ended, noticed_at + STOP_S)
        self._killed = self._dead = True
        if exit_code is None:
            exit_code = self._exit_code()
            # The pipe may be broken while the process still lives: loky tells of the end of a task
            # before it kills. Nothing in the logbook may change any more once it is read.
            self._shut_down()
        words = self._end.last_words(self._logbook.read(), noticed_at)
        return WorkerGone(self.pid, exit_code, words, noticed_at=noticed_at)

    def _shut_down(self) -> None:
        """Wait until the process is dead, and loky has nothing left of it."""
        self._executor.shutdown(wait=True, kill_workers=self._killed)
        # After `kill` loky does not wait there any more: it has forgotten its thread.
        if self._watcher is not None and self._watcher is not threading.current_thread():
            self._watcher.join()
        # Where loky found the process dead already, it leaves a pipe and a semaphore of it to the
        # next look at the children of this process.
        active_children()

    def _exit_code(self) -> int | None:
        """Exit code of a dead worker, if it can be had."""
        if self._task is None:
            return None
        if not self._task.done():  # loky waits for a pipe to break that somebody holds open
            return None if self.probe is None else self.probe.exit_code()
        return exit_code_in(self._task.exception())

    def _task_ended(self, _: Future[None]) -> None:
        """Loky says so, in its own thread."""
        self._watcher = threading.current_thread()
        self.hang_up()

    def hang_up(self) -> None:
        """Wake the companion, whoever else holds the pipe open."""
        with self._closing:
            break_pipe(self._pipe)
        self._ended.set()

    def stop(self) -> None:
        """Ask the process to end, and wait for it; kill it when it does not in `STOP_S`.

        Lets go of all that there is of one that is dead.
        """
        if self._task is None:
            return
        if self._dead:
            self._ended.wait(STOP_S)  # from then on it is known which thread of loky to join
            self._close()
            return
        deadline = monotonic() + STOP_S
        with contextlib.suppress(EOFError, OSError):  # it has ended, or was dead already
            self._channel.send(STOP)
            self._hear_out(deadline)
        if not self._ended.wait(max(0.0, deadline - monotonic())):
            self.kill()
            self._ended.wait(STOP_S)
        self._close()

    def _hear_out(self, deadline: float) -> None:
        """Take in what is logged after the last report, until the task has ended."""
        while (left_s := deadline - monotonic()) > 0:
            message = self._channel.receive(left_s)
            if message is not None and message[:1] in (Tag.LOG.value, Tag.WARNING.value):
                take_in(Tag(message[:1]), memoryview(message)[1:])

    def kill(self) -> None:
        """Kill the process and those it started; the companion finds it gone."""
        self._killed = True
        if self.probe is not None:
            self.probe.kill_tree()
        with contextlib.suppress(AttributeError):  # its companion has just closed it
            self._executor.shutdown(wait=False, kill_workers=True)

    def _close(self) -> None:
        self._shut_down()
        self._let_go()

    def _let_go(self) -> None:
        with self._closing:
            self._task = None
            self._pipe.close()
            self._logbook.close()
            # Whoever keeps an error that arose here keeps this object, by the frames in its
            # traceback: let it hold nothing of the machine, and nothing that holds such.
            self._tokens = threading.Semaphore(0)
            self._watcher = None
            del self._executor
        self._stack.close()  # outside of the lock: it may have to wait until nobody asks any more
        self._end.close()
