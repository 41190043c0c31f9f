# SPDX-License-Identifier: MIT
"""The io lane for plain functions: threads that take from its queue.

They are daemon threads of our own rather than those of a ThreadPoolExecutor, because the
interpreter waits for the latter at its end: Ctrl-C would hang on a handler that waits for a
socket.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from math import inf
from time import monotonic, thread_time

from procbus.context import HandlerContext, running
from procbus.delivery import Delivery, cancelled
from procbus.errors import ProcbusError
from procbus.limits import stack_text, timeout_error
from procbus.log import log
from procbus.meter import LONG_S, ONE_IN, STIR_S
from procbus.outcome import Outcome, OutcomeKind
from procbus.queue import LaneQueue
from procbus.receipt import Receipt
from procbus.stats import LaneStats
from procbus.subscription import Subscription
from procbus.weighing import weigh_delivery

Settle = Callable[[Sequence[tuple[Delivery, Outcome]]], None]
#: Makes what `current()` returns in a handler of this process.
MakeContext = Callable[[Delivery, Receipt], HandlerContext]


class IoLane:
    """The threads of one bus. Thread-safe.

    The lock of `queue` is the lane's. It guards the queue, the gates, and the lists of threads.

    Args:
        threads: at most so many; each is started when nobody else is free.
        settle: settles deliveries.
        make_context: makes what `current()` returns in a handler.
        stir: is called now and then while runs were measured.
    """

    def __init__(
        self,
        threads: int,
        settle: Settle,
        make_context: MakeContext,
        stir: Callable[[], None] = lambda: None,
    ) -> None:
        self.stir = stir
        self.queue = LaneQueue()
        self.size = threads
        self._settle = settle
        self._make_context = make_context
        self._threads: list[IoThread] = []
        #: Threads left behind in a handler that ran out of time. There are `threads` of them at
        #: most: from then on, one that is left behind keeps its place.
        self._abandoned: list[IoThread] = []
        #: Seconds that threads have been there which are there no more.
        self._past_s = 0.0
        self._numbers = itertools.count(1)

    def put(self, delivery: Delivery) -> None:
        """Queue a delivery, and start one more thread where none is free for it."""
        if not self.queue.put(delivery):
            self._settle([(delivery, cancelled(delivery))])
        if self.queue.starved and not self.full:
            self.grow()

    def release(self, delivery: Delivery) -> None:
        """Let those go that waited at the gate behind a settled delivery."""
        if self.queue.release(delivery) and self.queue.starved:
            self.grow()

    def step_aside(self, delivery: Delivery) -> None:
        """Let others run while a delivery waits for its next attempt."""
        if self.queue.step_aside(delivery) and self.queue.starved:
            self.grow()

    def put_again(self, delivery: Delivery) -> None:
        """Queue a delivery for its next attempt."""
        if not self.queue.put_again(delivery):
            self._settle([(delivery, cancelled(delivery))])
        if self.queue.starved and not self.full:
            self.grow()

    def is_running(self, delivery: Delivery) -> bool:
        """Whether a thread is in the handler with this delivery just now."""
        return any(t.at_hand is delivery and not t.abandoned for t in list(self._threads))

    def withdraw(self, delivery: Delivery) -> bool:
        """Take a delivery back for good that has not begun."""
        return self.queue.withdraw(delivery)

    def threads(self) -> list[IoThread]:
        """The threads that there are just now."""
        return list(self._threads)

    def abandoned_threads(self) -> list[IoThread]:
        """Threads that are left behind in a handler that ran out of time."""
        with self.queue.lock:
            return [*self._abandoned, *(thread for thread in self._threads if thread.abandoned)]

    def worker_s(self) -> float:
        """Seconds that threads have been there, all together."""
        now = monotonic()
        with self.queue.lock:
            return self._past_s + sum(now - thread.started_at for thread in self._threads)

    def stats(self) -> LaneStats:
        """The lane just now."""
        threads = self.threads()
        busy = sum(thread.at_hand is not None for thread in threads)
        left_behind = len(self.abandoned_threads())
        return LaneStats(self.queue.depth(), len(threads), busy, 0, abandoned=left_behind)

    def close(self, timeout: float | None = None) -> None:
        """End the threads once nothing is ready; wait for each at most so long. Idempotent."""
        self.queue.close()
        deadline = None if timeout is None else monotonic() + timeout
        for thread in self.threads():
            thread.join(None if deadline is None else max(0.0, deadline - monotonic()))

    def cancel(self) -> None:
        """Settle as cancelled all that no thread has begun. Idempotent."""
        self._settle([(delivery, cancelled(delivery)) for delivery in self.queue.clear()])

    def kill(self) -> None:
        """Settle as cancelled what the threads are running; a thread itself cannot be killed."""
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

    @property
    def full(self) -> bool:
        """Whether all threads that there may be were started."""
        return len(self._threads) >= self.size

    def grow(self) -> None:
        """Start one more thread for a starved queue, if there may be more."""
        with self.queue.lock:
            if self.full or self.queue.closed or not self.queue.starved:
                return
            self.queue.locked_started()
            thread = IoThread(self, next(self._numbers), self._settle, self._make_context)
            self._threads.append(thread)
        try:
            thread.start()
        except RuntimeError as error:  # the interpreter is ending, or there are too many threads
            with self.queue.lock:
                self._threads.remove(thread)
                self.queue.locked_not_started()
                alone = not self._threads
            if alone:
                waiting = self.queue.clear_ready()
                self._settle([(delivery, no_thread(delivery, error)) for delivery in waiting])

    def left(self, thread: IoThread) -> None:
        """A thread ends: the lane does, or the thread came back that was left behind."""
        with self.queue.lock:
            if thread in self._threads:
                self._locked_remove(thread)
            else:
                self._abandoned.remove(thread)
            self._locked_replace()
        if self.queue.starved:
            self.grow()

    def expire(self, now: float) -> float:
        """Settle what has run out of time; return when the next will have.

        Args:
            now: in seconds of `time.monotonic()`.
        """
        next_end = inf
        for thread in self.threads():
            limited = thread.limited
            if limited is None:
                continue
            delivery, ends_at = limited
            if now < ends_at:
                next_end = min(next_end, ends_at)
            elif thread.abandon(limited):
                self._replace(thread, delivery)
        return next_end

    def _replace(self, thread: IoThread, delivery: Delivery) -> None:
        """Go on without a thread that cannot be stopped."""
        with self.queue.lock:
            self._locked_replace()
        log.warning(
            "%s is left behind in %s with event %d, which ran out of time: Python cannot stop a "
            "thread. %d are left behind now, of which %d were replaced. Give what the handler "
            "waits for a timeout of its own, or use kind='cpu', whose workers can be killed",
            thread.name,
            delivery.handler.name,
            delivery.event_id,
            len(self.abandoned_threads()),
            len(self._abandoned),
        )
        ran_s = monotonic() - thread.since
        error = timeout_error(delivery, ran_s, thread.stack(), "its thread was left behind")
        outcome = Outcome(
            OutcomeKind.TIMED_OUT, None, error, thread.since, monotonic(), os.getpid()
        )
        self._settle([(delivery, outcome)])
        if self.queue.starved and not self.full:
            self.grow()

    def _locked_replace(self) -> None:
        """Make room for others in place of threads that were left behind, as many as there may be.

        The lock is held. Call `grow` after it, if the queue is starved.
        """
        for thread in [thread for thread in self._threads if thread.abandoned]:
            if len(self._abandoned) < self.size:
                self._locked_remove(thread)
                self._abandoned.append(thread)
        if self.queue.locked_ready():
            self.queue.locked_wake()

    def _locked_remove(self, thread: IoThread) -> None:
        self._threads.remove(thread)
        self._past_s += monotonic() - thread.started_at


class IoThread(threading.Thread):
    """Takes deliveries one by one and runs their handlers."""

    def __init__(
        self, lane: IoLane, number: int, settle: Settle, make_context: MakeContext
    ) -> None:
        super().__init__(name=f"procbus-io-{number}", daemon=True)
        self._lane = lane
        self._settle = settle
        self._make_context = make_context
        self._pid = os.getpid()  # asked once: it is a system call, and would be for every event
        #: What is being run, and since when. Written by this thread, read by any.
        self.at_hand: Delivery | None = None
        self.since = 0.0
        self.events_done = 0
        #: The handler of the last long run, and when that ended. Written as one by this thread.
        self._finished: tuple[Subscription, float] | None = None
        #: Which of so many short runs is measured: one thread's first, another's last, lest those
        #: that all threads begin with count for too many.
        self._turn = 17 * number % ONE_IN
        #: CPU seconds of this thread when they were last read.
        self._cpu_read = 0.0
        self.started_at = monotonic()
        #: Guards the two fields below: of a run with a time limit, either this thread says how it
        #: ended, or the supervisor, who then leaves the thread behind.
        self._ending = threading.Lock()
        #: What is being run with a time limit, and when that ends.
        self.limited: tuple[Delivery, float] | None = None
        self.abandoned = False

    def run(self) -> None:
        """Thread body."""
        queue, settle = self._lane.queue, self._settle
        try:
            delivery = queue.take(fresh=True)
            while delivery is not None:
                if queue.starved and not self._lane.full:
                    self._lane.grow()
                outcome = self._attempt(delivery)
                self.at_hand = None
                if self.abandoned:
                    return
                if outcome is not None:
                    self.events_done += 1
                    settle([(delivery, outcome)])
                # Nothing of this event may be kept alive while waiting for the next.
                delivery = outcome = None
                running.set(None)
                delivery = queue.take()
        finally:
            self._lane.left(self)

    def _attempt(self, delivery: Delivery) -> Outcome | None:
        receipt = delivery.receipt
        if receipt is None:  # cancelled meanwhile
            return None
        running.set([self._make_context, delivery, receipt])  # as take_seat, without the call
        started_at = self.since = monotonic()
        self.at_hand = delivery
        subscription = delivery.subscription
        handler = subscription.handler
        average_s = subscription.average_s
        if average_s is None or average_s > LONG_S or self.events_done % ONE_IN == self._turn:
            self._cpu_read = thread_time()
            stands_for = 1 if average_s is None or average_s > LONG_S else ONE_IN
        else:
            stands_for = 0
        if handler.timeout is not None:
            self.limited = (delivery, started_at + handler.timeout)
        try:
            value = handler.function(receipt.event)
        except BaseException as error:  # noqa: BLE001 - all that a handler raises is its outcome
            outcome = failure(error, started_at, self._pid)
        else:
            outcome = success(value, started_at, self._pid)
        if self.limited is not None:
            with self._ending:
                self.limited = None
        if stands_for or outcome.ended_at - started_at > LONG_S:
            self._measure(subscription, receipt.event, outcome, stands_for)
        return outcome

    def _measure(
        self, subscription: Subscription, event: object, outcome: Outcome, stands_for: int
    ) -> None:
        """Note what a run took of the machine."""
        wall_s = outcome.ended_at - outcome.started_at
        if wall_s > LONG_S:
            self._finished = (subscription, outcome.ended_at)
            # One among short ones that is longer than all in between: it stands for itself, and
            # what those took since the clock was read is next to nothing.
            if wall_s > ONE_IN * (subscription.average_s or 0.0):
                stands_for = 1
        if not stands_for:
            return
        cpu_s = thread_time() - self._cpu_read
        self._cpu_read += cpu_s
        meter = subscription.meter
        meter.note_run(outcome.ended_at, wall_s, cpu_s, stands_for)
        if meter.fresh_s > STIR_S:
            self._lane.stir()
        if meter.to_weigh > 0 and outcome.kind is _SUCCEEDED:
            weigh_delivery(meter, subscription.handler.function, event, outcome.value)

    def subject(self) -> Subscription | None:
        """The handler that it is in, if that takes long as a rule."""
        delivery = self.at_hand
        if delivery is None:
            return None
        subscription = delivery.subscription
        average_s = subscription.average_s
        return subscription if average_s is None or average_s > LONG_S else None

    def finished(self, since: float) -> Subscription | None:
        """The handler of its last long run, if that ended after this moment."""
        finished = self._finished
        return finished[0] if finished is not None and finished[1] > since else None

    def abandon(self, limited: tuple[Delivery, float]) -> bool:
        """Leave the thread behind, if it is still at that run; from now on it settles nothing.

        False when it is not, or was left behind before: of a run that keeps its place in the lane
        the supervisor sees again and again that its time is over.
        """
        with self._ending:
            if self.abandoned or self.limited is not limited:
                return False
            self.abandoned = True
            return True

    def stack(self) -> str:
        """Where the thread is in its handler, as the text of a Python stack."""
        frame = sys._current_frames().get(self.ident or 0)  # noqa: SLF001 - documented so
        return stack_text(traceback.extract_stack(frame), __file__)


_new = tuple.__new__
_SUCCEEDED = OutcomeKind.SUCCEEDED


def success(value: object, started_at: float, pid: int) -> Outcome:
    """Make the outcome of a handler that returned, in this process, just now."""
    # Without Outcome's checking of arguments: half of the time, for every delivery.
    return _new(Outcome, (_SUCCEEDED, value, None, started_at, monotonic(), pid, 0))


def failure(error: BaseException, started_at: float, pid: int) -> Outcome:
    """Make the outcome of a handler that raised, in this process, just now."""
    return Outcome(OutcomeKind.RAISED, None, error, started_at, monotonic(), pid)


def no_thread(delivery: Delivery, error: RuntimeError) -> Outcome:
    """Make the outcome of a delivery for which no thread could be started."""
    fault = ProcbusError(
        f"{delivery.handler.name} cannot run with event {delivery.event_id}: {error}. Close the "
        "bus before the script ends, or leave it by `with`"
    )
    fault.__cause__ = error
    return Outcome(OutcomeKind.RAISED, error=fault)
