# SPDX-License-Identifier: MIT
"""A lane that runs each delivery at once, in the thread that publishes it."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import os
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from math import inf
from time import monotonic
from typing import Any

from procbus.core.carry import Carried, Carry
from procbus.core.context import HandlerContext, keep_event, kept, run_seated, running
from procbus.core.delivery import Delivery, cancelled
from procbus.core.flow import Children, Flow
from procbus.core.handler import Handler
from procbus.core.outcome import Outcome, OutcomeKind
from procbus.core.progress import Progress
from procbus.core.receipt import Receipt
from procbus.core.reporting import RunOf, reported_here
from procbus.dispatch.retry_queue import RetryQueue
from procbus.lanes.attempt import (
    context_for,
    failure,
    look_at,
    timeout_error,
)
from procbus.pool.inline import InlinePool, InlineWorker
from procbus.testing.clock import Clock

#: Maximum depth at which an event that a handler publishes runs inside it; deeper ones run after
#: it.
DEPTH = 20


class InlineRetries(RetryQueue):
    """Deliveries that wait for their next attempt, by a clock that the test turns."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock
        clock.attach(self)

    def add(self, delivery: Delivery, wait_s: float) -> bool:
        """Keep a delivery for a time of the clock, in seconds."""
        return self.add_due(delivery, self._clock.now() + wait_s)

    def run_due(self, now: float) -> bool:
        """Run the next attempt that is due by then, at its time; False if there is none."""
        due = self.pop_due(now)
        if due is None:
            return False
        due_at, delivery = due
        self._clock.go_to(due_at)
        delivery.subscription.lane.put_again(delivery)
        return True


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
    """

    def __init__(
        self,
        clock: Clock,
        retries: InlineRetries,
        flow: Flow,
        *,
        pickling: bool,
        worker_init: Callable[[], object] | None,
        carry: Carry | None = None,
    ) -> None:
        self._clock = clock
        self._retries = retries
        self._flow = flow
        self._pickling = pickling
        self._worker_init = worker_init
        self._carry = carry
        #: Guards the set-up.
        self._lock = threading.Lock()
        self._pool: InlinePool | None = None
        self._batches = itertools.count(1)
        #: Workers that are idle. Each operation on it is atomic.
        self._idle: list[InlineWorker] = []
        #: Deliveries in a handler now.
        self.at_hand: dict[Delivery, float] = {}
        #: The workers of deliveries that are pickled for one.
        self._working: dict[Delivery, InlineWorker] = {}
        self._here = threading.local()

    @property
    def gathers(self) -> bool:
        """Whether events wait for others of their batch: not if the clock goes on by itself."""
        return not self._clock.auto

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
        return None if delivery not in self.at_hand else self._clock.ran_s()

    def withdraw(self, delivery: Delivery) -> bool:  # noqa: ARG002 - see `Lane`
        """Return False: a delivery that waits here is settled where it is."""
        return False

    def open_deliveries(self) -> list[Delivery]:
        """The deliveries that wait for the handler of this thread to end, and the running ones."""
        return [*getattr(self._here, "waiting", ()), *self.at_hand]

    def stop(self, delivery: Delivery) -> None:
        """Tell its running handler; a delivery that has not begun is settled at once."""
        if delivery not in self.at_hand:
            self._flow.settle([(delivery, cancelled(delivery))])
        elif (worker := self._working.get(delivery)) and (at := worker.running()):
            worker.tell_cancelled(at)

    def cut_off(self, delivery: Delivery) -> None:
        """Do nothing: a test's own thread runs the handler."""

    def forget(self, handler: Handler) -> None:
        """Drop a handler that has no pending deliveries."""
        if self._pool is not None:
            self._pool.definitions.forget(handler.number)

    def finish(self) -> None:
        """Run all retries, so that no delivery waits any more."""
        while self._retries.run_due(inf):
            pass

    def close(self) -> None:
        """End the workers. Idempotent."""
        while self._idle:
            worker = self._idle.pop()
            worker.kill()
            worker.stop()
        if self._pool is not None:
            self._pool.close()

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
            while here.waiting or (self._clock.auto and self._retries.run_due(inf)):
                if here.waiting:
                    self._run(here.waiting.popleft())
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
        self._clock.begin(limit_s)
        try:
            if handler.kind == "cpu":
                self._set_up()
            if handler.kind == "cpu" and self._pickling:
                outcome, progress = self._attempt_in_worker(delivery, published)
            else:
                seat = self._seat_of(delivery, receipt, published)
                outcome = self._attempt(delivery, receipt, seat)
                progress = reported_here(delivery)
        finally:
            ran_s = self._clock.end()
            del self.at_hand[delivery]
        if ran_s < limit_s:
            return outcome
        error = timeout_error(delivery, ran_s, "", "was ended", progress)
        return outcome._replace(kind=OutcomeKind.TIMED_OUT, value=None, error=error)

    def _seat_of(self, delivery: Delivery, receipt: Receipt, published: Children) -> list[Any]:
        make: Callable[..., HandlerContext] = self._flow.context_of
        if delivery.subscription.handler.kind == "cpu":
            make = self._collecting(published)
        return [make, delivery, receipt]

    def _attempt(self, delivery: Delivery, receipt: Receipt, seat: list[Any]) -> Outcome:
        """Run a handler directly, without pickling."""
        handler = delivery.subscription.handler
        function = _awaiting(handler.function) if handler.is_async else handler.function
        context = context_for(delivery) or contextvars.Context()
        started_at = monotonic()
        try:
            value = context.run(run_seated, seat, function, receipt.event)
        except KeyboardInterrupt:  # it is for the test: this is the test's thread
            self._flow.settle([(delivery, cancelled(delivery, monotonic() - started_at))])
            raise
        except BaseException as error:  # noqa: BLE001 - any exception of a handler is its outcome
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
                    self._pool = InlinePool()
            return self._pool.start(lambda _: None)

    def _set_up(self) -> None:
        with self._lock:
            init, self._worker_init = self._worker_init, None
        if init is not None:
            init()


def _awaiting(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda event: _await(function(event))


def _await(coroutine: Any) -> Any:
    """Run a coroutine to its end: in this thread, or in a new one if this thread runs a loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    context = contextvars.copy_context()
    ended: list[tuple[Any, BaseException | None]] = []

    def run() -> None:
        try:
            ended.append((asyncio.run(coroutine), None))
        except BaseException as error:  # noqa: BLE001 - passed on below
            ended.append((None, error))

    thread = threading.Thread(target=context.run, args=(run,), name="procbus-inline-loop")
    thread.start()
    thread.join()
    [(value, error)] = ended
    if error is not None:
        raise error
    return value
