# SPDX-License-Identifier: MIT
"""A lane that runs each delivery at once, in the thread that publishes it.

Buses for tests use this lane, and so do all buses of a script with `PROCBUS_INLINE=1`.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from math import inf
from time import monotonic
from traceback import walk_tb
from typing import Any, Protocol
from weakref import WeakSet

from procbus.core.carry import Carried, Carry
from procbus.core.context import (
    HandlerContext,
    keep_event,
    kept,
    made_on,
    run_seated,
    running,
)
from procbus.core.delivery import Delivery, asked_of, cancelled
from procbus.core.flow import Children, Flow
from procbus.core.handler import Handler
from procbus.core.no_receipt import explain_missing_receipt
from procbus.core.outcome import Outcome, OutcomeKind
from procbus.core.progress import Progress
from procbus.core.receipt import Receipt
from procbus.core.reporting import RunOf, reported_here
from procbus.core.resources import Resource
from procbus.core.shelf import Shelf
from procbus.core.worker import CurrentWorker
from procbus.dispatch.retry_queue import RetryQueue
from procbus.lanes.attempt import (
    context_for,
    failure,
    look_at,
    timeout_error,
)
from procbus.lanes.inline_loops import Loops, apart
from procbus.lanes.pacer import Pacer
from procbus.pool.inline import InlinePool, InlineWorker

#: Maximum depth at which an event that a handler publishes runs inside that handler. Deeper events
#: run after it.
DEPTH = 20


class InlineRun:
    """A running handler: its start and its end, in seconds of the clock."""

    __slots__ = ("began", "ends_at")

    def __init__(self, began: float, ends_at: float = inf) -> None:
        self.began = began
        self.ends_at = ends_at


class Sleeper(Protocol):
    """An object that has work due at a certain time."""

    def run_due(self, now: float) -> bool:
        """Do the next work that is due by a time; return whether there was any."""


class Ticking(Protocol):
    """The schedules of a bus."""

    def due_at(self) -> float:
        """The time of the next tick; infinite if there is none."""

    def let_pass(self, now: float) -> object:
        """Publish the events that are due by a time."""


class InlineClock(Protocol):
    """The time of a bus that runs handlers at once. Thread-safe."""

    #: Whether to go on to the next retry at once, when no other work is left.
    auto: bool
    #: Whether time passes by itself.
    passes: bool

    def now(self) -> float:
        """The time, in seconds."""

    def wall(self) -> float:
        """The time of day, in seconds as of `time.time()`."""

    def go_to(self, then: float) -> None:
        """Set the clock to a time, unless that time is over."""

    def attach(self, sleeper: Sleeper) -> None:
        """Have a sleeper's work run as time passes, for as long as the sleeper lives."""

    def begin(self, limit_s: float) -> InlineRun:
        """Begin a handler in this thread, with a time limit."""

    def ran_s(self, run: InlineRun) -> float:
        """Seconds since the beginning of a handler."""

    def end_in(self, run: InlineRun, grace_s: float) -> None:
        """Have a handler end `grace_s` seconds from now, if its time limit is not earlier."""

    def end(self) -> float:
        """End the handler that began last in this thread; return its duration."""


class RealClock:
    """The real time: going on to a time means waiting for it.

    This clock limits no handler, because no other thread is there to end it, and you may be looking
    at the handler in a debugger.
    """

    auto = passes = True

    def now(self) -> float:
        """Seconds of `time.monotonic()`."""
        return monotonic()

    def wall(self) -> float:
        """Seconds of `time.time()`."""
        return time.time()

    def go_to(self, then: float) -> None:
        """Wait until a time."""
        time.sleep(max(0.0, then - monotonic()))

    def attach(self, sleeper: Sleeper) -> None:
        """Do nothing: work that is due later runs when its thread has no other."""

    def begin(self, limit_s: float) -> InlineRun:  # noqa: ARG002 - see the class
        """Note the start of a handler."""
        return InlineRun(monotonic())

    def ran_s(self, run: InlineRun) -> float:
        """Seconds since the beginning of a handler."""
        return monotonic() - run.began

    def end_in(self, run: InlineRun, grace_s: float) -> None:
        """Do nothing: no handler is ended here."""

    def end(self) -> float:
        """Return 0, which is within limits."""
        return 0.0


class InlineRetries(RetryQueue):
    """Deliveries that wait for their time, by the clock of an inline bus."""

    def __init__(self, clock: InlineClock) -> None:
        super().__init__(clock=clock.now, wall=clock.wall)
        self._clock = clock
        self._pacers: WeakSet[Pacer] = WeakSet()
        self._schedules: WeakSet[Ticking] = WeakSet()
        clock.attach(self)

    def paces(self, pacer: Pacer) -> None:
        """Have the deliveries that a pacer holds pass as time goes on."""
        self._pacers.add(pacer)

    def ticks(self, schedules: Ticking) -> None:
        """Have schedules publish as time goes on."""
        self._schedules.add(schedules)

    def run_due(self, now: float) -> bool:
        """Run the next work that is due by a time, at its own time; False if there is none.

        The work is the next attempt of a delivery, a delivery whose delay is over, a delivery that
        its handler's rate has held, or a tick of a schedule.
        """
        for due_at, timed in sorted(
            [(each.due_at(), each) for each in (*self._pacers, *self._schedules)],
            key=lambda pair: pair[0],
        )[:1]:
            if due_at < inf and due_at <= min(now, self.next_due()):
                self._clock.go_to(due_at)
                timed.let_pass(self._clock.now())
                return True
        due = self.pop_due(now)
        if due is None:
            return False
        due_at, delivery = due
        self._clock.go_to(due_at)
        self.send(delivery)
        return True

    def run_next(self) -> bool:
        """Run the work that is due now, or due next if a next attempt or a rate waits.

        A delay alone does not move the clock on.
        """
        return self.run_due(inf if self._may_go_on(self.retrying) else self._clock.now())

    def run_to_the_end(self) -> bool:
        """Run the next due work, if a delivery waits for its time; False if none waits."""
        return self._may_go_on(len(self)) and self.run_due(inf)

    def _may_go_on(self, waiting: int) -> bool:
        return waiting > 0 or any(each.due_at() < inf for each in self._pacers)


class InlineLane:
    """Runs deliveries of all kinds. Thread-safe: each thread runs the events it publishes.

    Args:
        clock: clock of the bus.
        retries: deliveries that wait for their time.
        flow: settles deliveries, publishes the events that a cpu handler published, and makes the
            return value of `current()` in a handler.
        pickling: whether events, results and handlers of cpu handlers are pickled, as for a worker
            process.
        worker_init: the set-up of a worker; called once, before the first cpu handler.
        carry: the context variables that cpu handlers get.
        one_loop: whether async handlers share an event loop for the life of the bus, so that a
            client made in one can be used in the next.
        resources: objects that stand in for some resources.
        watch: makes the function that a worker runs for a handler; None for its own.
    """

    def __init__(
        self,
        clock: InlineClock,
        retries: InlineRetries,
        flow: Flow,
        *,
        pickling: bool,
        worker_init: Callable[[], object] | None,
        carry: Carry | None = None,
        one_loop: bool = False,
        resources: Mapping[Resource[Any], Any] | None = None,
        watch: Callable[[Handler], Callable[..., Any]] | None = None,
    ) -> None:
        #: The one worker, with all resources: real ones, or objects of the test.
        self.worker = CurrentWorker(0, partial(_shelf_for_all, resources))
        self._clock = clock
        self._one_loop = one_loop
        self._loops = Loops(lambda: self.worker.shelf)
        self._retries = retries
        self._flow = flow
        self._pickling = pickling
        self._watch = watch
        self._worker_init = worker_init
        self._carry = carry
        #: Guards the set-up.
        self._lock = threading.Lock()
        self._pool: InlinePool | None = None
        self._batches = itertools.count(1)
        #: Workers that are idle. Each operation on it is atomic.
        self._idle: list[InlineWorker] = []
        #: Deliveries in a handler now: the start, in seconds of `time.monotonic()`, and the run.
        self.at_hand: dict[Delivery, float] = {}
        self._runs: dict[Delivery, InlineRun] = {}
        #: The workers of deliveries that are pickled for one.
        self._working: dict[Delivery, InlineWorker] = {}
        self._here = threading.local()

    @property
    def gathers(self) -> bool:
        """Whether events wait for others of their batch: not if the clock goes on by itself."""
        return not self._clock.auto

    @property
    def time_passes(self) -> bool:
        """Whether its time passes by itself, because it is the real one."""
        return self._clock.passes

    def now(self) -> float:
        """The time of the clock, in seconds."""
        return self._clock.now()

    def paces(self, pacer: Pacer) -> None:
        """Have held deliveries pass as the clock goes on."""
        self._retries.paces(pacer)

    def ticks(self, schedules: Ticking) -> None:
        """Have schedules publish as the clock goes on."""
        self._retries.ticks(schedules)

    def catch_up(self) -> None:
        """Run the due work, if the clock goes on by itself and no handler runs in this thread."""
        if self._depth() or self._here.following:
            return
        self._here.following = True
        try:
            self._follow()
        finally:
            self._here.following = False

    def _follow(self) -> None:
        here = self._here
        while here.waiting or (self._clock.auto and self._retries.run_next()):
            if here.waiting:
                self._run(here.waiting.popleft())

    # Methods for the bus: see `Lane`.

    def take_along(self, carry: Carry) -> None:
        """Have cpu handlers get the values of these context variables."""
        self._carry = carry

    def put(self, delivery: Delivery) -> None:
        """Run a delivery, and all deliveries that follow from it."""
        subscription = delivery.subscription
        if subscription.handler.kind == "io":
            delivery.context = kept(contextvars.copy_context())
        elif self._carry is not None:
            delivery.context = self._carry.take(None)
        with self._lock:
            subscription.published_sum += 1
        delivery.queued = True
        if self._depth() >= DEPTH:
            self._here.waiting.append(delivery)
        else:
            self._run_and_follow(delivery)

    def put_again(self, delivery: Delivery) -> None:
        """Run a delivery for its next attempt."""
        self._run_and_follow(delivery)

    def release(self, delivery: Delivery) -> None:
        """Do nothing: no delivery waits behind it."""

    step_aside = release

    def stir(self) -> None:
        """Do nothing: no run is measured here."""

    def is_running(self, delivery: Delivery) -> bool:
        """Whether its handler is running."""
        return delivery in self.at_hand

    def progress_of(self, delivery: Delivery) -> Progress | None:
        """The last report of its running handler."""
        worker = self._working.get(delivery)
        if worker is None:
            return reported_here(delivery)
        at = worker.running()
        return None if at is None else worker.progress(at)

    def ran_s(self, delivery: Delivery) -> float | None:
        """Time that its handler has been running, by the clock of the bus and the real one."""
        run = self._runs.get(delivery)
        return None if run is None else self._clock.ran_s(run)

    def withdraw(self, delivery: Delivery) -> bool:  # noqa: ARG002 - see `Lane`
        """Return False: a delivery that waits here is settled where it is."""
        return False

    def open_deliveries(self) -> list[Delivery]:
        """The deliveries that wait for the handler of this thread to end, and the running ones."""
        return [*getattr(self._here, "waiting", ()), *self.at_hand]

    def stop(self, delivery: Delivery) -> None:
        """Tell its running handler; a delivery that has not begun is settled at once."""
        run = self._runs.get(delivery)
        if run is None:
            self._flow.settle([(delivery, cancelled(delivery))])
            return
        self._clock.end_in(run, delivery.handler.limits.grace)
        if (worker := self._working.get(delivery)) and (at := worker.running()):
            worker.tell_cancelled(at)

    def cut_off(self, delivery: Delivery) -> None:
        """Do nothing: a test's own thread runs the handler."""

    def forget(self, handler: Handler) -> None:
        """Drop a handler that has no pending deliveries."""
        if self._pool is not None:
            self._pool.definitions.forget(handler.number)

    def finish(self) -> None:
        """Run all work that waits for its time; a real delay is left to the supervisor."""
        retries = self._retries
        run = retries.run_next if self.time_passes else retries.run_to_the_end
        while run():
            pass

    def close(self) -> None:
        """End the workers. Idempotent."""
        while self._idle:
            worker = self._idle.pop()
            worker.kill()
            worker.stop()
        if self._pool is not None:
            self._pool.close()
        self._loops.close()
        self.worker.close()

    # Private methods.

    def _depth(self) -> int:
        """The number of handlers that this thread is in."""
        here = self._here
        if not hasattr(here, "depth"):
            here.depth, here.following = 0, False
            #: Deliveries to run after the outermost handler.
            here.waiting = deque()
        depth: int = here.depth
        return depth

    def _run_and_follow(self, delivery: Delivery) -> None:
        here = self._here
        if self._depth() or here.following:
            self._run(delivery)
            return
        here.following = True
        try:
            self._run(delivery)
            self._follow()
        finally:
            here.following = False

    def _run(self, delivery: Delivery) -> None:
        receipt = delivery.receipt
        if receipt is None:
            return
        self._here.depth += 1
        try:
            published: Children = []
            outcome = self._timed_attempt(delivery, receipt, published)
            if published and outcome.kind is OutcomeKind.SUCCEEDED:
                context = contextvars.Context()
                if isinstance(delivery.context, Carried):
                    context = delivery.context.context()
                error = context.run(self._flow.publish_children, delivery, outcome, published)
                if error is not None:
                    outcome = outcome._replace(kind=OutcomeKind.RAISED, value=None, error=error)
            elif published:
                outcome = outcome._replace(dropped_events=len(published))
            if outcome.kind is OutcomeKind.SUCCEEDED:
                delivery.context = None
            self._flow.settle([(delivery, outcome)])
        finally:
            self._here.depth -= 1

    def _timed_attempt(self, delivery: Delivery, receipt: Receipt, published: Children) -> Outcome:
        handler = delivery.subscription.handler
        limit_s = inf if handler.limits.timeout is None else handler.limits.timeout
        if (listeners := self._flow.listeners).started:
            listeners.tell_started(delivery, receipt, monotonic(), os.getpid())
        self.at_hand[delivery] = monotonic()
        self._runs[delivery] = run = self._clock.begin(limit_s)
        try:
            if handler.kind == "cpu":
                self._set_up()
            if handler.kind == "cpu" and self._pickling:
                outcome, progress = self._attempt_in_worker(delivery, published)
            else:
                outcome = self._attempt_here(delivery, receipt, published)
                progress = reported_here(delivery)
        finally:
            ran_s = self._clock.end()
            del self.at_hand[delivery], self._runs[delivery]
        if asked_of(delivery) is not None and ran_s >= run.ends_at - run.began:
            return cancelled(delivery, ran_s)
        if ran_s < limit_s:
            return outcome
        error = timeout_error(delivery, ran_s, "", "was ended", progress)
        return outcome._replace(kind=OutcomeKind.TIMED_OUT, value=None, error=error)

    def _attempt_here(self, delivery: Delivery, receipt: Receipt, published: Children) -> Outcome:
        """Run a handler directly, without pickling: in an event loop, if it is async."""
        handler = delivery.subscription.handler
        make = made_on(self.worker, self._flow.context_of)
        if handler.kind == "cpu":
            make = self._collecting(published)
        if not handler.is_async:
            return self._attempt(delivery, receipt, make, handler.call, published)
        if not (self._one_loop or self._loops.keep_for(handler.needs)):
            function = _awaiting(handler.call, asyncio.run)
            return self._attempt(delivery, receipt, make, function, published)
        loop = self._loops.take()
        try:
            make = made_on(loop.worker, self._flow.context_of)
            function = _awaiting(handler.call, loop.run)
            return self._attempt(delivery, receipt, make, function, published)
        finally:
            self._loops.give_back(loop)

    def _attempt(
        self,
        delivery: Delivery,
        receipt: Receipt,
        make: Callable[..., HandlerContext],
        function: Callable[[Any], Any],
        published: Children,
    ) -> Outcome:
        seat = [make, delivery, receipt]
        context = context_for(delivery) or contextvars.Context()
        started_at = monotonic()
        try:
            value = context.run(run_seated, seat, function, receipt.event)
        except BaseException as error:
            if _is_for_the_caller(error):
                self._flow.settle([(delivery, cancelled(delivery, monotonic() - started_at))])
                raise
            if published:
                explain_missing_receipt(error)
            return failure(error, delivery, started_at, os.getpid())
        else:
            pid, ended_at = os.getpid(), monotonic()
            return look_at(delivery, value, started_at, pid) or Outcome(
                OutcomeKind.SUCCEEDED, value, None, started_at, ended_at, pid
            )

    def _collecting(self, published: Children) -> Callable[..., HandlerContext]:
        """Make the `current()` of a cpu handler, whose events are published with its success."""
        publish = partial(keep_event, published)

        def make(delivery: Delivery, receipt: Receipt) -> HandlerContext:
            of = self._flow.context_of(delivery, receipt)
            return HandlerContext(
                of.handler,
                of.event_id,
                of.parent_id,
                of.topic,
                of.attempt,
                publish,
                of.owner,
                of.run,
                RunOf(delivery),
                self.worker,
            )

        return make

    def _attempt_in_worker(
        self, delivery: Delivery, published: Children
    ) -> tuple[Outcome, Progress | None]:
        """Run a handler the way a worker does: pickled, with its event and its result."""
        worker = self._worker()
        seat = running.get()
        try:
            message = worker.prepare(next(self._batches), [delivery])
            if message.failed:
                return message.failed[0][1], None
            worker.offer(message)
            worker.send(message)
            self._working[delivery] = worker
            outcome: Outcome | None = None
            while not (report := worker.receive()).complete:
                pass  # there is one delivery, so one later report has the outcome
            for (started_at, ended_at, _), value in zip(*report.successes, strict=True):
                times = started_at, ended_at
                outcome = Outcome(OutcomeKind.SUCCEEDED, value, None, *times, worker.pid)
            for end, events in report.ends:
                outcome = end
                published.extend(events or ())
            assert outcome is not None
            return outcome, worker.progress((message.batch, 0, 0.0))
        finally:
            running.set(seat)
            self._working.pop(delivery, None)
            self._idle.append(worker)

    def _worker(self) -> InlineWorker:
        try:
            return self._idle.pop()
        except IndexError:
            with self._lock:
                if self._pool is None:
                    self._pool = InlinePool(here=self.worker, ran_s=self._ran_s)
                    if self._watch is not None:
                        self._pool.definitions.function_of = self._watch
            return self._pool.start(lambda _: None)

    def _ran_s(self, worker: InlineWorker) -> float:
        """Time that the handler in a worker has been running, by the clock of the bus."""
        delivery = next((each for each, at in self._working.items() if at is worker), None)
        return 0.0 if delivery is None else self.ran_s(delivery) or 0.0

    def _set_up(self) -> None:
        with self._lock:
            init, self._worker_init = self._worker_init, None
        if init is not None:
            init()


def _awaiting(function: Callable[[Any], Any], run: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Make a function that calls an async handler, and runs it to its end."""

    def call(event: Any) -> Any:
        coroutine = function(event)
        return apart(lambda: run(coroutine))

    return call


def _shelf_for_all(resources: Mapping[Resource[Any], Any] | None) -> Shelf:
    """Make a shelf for the resources of all handlers; several threads may publish at once."""
    return Shelf(("worker", "bus"), shared=True, fakes=resources)


def _is_for_the_caller(error: BaseException) -> bool:
    """Whether an exception is for the caller of `publish`: Ctrl-C, or `q` in a debugger."""
    bdb = sys.modules.get("bdb")
    if bdb is None or isinstance(error, KeyboardInterrupt):
        return isinstance(error, KeyboardInterrupt)
    # Since Python 3.14 the debugger asks whether to end the process, and then raises SystemExit.
    return isinstance(error, bdb.BdbQuit) or (
        isinstance(error, SystemExit) and _raised_by_debugger(error)
    )


def _raised_by_debugger(error: BaseException) -> bool:
    return any(
        frame.f_globals.get("__name__") == "pdb" for frame, _ in walk_tb(error.__traceback__)
    )
