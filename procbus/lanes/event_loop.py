# SPDX-License-Identifier: MIT
"""The io lane for `async def` handlers: one thread with the bus's own event loop."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import traceback
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextvars import Context, copy_context
from functools import partial
from time import monotonic, thread_time
from types import FrameType
from typing import Any

from procbus.advice.transport_cost import weigh_delivery
from procbus.core.context import THREADS_INHERIT, kept, made_on, running
from procbus.core.delivery import Delivery, cancelled
from procbus.core.errors import ProcbusError
from procbus.core.flow import Flow
from procbus.core.handler import Handler
from procbus.core.log import pool_log as log
from procbus.core.meter import LONG_S, ONE_IN, STIR_S
from procbus.core.outcome import Outcome, OutcomeKind
from procbus.core.own_thread import OwnThread
from procbus.core.progress import Progress
from procbus.core.receipt import Receipt
from procbus.core.reporting import reported_here
from procbus.core.stats import LaneStats
from procbus.core.supplied import Supplied, log_late
from procbus.core.ticket import waits_for_itself
from procbus.core.unfinished import complete
from procbus.core.waiting import occupy
from procbus.core.worker import CLOSE_S, CurrentWorker
from procbus.lanes.attempt import (
    context_for,
    failure,
    keep_contexts,
    look_at,
    no_thread,
    place_of,
    timeout_error,
)
from procbus.lanes.loop_shelf import LoopShelf
from procbus.lanes.queue import LaneQueue
from procbus.system import forked_children
from procbus.system.thread_stack import stack_text

# Measuring the steps of one coroutine among many on an event loop.


class Steps:
    """Awaits an object, and sums up the CPU time of its own steps in this thread.

    Code that runs between two of its steps, while it is suspended, does not count. (The loop below
    does the same as `yield from`, see PEP 380, with a reading of the clock around each step.)

    Args:
        awaited: the object to await.
    """

    __slots__ = ("_awaited", "cpu_s", "longest_s", "suspended_s")

    def __init__(self, awaited: Awaitable[Any]) -> None:
        self._awaited = awaited
        self.cpu_s = 0.0
        #: Seconds between its steps.
        self.suspended_s = 0.0
        #: Seconds of the longest step.
        self.longest_s = 0.0

    def __await__(self) -> Generator[Any, Any, Any]:
        """Await it."""
        steps = self._awaited.__await__()
        # A plain iterator takes neither values nor exceptions.
        send: Any = getattr(steps, "send", None) or (lambda _: next(steps))
        throw = getattr(steps, "throw", None)
        step, argument = send, None
        resumed_at = monotonic()
        while True:
            began_s = thread_time()
            try:
                yielded = step(argument)
            except StopIteration as stop:
                return stop.value
            finally:
                self.cpu_s += thread_time() - began_s
                suspended_at = monotonic()
                if suspended_at - resumed_at > self.longest_s:
                    self.longest_s = suspended_at - resumed_at
            try:
                step, argument = send, (yield yielded)
            except GeneratorExit:
                close = getattr(steps, "close", None)
                if close is not None:
                    close()
                raise
            except BaseException as error:
                if throw is None:
                    raise
                step, argument = throw, error
            resumed_at = monotonic()
            self.suspended_s += resumed_at - suspended_at


#: Maximum number of handlers that run at once on the loop; `concurrency=` lowers it for one
#: handler. Handlers that wait for a receipt do not count, because they could take all slots and
#: wait for ever.
MOST_AT_ONCE = 1_000

#: Maximum number of handlers that one turn of the loop starts; because their tasks should still be
#: in the caches of the processor when they run.
STARTED_TOGETHER = 64

#: Time without an `await` after which a handler that holds the loop is logged once, in seconds;
#: because all other handlers wait for it.
HELD_S = 0.5

#: Maximum time for cancelled handlers to end before their resources are closed, in seconds.
IN_ORDER_S = 1.0

#: Maximum number of rounds in which tasks left at the end are cancelled.
_ROUNDS = 3


class _Seat(list[Any]):
    """The seat of one run, see `running`, which is also its slot on the loop.

    The seat belongs to the loop's thread.
    """

    __slots__ = ("delivery", "waits")
    #: The running delivery; None once the run is over.
    delivery: Delivery | None
    #: Number of receipts that the run waits for, in its own task and in tasks that it started.
    waits: int


class LoopLane:
    """The event loop of one bus. Thread-safe, except for members of the loop's thread.

    The lock of `queue` is the lane's lock. This lock guards the queue, the gates, `_pump_due`,
    `_loop` and `_thread`. Only the loop's thread writes `_tasks`, `_lent` and `at_hand`.

    Args:
        flow: settles deliveries, and makes the return value of `current()` in a handler.
        most_at_once: maximum of handlers that run at once.
        held_s: time without an await after which a handler is logged, in seconds.
    """

    def __init__(
        self, flow: Flow, *, most_at_once: int = MOST_AT_ONCE, held_s: float = HELD_S
    ) -> None:
        self._most_at_once = most_at_once
        self._held_s = held_s
        self.queue = LaneQueue()
        self.at_hand: dict[Delivery, float] = {}
        self.events_done = 0
        #: The class of the latest result, known to be complete: the next result mostly has the same
        #: class.
        self._whole: type = type(None)
        #: Has the advisor evaluate the measurements. Set by the maker of the lane.
        self.stir: Callable[[], None] = _nobody
        self._settle = flow.settle
        self._settle_successes = flow.settle_successes
        self._resources = flow.resources
        #: The loop as a worker, with its resources.
        self.worker = flow.resources.worker_with(LoopShelf)
        self._context_of = made_on(self.worker, flow.context_of)
        self._listeners = flow.listeners
        self._pid = os.getpid()
        #: Made with its thread at the first delivery; None before that, and after the end.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._tasks: dict[asyncio.Task[None], Delivery] = {}
        #: Number of slots of runs that wait for a receipt.
        self._lent = 0
        #: The context for the loop's own work, which belongs to no handler.
        self._context = Context()
        #: Numbers of the handlers that were logged for blocking the loop.
        self._blamed: set[int] = set()
        #: Whether the loop will look at the queue: soon, or once a slot is free.
        self._pump_due = False
        #: Whether the last look had no free slot, so that a delivery may be waiting.
        self._full = False
        #: Runs that have succeeded, and will soon be settled together: delivery, times, value.
        self._succeeded: deque[tuple[Delivery, tuple[float, float, int], Any]] = deque()
        #: Whether this is a copy of the loop's thread, in a child that a handler forked.
        self._forked = False
        #: Whether the bus stops the loop. If a handler stops the loop, the loop goes on.
        self._stopping = False

    @property
    def thread(self) -> threading.Thread | None:
        """The thread of the loop; None if there is none."""
        return self._thread

    def put(self, delivery: Delivery) -> None:
        """Queue a delivery."""
        if (context := copy_context()) and (own := kept(context)) is not None:
            delivery.context = own
        if not self.queue.put(delivery):
            self._settle([(delivery, cancelled(delivery))])
        # Read without the lock: the loop sets `_pump_due` to False before it looks, and then finds
        # this delivery.
        elif not self._pump_due:
            self._wake()

    def put_all(self, deliveries: Sequence[Delivery]) -> None:
        """Queue deliveries of one subscription."""
        keep_contexts(deliveries)
        if not self.queue.put_all(deliveries):
            self._settle([(delivery, cancelled(delivery)) for delivery in deliveries])
        elif not self._pump_due:
            self._wake()

    def prime(self) -> None:
        """Start the loop, if it is not running."""
        with self.queue.lock:
            if self._loop is None and not self.queue.closed:
                self._locked_start()

    def release(self, delivery: Delivery) -> None:
        """Release deliveries that waited at the gate behind a settled one."""
        if self.queue.release(delivery):
            self._wake()

    def step_aside(self, delivery: Delivery) -> None:
        """Let other deliveries run while this one waits for its next attempt."""
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

    def progress_of(self, delivery: Delivery) -> Progress | None:
        """The last report of its running handler."""
        return reported_here(delivery)

    def ran_s(self, delivery: Delivery) -> float | None:
        """Time that its handler has been running on the loop, in seconds."""
        since = self.at_hand.get(delivery)
        return None if since is None else monotonic() - since

    def withdraw(self, delivery: Delivery) -> bool:
        """Take a delivery back for good that has not begun."""
        return self.queue.withdraw(delivery)

    def stop(self, delivery: Delivery) -> None:
        """Cancel the task of its handler."""
        self._call(partial(self._stop_task, delivery))

    def cut_off(self, delivery: Delivery) -> None:
        """Settle a cancelled delivery, even if its handler goes on or blocks the loop."""
        if (ran_s := self.ran_s(delivery)) is not None:
            outcome = cancelled(delivery, ran_s)._replace(worker_pid=self._pid)
            self._settle([(delivery, outcome)])

    def open_deliveries(self) -> list[Delivery]:
        """Its open deliveries, the waiting ones first."""
        return self.queue.waiting_deliveries() + list(self._tasks.copy().values())

    def hold(self) -> None:
        """Begin nothing until `go_on`."""
        self.queue.hold()

    def go_on(self) -> None:
        """Begin deliveries again."""
        self.queue.go_on()
        if self.queue.seems_ready():
            self._wake()

    def stats(self) -> LaneStats:
        """The state of the lane: its worker is the loop; busy counts the handlers on it."""
        return LaneStats(self.queue.depth(), int(self._thread is not None), len(self.at_hand), 0)

    def close(self, timeout: float | None = None) -> None:
        """End the loop; running handlers are cancelled. Idempotent.

        A loop that is closing its resources has more time than `timeout` seconds.
        """
        self.queue.close()
        self._call(self._stop)
        thread = self._thread
        if thread is not None:
            thread.join(timeout)
            if self.worker.closing:
                thread.join(CLOSE_S + IN_ORDER_S)

    def cancel(self) -> None:
        """Settle all deliveries that have not begun as cancelled. Idempotent."""
        self._settle([(delivery, cancelled(delivery)) for delivery in self.queue.clear()])

    def kill(self) -> None:
        """Cancel the running handlers, and settle them as cancelled."""
        self.queue.close()
        now = monotonic()
        for delivery, times, value in self._succeeded.copy():
            self._settle_successes((delivery,), (times,), (value,), self._pid)
        at_hand = list(self.at_hand.copy().items())
        self._settle([(d, cancelled(d, now - since)) for d, since in at_hand])
        # Settled now, because a cancelled task would settle its delivery as one that raised.
        self._call(lambda _: self._cancel_tasks())

    def _wake(self) -> None:
        """Have the loop look at the queue: once for all deliveries that are put until then."""
        with self.queue.lock:
            if self._pump_due or self.queue.closed:
                return
            self._pump_due = True
            if self._loop is not None or (error := self._locked_start()) is None:
                assert self._loop is not None
                self._loop.call_soon_threadsafe(self._pump, context=self._context)
                return
            self._pump_due = False
        waiting = self.queue.clear_ready()
        self._settle([(delivery, no_thread(delivery, error)) for delivery in waiting])

    def _locked_start(self) -> RuntimeError | None:
        loop = Context().run(asyncio.new_event_loop)  # a loop keeps the context it is made in
        if THREADS_INHERIT:
            from concurrent.futures import ThreadPoolExecutor  # only here: others need it rarely

            # One handler starts the threads of `run_in_executor(None, ...)`, and other handlers use
            # them too.
            loop.set_default_executor(
                ThreadPoolExecutor(
                    thread_name_prefix="asyncio", initializer=running.set, initargs=(None,)
                )
            )
        thread = OwnThread("procbus-loop", self._run, loop)
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

    # Methods for the loop's thread.

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        forked_children.watch(self._note_fork)
        occupy(self)
        try:
            for each in self._resources.eager(_on_the_loop):
                loop.create_task(_open_eager(each, self.worker), context=self._context)
            while not (self._stopping or loop.is_closed()):
                self._go_on(loop.run_forever)
            if self.worker.has_shelf and not loop.is_closed():
                self._close_resources(loop)
            # Tasks that handlers started and left behind are cancelled too, as by `asyncio.run`.
            # Their ends may start others, but not for ever.
            for _ in range(_ROUNDS):
                if loop.is_closed() or not (left := asyncio.all_tasks(loop)):
                    break
                for task in left:
                    task.cancel()
                self._go_on(partial(loop.run_until_complete, asyncio.wait(left)))
            if not loop.is_closed():
                loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            with self.queue.lock:  # no other thread may call into a closed loop
                self._loop = None
            loop.close()
            self._give_up()

    def _close_resources(self, loop: asyncio.AbstractEventLoop) -> None:
        """Close the resources of handlers, once all handlers have ended or were cancelled."""
        shelf = self.worker.shelf
        assert isinstance(shelf, LoopShelf)
        self.worker.closing = True
        if tasks := list(self._tasks):
            self._cancel_tasks()
            self._go_on(partial(loop.run_until_complete, asyncio.wait(tasks, timeout=IN_ORDER_S)))
        if not loop.is_closed():
            self._go_on(partial(loop.run_until_complete, shelf.close_async()))
        self.worker.close()

    def _go_on(self, run: Callable[[], object]) -> None:
        """Run the loop until the bus stops it, even if user code stops it or raises out of it."""
        try:
            run()
        except BaseException as error:  # noqa: BLE001 - asyncio lets through all but Exception
            if self._forked:
                forked_children.end_child(error, "a task or callback of an async handler")
            log.error(
                "a task or callback that an async handler left in the event loop raised %s; the "
                "loop goes on. To end the script, raise it in the main thread",
                type(error).__name__,
                exc_info=error,
            )
        else:
            if not self._stopping:
                log.error(
                    "user code stopped or closed the event loop of the bus, which all async "
                    "handlers share; the bus goes on. Leave out loop.stop() and loop.close()"
                )

    def _stop(self, loop: asyncio.AbstractEventLoop) -> None:
        self._stopping = True
        loop.stop()

    def _give_up(self) -> None:
        """Fail everything that was on the loop, because the loop is closed."""
        self._settle_succeeded()
        for delivery in list(self._tasks.values()):
            self.at_hand.pop(delivery, None)
            error = ProcbusError(
                f"{delivery.handler.name} did not end with event #{delivery.event_id}: the event "
                "loop that it ran on was closed"
            )
            self._settle(
                [(delivery, Outcome(OutcomeKind.CANCELLED, None, error, 0.0, monotonic()))]
            )
        self._tasks.clear()

    def _note_fork(self) -> None:
        """End a forked child as soon as its code gives control back to the loop.

        The child shares the loop's selector with the parent, which would miss the events that the
        child takes from it.
        """
        self._forked = True
        outermost = _called_by_loop()

        def leave(frame: FrameType, event: str, _: Any) -> None:
            if event == "return" and frame is outermost:
                forked_children.end_child(None, "an async handler")

        sys.setprofile(leave)

    def _cancel_tasks(self) -> None:
        for task in list(self._tasks):
            task.cancel()

    def _stop_task(self, delivery: Delivery, _: asyncio.AbstractEventLoop) -> None:
        """Cancel the task of a delivery once: its handler may take time to tidy up."""
        for task, each in self._tasks.items():
            if each is delivery and delivery.receipt is not None:
                if delivery not in self.at_hand:  # the task has not begun, and does nothing then
                    self._settle([(delivery, cancelled(delivery))])
                elif not task.cancelling():
                    task.cancel()
                return

    def _pump(self) -> None:
        """Start handlers for ready deliveries, while there are slots."""
        self._pump_due = False  # before the look: a delivery put from now on wakes the loop again
        loop = self._loop  # set before any work is put on the loop, until its thread ends
        assert loop is not None
        slots = self._most_at_once - len(self._tasks) + self._lent
        deliveries = self.queue.take_ready(min(slots, STARTED_TOGETHER))
        if len(deliveries) >= slots:
            self._full = self._pump_due = True
        elif len(deliveries) == STARTED_TOGETHER:
            self._pump_due = True
            loop.call_soon(self._pump, context=self._context)
        for delivery in deliveries:
            # Never the context of the thread that woke the loop, which a task would copy.
            context = Context() if delivery.context is None else context_for(delivery)
            task = loop.create_task(self._attempt(delivery), context=context)
            self._tasks[task] = delivery
            task.add_done_callback(self._finished, context=self._context)

    def _finished(self, task: asyncio.Task[None]) -> None:
        delivery = self._tasks.pop(task, None)
        # Nearly every delivery is settled by now, or is about to be.
        if delivery is not None and delivery.receipt is not None and task.cancelled():
            self._not_begun(delivery)
        if self._full and self._loop is not None:
            self._full = False
            self._loop.call_soon(self._pump, context=self._context)  # once for all that end now

    def _not_begun(self, delivery: Delivery) -> None:
        """Start a delivery anew: a handler cancelled its task, like all tasks, before it began."""
        if delivery in self.at_hand:  # it has begun, and has succeeded in spite of the cancellation
            return
        with self.queue.lock:
            closed = self.queue.closed
            if not closed:
                self.queue.locked_put_back([delivery])
        if closed:
            self._settle([(delivery, cancelled(delivery))])
        else:
            self._pump()

    def pause(self, receipt: Receipt | None, instead: str, *, blocks: bool) -> Callable[[], object]:
        """Lend the slot of the calling handler to other handlers; see `HandlerRunner`."""
        here = running.get()
        delivery = here.delivery if isinstance(here, _Seat) else None
        if blocks:
            handler = "a callback" if delivery is None else delivery.handler.name
            raise ProcbusError(
                f"{handler} waits on the event loop that all async handlers of the bus share, and "
                f"would block it for all of them, even the awaited ones: {instead}"
            )
        if not isinstance(here, _Seat) or delivery is None:
            return _nobody
        if receipt is not None:
            self.check(receipt)
        here.waits += 1
        if here.waits == 1:
            self._lent += 1
            self._pump()
        return partial(self._take_back, here)

    def check(self, receipt: Receipt) -> None:
        """Refuse a wait that would never end; see `HandlerRunner`."""
        here = running.get()
        delivery = here.delivery if isinstance(here, _Seat) else None
        if delivery is not None and (why := waits_for_itself(delivery, receipt)):
            raise ProcbusError(why)

    def _take_back(self, lent: _Seat) -> None:
        lent.waits -= 1
        if not lent.waits and lent.delivery is not None:
            self._lent -= 1

    async def _attempt(self, delivery: Delivery) -> None:
        receipt = delivery.receipt
        if receipt is None:  # the delivery was cancelled meanwhile
            return
        if self._listeners.started:
            self._listeners.tell_started(delivery, receipt, monotonic(), self._pid)
        own = _Seat((self._context_of, delivery, receipt))
        own.delivery, own.waits = delivery, 0
        running.set(own)
        subscription, steps = delivery.subscription, None
        handler = subscription.handler
        started_at = monotonic()
        self.at_hand[delivery] = started_at
        limit = None
        if handler.limits.timeout is not None:
            limit = _TimeLimit(self, delivery, started_at, handler.limits.timeout)
        average_s = subscription.average_s
        is_long = average_s is None or average_s > LONG_S
        if is_long and self._succeeded:
            self._settle_succeeded()  # this handler may block the loop
        failed = value = None
        try:
            awaited = handler.call(receipt.event)
            if limit is not None:
                limit.awaited = awaited
            if is_long or not self.events_done % ONE_IN:
                steps = Steps(awaited)
                value = await steps
            else:
                value = await awaited
            delivery.context = None
        except BaseException as error:  # noqa: BLE001 - any exception of a handler is its outcome
            # CancelledError too. If the lane cancelled the task, the delivery is settled already
            # and this changes nothing. A handler that cancelled itself failed like any other.
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
        own.delivery = None
        if own.waits:
            self._lent -= 1
        if steps is not None:
            meter = subscription.meter
            stands_for = 1 if is_long else ONE_IN
            wall_s = ended_at - started_at
            meter.note_run(ended_at, wall_s, steps.cpu_s, stands_for, steps.suspended_s)
            if meter.fresh_s > STIR_S:
                self.stir()
            if steps.longest_s > self._held_s and handler.number not in self._blamed:
                self._blamed.add(handler.number)
                log.warning(
                    "%s held the event loop for %.2g s without an await, in event #%d: all async "
                    "handlers of the bus waited for it. Make it a plain def, which runs on a "
                    "thread, await asyncio.to_thread(...) for what blocks, or use kind='cpu' for "
                    "what computes",
                    handler.name,
                    steps.longest_s,
                    delivery.event_id,
                )
        if limit is not None and not limit.kept():
            return
        if failed is not None:
            self.end(delivery, failed)
            return
        self._succeed(delivery, receipt, (started_at, ended_at, 0), value)
        if subscription.meter.to_weigh > 0:
            weigh_delivery(subscription.meter, handler.function, receipt.event, value)

    def _succeed(
        self, delivery: Delivery, receipt: Receipt, times: tuple[float, float, int], value: Any
    ) -> None:
        """Note that a run has succeeded."""
        self.events_done += 1
        if receipt.callbacks is not None or delivery.subscription.gated:
            # Code or other deliveries wait for this delivery.
            self.at_hand.pop(delivery, None)  # the lane may have given it up already
            self._settle_successes((delivery,), (times,), (value,), self._pid)
            return
        self._succeeded.append((delivery, times, value))
        if len(self._succeeded) == 1 and self._loop is not None:
            self._loop.call_soon(self._settle_succeeded, context=self._context)

    def _settle_succeeded(self) -> None:
        """Settle all runs that have succeeded since the last time."""
        deliveries, times, values = [], [], []
        while self._succeeded:
            delivery, about, value = self._succeeded.popleft()
            deliveries.append(delivery)
            times.append(about)
            values.append(value)
            self.at_hand.pop(delivery, None)
        if deliveries:
            self._settle_successes(deliveries, times, values, self._pid)

    def end(self, delivery: Delivery, outcome: Outcome) -> None:
        """Note that a run has ended. Called in the loop's thread."""
        self.at_hand.pop(delivery, None)  # the lane may have given it up already
        self.events_done += 1
        self._settle([(delivery, outcome)])


class _TimeLimit:
    """The time limit of one run: at its end the delivery is settled, then the task cancelled.

    The delivery is settled first, because a handler may take time over its cancellation, or even go
    on.
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
        #: The object that the task awaits, which shows where the handler is.
        self.awaited: Any = None

    def kept(self) -> bool:
        """Note that the handler has ended; return whether it was in time."""
        self._timer.cancel()
        return not self._expired

    def _expire(self) -> None:
        assert self._task is not None
        self._expired = True
        now = monotonic()
        progress, stack = reported_here(self._delivery), _stack_of(self.awaited)
        ran_s = now - self._started_at
        error = timeout_error(self._delivery, ran_s, stack, "was cancelled", progress)
        self._task.cancel()
        self._lane.end(
            self._delivery,
            Outcome(OutcomeKind.TIMED_OUT, None, error, self._started_at, now, os.getpid()),
        )


def _stack_of(awaited: Any) -> str:
    """The stack of a suspended coroutine, through all objects that it awaits."""
    frames: list[traceback.FrameSummary] = []
    part = awaited
    while part is not None:
        frame = getattr(part, "cr_frame", None) or getattr(part, "gi_frame", None)
        if frame is not None:
            frames += traceback.extract_stack(frame, 1)
        part = getattr(part, "cr_await", None) or getattr(part, "gi_yieldfrom", None)
    return stack_text(frames, __file__)


def _called_by_loop() -> FrameType | None:
    """The frame of this thread that the event loop has called."""
    frame: FrameType | None = sys._getframe()  # noqa: SLF001 - documented so
    while frame is not None and frame.f_back is not None:
        if frame.f_back.f_code.co_filename == asyncio.events.__file__:
            return frame
        frame = frame.f_back
    return None


def _on_the_loop(handler: Handler) -> bool:
    """Whether the handler runs on the event loop."""
    return handler.is_async


async def _open_eager(needy: Supplied, worker: CurrentWorker) -> None:
    """Open the eager resources of a handler; a failure is logged."""
    for each in needy.eager():
        try:
            await worker.shelf.get_async(each, needy.attempt_at_start(worker))
        except Exception:  # noqa: BLE001 - the first event that needs it tries again
            log_late(each)


def _nobody() -> None:
    """Do nothing: the lane has no advisor."""
