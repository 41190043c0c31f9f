# SPDX-License-Identifier: MIT
"""The io lane for `async def` handlers: one thread with the bus's own event loop."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import traceback
from collections.abc import Callable
from time import monotonic
from types import FrameType
from typing import Any

from procbus import strays
from procbus.context import take_seat
from procbus.delivery import Delivery, cancelled
from procbus.limits import stack_text, timeout_error
from procbus.meter import LONG_S, ONE_IN, STIR_S
from procbus.outcome import Outcome, OutcomeKind
from procbus.own_process import (
    MakeContext,
    Settle,
    failure,
    no_thread,
    place_of,
    success,
)
from procbus.queue import LaneQueue
from procbus.stats import LaneStats
from procbus.steps import Steps
from procbus.weighing import weigh_delivery

#: Handlers that run at the same time on the loop; `concurrency=` lowers it for one handler.
SLOTS = 1_000


class LoopLane:
    """The event loop of one bus. Thread-safe, but for what belongs to the loop's thread.

    The lock of `queue` is the lane's. It guards the queue, the gates, `_pump_due`, `_loop` and
    `_thread`. `_tasks` and `at_hand` are written by the loop's thread alone.

    Args:
        settle: settles deliveries.
        make_context: makes what `current()` returns in a handler.
    """

    def __init__(self, settle: Settle, make_context: MakeContext) -> None:
        self.queue = LaneQueue()
        self.at_hand: dict[Delivery, float] = {}
        self.events_done = 0
        #: Has somebody see what was measured. Set by whoever made the lane.
        self.stir: Callable[[], None] = _nobody
        self._settle = settle
        self._make_context = make_context
        self._pid = os.getpid()
        #: Made with its thread at the first delivery; None before that, and after the end.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._pump_due = False
        #: Whether this is a copy of the loop's thread, in a child that a handler forked.
        self._forked = False

    @property
    def thread(self) -> threading.Thread | None:
        """The thread of the loop; None when there is none."""
        return self._thread

    def put(self, delivery: Delivery) -> None:
        """Queue a delivery."""
        if self.queue.put(delivery):
            self._wake()
        else:
            self._settle([(delivery, cancelled(delivery))])

    def prime(self) -> None:
        """Start the loop, if it is not running."""
        with self.queue.lock:
            if self._loop is None and not self.queue.closed:
                self._locked_start()

    def release(self, delivery: Delivery) -> None:
        """Let those go that waited at the gate behind a settled delivery."""
        if self.queue.release(delivery):
            self._wake()

    def step_aside(self, delivery: Delivery) -> None:
        """Let others run while a delivery waits for its next attempt."""
        if self.queue.step_aside(delivery):
            self._wake()

    def put_again(self, delivery: Delivery) -> None:
        """Queue a delivery for its next attempt."""
        if self.queue.put_again(delivery):
            self._wake()
        else:
            self._settle([(delivery, cancelled(delivery))])

    def is_running(self, delivery: Delivery) -> bool:
        """Whether its handler is running on the loop."""
        return delivery in self.at_hand

    def withdraw(self, delivery: Delivery) -> bool:
        """Take a delivery back for good that has not begun."""
        return self.queue.withdraw(delivery)

    def stats(self) -> LaneStats:
        """The lane just now: its worker is the loop; busy are the handlers running on it."""
        return LaneStats(self.queue.depth(), int(self._thread is not None), len(self.at_hand), 0)

    def close(self, timeout: float | None = None) -> None:
        """End the loop; handlers that are still running are cancelled. Idempotent."""
        self.queue.close()
        self._call(lambda loop: loop.stop())
        thread = self._thread
        if thread is not None:
            thread.join(timeout)

    def cancel(self) -> None:
        """Settle as cancelled all that has not begun. Idempotent."""
        self._settle([(delivery, cancelled(delivery)) for delivery in self.queue.clear()])

    def kill(self) -> None:
        """Cancel the running handlers, and settle them as cancelled."""
        self.queue.close()
        now = monotonic()
        at_hand = list(self.at_hand.copy().items())
        self._settle([(d, cancelled(d, now - since)) for d, since in at_hand])
        # Now: a task that is cancelled settles its delivery as one that raised.
        self._call(lambda _: self._cancel_tasks())

    def _wake(self) -> None:
        """Have the loop look at the queue: once for all that is put until it does."""
        with self.queue.lock:
            if self._pump_due or self.queue.closed:
                return
            self._pump_due = True
            if self._loop is not None or (error := self._locked_start()) is None:
                assert self._loop is not None
                self._loop.call_soon_threadsafe(self._pump)
                return
            self._pump_due = False
        waiting = self.queue.clear_ready()
        self._settle([(delivery, no_thread(delivery, error)) for delivery in waiting])

    def _locked_start(self) -> RuntimeError | None:
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=self._run, args=(loop,), name="procbus-loop", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # the interpreter is ending, or there are too many threads
            loop.close()
            return error
        self._loop, self._thread = loop, thread
        return None

    def _call(self, function: Callable[[asyncio.AbstractEventLoop], object]) -> None:
        with self.queue.lock:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(function, self._loop)

    # In the loop's thread.

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        strays.watch(self._note_fork)
        try:
            loop.run_forever()
            # Also tasks that handlers started and left behind, as `asyncio.run` does.
            if left := asyncio.all_tasks(loop):
                for task in left:
                    task.cancel()
                loop.run_until_complete(asyncio.wait(left))
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            with self.queue.lock:  # nobody may call into a closed loop
                self._loop = None
            loop.close()

    def _note_fork(self) -> None:
        """In a child: end it also where its code gives control back to the loop.

        The loop's selector is shared with the parent, which would miss what the child takes of it.
        """
        self._forked = True
        outermost = _called_by_loop()

        def leave(frame: FrameType, event: str, _: Any) -> None:
            if event == "return" and frame is outermost:
                strays.end_child(None, "an async handler")

        sys.setprofile(leave)

    def _cancel_tasks(self) -> None:
        for task in list(self._tasks):
            task.cancel()

    def _pump(self) -> None:
        """Start handlers for what is ready, while there are slots."""
        self._pump_due = False  # before looking: what is put from now on wakes the loop again
        while len(self._tasks) < SLOTS:
            with self.queue.lock:
                delivery = self.queue.locked_take()
            if delivery is None:
                return
            task = asyncio.get_running_loop().create_task(self._attempt(delivery))
            self._tasks.add(task)
            task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._pump()

    async def _attempt(self, delivery: Delivery) -> None:
        receipt = delivery.receipt
        if receipt is None:  # cancelled meanwhile
            return
        take_seat(self._make_context, delivery, receipt)
        handler = delivery.subscription.handler
        started_at = monotonic()
        self.at_hand[delivery] = started_at
        limit = None
        if handler.timeout is not None:
            limit = _TimeLimit(self, delivery, started_at, handler.timeout)
        subscription, steps = delivery.subscription, None
        average_s = subscription.average_s
        is_long = average_s is None or average_s > LONG_S
        try:
            awaited = handler.function(receipt.event)
            if limit is not None:
                limit.awaited = awaited
            if is_long or not self.events_done % ONE_IN:
                steps = Steps(awaited)
                value = await steps
            else:
                value = await awaited
        except BaseException as error:  # noqa: BLE001 - all that a handler raises is its outcome
            # Also CancelledError. Where that is ours, the delivery was settled already and this
            # changes nothing; a handler that cancelled itself failed like any other.
            if self._forked:
                strays.end_child(error, place_of(delivery))
            outcome = failure(error, started_at, self._pid)
        else:
            if self._forked:
                strays.end_child(None, place_of(delivery))
            outcome = success(value, started_at, monotonic(), self._pid)
        if steps is not None:
            meter, ended_at = subscription.meter, outcome.ended_at
            stands_for = 1 if is_long else ONE_IN
            wall_s = ended_at - started_at
            meter.note_run(ended_at, wall_s, steps.cpu_s, stands_for, steps.suspended_s)
            if meter.fresh_s > STIR_S:
                self.stir()
        in_time = limit is None or limit.kept()
        if in_time:
            self.end(delivery, outcome)
        if in_time and subscription.meter.to_weigh > 0 and outcome.kind is OutcomeKind.SUCCEEDED:
            weigh_delivery(subscription.meter, handler.function, receipt.event, outcome.value)

    def end(self, delivery: Delivery, outcome: Outcome) -> None:
        """A run has ended. Called in the loop's thread."""
        del self.at_hand[delivery]
        self.events_done += 1
        self._settle([(delivery, outcome)])


class _TimeLimit:
    """The time limit of one run: at its end the delivery is settled, and the task cancelled.

    In this order, since a handler may take its time over being cancelled, or even go on.
    """

    def __init__(
        self, lane: LoopLane, delivery: Delivery, started_at: float, limit_s: float
    ) -> None:
        self._lane = lane
        self._delivery = delivery
        self._started_at = started_at
        self._task = asyncio.current_task()
        self._timer = asyncio.get_running_loop().call_later(limit_s, self._expire)
        self._expired = False
        #: What the task awaits: it tells where it is.
        self.awaited: Any = None

    def kept(self) -> bool:
        """The handler has ended: say whether that was in time."""
        self._timer.cancel()
        return not self._expired

    def _expire(self) -> None:
        assert self._task is not None
        self._expired = True
        now = monotonic()
        error = timeout_error(
            self._delivery, now - self._started_at, _stack_of(self.awaited), "was cancelled"
        )
        self._task.cancel()
        self._lane.end(
            self._delivery,
            Outcome(OutcomeKind.TIMED_OUT, None, error, self._started_at, now, os.getpid()),
        )


def _stack_of(awaited: Any) -> str:
    """Where a suspended coroutine is: through all that it awaits, not only its outermost part."""
    frames: list[traceback.FrameSummary] = []
    part = awaited
    while part is not None:
        frame = getattr(part, "cr_frame", None) or getattr(part, "gi_frame", None)
        if frame is not None:
            frames += traceback.extract_stack(frame, 1)
        part = getattr(part, "cr_await", None) or getattr(part, "gi_yieldfrom", None)
    return stack_text(frames, __file__)


def _called_by_loop() -> FrameType | None:
    """Of the frames of this thread, the one that the event loop has called."""
    frame: FrameType | None = sys._getframe()  # noqa: SLF001 - documented so
    while frame is not None and frame.f_back is not None:
        if frame.f_back.f_code.co_filename == asyncio.events.__file__:
            return frame
        frame = frame.f_back
    return None


def _nobody() -> None:
    """Nobody wants to see it."""
