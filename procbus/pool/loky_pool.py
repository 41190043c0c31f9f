# SPDX-License-Identifier: MIT
"""Workers that loky owns: one single-worker executor each, and a private pipe.

loky starts the process, watches it and ends it. What it runs there is one long task, the worker's
loop; events and results go through the pipe, so that nothing of one worker can hurt another.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from time import monotonic

import loky
from loky.backend import get_context

from procbus import blame, exit_watch
from procbus.codec import (
    PARENT,
    ClassNumber,
    Encoder,
    define_class,
    encode_alone,
    forget_classes,
)
from procbus.delivery import Delivery
from procbus.handler import Handler
from procbus.pool import outcomes, worker
from procbus.pool.forward import levels_here, take_in
from procbus.pool.logbook import Logbook
from procbus.pool.seam import Ended, LastWords, Message, Report, WorkerGone
from procbus.pool.wire import STOP, BatchHead, Results, Tag, each_end, pack_batch, unpack_results

#: Events of one batch take at most so many bytes, but for a single one that is larger: two
#: batches have to fit into a pipe that nobody reads.
BATCH_BYTES = 48 * 1024
#: A worker that was told to stop has so long, in seconds, before it is killed.
STOP_S = 5.0
_THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)

_numbers = itertools.count(1)


class LokyPool:
    """Workers in processes of this machine.

    Args:
        workers: how many the lane will start; they share the cores for BLAS and OpenMP threads.
    """

    def __init__(self, workers: int | None = None) -> None:
        self._cores: int = loky.cpu_count()
        self._workers = workers or self._cores
        self._definitions: dict[int, bytes] = {}

    def size(self) -> int:
        """The cores that this process may use (affinity and cgroup quotas count)."""
        return self._workers

    def start(self, launched: Callable[[], None]) -> LokyWorker:
        """Start a worker process and wait until it is ready."""
        try:
            return LokyWorker(self._environment(), self._definitions, launched)
        except OSError as error:  # no more file descriptors, for one
            raise WorkerGone(None, None, _NO_WORDS, hopeless=True) from error

    def _environment(self) -> dict[str, str]:
        """Cap the threads of numeric libraries, unless the user has set them.

        By environment, since that works before such a library is loaded, and costs no import.
        """
        threads = str(max(1, self._cores // self._workers))
        return {name: threads for name in _THREADS if name not in os.environ}


class LokyWorker:
    """One worker process, seen from its companion. See `procbus.pool.seam.Worker`."""

    def __init__(
        self,
        environment: dict[str, str],
        definitions: dict[int, bytes],
        launched: Callable[[], None],
    ) -> None:
        self.pid: int | None = None
        self._number = next(_numbers)
        self._encoder = Encoder(PARENT)
        #: Handlers pickled before, by any companion of the lane; and those this worker has.
        self._definitions = definitions
        self._sent_handlers: set[int] = set()
        #: Deliveries of the batches that the worker has, and how many of the first have ended.
        self._batches: dict[int, list[Delivery]] = {}
        self._received = 0
        self._unread_bytes: dict[int, int] = {}
        self._logbook = Logbook.create()
        context = get_context("loky")
        self._tokens = context.Semaphore(0)
        self._pipe, theirs = Pipe()
        self._room = _buffer_size(self._pipe) // 2
        #: Guards the closing of the pipe: loky's thread hangs up, the companion closes.
        self._closing = threading.Lock()
        self._executor = loky.ProcessPoolExecutor(
            max_workers=1,
            context=context,
            initializer=worker.prepare,
            initargs=(
                theirs,
                self._logbook,
                self._tokens,
                worker.WorkerSettings(self._number, os.getpid(), levels_here()),
            ),
            env=environment,
        )
        self._task: Future[None] | None = None
        self._ended = threading.Event()
        try:
            with _interrupts_blocked():
                self._task = self._submit()
            theirs.close()
            exit_watch.close_first()
            launched()
            self._task.add_done_callback(self._hang_up)
            self._read_hello()
        except (RuntimeError, OSError) as error:  # the interpreter ends, or the machine is full
            theirs.close()
            with contextlib.suppress(RuntimeError):  # loky's thread was not even started
                self._executor.shutdown(wait=False, kill_workers=True)
            self._let_go()
            raise WorkerGone(None, None, _NO_WORDS, hopeless=True) from error

    def _submit(self) -> Future[None]:
        """Have loky start the process, and run its loop there."""
        task: Future[None]
        try:
            task = self._executor.submit(worker.serve)
        except RuntimeError as error:
            if "atexit" not in str(error):
                raise
            # The interpreter is ending. loky did start it, and failed then to register its exit
            # hook. Asking again gives the future that this lost; to serve twice does nothing.
            task = self._executor.submit(worker.serve)
        return task

    # From the lane to the worker.

    def prepare(self, batch: int, deliveries: Sequence[Delivery]) -> Message:
        """Encode a batch: each event alone, each handler once for this worker."""
        head = BatchHead(batch, [], [], [])
        message = Message(batch)
        encode = self._encoder.encode
        events: list[bytes] = []
        total = 0
        for index, delivery in enumerate(deliveries):
            handler = delivery.handler
            receipt = delivery.receipt
            if receipt is None:  # cancelled meanwhile
                continue
            try:
                if handler.number not in self._sent_handlers:
                    head.handlers.append((handler.number, handler.name, self._define(handler)))
                data = encode(receipt.event)
            except Exception as error:  # noqa: BLE001 - pickling runs the user's code
                message.failed.append((delivery, outcomes.cannot_travel(delivery, error)))
                continue
            total += len(data)
            if total > BATCH_BYTES and events:
                message.rest.extend(deliveries[index:])
                break
            events.append(data)
            message.deliveries.append(delivery)
            head.items.append(
                (
                    handler.number,
                    receipt.id,
                    receipt.parent_id,
                    receipt.topic,
                    delivery.attempts + 1,
                    len(data),
                )
            )
        head.classes.extend(self._encoder.take_definitions())
        message.data = pack_batch(head, events)
        return message

    def _define(self, handler: Handler) -> bytes:
        definition = self._definitions.get(handler.number)
        if definition is None:
            try:
                definition = encode_alone(handler.function)
            except Exception as error:
                raise blame.handler_fault(handler, error) from error
            self._definitions[handler.number] = definition
        self._sent_handlers.add(handler.number)
        return definition

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
        self._batches[message.batch] = message.deliveries
        self._unread_bytes[message.batch] = len(message.data)
        with contextlib.suppress(OSError):
            self._pipe.send_bytes(message.data)

    def take_back(self, most: int) -> int:
        """Take tokens, so that the worker finds none for the last deliveries it has."""
        taken = 0
        while taken < most and self._tokens.acquire(False):
            taken += 1
        return taken

    # From the worker to the lane.

    def receive(self) -> Report:
        """Read until there is a report; log records on the way go to the parent's logging."""
        while True:
            message = self._read()
            if message[:1] == Tag.RESULTS.value:
                return self._report(unpack_results(message))
            take_in(Tag(message[:1]), memoryview(message)[1:])

    def _read(self) -> bytes:
        try:
            return self._pipe.recv_bytes()
        except (EOFError, OSError):
            raise self._gone() from None

    def _read_hello(self) -> None:
        while (message := self._read())[:1] != Tag.HELLO.value:
            take_in(Tag(message[:1]), memoryview(message)[1:])
        self.pid = int(message[1:])

    def _report(self, results: Results) -> Report:
        deliveries = self._batches[results.batch]
        self._unread_bytes[results.batch] = 0
        ends = self._ends(results.data, deliveries, self._received)
        self._received += len(ends)
        if results.complete:
            self._received = 0
            del self._batches[results.batch], self._unread_bytes[results.batch]
        return Report(results.batch, ends, results.complete)

    def _ends(
        self, data: bytes | memoryview, deliveries: list[Delivery], first: int
    ) -> list[Ended]:
        ends: list[Ended] = []
        pid = self.pid
        make = outcomes.outcome_of
        for item in each_end(data, self._take_definition):
            ends.append(make(item, deliveries[first + len(ends)], pid))
        return ends

    def _take_definition(self, number: ClassNumber, definition: bytes) -> None:
        cls = define_class(number, definition)
        if cls is not None:
            self._encoder.know(cls, number)

    def running(self) -> tuple[int, int, float] | None:
        """What the logbook says just now."""
        with self._closing:
            return None if self._task is None else self._logbook.running()

    # The end.

    def _gone(self) -> WorkerGone:
        """Collect what is left of a dead worker."""
        if not self._ended.wait(STOP_S):  # the pipe is broken, but loky sees no death: make one
            self.kill()
            self._ended.wait(STOP_S)
        page = self._logbook.read()
        deliveries = self._batches.get(page.batch)
        words = _NO_WORDS
        if deliveries is not None:
            # The worker may have sent results and died before it noted so: skip those.
            again = max(0, self._received - page.sent)
            ends = self._ends(page.unsent, deliveries, page.sent)[again:]
            done = max(self._received, page.sent + again + len(ends))
            in_handler = page.running and page.at >= done
            words = LastWords(page.batch, ends, monotonic() - page.since if in_handler else None)
        gone = WorkerGone(self.pid, self._exit_code(), words)
        self._close()
        return gone

    def _exit_code(self) -> int | None:
        """Exit code of a dead worker: loky gives it in the text of an error, and only there."""
        if self._task is None or not self._task.done():
            return None
        found = re.search(
            r"exit codes of the workers are \{\w*\((-?\d+)\)", str(self._task.exception())
        )
        return int(found[1]) if found else None

    def _hang_up(self, _: Future[None]) -> None:
        """The task has ended: wake the companion, whoever else holds the pipe open."""
        with self._closing:
            if not self._pipe.closed and sys.platform != "win32":
                with socket.socket(fileno=os.dup(self._pipe.fileno())) as end:
                    end.shutdown(socket.SHUT_RDWR)
        self._ended.set()

    def stop(self) -> None:
        """Ask the process to end, and wait for it; kill it when it does not in `STOP_S`."""
        if self._task is None:
            return
        with contextlib.suppress(OSError):  # it is dead already
            self._pipe.send_bytes(STOP)
        if not self._ended.wait(STOP_S):
            self.kill()
        self._close()

    def kill(self) -> None:
        """Kill the process and those it started; the companion finds it gone."""
        self._executor.shutdown(wait=False, kill_workers=True)

    def _close(self) -> None:
        self._executor.shutdown(wait=True)
        self._let_go()

    def _let_go(self) -> None:
        with self._closing:
            self._task = None
            self._pipe.close()
            self._logbook.close()
        forget_classes(self._number)


_NO_WORDS = LastWords(0, [], None)


def _buffer_size(pipe: Connection) -> int:
    """How many bytes the sending side of a pipe holds when nobody reads."""
    if sys.platform == "win32":  # untested
        return 8192
    with socket.socket(fileno=os.dup(pipe.fileno())) as end:
        return end.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Keep Ctrl-C from a process that is being born: the signal mask of this thread is inherited.

    The worker unblocks it once it has said what an interrupt means there (nothing).
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
