# SPDX-License-Identifier: MIT
"""Workers without a process: handlers run in the companion's own thread.

This pool is for tests. Everything except the process is real: the worker's loop, the codec, the
logbook and the tokens. So an object that cannot travel to a process fails with this pool too, and a
kill leaves the same traces as with a process.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from time import monotonic

from procbus.core.delivery import Delivery
from procbus.core.progress import Progress
from procbus.core.stats import SharedMemoryStats
from procbus.core.worker import CurrentWorker
from procbus.pool.child.loop import Worker
from procbus.pool.handler_cache import Definitions
from procbus.pool.interface import BATCH_S, At, Message, Report, WorkerGone
from procbus.pool.logbook import Logbook
from procbus.pool.memory.events import EventMemory
from procbus.pool.memory.results import ResultReader
from procbus.pool.memory.worker_side import WorkerMemory
from procbus.pool.parent_end import ParentEnd
from procbus.system.cooperative import Task


class InlinePool:
    """Workers in threads of this process.

    Args:
        workers: maximum of workers that the lane starts.
        memory: memory shared with the workers, for large objects.
        here: the worker that handlers see in `current()`; None for a different one in each worker.
        ran_s: returns the time that the handler of a worker has been running, in seconds; None for
            the time that really passes.
    """

    in_processes, left_behind, elastic, local = True, (), False, True
    waits_for, batch_s = "", BATCH_S

    def __init__(
        self,
        workers: int = 1,
        memory: EventMemory | None = None,
        here: CurrentWorker | None = None,
        ran_s: Callable[[InlineWorker], float] | None = None,
    ) -> None:
        self._here = here
        self._ran_s = ran_s
        self._workers = workers
        self.definitions = Definitions()
        self.memory = EventMemory(1 << 28) if memory is None else memory

    def close(self) -> None:
        """Free the shared memory. Idempotent."""
        self.memory.close()

    def shared_memory(self) -> SharedMemoryStats:
        """Large objects on their way to workers and back."""
        return self.memory.stats()

    def size(self) -> int:
        """Maximum of workers that the lane starts."""
        return self._workers

    def prepare(self) -> None:
        """Do nothing: a worker in this process starts at once."""

    def start(self, launched: Callable[[InlineWorker], None], place: int = 0) -> InlineWorker:
        """Make a worker, which is ready at once."""
        worker = InlineWorker(self.definitions, self.memory, place, self._here, self._ran_s)
        launched(worker)
        return worker


class InlineWorker:
    """One worker, run by the thread that calls `receive`. See `procbus.pool.interface.Worker`.

    A thread cannot be killed in the middle of a handler. So the handler goes on to its end, but its
    outcome is dropped: to the lane, the worker died during the handler.
    """

    #: The only process to look at is this one.
    probe = None
    #: It returns taken-back deliveries at once.
    recalling, waiting, details, thread = False, False, None, None

    def __init__(
        self,
        definitions: Definitions,
        memory: EventMemory,
        place: int = 0,
        here: CurrentWorker | None = None,
        ran_s: Callable[[InlineWorker], float] | None = None,
    ) -> None:
        #: The resources of this worker; None if it uses the ones of `here`.
        self._own = CurrentWorker(place) if here is None else None
        self.pid: int | None = os.getpid()
        results = ResultReader(memory, 1)
        self._end = ParentEnd(definitions, memory, results)
        self._end.pid = self.pid
        self._killed = threading.Event()
        #: Guards the closing of the logbook, which other threads read.
        self._closing = threading.Lock()
        self._closed = False
        self._logbook = _MortalLogbook.create()
        self._logbook.killed = self._killed
        self._tokens = threading.Semaphore(0)
        self._to_worker: deque[bytes] = deque()
        self._from_worker: deque[bytes] = deque()
        shared = WorkerMemory(memory.room, results.room, memory.large)
        self._worker = Worker(
            self._tell,
            self._logbook,
            shared,
            self._tokens,
            self._end.number,
            worker=self._own or here,
            ran_s=None if ran_s is None else partial(ran_s, self),
        )
        #: Id of the thread that runs the handlers.
        self._thread = 0

    def prepare(self, batch: int, deliveries: Sequence[Delivery]) -> Message:
        """Encode a batch the way it is encoded for a process."""
        return self._end.prepare(batch, deliveries)

    def offer(self, message: Message) -> None:
        """Give the worker a token for each delivery."""
        if message.deliveries:
            self._tokens.release(len(message.deliveries))

    def fits_ahead(self, _: Message) -> bool:
        """Return True: there is no pipe to fill."""
        return True

    def send(self, message: Message) -> None:
        """Keep the batch for `receive`."""
        self._end.sent(message)
        self._to_worker.append(message.data)

    def wait_for_room(self, timeout_s: float) -> None:
        """Wait until a block of shared memory is free."""
        self._end.wait_for_room(timeout_s)

    def take_back(self, most: int) -> int:
        """Take tokens, so that the worker finds none for its last deliveries."""
        taken = 0
        while taken < most and self._tokens.acquire(blocking=False):
            taken += 1
        return taken

    def receive(self, patience_s: float | None = None) -> Report:  # noqa: ARG002 - never waits
        """Run the next batch, unless results of the last one are still to be reported."""
        self._thread = threading.get_ident()
        while not self._from_worker:
            if not self._to_worker:
                self._killed.wait()  # an idle process sends nothing either
            if self._killed.is_set():
                raise self._gone()
            try:
                self._worker.run_batch(self._to_worker.popleft())
            except _Killed:
                continue
        return self._end.report(self._from_worker.popleft())

    def running(self) -> At | None:
        """The present entry of the logbook."""
        with self._closing:
            return None if self._closed else self._logbook.running()

    def progress(self, at: At) -> Progress | None:
        """The report in the logbook."""
        with self._closing:
            reported = None if self._closed else self._logbook.reported()
        return None if reported is None else reported.during(*at[:2])

    def set_up_since(self) -> float | None:
        """Return None: this worker has no set-up."""
        return None

    def ask_stack(self) -> Task[str]:
        """Return the stack of its thread."""
        yield from ()  # nothing to wait for
        frame = sys._current_frames().get(self._thread)  # noqa: SLF001 - documented so
        return "".join(traceback.format_stack(frame))

    def tell_cancelled(self, at: At) -> None:
        """Write into the logbook that the delivery is cancelled."""
        with self._closing:
            if not self._closed:
                self._logbook.cancel(*at[:2])

    def watch_memory(self, at: At, limit: int) -> None:
        """Do nothing: all memory is the script's."""

    def kill_in(self, at: At, condemn: Callable[[str], None]) -> Task[bool]:
        """Have the worker report nothing more of this delivery, if the delivery still runs."""
        stack = yield from self.ask_stack()
        with self._logbook.writing:
            if self.running() != at or self._killed.is_set():
                return False
            condemn(stack)
            self._killed.set()
            return True

    def hang_up(self) -> None:
        """Kill the worker: it has no process that could be dead already."""
        self.kill()

    def stop(self) -> None:
        """Release the worker's resources. Idempotent."""
        if self._own is not None and not self._killed.is_set():
            self._own.close()
        with self._closing:
            self._closed = True
            self._logbook.close()
        self._end.close()

    def kill(self) -> None:
        """Have the worker report nothing more, and begin nothing more."""
        self._killed.set()

    def _gone(self) -> WorkerGone:
        words = self._end.last_words(self._logbook.read(), monotonic())
        gone = WorkerGone(self.pid, None, words)
        self.stop()
        return gone

    def _tell(self, *parts: bytes | memoryview) -> None:
        if self._killed.is_set():
            raise _Killed
        message = b"".join(parts)
        if not self._end.costs.take_in(message):
            self._from_worker.append(message)


class _Killed(BaseException):
    """Ends the worker's loop at a place where a process would have been killed."""


class _MortalLogbook(Logbook):
    """A logbook in which a killed worker writes nothing more.

    Its lock `writing` is held between a look at the running delivery and the kill, so that the
    entry cannot change in between.
    """

    killed: threading.Event

    def __init__(self, fd: int, segments: int = 1) -> None:
        self.writing = threading.Lock()
        super().__init__(fd, segments)

    def begin(self, index: int, now: float) -> None:
        """Note that the handler of this delivery begins."""
        with self.writing:
            if self.killed.is_set():
                raise _Killed
            super().begin(index, now)

    def finish(self, done: int, result: bytes) -> bool:
        """Note that the delivery begun last is finished."""
        with self.writing:
            if self.killed.is_set():
                raise _Killed
            return super().finish(done, result)
