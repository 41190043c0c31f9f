# SPDX-License-Identifier: MIT
"""Workers in threads of this process: `EventBus(cpu="threads")`.

Without a GIL the threads compute side by side, and a handler gets the very object that you publish.
A thread cannot be ended, and its crash ends the script. So `subscribe` refuses each option that
needs a process for the worker.

A worker is a thread beside its companion. Two queues lie between the two threads. The worker takes
a batch from one queue, runs its deliveries, and puts its reports into the other queue.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import Context
from functools import partial
from queue import Empty, SimpleQueue
from time import monotonic, thread_time
from typing import TYPE_CHECKING, Any

from procbus.core.bus_resources import BusResources
from procbus.core.carry import Carried
from procbus.core.context import (
    ONLY_RUN,
    THREADS_INHERIT,
    HandlerContext,
    Run,
    another,
    keep_event,
    run_seated,
    running,
)
from procbus.core.delivery import Delivery, error_to_tell
from procbus.core.errors import ProcbusError
from procbus.core.frames import begin_at_the_user
from procbus.core.locks import LOOK_UP_S
from procbus.core.log import pool_log as log
from procbus.core.no_receipt import explain_missing_receipt
from procbus.core.outcome import Outcome, OutcomeKind
from procbus.core.own_thread import OwnThread
from procbus.core.progress import Progress
from procbus.core.reporting import RunOf, reported_here
from procbus.core.stats import NOTHING_SHARED, SharedMemoryStats
from procbus.core.subscription import Subscription
from procbus.core.ticket import waits_for_itself
from procbus.core.unfinished import complete, fault_in
from procbus.core.user_objects import named
from procbus.core.waiting import MOST_LENT, occupy
from procbus.pool.child.usage import Tally
from procbus.pool.handler_cache import Definitions
from procbus.pool.interface import (
    BATCH_S,
    NO_SUCCESSES,
    NO_WORDS,
    At,
    Ended,
    LastWords,
    LeftBehind,
    Message,
    Report,
    SetUpFailed,
    WorkerGone,
)
from procbus.pool.wire import FLUSH_S, Successes
from procbus.system import forked_children
from procbus.system.cores import usable_cores
from procbus.system.thread_stack import stack_of_thread

if TYPE_CHECKING:
    from procbus.core.handler import Handler
    from procbus.core.receipt import Receipt
    from procbus.system.cooperative import Task

#: Maximum wait of `stop` for the end of an idle thread, in seconds.
STOP_S = 10.0

_SUCCEEDED, _RAISED = OutcomeKind.SUCCEEDED, OutcomeKind.RAISED
#: Number of variables in the context of a batch while no handler has left any: only `running`.
_CLEAN = 1
#: The first report of a worker whose set-up succeeded.
_READY = Report(0, NO_SUCCESSES, [], complete=False)


class ThreadPool:
    """Workers in threads of this process. See `procbus.pool.interface.Pool`.

    Args:
        workers: maximum of workers; None for one worker on each core.
        init: the user's set-up of each worker; None for none.
        owner: the dispatcher of the bus, for `current()` in handlers.
        run: the run of the bus, for `current()` in handlers.
        resources: the resources of the bus; None for none.
    """

    in_processes, elastic, local, batch_s = False, True, True, BATCH_S

    def __init__(
        self,
        workers: int | None = None,
        init: Callable[[], object] | None = None,
        owner: object = None,
        run: Run = ONLY_RUN,
        resources: BusResources | None = None,
    ) -> None:
        self._workers = workers or usable_cores()
        self.init = init
        self.owner = owner
        self.run = run
        self.resources = BusResources() if resources is None else resources
        #: Stays empty: nothing is encoded.
        self.definitions = Definitions()
        #: Guards the fields below, and wakes workers that wait for a place.
        self._changed = threading.Condition()
        self._started = 0
        #: Number of threads whose handler waits for the bus. Other threads have their places.
        self._lent = 0
        #: Threads left behind in a handler. If there are more than `workers`, a new worker waits
        #: until one of them returns.
        self._left_behind: dict[ThreadWorker, LeftBehind] = {}

    def close(self) -> None:
        """Do nothing: no memory is shared."""

    def shared_memory(self) -> SharedMemoryStats:
        """Return zeros: all memory is the script's."""
        return NOTHING_SHARED

    def size(self) -> int:
        """Maximum of workers: one more for each handler that waits for the bus."""
        return self._workers + min(self._lent, MOST_LENT)

    @property
    def waits_for(self) -> str:
        """The thing that is missing to start a worker; empty if nothing is."""
        if not self.full:
            return ""
        return f"{len(self._left_behind)} threads are left behind in handlers that ran out of time"

    @property
    def left_behind(self) -> Sequence[LeftBehind]:
        """The threads left behind in a handler, the oldest first."""
        return tuple(self._left_behind.copy().values())

    @property
    def full(self) -> bool:
        """Whether more threads are left behind than the pool has workers."""
        return len(self._left_behind) > self._workers

    def lend(self, count: int) -> None:
        """Note that `count` more threads wait for the bus in a handler."""
        with self._changed:
            self._lent += count

    def leave_behind(self, worker: ThreadWorker, delivery: Delivery, since: float) -> None:
        """Note that the thread of a worker cannot be ended, and goes on in a handler."""
        with self._changed:
            self._left_behind[worker] = LeftBehind(worker.thread, delivery, since)
            self._changed.notify_all()

    def ended(self, worker: ThreadWorker) -> None:
        """Note that the thread of a worker has ended."""
        with self._changed:
            self._left_behind.pop(worker, None)
            self._changed.notify_all()

    def await_place(self, given_up: Callable[[], bool]) -> None:
        """Wait until a worker may begin, or until `given_up()` is true."""
        with self._changed:
            while self.full and not given_up():
                self._changed.wait(LOOK_UP_S)

    def prepare(self) -> None:
        """Do nothing: a thread starts at once."""

    def start(self, launched: Callable[[ThreadWorker], None], place: int = 0) -> ThreadWorker:
        """Start a thread, and wait for its set-up."""
        with self._changed:
            self._started += 1
            number = self._started
        worker = ThreadWorker(self, number, place)
        try:
            worker.start()
        except RuntimeError as error:  # the interpreter is ending, or there are too many threads
            raise WorkerGone(None, None, NO_WORDS, hopeless=True) from error
        launched(worker)
        if self.full:
            self.await_place(worker.is_dead)
        worker.begin()
        if self.init is not None:
            worker.await_set_up()
        return worker


class ThreadWorker:
    """One thread, seen from its companion. See `procbus.pool.interface.Worker`.

    `_lock` guards the fields that follow it. A killed worker is a thread left behind: it runs its
    handler to the end, begins no other handler, and reports nothing more.

    Args:
        pool: the pool of the worker.
        number: number of the worker in its pool.
        place: the worker's place in the lane. Its replacement gets the same place.
    """

    #: The only process to look at is this one. It returns taken-back deliveries at once.
    probe, details, recalling = None, None, False

    def __init__(self, pool: ThreadPool, number: int, place: int = 0) -> None:
        #: None while it waits for a place.
        self.pid: int | None = None
        self._pool = pool
        self._here = pool.resources.worker(place)
        self.thread = OwnThread(f"procbus-cpu-{number}", self._work)
        self._batches: SimpleQueue[Message | None] = SimpleQueue()
        #: Numbers of the sent batches that have not been reported as complete. For the companion.
        self._sent: deque[int] = deque()
        # Reentrant: a signal handler may close the bus while its thread holds the lock.
        self._lock = threading.RLock()
        #: Reports for the companion, and None once the worker is dead.
        self._reports: SimpleQueue[Report | BaseException | None] = SimpleQueue()
        self._dead = False
        #: Number of deliveries that the worker may still begin.
        self._tokens = 0
        #: The present batch, and the place of the running delivery, which any thread may read.
        #: `_delivery` keeps the delivery after its end.
        self._batch = 0
        self._at: At | None = None
        self._delivery: Delivery | None = None
        #: The last report of the delivery during which the worker was killed.
        self._last_progress: Progress | None = None
        #: The unreported ends: first the plain successes, then all others.
        self._times: list[tuple[float, float, int]] = []
        self._values: list[Any] = []
        self._ends: list[Ended] = []
        # Used only by the worker's own thread.
        self._set_up_since: float | None = None
        #: Whether this is a copy of the thread, in a child that user code forked.
        self._forked = False
        #: The context that each handler begins with, with the variables that the set-up has left;
        #: and the context of batches. While no handler has left variables in the context of
        #: batches, handlers run in that context.
        self._base, self._own, self._clean = Context(), Context(), _CLEAN
        self._tally = Tally(cpu_s=thread_time, children_s=lambda: 0.0)
        #: Number of waits for the bus that the running delivery is in.
        self._waits = 0
        #: Subscriptions that have unreported sums, by number of the handler.
        self._measured: dict[int, Subscription] = {}

    def start(self) -> None:
        """Start the thread.

        Raises:
            RuntimeError: no thread can be started.
        """
        self.thread.start()

    def begin(self) -> None:
        """Have the thread begin with its set-up."""
        self.pid = os.getpid()
        self._batches.put(Message(0))

    # From the lane to the worker.

    def prepare(self, batch: int, deliveries: Sequence[Delivery]) -> Message:
        """Put open deliveries into a message. Nothing is encoded."""
        return Message(batch, deliveries=[each for each in deliveries if each.receipt is not None])

    def offer(self, message: Message) -> None:
        """Allow the worker to begin the deliveries of a message."""
        with self._lock:
            if not self._dead:
                self._tokens += len(message.deliveries)

    def fits_ahead(self, _: Message) -> bool:
        """Return True: there is no pipe to fill."""
        return True

    def send(self, message: Message) -> None:
        """Queue a message."""
        self._sent.append(message.batch)
        self._batches.put(message)

    def wait_for_room(self, timeout_s: float) -> None:
        """Do nothing: a message needs no room."""

    def take_back(self, most: int) -> int:
        """Take back deliveries that the worker has not begun."""
        with self._lock:
            taken = min(most, self._tokens)
            self._tokens -= taken
            return taken

    # From the worker to the lane.

    def receive(self, patience_s: float | None = None) -> Report:
        """Wait for a report; after `patience_s` return the unreported ends."""
        try:
            report = self._reports.get(timeout=patience_s)
        except Empty:
            with self._lock:
                if self._reports.empty():
                    return self._locked_glance()
            report = self._reports.get()
        if not isinstance(report, Report):
            self._reports.put(None)  # for the next call
            raise self._gone()
        if report.complete:
            self._sent.popleft()
        return report

    def await_set_up(self) -> None:
        """Wait for the end of the user's set-up.

        Raises:
            WorkerGone: the set-up failed, or the worker was killed meanwhile.
        """
        report = self._reports.get()
        if report is _READY:
            return
        if report is None:
            raise self._gone()
        assert isinstance(report, BaseException)
        fault = ProcbusError(f"worker_init failed: {named(report)}")
        fault.__cause__ = report
        raise SetUpFailed(self.pid) from fault

    @property
    def waiting(self) -> bool:
        """Whether its handler waits for the bus."""
        return self._waits > 0

    def running(self) -> At | None:
        """The running delivery."""
        return self._at

    def progress(self, at: At) -> Progress | None:
        """The report of the running handler."""
        delivery = self._delivery
        return None if delivery is None or self._at != at else reported_here(delivery)

    def set_up_since(self) -> float | None:
        """The start of the user's set-up."""
        return self._set_up_since

    def ask_stack(self) -> Task[str]:
        """Return the stack of its thread."""
        yield from ()  # nothing to wait for
        return stack_of_thread(self.thread.ident, __file__)

    def tell_cancelled(self, at: At) -> None:
        """Do nothing: the handler reads the request in the delivery itself."""

    def watch_memory(self, at: At, limit: int) -> None:
        """Do nothing: all memory is the script's."""

    # The end.

    def kill_in(self, at: At, condemn: Callable[[str], None]) -> Task[bool]:
        """Leave the thread behind, if it still runs that delivery."""
        stack = yield from self.ask_stack()
        with self._lock:
            if self._dead or self._at != at:
                return False
            condemn(stack)
            self._locked_die()
        log.warning(
            "%s is left behind in a handler that ran out of time or was cancelled: Python cannot "
            "stop a thread. %d are left behind now, each on a core if it computes. Processes can "
            'be killed: cpu="processes"',
            self.thread.name,
            len(self._pool.left_behind),
        )
        return True

    def is_dead(self) -> bool:
        """Whether it was killed."""
        return self._dead

    def hang_up(self) -> None:
        """Kill the worker: it has no process that could be dead already."""
        self.kill()

    def stop(self) -> None:
        """End an idle thread, and wait for its end. Idempotent."""
        self._batches.put(None)
        with self._lock:
            was_dead, self._dead = self._dead, True
            self._tokens, self._at = 0, None
        if not was_dead:
            self.thread.join(STOP_S)

    def kill(self) -> None:
        """Have the worker report nothing more, and begin nothing more."""
        with self._lock:
            if not self._dead:
                self._locked_die()

    def _locked_die(self) -> None:
        self._dead, self._tokens = True, 0
        if self._at is not None and self._delivery is not None:
            self._last_progress = reported_here(self._delivery)  # the thread goes on
            self._pool.leave_behind(self, self._delivery, self._at[2])
        self._reports.put(None)
        self._batches.put(None)

    def _gone(self) -> WorkerGone:
        now = monotonic()
        with self._lock:
            batch = self._batch
            rest = self._locked_report(complete=False)
            ends = [*map(self._success, *rest.successes), *rest.ends]
            ran_s = None if self._at is None else max(0.0, now - self._at[2])
            words = LastWords(batch, ends, ran_s, self._last_progress)
        return WorkerGone(self.pid, None, words, noticed_at=now)

    # Called under the lock.

    def _locked_glance(self) -> Report:
        """Report the ends so far of the first sent batch, if it is the present batch."""
        first = self._sent[0]
        if self._batch != first:
            return Report(first, NO_SUCCESSES, [], complete=False)
        return self._locked_report(complete=False)

    def _locked_report(self, *, complete: bool) -> Report:
        report = Report(
            self._batch, Successes(self._times, self._values), self._ends, complete=complete
        )
        self._times, self._values, self._ends = [], [], []
        return report

    def _success(self, times: tuple[float, float, int], value: Any) -> Ended:
        return Outcome(_SUCCEEDED, value, None, times[0], times[1], self.pid), None

    # In the worker's thread.

    def _work(self) -> None:
        forked_children.watch(self._note_fork)
        occupy(self)
        try:
            if self._batches.get() is not None and self._set_up():
                for each in self._pool.resources.eager(_computes):
                    each.open_eager(self._here)
                self._serve()
        except BaseException:  # noqa: BLE001 - the companion must not wait for ever
            log.exception("procbus itself failed in %s, which is replaced", self.thread.name)
            self.kill()
        finally:
            if not self._forked:
                try:
                    self._here.close()
                finally:
                    self._pool.ended(self)

    def _serve(self) -> None:
        while True:
            message = self._batches.get()
            if message is None:
                return
            self._own.run(self._run_batch, message.batch, message.deliveries)
            # No object of an event may be kept alive during the wait for the next event.
            del message
            if len(self._own) != _CLEAN:  # a handler has left a variable in it
                self._own = Context()

    def _set_up(self) -> bool:
        init = self._pool.init
        if init is None:
            return True
        report: Report | BaseException = _READY
        self._set_up_since = monotonic()
        try:
            self._base.run(init)
            if self._base:
                self._clean = -1  # no context has this length
            self._check_here(None, "worker_init")
        except BaseException as error:  # noqa: BLE001 - it is the user's code
            self._check_here(error, "worker_init")
            report = error
        self._set_up_since = None
        with self._lock:
            if not self._dead:
                self._reports.put(report)
        return report is _READY

    def _run_batch(self, number: int, deliveries: Sequence[Delivery]) -> None:
        """Run the deliveries of a batch that the worker may begin, and report their ends."""
        lock, tally, subscription, done = self._lock, self._tally, None, 0
        with lock:
            self._batch = number
        sent_at = monotonic()
        for delivery in deliveries:
            if delivery.subscription is not subscription:
                subscription = delivery.subscription
                self._measured[subscription.handler.number] = subscription
                tally.turn(subscription.handler.number, done)
            with lock:
                if not self._tokens:
                    break  # the rest was taken back, or the worker was killed
                self._tokens -= 1
                started_at = monotonic()
                self._at, self._delivery = (number, done, started_at), delivery
            ended_at = self._run(delivery, started_at)
            done += 1
            if ended_at - sent_at > FLUSH_S:
                sent_at = ended_at
                self._report(complete=False)
        tally.turn(None, done)
        self._measured_so_far()
        self._delivery = None
        running.set(None)
        self._report(complete=True)

    def _report(self, *, complete: bool) -> None:
        with self._lock:
            if not self._dead:
                self._reports.put(self._locked_report(complete=complete))
                if complete:
                    self._batch = 0

    def _measured_so_far(self) -> None:
        if not (due := self._tally.due()):
            return
        for handler, sums in due.items():
            self._measured[handler].note_sums(*sums)
        self._measured.clear()

    def _run(self, delivery: Delivery, started_at: float) -> float:
        """Run one delivery, note its end, and return the time of its end."""
        receipt = delivery.receipt
        if receipt is None:  # the delivery was settled meanwhile, so its end does not matter
            return self._note_success((started_at, started_at, 0), None)
        published: list[tuple[str | None, Any]] = []
        seat = [self._make_context, delivery, receipt, published]
        running.set(seat)  # like `run_seated`, without the call
        function, value = delivery.subscription.handler.call, None
        error: BaseException | None = None
        try:
            if delivery.context is None and len(self._own) == self._clean:
                value = function(receipt.event)
            else:
                context = self._context_for(delivery)
                value = context.run(run_seated, seat, function, receipt.event)
        except BaseException as raised:  # noqa: BLE001 - any exception of a handler is its outcome
            error = raised
            if published:
                explain_missing_receipt(error)
        ended_at = monotonic()
        if THREADS_INHERIT:
            seat.clear()
        if self._forked:
            self._check_here(error, f"{delivery.handler.name} with event #{delivery.event_id}")
        if error is None and id(type(value)) not in complete:
            error = fault_in(delivery, value)
        if error is None and not published:
            return self._note_success((started_at, ended_at, 0), value)
        times = started_at, ended_at, self.pid
        if error is None:
            self._note_end((Outcome(_SUCCEEDED, value, None, *times), published))
        else:
            begin_at_the_user(error)
            told = error_to_tell(error, delivery)
            self._note_end((Outcome(_RAISED, None, told, *times, len(published)), None))
            del error, told  # their traceback has this frame
        return ended_at

    def _note_success(self, times: tuple[float, float, int], value: Any) -> float:
        with self._lock:
            if not self._dead:
                self._at = None
                if self._ends:
                    self._ends.append(self._success(times, value))
                else:
                    self._times.append(times)
                    self._values.append(value)
        return times[1]

    def _note_end(self, end: Ended) -> None:
        with self._lock:
            if not self._dead:
                self._at = None
                self._ends.append(end)

    def _context_for(self, delivery: Delivery) -> Context:
        """Make a handler's own context, with the variables from the publisher."""
        context = another(self._base)
        if isinstance(carried := delivery.context, Carried):
            carried.set_in(context)
        return context

    def _make_context(
        self, delivery: Delivery, receipt: Receipt, published: list[tuple[str | None, Any]]
    ) -> HandlerContext:
        """Make the return value of `current()` in a handler."""
        return HandlerContext(
            delivery.handler.name,
            receipt.id,
            receipt.parent_id,
            receipt.topic,
            len(delivery.earlier) + 1,
            partial(keep_event, published),
            self._pool.owner,
            self._pool.run,
            RunOf(delivery),
            self._here,
        )

    # Waiting for the bus in a handler.

    def pause(self, receipt: Receipt | None, instead: str, *, blocks: bool) -> Callable[[], object]:
        """Lend this worker's place to another one while its handler waits; see `HandlerRunner`."""
        del instead, blocks  # a thread may block
        if receipt is not None:
            self.check(receipt)
        if not self._waits:
            self._pool.lend(1)
        self._waits += 1
        if self._waits == 1:
            # The second report is empty. At an empty report the companion takes back the deliveries
            # that this worker has not begun, for other workers.
            self._report(complete=False)
            self._report(complete=False)
        return self._resume

    def check(self, receipt: Receipt) -> None:
        """Refuse a wait that would never end; see `HandlerRunner`."""
        delivery = self._delivery
        if delivery is not None and (why := waits_for_itself(delivery, receipt)):
            raise ProcbusError(why)

    def _resume(self) -> None:
        self._waits -= 1
        if not self._waits:
            self._pool.lend(-1)

    def _note_fork(self) -> None:
        self._forked = True

    def _check_here(self, error: BaseException | None, place: str) -> None:
        """End this process if it is a child that user code forked in this thread."""
        if self._forked:
            forked_children.end_child(error, place)


def _computes(handler: Handler) -> bool:
    return handler.kind == "cpu"


def warn_of_turns() -> None:
    """Warn that there is a GIL, so that threads are the wrong place for handlers that compute."""
    log.warning(
        'EventBus(cpu="threads"): this Python has a GIL, so cpu handlers take turns, and all of '
        "them together use one core. Leave cpu= out, and they run in processes on all cores; or "
        "run the script with a Python that is free-threaded, such as python3.14t"
    )
