# SPDX-License-Identifier: MIT
"""A worker that is a process of this machine, seen from its companion.

Each worker has its own pipe for events and results, so that no worker can harm another.
"""

from __future__ import annotations

# Imported early: loky imports this module later, and once the script has ended it cannot.
import concurrent.futures.process  # noqa: F401
import contextlib
import os
import sys
import threading
from collections.abc import Callable, Mapping
from multiprocessing import Pipe
from time import monotonic
from typing import TYPE_CHECKING, NoReturn

from procbus.codec.encoder import decode
from procbus.core.context import ONLY_RUN, Run
from procbus.core.errors import ProcbusError, WorkerTraceback
from procbus.core.progress import Progress
from procbus.core.stats import SharedMemoryStats
from procbus.pool.birth import Newborn, give_birth, nice_of_workers, thread_caps
from procbus.pool.channel import Channel
from procbus.pool.child.ending import LEFT_S, WORKER_STOP_S
from procbus.pool.forwarding import levels_here
from procbus.pool.handler_cache import Definitions
from procbus.pool.interface import BATCH_S, NO_WORDS, At, Message, Report, SetUpFailed, WorkerGone
from procbus.pool.logbook import SEGMENTS, Logbook
from procbus.pool.memory.batches import BatchWriter
from procbus.pool.memory.events import EventMemory
from procbus.pool.memory.results import ResultReader
from procbus.pool.parent_end import ParentEnd
from procbus.pool.script import PathSince, ScriptSettings, WorkerSettings
from procbus.pool.stack import StackPage
from procbus.pool.tokens import SharedTokens
from procbus.pool.wire import RESULTS_TAG, SHARED_TAG, STOP, Tag
from procbus.system.cooperative import Task
from procbus.system.cores import usable_cores
from procbus.system.no_fork import no_fork

if TYPE_CHECKING:
    from multiprocessing.synchronize import Semaphore

    from procbus.system.process import Probe


class LokyWorker:
    """One worker process, seen from its companion. See `procbus.pool.interface.Worker`."""

    #: It returns taken-back deliveries at once.
    recalling, waiting, details, thread = False, False, None, None

    def __init__(
        self,
        pool: LokyPool,
        newborn: Newborn | None,
        launched: Callable[[LokyWorker], None],
        place: int = 0,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        # Only now: while Python starts there.
        with no_fork:
            from procbus.pool.loky_process import LokyProcess, make_tokens

        memory = pool.memory
        results = ResultReader(memory, pool.workers)
        batches = BatchWriter(memory, pool.workers)
        self._end = ParentEnd(pool.definitions, memory, results, batches)
        self.prepare, self.wait_for_room = self._end.prepare, self._end.wait_for_room
        self._unread_bytes: dict[int, int] = {}
        self._logbook = Logbook.create(segments=SEGMENTS)
        self._stack = StackPage.create()
        self._tokens: SharedTokens | Semaphore | threading.Semaphore = make_tokens()
        self._pipe, theirs = Pipe()
        self._channel = Channel(self._pipe)
        self._room = self._channel.buffer_size() // 2
        #: Guards the closing: loky's thread hangs up, other threads look, the companion closes.
        self._closing = threading.Lock()
        #: Whether the process was started, and is not closed yet.
        self._open = False
        #: Whether the companion knows that the process is dead.
        self._dead = False
        self._process = LokyProcess(
            newborn,
            (
                theirs,
                self._logbook,
                self._stack,
                (memory.room, results.room, memory.large, batches.room),
                self._tokens,
                WorkerSettings(
                    self._end.number,
                    os.getpid(),
                    nice_of_workers(pool.nice),
                    pool.run,
                    levels_here(),
                    script=ScriptSettings.taken(),
                    keeps_on=pool.keeps_on,
                    place=place,
                    environment=environment,
                    eager=pool.eager(),
                ),
            ),
            pool.init,
            pool.environment,
        )
        try:
            self._end.pid = self._process.start()
            self._open = True
            launched(self)
            self._process.tell_end(self.hang_up)
            if isinstance(self._tokens, SharedTokens):
                self._process.deliver(self._tokens.create)
                self._tokens.forget_name()
            theirs.close()
            self._read_hello()
        except WorkerGone:
            self._close()
            raise
        except (
            RuntimeError,
            OSError,
        ) as error:  # the interpreter is ending, or the machine is full
            theirs.close()
            self._process.abandon()
            self._let_go()
            raise WorkerGone(None, None, NO_WORDS, hopeless=True) from error

    @property
    def pid(self) -> int | None:
        """Process id; None until the kernel or the process itself has told it."""
        return self._end.pid

    @property
    def probe(self) -> Probe | None:
        """Probe of the process, once its pid is known."""
        return self._process.probe

    # From the lane to the worker.

    def offer(self, message: Message) -> None:
        """Give the worker a token for each delivery."""
        release = self._tokens.release
        for _ in message.deliveries:
            release()

    def fits_ahead(self, message: Message) -> bool:
        """Whether a message fits into the pipe behind the messages that may be unread there."""
        return sum(self._unread_bytes.values()) + len(message.data) <= self._room

    def send(self, message: Message) -> None:
        """Write a batch into the pipe. If the worker is dead, `receive` finds out.

        This method does not report a dead worker: the worker may have sent reports before, which
        must be read first.
        """
        self._end.sent(message)
        self._unread_bytes[message.batch] = len(message.data)
        try:  # noqa: SIM105 - three calls on the way of every batch
            self._channel.send(message.data)
        except OSError:
            pass

    def take_back(self, most: int) -> int:
        """Take tokens, so that the worker finds none for its last deliveries."""
        taken = 0
        while taken < most and self._tokens.acquire(False):
            taken += 1
        return taken

    # From the worker to the lane.

    def receive(self, patience_s: float | None = None) -> Report:
        """Read until a report arrives; log records on the way go to the parent's logging."""
        while True:
            message = self._read(patience_s)
            if message is None:
                return self._end.glance(self._logbook.glance())
            tag = message[:1]
            if tag == RESULTS_TAG:
                report = self._end.report(message)
            elif tag == SHARED_TAG:
                report = self._end.report(message, self._logbook.results)
                self._logbook.taken()
            else:
                self._end.take_aside(message)
                continue
            self._unread_bytes[report.batch] = 0
            if report.complete:
                del self._unread_bytes[report.batch]
            return report

    def _read(self, timeout: float | None = None) -> bytes | bytearray | None:
        try:
            return self._channel.receive(timeout)
        except (EOFError, OSError):
            raise self._gone() from None

    def _read_hello(self) -> None:
        if self._end.pid is not None:
            self._process.know(self._end.pid)
        while (message := self._read() or b"")[:1] != Tag.HELLO.value:
            if message[:1] == Tag.BROKEN.value:
                self._refuse(message[1:])
            self._end.take_aside(message)
        if self._end.pid is None:
            self._end.pid = int(message[1:])
            self._process.know(self._end.pid)

    def _refuse(self, data: bytes | bytearray) -> NoReturn:
        summary, traceback = decode(bytes(data))
        error = ProcbusError(f"worker_init failed: {summary}")
        error.__cause__ = WorkerTraceback(traceback)
        raise SetUpFailed(None) from error

    def running(self) -> At | None:
        """The present entry of the logbook."""
        with self._closing:
            return self._logbook.running() if self._open else None

    def progress(self, at: At) -> Progress | None:
        """The report in the logbook."""
        with self._closing:
            reported = self._logbook.reported() if self._open else None
        return None if reported is None else reported.during(*at[:2])

    def set_up_since(self) -> float | None:
        """The present entry of the logbook."""
        with self._closing:
            return self._logbook.set_up_since() if self._open else None

    def ask_stack(self) -> Task[str]:
        """Have the worker write its stack."""
        probe = self.probe
        if probe is None or probe.stopped():
            return ""
        yield from self._stack.ask(probe.send_signal)
        return self._stack.read()

    def tell_cancelled(self, at: At) -> None:
        """Write into the logbook that the delivery is cancelled."""
        with self._closing:
            if self._open:
                self._logbook.cancel(*at[:2])

    def watch_memory(self, at: At, limit: int) -> None:
        """Do nothing: the supervisor reads the memory through the probe."""

    def kill_in(self, at: At, condemn: Callable[[str], None]) -> Task[bool]:
        """Have the worker write its stack, halt it, and kill it if it is still at that delivery."""
        probe = self.probe
        if probe is None or self._process.killed or self.running() != at:
            return False
        if not probe.stopped():
            yield from self._stack.ask(probe.send_signal)
        halted = yield from probe.stop()
        stack = self._stack.read()  # outside the lock, since it reads files and other threads wait
        still = False
        try:
            with self._closing:
                still = self._open and self._logbook.running() == at
                if still:
                    condemn(stack)
        finally:
            if still:
                self._process.killed = True
                probe.kill_tree()
            elif halted:
                probe.resume()
        return still

    # The end.

    def _gone(self) -> WorkerGone:
        """Collect a dead worker's last words for its companion; `stop` releases the rest."""
        noticed_at = monotonic()
        exit_code = self._process.await_death(noticed_at)
        self._dead = True
        words = self._end.last_words(self._logbook.read(), noticed_at)
        return WorkerGone(self.pid, exit_code, words, noticed_at=noticed_at)

    def hang_up(self) -> None:
        """Wake the companion, even if another process holds the pipe open."""
        from procbus.pool.loky_process import break_pipe  # it is loaded already

        with self._closing:
            break_pipe(self._pipe)
        self._process.ended.set()

    def stop(self) -> None:
        """Ask the process to end, and wait for it; kill it after `WORKER_STOP_S`.

        For a dead process this method releases all resources.
        """
        if not self._open:
            return
        if self._dead:
            self._close()
            return
        deadline = monotonic() + WORKER_STOP_S
        left = [] if self.probe is None else self.probe.family()
        with contextlib.suppress(EOFError, OSError):  # it has ended, or was dead already
            self._channel.send(STOP)
            self._hear_out(deadline)
        self._process.await_end(deadline)
        self._close()
        if left:
            from procbus.system.process import end_all  # psutil is loaded already

            end_all(left, LEFT_S)

    def _hear_out(self, deadline: float) -> None:
        """Take in measurements and log records after the last report, until the task has ended."""
        while (left_s := deadline - monotonic()) > 0:
            message = self._channel.receive(left_s)
            if message is not None and message[:1] not in (RESULTS_TAG, SHARED_TAG):
                self._end.take_aside(message)

    def kill(self) -> None:
        """Kill the process and its descendants; the companion finds it gone."""
        self._process.kill()

    def _close(self) -> None:
        self._process.shut_down()
        self._let_go()

    def _let_go(self) -> None:
        with self._closing:
            self._open = False
            self._pipe.close()
            self._logbook.close()
            # An exception raised here keeps this object alive, by the frames of its traceback. So
            # this object must hold no resource of the machine, and no object that holds one.
            if isinstance(self._tokens, SharedTokens):
                self._tokens.forget_name()
            self._tokens = threading.Semaphore(0)
            self._process.let_go()
        self._stack.close()  # outside the lock, since it may wait for a thread that asks
        self._end.close()


def _no_environment(_: int) -> None:
    """Give a worker no additional variables."""


# Workers owned by loky: each has an executor with a single worker, and its own pipe.
# loky starts, watches and ends the process. The process runs one long task, the worker's loop.


class LokyPool:
    """Workers in processes of this machine.

    Args:
        workers: maximum of workers; they share the cores for BLAS and OpenMP threads.
        init: the user's set-up of each worker, pickled; empty for none.
        memory: memory shared with the workers, for large objects.
        run: the run of the bus, for `current()` in workers.
        keeps_on: whether the workers ignore SIGTERM.
        nice: how much nicer the workers are than this process.
        newborn: a process that is started already and may become the first worker; None without.
        eager: makes the functions of handlers with eager resources, pickled; empty for none.
        environment_of: returns the environment variables that only one worker gets, by its number.
    """

    in_processes, left_behind, elastic, local = True, (), False, True
    waits_for, batch_s = "", BATCH_S

    def __init__(
        self,
        workers: int | None = None,
        init: bytes = b"",
        memory: EventMemory | None = None,
        run: Run = ONLY_RUN,
        keeps_on: bool = False,
        nice: int = 0,
        newborn: Newborn | None = None,
        eager: Callable[[], bytes] = bytes,
        environment_of: Callable[[int], Mapping[str, str] | None] = _no_environment,
    ) -> None:
        self._newborn = newborn
        self.eager = eager
        self.environment_of = environment_of
        #: The stem: a process that never gets orders, and forks workers. Empty if there is none.
        self._stem: list[Newborn] = []
        if newborn is not None:
            with contextlib.suppress(OSError):  # workers are started without a stem
                self._stem.append(newborn.sibling())
        self.keeps_on = keeps_on
        self.run = run
        self.nice = nice
        cores = usable_cores()
        self.workers = workers or cores
        self._cores = cores
        self.init = init
        self.definitions = Definitions(PathSince().complete)
        self.memory = EventMemory() if memory is None else memory

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables of the workers, beside the script's present ones."""
        return thread_caps(self._cores, self.workers)

    def close(self) -> None:
        """Free the shared memory, and end processes that did not become workers. Idempotent."""
        newborn, self._newborn = self._newborn, None
        if newborn is not None:
            newborn.abandon()
        self._end_stem()
        self.memory.close()

    def _end_stem(self) -> None:
        while self._stem:
            with contextlib.suppress(IndexError):  # another thread was faster
                self._stem.pop().abandon()

    def shared_memory(self) -> SharedMemoryStats:
        """Large objects on their way to workers and back."""
        return self.memory.stats()

    def size(self) -> int:
        """The number of cores that this process may use (affinity and cgroup quotas count)."""
        return self.workers

    def prepare(self) -> PreparedProcess | None:
        """Start a process that can become a worker later, while the script does something else."""
        newborn, self._newborn = self._newborn, None
        if newborn is not None:
            return PreparedProcess(self, newborn)
        if sys.platform == "win32":  # untested
            return None
        with contextlib.suppress(OSError, RuntimeError, ProcbusError):  # `start` tells
            return PreparedProcess(self, self._give_birth())
        return None

    def _give_birth(self) -> Newborn:
        """Have the stem fork a process; start one if there is no stem, or if it does not fit.

        Raises:
            ProcbusError: this process cannot start workers, or cannot use them.
            OSError: the machine is full.
            RuntimeError: the interpreter ends.
        """
        for stem in self._stem[:]:
            if stem.fits():
                with contextlib.suppress(OSError):  # it is dead
                    return stem.sibling()
            self._end_stem()
        return give_birth(self.workers, self.nice)

    def start(
        self,
        launched: Callable[[LokyWorker], None],
        place: int = 0,
        newborn: Newborn | None = None,
    ) -> LokyWorker:
        """Start a worker process and wait until it is ready.

        Args:
            launched: called with the worker once it has been launched.
            place: its number in the lane.
            newborn: the process to take; None for a new one.
        """
        try:
            if newborn is None and sys.platform != "win32":  # untested there
                newborn = self._give_birth()
            if newborn is not None and not newborn.born():
                newborn.abandon()
                self._end_stem()
                newborn = give_birth(self.workers, self.nice)
            try:
                environment = self.environment_of(place)
                return LokyWorker(self, newborn, launched, place, environment)
            except BaseException:
                if newborn is not None:
                    newborn.abandon()
                raise
        except (OSError, ProcbusError) as error:  # such as too few file descriptors
            raise WorkerGone(None, None, NO_WORDS, hopeless=True) from error


class PreparedProcess:
    """A newborn that waits for its orders. See `procbus.pool.interface.Prepared`.

    Args:
        pool: the pool of the worker.
        newborn: its process.
    """

    def __init__(self, pool: LokyPool, newborn: Newborn) -> None:
        self._pool = pool
        self._newborn: Newborn | None = newborn

    def start(self, launched: Callable[[LokyWorker], None], place: int = 0) -> LokyWorker:
        """Make the newborn a worker; if it has died meanwhile, start another process."""
        newborn, self._newborn = self._newborn, None
        return self._pool.start(launched, place, newborn)

    def abandon(self) -> None:
        """End the newborn, if it was not made a worker."""
        newborn, self._newborn = self._newborn, None
        if newborn is not None:
            newborn.abandon()

    def fits(self) -> bool:
        """Whether it has the settings of a process that this thread started now."""
        return self._newborn is not None and self._newborn.fits()
