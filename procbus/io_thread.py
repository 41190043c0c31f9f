# SPDX-License-Identifier: MIT
"""A thread of the io lane: takes deliveries, runs their handlers, and measures what runs take.

They are daemon threads of our own rather than those of a ThreadPoolExecutor, because the
interpreter waits for the latter at its end: Ctrl-C would hang on a handler that waits for a
socket.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from contextvars import Context
from time import monotonic, thread_time
from typing import Protocol

from procbus import strays
from procbus.context import another, run_seated, running
from procbus.delivery import Delivery
from procbus.errors import ProcbusError
from procbus.lane_thread import LaneThread
from procbus.limits import stack_text
from procbus.locks import Lock
from procbus.meter import LONG_S, ONE_IN, STIR_S
from procbus.outcome import Outcome, OutcomeKind
from procbus.own_process import (
    MakeContext,
    Settle,
    failure,
    look_at,
    place_of,
    success,
    waits_for_itself,
)
from procbus.queue import LaneQueue
from procbus.receipt import Receipt
from procbus.subscription import Subscription
from procbus.unfinished import complete
from procbus.waiting import occupy
from procbus.weighing import weigh_delivery

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

    def __init__(self, lane: Home, number: int, settle: Settle, make_context: MakeContext) -> None:
        super().__init__(f"procbus-io-{number}")
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
        strays.watch(self._note_fork)
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
                strays.end_child(None, f"a callback on {self.name}")
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
        seat = [self._make_context, delivery, receipt]
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
        if handler.timeout is not None:
            self.limited = (delivery, started_at + handler.timeout)
        try:
            context = delivery.context
            if context is None:
                value = handler.function(receipt.event)
            else:
                if handler.retries:
                    context = another(context)  # the next attempt is to begin as this one does
                value = context.run(run_seated, seat, handler.function, receipt.event)
                delivery.context = None
        except BaseException as error:  # noqa: BLE001 - all that a handler raises is its outcome
            context = None  # the traceback keeps this frame
            if self._forked:
                strays.end_child(error, place_of(delivery))
            outcome = failure(error, delivery, started_at, self._pid)
            ended_at = outcome.ended_at
        else:
            if self._forked:
                strays.end_child(None, place_of(delivery))
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
        """Lend the place of this thread to another while its handler waits; see `Place`."""
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
