# SPDX-License-Identifier: MIT
"""The io lane for plain functions: its queue, and as many threads as the queue needs."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from contextvars import Context, copy_context
from math import inf
from time import monotonic, thread_time
from typing import Protocol
from weakref import ReferenceType, ref

from procbus.advice.transport_cost import weigh_delivery
from procbus.core.context import THREADS_INHERIT, another, kept, made_on, run_seated, running
from procbus.core.delivery import Delivery, cancelled
from procbus.core.errors import ProcbusError
from procbus.core.flow import Flow
from procbus.core.gil import gil_is_on
from procbus.core.handler import Handler
from procbus.core.locks import Lock, Tangled, later
from procbus.core.log import pool_log as log
from procbus.core.meter import LONG_S, ONE_IN, STIR_S
from procbus.core.outcome import Outcome, OutcomeKind
from procbus.core.progress import Progress
from procbus.core.receipt import Receipt
from procbus.core.reporting import reported_here
from procbus.core.stats import LaneStats
from procbus.core.subscription import Subscription
from procbus.core.ticket import waits_for_itself
from procbus.core.unfinished import complete
from procbus.core.waiting import MOST_LENT, occupy
from procbus.core.worker import CLOSE_S
from procbus.lanes.attempt import (
    LEFT_BEHIND,
    NO_STACK,
    failure,
    keep_contexts,
    look_at,
    no_thread,
    place_of,
    timeout_error,
)
from procbus.lanes.lane_thread import LaneThread
from procbus.lanes.queue import LaneQueue
from procbus.system import forked_children
from procbus.system.cores import usable_cores
from procbus.system.procfs import no_core_s
from procbus.system.thread_stack import stack_of_thread


def _on_threads(handler: Handler) -> bool:
    """Whether the handler runs on threads of the io lane."""
    return handler.kind == "io" and not handler.is_async


# A thread of the io lane takes deliveries, runs their handlers, and measures the runs. The threads
# are daemon threads of our own, not threads of a ThreadPoolExecutor. At its end the interpreter
# waits for the threads of an executor, so Ctrl-C would hang on a handler that waits for a socket.

#: Number of variables in a thread's context while user code has left none: only `running`.
_CLEAN = 1


class Home(Protocol):
    """The lane, as far as its threads use it."""

    queue: LaneQueue

    #: Whether the maximum of threads was started.
    full: bool

    def grow(self) -> None:
        """Start another thread for a starved queue, if the maximum allows."""

    def left(self, thread: IoThread) -> None:
        """Note that a thread ends."""

    #: Whether more threads than the maximum work without waiting for the bus.
    crowded: bool

    def leave(self, thread: IoThread, delivery: Delivery) -> bool:
        """Whether a thread has to end because there are too many; its delivery is queued again."""

    def lend(self, thread: IoThread) -> None:
        """Note that a thread waits for the bus, so that another may take its place."""

    def take_back(self, thread: IoThread) -> None:
        """Note that a thread no longer waits."""

    def stir(self) -> None:
        """Have the advisor evaluate the measurements."""


class IoThread(LaneThread):
    """Takes deliveries one by one and runs their handlers."""

    def __init__(self, lane: Home, number: int, flow: Flow, place: int = 0) -> None:
        super().__init__(f"procbus-io-{number}")
        self._resources = flow.resources
        #: The thread's place in the lane, which its replacement gets, and its resources.
        self.worker = self._resources.worker(place)
        self._lane = lane
        self._settle = flow.settle
        self._settle_successes = flow.settle_successes
        self._context_of = made_on(self.worker, flow.context_of)
        self._listeners = flow.listeners
        self._pid = os.getpid()  # read once, because the system call would be made for every event
        #: The running delivery, and its start. Written by this thread; any thread may read them.
        self.at_hand: Delivery | None = None
        self.since = 0.0
        self.events_done = 0
        #: The class of the latest result, known to be complete: the next result mostly has the same
        #: class.
        self._whole: type = type(None)
        #: The handler of the last long run, and the end of that run. This thread writes both in one
        #: step. It may then be idle for long, so this reference does not keep the handler alive.
        self._finished: tuple[ReferenceType[Subscription], float] | None = None
        #: Which of the next `ONE_IN` short runs is measured, by `events_done`. It differs between
        #: threads, so that each thread's first deliveries do not count too much.
        self._next = 17 * number % ONE_IN
        #: CPU seconds of this thread at the last reading.
        self._cpu_read = 0.0
        #: Seconds without a core at the last reading. None with a GIL, because a thread then waits
        #: for the GIL more often than for a core: see `procbus.advice.gil_probe`.
        self._no_core_read: float | None = None
        self.started_at = monotonic()
        #: Guards the three fields below. The end of a run with a time limit is settled either by
        #: this thread, or by the supervisor, which then leaves the thread behind.
        self._ending = Lock()
        #: The running delivery with a time limit, and the end of that limit.
        self.limited: tuple[Delivery, float] | None = None
        #: The delivery that this thread was left behind in, written first; and whether it was left
        #: behind. A run that ends at that moment may be followed by another run, which the thread
        #: settles.
        self.left_in: Delivery | None = None
        self.abandoned = False
        #: Whether this is a copy of the thread, in a child that its handler forked.
        self._forked = False
        #: Number of waits for the bus that the thread is in; and whether its place is lent to
        #: another thread. The lane's lock guards the second field.
        self._waits = 0
        self.lent = False
        #: Whether the thread's handler computes; for the queue.
        self.computes = False

    def run(self) -> None:
        """Thread body."""
        forked_children.watch(self._note_fork)
        occupy(self)
        fresh = True
        try:
            for each in self._resources.eager(_on_threads):
                each.open_eager(self.worker)
            while (own := Context()).run(self._serve, own, fresh):
                fresh = False
        finally:
            try:
                self.worker.close()
            finally:
                self._lane.left(self)

    def _serve(self, own: Context, fresh: bool) -> bool:
        """Run deliveries until the end, or until user code has left a variable in the context.

        Args:
            own: the context in which this runs.
            fresh: whether the thread was just started.

        Returns:
            Whether to go on, in another context.
        """
        lane, queue = self._lane, self._lane.queue
        taker = self if queue.abreast > 1 else None
        delivery = queue.take(fresh=fresh, taker=taker)
        while delivery is not None:
            if queue.starved:
                if lane.crowded and lane.leave(self, delivery):
                    return False
                if not lane.full:
                    lane.grow()
            receipt = delivery.receipt
            if receipt is not None:  # None if the delivery was cancelled meanwhile
                self._attempt(delivery, receipt)
                if self.abandoned:
                    return False
                if self._forked:  # in a callback of the settlement
                    forked_children.end_child(None, f"a callback on {self.name}")
            delivery = receipt = None
            if len(own) != _CLEAN:
                del own  # because an error's traceback keeps this frame alive
                return True
            delivery = queue.take(wait=False, taker=taker)
            if delivery is None:
                # No object of this event may be kept alive during the wait for the next event.
                running.set(None)
                delivery = queue.take(taker=taker)
        return False

    def _attempt(self, delivery: Delivery, receipt: Receipt) -> None:
        """Run the handler, and settle the delivery unless this thread is left behind."""
        if self._listeners.started:
            self._listeners.tell_started(delivery, receipt, monotonic(), self._pid)
        seat = [self._context_of, delivery, receipt]
        running.set(seat)
        started_at = self.since = monotonic()
        self.at_hand = delivery
        subscription = delivery.subscription
        handler = subscription.handler
        average_s = subscription.average_s
        if average_s is None or average_s > LONG_S or self.events_done >= self._next:
            stands_for = self._begin_measuring(average_s)
        else:
            stands_for = 0
        if handler.limits.timeout is not None:
            self.limited = (delivery, started_at + handler.limits.timeout)
        failed = value = None
        try:
            context = delivery.context
            if context is None:
                value = handler.call(receipt.event)
            else:
                if handler.retry.retries:
                    context = another(context)  # a copy, so that the next attempt begins the same
                value = context.run(run_seated, seat, handler.call, receipt.event)
                delivery.context = None
        except BaseException as error:  # noqa: BLE001 - any exception of a handler is its outcome
            context = None  # because the traceback keeps this frame alive
            if self._forked:
                forked_children.end_child(error, place_of(delivery))
            failed = failure(error, delivery, started_at, self._pid)
            ended_at = failed.ended_at
        else:
            if self._forked:
                forked_children.end_child(None, place_of(delivery))
            ended_at = monotonic()
            if value is not None and (kind := type(value)) is not self._whole:
                if id(kind) in complete:
                    self._whole = kind
                else:
                    failed = look_at(delivery, value, started_at, self._pid)
        if self.limited is not None:
            with self._ending:
                self.limited = None
        if stands_for or ended_at - started_at > LONG_S:
            self._measure(
                subscription, receipt.event, (started_at, ended_at), stands_for, failed, value
            )
        self.at_hand = None
        if self.abandoned and self.left_in is delivery:
            seat.clear()
            return
        self.events_done += 1
        if failed is None:
            times = (started_at, ended_at, 0)
            self._settle_successes((delivery,), (times,), (value,), self._pid)
        else:
            self._settle([(delivery, failed)])
        if THREADS_INHERIT:
            seat.clear()

    def _note_fork(self) -> None:
        self._forked = True

    def _begin_measuring(self, average_s: float | None) -> int:
        """Read the clock; return the number of runs that this one will stand for."""
        if self.events_done >= self._next:
            self._next = self.events_done + ONE_IN
        self._cpu_read = thread_time()  # first: the other reading takes 20 us, and counts as run
        self._no_core_read = None if gil_is_on() else no_core_s()
        return 1 if average_s is None or average_s > LONG_S else ONE_IN

    def _measure(
        self,
        subscription: Subscription,
        event: object,
        times: tuple[float, float],
        stands_for: int,
        failed: Outcome | None,
        value: object,
    ) -> None:
        """Note the times of a run, from its start to its end."""
        started_at, ended_at = times
        wall_s = ended_at - started_at
        if wall_s > LONG_S:
            self._finished = (ref(subscription), ended_at)
            # A long run among short ones stands for itself: it took longer than all runs since the
            # last reading together. Those other runs took next to nothing.
            if wall_s > ONE_IN * (subscription.average_s or 0.0):
                stands_for = 1
        if not stands_for:
            return
        cpu_s = thread_time() - self._cpu_read
        self._cpu_read += cpu_s
        read = self._no_core_read
        starved_s = 0.0 if read is None else no_core_s() - read
        meter = subscription.meter
        meter.note_run(ended_at, wall_s, cpu_s, stands_for, starved_s=starved_s)
        if meter.fresh_s > STIR_S:
            self._lane.stir()
        if meter.to_weigh > 0 and failed is None:
            weigh_delivery(meter, subscription.handler.function, event, value)

    def subject(self) -> Subscription | None:
        """The handler that the thread is in, if that handler usually takes long."""
        delivery = self.at_hand
        if delivery is None:
            return None
        subscription = delivery.subscription
        average_s = subscription.average_s
        return subscription if average_s is None or average_s > LONG_S else None

    def finished(self, since: float) -> Subscription | None:
        """The handler of its last long run, if that ended after `since`."""
        finished = self._finished
        return finished[0]() if finished is not None and finished[1] > since else None

    def pause(self, receipt: Receipt | None, instead: str, *, blocks: bool) -> Callable[[], object]:
        """Lend the place of this thread to another while its handler waits; see `HandlerRunner`."""
        del instead, blocks  # a thread may block
        if receipt is not None:
            self.check(receipt)
        # A handler with a loop of its own, a signal handler or a finalizer may wait several times
        # at once.
        if not self._waits:
            self._lane.lend(self)
        self._waits += 1
        return self._resume

    def check(self, receipt: Receipt) -> None:
        """Refuse a wait that would never end; see `HandlerRunner`."""
        delivery = self.at_hand
        if delivery is not None and (why := waits_for_itself(delivery, receipt)):
            raise ProcbusError(why)

    def _resume(self) -> None:
        self._waits -= 1
        if not self._waits:
            self._lane.take_back(self)

    def abandon(self, limited: tuple[Delivery, float]) -> bool:
        """Leave the thread behind if it is still in that run, which it then does not settle.

        Returns False if the thread is not in that run, or was left behind before. The latter
        happens to a thread that keeps its place in the lane: the supervisor finds again and again
        that the time of its run is over.
        """
        with self._ending:
            if self.limited is not limited or self.left_in is limited[0]:
                return False
            self.left_in = limited[0]
            self.abandoned = True
            return True

    def leave_in(self, delivery: Delivery) -> bool:
        """Leave the thread behind if it runs this delivery, which it then does not settle.

        Unlike a run with a time limit, the run may end at this very moment.
        """
        with self._ending:
            if not self.is_in(delivery):
                return False
            self.left_in = delivery
            self.abandoned = True
            return True

    def is_in(self, delivery: Delivery) -> bool:
        """Whether the thread runs this delivery, and was not left behind in it."""
        return self.at_hand is delivery and self.left_in is not delivery

    def stack(self) -> str:
        """The Python stack of the thread in its handler, as text."""
        return stack_of_thread(self.ident, __file__)


class IoLane:
    """The threads of one bus. Thread-safe.

    The lock of `queue` is the lane's lock. This lock guards the queue, the gates, the lists of
    threads, and the number of waiting ones.

    Args:
        threads: maximum number of threads; a thread is started when no other is free.
        flow: settles deliveries, and makes the return value of `current()` in a handler.
        stir: called now and then while runs are measured.
        most_lent: maximum number of threads that wait for the bus in a handler while another thread
            has their place.
        make_thread: makes a thread from this lane, a number, the flow and the thread's place.
    """

    def __init__(
        self,
        threads: int,
        flow: Flow,
        stir: Callable[[], None] = lambda: None,
        *,
        most_lent: int = MOST_LENT,
        make_thread: Callable[[IoLane, int, Flow, int], IoThread] = IoThread,
    ) -> None:
        self._most_lent = most_lent
        self._make_thread = make_thread
        self.stir = stir
        self.queue = LaneQueue(1 if gil_is_on() else usable_cores())
        self.size = threads
        self._flow = flow
        self._settle = flow.settle
        self._threads: list[IoThread] = []
        #: Threads left behind in a handler that timed out, at most `threads`. Once there are that
        #: many, a thread that is left behind keeps its place.
        self._abandoned: list[IoThread] = []
        #: Seconds that ended threads existed.
        self._past_s = 0.0
        #: Number of threads whose handler waits for the bus, and whose places others have.
        self._lent = 0
        self.crowded = self.full = False
        self._numbers = itertools.count(1)

    def put(self, delivery: Delivery) -> None:
        """Queue a delivery, and start another thread if none is free for it."""
        if (context := copy_context()) and (own := kept(context)) is not None:
            delivery.context = own
        if not self.queue.put(delivery):
            self._settle([(delivery, cancelled(delivery))])
        if self.queue.starved and not self.full:
            self.grow()

    def put_all(self, deliveries: Sequence[Delivery]) -> None:
        """Queue deliveries of one subscription, as `put` does."""
        keep_contexts(deliveries)
        if not self.queue.put_all(deliveries):
            self._settle([(delivery, cancelled(delivery)) for delivery in deliveries])
        if self.queue.starved and not self.full:
            self.grow()

    def release(self, delivery: Delivery) -> None:
        """Release deliveries that waited at the gate behind a settled one."""
        if self.queue.release(delivery) and self.queue.starved:
            self.grow()

    def step_aside(self, delivery: Delivery) -> None:
        """Let other deliveries run while this one waits for its next attempt."""
        if self.queue.step_aside(delivery) and self.queue.starved:
            self.grow()

    def put_again(self, delivery: Delivery) -> None:
        """Queue a delivery for its next attempt."""
        if not self.queue.put_again(delivery):
            self._settle([(delivery, cancelled(delivery))])
        if self.queue.starved and not self.full:
            self.grow()

    def is_running(self, delivery: Delivery) -> bool:
        """Whether a thread is running this delivery now."""
        return self._thread_in(delivery) is not None

    def progress_of(self, delivery: Delivery) -> Progress | None:
        """The last report of its running handler."""
        return reported_here(delivery)

    def ran_s(self, delivery: Delivery) -> float | None:
        """Time that a thread has been running this delivery, in seconds."""
        thread = self._thread_in(delivery)
        return None if thread is None else monotonic() - thread.since

    def withdraw(self, delivery: Delivery) -> bool:
        """Take back for good a delivery that has not begun."""
        return self.queue.withdraw(delivery)

    def stop(self, delivery: Delivery) -> None:
        """Do nothing: the handler reads the request from the delivery."""

    def cut_off(self, delivery: Delivery) -> None:
        """Settle a cancelled delivery, and leave its thread behind in the handler."""
        thread = self._thread_in(delivery)
        if thread is None or not thread.leave_in(delivery):
            return
        if delivery.receipt is None:  # the run ended at this very moment, so the thread ends too
            return
        ran_s = monotonic() - thread.since
        outcome = cancelled(delivery, ran_s)._replace(worker_pid=os.getpid())
        if outcome.error is not None:
            outcome.error.add_note(thread.stack() or NO_STACK)
        self._replace(thread, delivery, "was cancelled", outcome)

    def _thread_in(self, delivery: Delivery) -> IoThread | None:
        return next((each for each in self._all_threads() if each.is_in(delivery)), None)

    def _all_threads(self) -> list[IoThread]:
        with self.queue.lock:
            return [*self._threads, *self._abandoned]

    def open_deliveries(self) -> list[Delivery]:
        """Its open deliveries, the waiting ones first."""
        running = [thread.at_hand for thread in self._all_threads()]
        return self.queue.waiting_deliveries() + [each for each in running if each is not None]

    def hold(self) -> None:
        """Begin nothing until `go_on`."""
        self.queue.hold()

    def go_on(self) -> None:
        """Begin deliveries again."""
        self.queue.go_on()
        if self.queue.starved and not self.full:
            self.grow()

    def threads(self) -> list[IoThread]:
        """The present threads."""
        return list(self._threads)

    def abandoned_threads(self) -> list[IoThread]:
        """Threads left behind in a handler that timed out."""
        with self.queue.lock:
            return [*self._abandoned, *(thread for thread in self._threads if thread.abandoned)]

    def worker_s(self) -> float:
        """Seconds that threads existed, all together."""
        now = monotonic()
        with self.queue.lock:
            return self._past_s + sum(now - thread.started_at for thread in self._threads)

    def stats(self) -> LaneStats:
        """The state of the lane."""
        threads = self.threads()
        busy = sum(thread.at_hand is not None for thread in threads)
        left_behind = len(self.abandoned_threads())
        return LaneStats(self.queue.depth(), len(threads), busy, 0, abandoned=left_behind)

    def close(self, timeout: float | None = None) -> None:
        """End the threads once nothing is ready; wait for each at most `timeout` s. Idempotent.

        Threads that are closing their resources have more time.
        """
        self.queue.close()
        deadline = None if timeout is None else monotonic() + timeout
        threads = self.threads()
        for thread in threads:
            thread.join(None if deadline is None else max(0.0, deadline - monotonic()))
        deadline = monotonic() + CLOSE_S
        for thread in threads:
            if thread.worker.closing:
                thread.join(max(0.0, deadline - monotonic()))

    def cancel(self) -> None:
        """Settle as cancelled all deliveries that no thread has begun. Idempotent."""
        self._settle([(delivery, cancelled(delivery)) for delivery in self.queue.clear()])

    def kill(self) -> None:
        """Settle the running deliveries as cancelled. The threads themselves cannot be killed."""
        self.queue.close()
        now = monotonic()
        at_hand = [(t.at_hand, now - t.since) for t in self.threads()]
        self._settle([(d, cancelled(d, ran_s)) for d, ran_s in at_hand if d is not None])

    def prime(self) -> None:
        """Start a first thread, if there is none."""
        with self.queue.lock:
            self.queue.starved = self.queue.starved or not self._threads
        if not self._threads:
            self.grow()

    def grow(self) -> None:
        """Start another thread for a starved queue, if the maximum allows."""
        thread: IoThread | None = None
        try:
            with self.queue.lock:
                if self.full or self.queue.closed or not self.queue.starved:
                    return
                self.queue.locked_started()
                taken = {each.worker.number for each in self._threads}
                place = next(each for each in itertools.count() if each not in taken)
                thread = self._make_thread(self, next(self._numbers), self._flow, place)
                self._threads.append(thread)
                self._locked_count()
            thread.start()
        except Tangled:
            later(self.grow)
        except RuntimeError as error:  # the interpreter is ending, or there are too many threads
            if self._drop(thread):
                waiting = self.queue.clear_ready()
                self._settle([(delivery, no_thread(delivery, error)) for delivery in waiting])
        except BaseException:  # most likely Ctrl-C
            self._drop(thread)
            raise

    def _drop(self, thread: IoThread | None) -> bool:
        """Drop a thread that was not started; return whether no thread is left to work."""
        with self.queue.lock:
            if thread is None or thread.ident is not None or thread not in self._threads:
                return False
            self._threads.remove(thread)
            self._locked_count()
            self.queue.locked_not_started()
            return len(self._threads) <= self._lent

    def lend(self, thread: IoThread) -> None:
        """Note that a thread waits for the bus in its handler, so that another may take its place.

        Raises:
            ProcbusError: too many handlers wait, and no thread is left for the awaited deliveries.
        """
        with self.queue.lock:
            if thread not in self._threads:
                return  # the thread was left behind, and replaced
            there = len(self._threads)
            if there >= self.size + self._most_lent and there - self._lent <= 1:
                raise ProcbusError(
                    f"{self._lent} handlers wait for other handlers, and the bus starts no more "
                    "threads: make the waiting handlers async, and await the receipt, or let "
                    "the awaited handler publish its result"
                )
            self.queue.locked_returned(thread)
            thread.lent = True
            self._lent += 1
            self._locked_count()
            if self.queue.locked_ready():
                self.queue.locked_wake()
        if self.queue.starved and not self.full:
            self.grow()

    def take_back(self, thread: IoThread) -> None:
        """Note that a thread no longer waits. If its place is taken, the next idle thread ends."""
        with self.queue.lock:
            self._locked_take_back(thread)

    def _locked_take_back(self, thread: IoThread) -> None:
        if thread.lent:
            thread.lent = False
            self._lent -= 1
            self._locked_count()

    def _locked_count(self) -> None:
        there = len(self._threads)
        self.crowded = there - self._lent > self.size
        self.full = there - self._lent >= self.size or there >= self.size + self._most_lent
        if self.crowded:
            self.queue.starved = True  # so that threads look closer

    def leave(self, thread: IoThread, delivery: Delivery) -> bool:
        """Whether a thread has to end because there are too many; its delivery is queued again."""
        with self.queue.lock:
            self._locked_count()
            if not self.crowded:
                return False
            self._locked_remove(thread)
            self.queue.locked_put_back([delivery])
            return True

    def left(self, thread: IoThread) -> None:
        """Note that a thread ends, with its lane or after it was left behind."""
        with self.queue.lock:
            if thread in self._threads:
                self._locked_remove(thread)
            elif thread in self._abandoned:
                self._abandoned.remove(thread)
            self._locked_replace()
        if self.queue.starved:
            self.grow()

    def expire(self, now: float) -> float:
        """Settle deliveries that ran out of time; return the time when the next one may do so.

        Args:
            now: in seconds of `time.monotonic()`.
        """
        next_end = inf
        for thread in self._all_threads():
            limited = thread.limited
            if limited is None:
                continue
            delivery, ends_at = limited
            if now < ends_at:
                next_end = min(next_end, ends_at)
            elif thread.abandon(limited):
                ran_s, progress = monotonic() - thread.since, reported_here(delivery)
                error = timeout_error(delivery, ran_s, thread.stack(), LEFT_BEHIND, progress)
                about = None, error, thread.since, monotonic(), os.getpid()
                outcome = Outcome(OutcomeKind.TIMED_OUT, *about)
                self._replace(thread, delivery, "ran out of time", outcome)
        return next_end

    def _replace(self, thread: IoThread, delivery: Delivery, reason: str, outcome: Outcome) -> None:
        """Go on without a thread that cannot be stopped.

        Args:
            thread: the thread.
            delivery: the delivery that the thread was left behind in.
            reason: the reason, in words.
            outcome: the outcome of the delivery.
        """
        with self.queue.lock:
            self.queue.locked_returned(thread)
            self._locked_replace()
        log.warning(
            "%s is left behind in %s with event #%d, which %s: Python cannot stop a "
            "thread. %d are left behind now, of which %d were replaced. Set a timeout for "
            "the call that the handler waits for, or use kind='cpu', whose workers can be killed",
            thread.name,
            delivery.handler.name,
            delivery.event_id,
            reason,
            len(self.abandoned_threads()),
            len(self._abandoned),
        )
        self._settle([(delivery, outcome)])
        if self.queue.starved and not self.full:
            self.grow()

    def _locked_replace(self) -> None:
        """Make room for other threads in place of the ones left behind, up to the maximum.

        The lock is held. Call `grow` afterwards, if the queue is starved.
        """
        for thread in [thread for thread in self._threads if thread.abandoned]:
            if len(self._abandoned) < self.size:
                self._locked_remove(thread)
                self._abandoned.append(thread)
        if self.queue.locked_ready():
            self.queue.locked_wake()

    def _locked_remove(self, thread: IoThread) -> None:
        self._threads.remove(thread)
        self.queue.locked_returned(thread)
        self.queue.takers -= 1
        self._locked_take_back(thread)
        self._locked_count()
        self._past_s += monotonic() - thread.started_at
