# SPDX-License-Identifier: MIT
"""The io lane for plain functions: its queue, and as many threads as that needs."""

from __future__ import annotations

import itertools
import os
import sys
import traceback
from collections.abc import Callable
from contextvars import Context, copy_context
from math import inf
from time import monotonic, thread_time
from typing import Protocol

from procbus.advice.transport_cost import weigh_delivery
from procbus.core.context import another, kept, run_seated, running
from procbus.core.delivery import Delivery, cancelled
from procbus.core.errors import ProcbusError
from procbus.core.flow import Flow
from procbus.core.locks import Lock, Tangled, later
from procbus.core.log import log
from procbus.core.meter import LONG_S, ONE_IN, STIR_S
from procbus.core.outcome import Outcome, OutcomeKind
from procbus.core.receipt import Receipt
from procbus.core.stats import LaneStats
from procbus.core.subscription import Subscription
from procbus.core.unfinished import complete
from procbus.core.waiting import occupy
from procbus.lanes.attempt import (
    failure,
    look_at,
    no_thread,
    place_of,
    stack_text,
    success,
    timeout_error,
    waits_for_itself,
)
from procbus.lanes.lane_thread import LaneThread
from procbus.lanes.queue import LaneQueue
from procbus.system import forked_children

# A thread of the io lane: takes deliveries, runs their handlers, and measures what runs take.
#
# They are daemon threads of our own rather than those of a ThreadPoolExecutor, because the
# interpreter waits for the latter at its end: Ctrl-C would hang on a handler that waits for a
# socket.

_SUCCEEDED = OutcomeKind.SUCCEEDED
#: Variables in the context of a thread in which user code has left nothing: `running`.
_CLEAN = 1


class Home(Protocol):
    """The lane of a thread, as that sees it."""

    queue: LaneQueue

    @property
    def full(self) -> bool:
        """Whether all threads that there may be were started."""

    def grow(self) -> None:
        """Start one more thread for a starved queue, if there may be more."""

    def left(self, thread: IoThread) -> None:
        """A thread ends."""

    #: Whether there are more threads that do not wait than there may be.
    crowded: bool

    def leave(self, thread: IoThread, delivery: Delivery) -> bool:
        """Whether a thread is to end, since there are too many: its delivery is queued again."""

    def lend(self, thread: IoThread) -> None:
        """A thread begins to wait for the bus: another may take its place."""

    def take_back(self, thread: IoThread) -> None:
        """A thread has waited."""

    def stir(self) -> None:
        """Have somebody see what was measured."""


class IoThread(LaneThread):
    """Takes deliveries one by one and runs their handlers."""

    def __init__(self, lane: Home, number: int, flow: Flow) -> None:
        super().__init__(f"procbus-io-{number}")
        self._lane = lane
        self._settle = flow.settle
        self._context_of = flow.context_of
        self._pid = os.getpid()  # asked once: it is a system call, and would be for every event
        #: What is being run, and since when. Written by this thread, read by any.
        self.at_hand: Delivery | None = None
        self.since = 0.0
        self.events_done = 0
        #: The handler of the last long run, and when that ended. Written as one by this thread.
        self._finished: tuple[Subscription, float] | None = None
        #: The short run that is measured next, of `ONE_IN`, by `events_done`: one thread's first,
        #: another's last, lest those that all threads begin with count for too many.
        self._next = 17 * number % ONE_IN
        #: CPU seconds of this thread when they were last read.
        self._cpu_read = 0.0
        self.started_at = monotonic()
        #: Guards the two fields below: of a run with a time limit, either this thread says how it
        #: ended, or the supervisor, who then leaves the thread behind.
        self._ending = Lock()
        #: What is being run with a time limit, and when that ends.
        self.limited: tuple[Delivery, float] | None = None
        self.abandoned = False
        #: Whether this is a copy of the thread, in a child that its handler forked.
        self._forked = False
        #: How many waits for the bus it is in; and whether its place is lent to another meanwhile,
        #: which the lock of the lane guards.
        self._waits = 0
        self.lent = False

    def run(self) -> None:
        """Thread body."""
        forked_children.watch(self._note_fork)
        occupy(self)
        fresh = True
        try:
            while (own := Context()).run(self._serve, own, fresh):
                fresh = False
        finally:
            self._lane.left(self)

    def _serve(self, own: Context, fresh: bool) -> bool:
        """Run deliveries until the end, or until user code has left something in the context.

        Args:
            own: the context that this runs in.
            fresh: whether the thread was just started.

        Returns:
            Whether to go on, in another context.
        """
        lane, queue, settle = self._lane, self._lane.queue, self._settle
        delivery = queue.take(fresh=fresh)
        while delivery is not None:
            if queue.starved:
                if lane.crowded and lane.leave(self, delivery):
                    return False
                if not lane.full:
                    lane.grow()
            outcome = self._attempt(delivery)
            self.at_hand = None
            if self.abandoned:
                return False
            if outcome is not None:
                self.events_done += 1
                settle([(delivery, outcome)])
            if self._forked:  # in a callback of the settlement
                forked_children.end_child(None, f"a callback on {self.name}")
            delivery = outcome = None
            if len(own) != _CLEAN:
                del own  # the traceback of an error keeps this frame
                return True
            delivery = queue.take(wait=False)
            if delivery is None:
                # Nothing of this event may be kept alive while waiting for the next.
                running.set(None)
                delivery = queue.take()
        return False

    def _attempt(self, delivery: Delivery) -> Outcome | None:
        receipt = delivery.receipt
        if receipt is None:  # cancelled meanwhile
            return None
        seat = [self._context_of, delivery, receipt]
        running.set(seat)  # as take_seat, without the call
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
        try:
            context = delivery.context
            if context is None:
                value = handler.function(receipt.event)
            else:
                if handler.retry.retries:
                    context = another(context)  # the next attempt is to begin as this one does
                value = context.run(run_seated, seat, handler.function, receipt.event)
                delivery.context = None
        except BaseException as error:  # noqa: BLE001 - all that a handler raises is its outcome
            context = None  # the traceback keeps this frame
            if self._forked:
                forked_children.end_child(error, place_of(delivery))
            outcome = failure(error, delivery, started_at, self._pid)
            ended_at = outcome.ended_at
        else:
            if self._forked:
                forked_children.end_child(None, place_of(delivery))
            ended_at = monotonic()
            outcome = success(value, started_at, ended_at, self._pid)
            if value is not None and id(type(value)) not in complete:
                outcome = look_at(delivery, outcome)
        if self.limited is not None:
            with self._ending:
                self.limited = None
        if stands_for or ended_at - started_at > LONG_S:
            self._measure(subscription, receipt.event, outcome, stands_for)
        return outcome

    def _note_fork(self) -> None:
        self._forked = True

    def _begin_measuring(self, average_s: float | None) -> int:
        """Read the clock; return for how many runs this one will stand."""
        if self.events_done >= self._next:
            self._next = self.events_done + ONE_IN
        self._cpu_read = thread_time()
        return 1 if average_s is None or average_s > LONG_S else ONE_IN

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

    def pause(self, receipt: Receipt | None, instead: str, *, blocks: bool) -> Callable[[], object]:
        """Lend the place of this thread to another while its handler waits; see `HandlerRunner`."""
        del instead, blocks  # a thread may block
        delivery = self.at_hand
        if delivery is not None and receipt is not None:
            why = waits_for_itself(delivery, receipt)
            if why:
                raise ProcbusError(why)
        # In a loop of its own, or in a signal handler or finalizer, it may be in several.
        if not self._waits:
            self._lane.lend(self)
        self._waits += 1
        return self._resume

    def _resume(self) -> None:
        self._waits -= 1
        if not self._waits:
            self._lane.take_back(self)

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


#: Threads at most that wait for the bus in a handler while another has their place.
MOST_LENT = 1_000


class IoLane:
    """The threads of one bus. Thread-safe.

    The lock of `queue` is the lane's. It guards the queue, the gates, the lists of threads, and how
    many of them wait.

    Args:
        threads: at most so many; each is started when nobody else is free.
        flow: settles deliveries, and makes what `current()` returns in a handler.
        stir: is called now and then while runs were measured.
    """

    def __init__(
        self,
        threads: int,
        flow: Flow,
        stir: Callable[[], None] = lambda: None,
    ) -> None:
        self.stir = stir
        self.queue = LaneQueue()
        self.size = threads
        self._flow = flow
        self._settle = flow.settle
        self._threads: list[IoThread] = []
        #: Threads left behind in a handler that ran out of time. There are `threads` of them at
        #: most: from then on, one that is left behind keeps its place.
        self._abandoned: list[IoThread] = []
        #: Seconds that threads have been there which are there no more.
        self._past_s = 0.0
        #: Threads whose handler waits for the bus: others have their places.
        self._lent = 0
        self.crowded = False
        self._numbers = itertools.count(1)

    def put(self, delivery: Delivery) -> None:
        """Queue a delivery, and start one more thread where none is free for it."""
        if (context := copy_context()) and (own := kept(context)) is not None:
            delivery.context = own
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
        there = len(self._threads)
        return there - self._lent >= self.size or there >= self.size + MOST_LENT

    def grow(self) -> None:
        """Start one more thread for a starved queue, if there may be more."""
        thread: IoThread | None = None
        try:
            with self.queue.lock:
                if self.full or self.queue.closed or not self.queue.starved:
                    return
                self.queue.locked_started()
                thread = IoThread(self, next(self._numbers), self._flow)
                self._threads.append(thread)
            thread.start()
        except Tangled:
            later(self.grow)
        except RuntimeError as error:  # the interpreter is ending, or there are too many threads
            if self._drop(thread):
                waiting = self.queue.clear_ready()
                self._settle([(delivery, no_thread(delivery, error)) for delivery in waiting])
        except BaseException:  # Ctrl-C, most likely
            self._drop(thread)
            raise

    def _drop(self, thread: IoThread | None) -> bool:
        """Let go of a thread that was not started; say whether none is left to work."""
        with self.queue.lock:
            if thread is None or thread.ident is not None or thread not in self._threads:
                return False
            self._threads.remove(thread)
            self.queue.locked_not_started()
            return len(self._threads) <= self._lent

    def lend(self, thread: IoThread) -> None:
        """A thread waits for the bus in its handler: another may take its place.

        Raises:
            ProcbusError: there are too many that wait, and none is left to do what they wait for.
        """
        with self.queue.lock:
            if thread not in self._threads:
                return  # left behind, and replaced
            there = len(self._threads)
            if there >= self.size + MOST_LENT and there - self._lent <= 1:
                raise ProcbusError(
                    f"{self._lent} handlers wait for what other handlers are to do, and no more "
                    "threads are started for those: make the handlers that wait async, and await "
                    "the receipt, or let the handler that is waited for publish what it found"
                )
            thread.lent = True
            self._lent += 1
            if self.queue.locked_ready():
                self.queue.locked_wake()
        if self.queue.starved and not self.full:
            self.grow()

    def take_back(self, thread: IoThread) -> None:
        """A thread has waited. Where another has its place, the next that looks for work ends."""
        with self.queue.lock:
            self._locked_take_back(thread)

    def _locked_take_back(self, thread: IoThread) -> None:
        if thread.lent:
            thread.lent = False
            self._lent -= 1
            self._locked_count()

    def _locked_count(self) -> None:
        self.crowded = len(self._threads) - self._lent > self.size
        if self.crowded:
            self.queue.starved = True  # threads look closer then

    def leave(self, thread: IoThread, delivery: Delivery) -> bool:
        """Whether a thread is to end, since there are too many: its delivery is queued again."""
        with self.queue.lock:
            self._locked_count()
            if not self.crowded:
                return False
            self._locked_remove(thread)
            self.queue.locked_put_back([delivery])
            return True

    def left(self, thread: IoThread) -> None:
        """A thread ends: the lane does, or the thread came back that was left behind."""
        with self.queue.lock:
            if thread in self._threads:
                self._locked_remove(thread)
            elif thread in self._abandoned:
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
        self._locked_take_back(thread)
        self._locked_count()
        self._past_s += monotonic() - thread.started_at
