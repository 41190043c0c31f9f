# SPDX-License-Identifier: MIT
"""Parts of a bus put together by hand, and handlers that the test holds in its hand."""

import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Unpack

import pytest

from procbus import EventBus
from procbus.assembly import Assembly, Makers, make_lanes
from procbus.core.bus_resources import BusResources
from procbus.core.context import HandlerContext
from procbus.core.dead_letter import DeadLetter
from procbus.core.delivery import Delivery
from procbus.core.handler import Handler, make_handler
from procbus.core.listeners import Listeners
from procbus.core.locks import Lock
from procbus.core.outcome import Outcome, OutcomeKind
from procbus.core.progress import Progress
from procbus.core.receipt import FanReceipt, Receipt
from procbus.core.reporting import reported_here
from procbus.core.subscription import SAMPLED_BELOW_S, Subscription
from procbus.dispatch.admission import Admission
from procbus.dispatch.dead_letters import FailureHook
from procbus.dispatch.retry_queue import RetryQueue
from procbus.dispatch.settlement import Settlement
from procbus.lanes.lanes import Lanes
from procbus.lanes.threads import IoLane, IoThread
from procbus.settings import BusOptions, make_settings
from tests.waits import eventually

#: Bound of every wait in the tests, in seconds: reached only when something is broken.
BOUND_S = 60.0


class BusWith(EventBus):
    """A bus whose parts have limits or clocks of the test: `make` makes these parts."""

    def __init__(
        self,
        make: Makers,
        handlers: Iterable[Callable[..., Any]] = (),
        **options: Unpack[BusOptions],
    ) -> None:
        self._take(Assembly(make_settings(options), handlers, make))


def threads_up_to(most: int) -> Callable[[Assembly], Lanes]:
    """Makes lanes for a system that cannot start more threads than `most`."""
    started = itertools.count(1)

    class Limited(IoThread):
        def start(self) -> None:
            if next(started) > most:
                raise RuntimeError("can't start new thread")
            super().start()

    return partial(make_lanes, make_io_lane=partial(IoLane, make_thread=Limited))


class ClockAhead:
    """A clock that goes as the true one, and ahead of it once the test says so."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead_s


class FakeLane:
    """A lane that keeps its deliveries and runs none."""

    def __init__(self) -> None:
        self.queued: list[Delivery] = []
        self.released: list[Delivery] = []
        self.running: list[Delivery] = []
        self.aside: list[Delivery] = []
        self.again: list[Delivery] = []
        self.stopped: list[Delivery] = []
        self.cut: list[Delivery] = []
        self.stirred = 0

    def put(self, delivery: Delivery) -> None:
        self.queued.append(delivery)

    def release(self, delivery: Delivery) -> None:
        self.released.append(delivery)

    def step_aside(self, delivery: Delivery) -> None:
        self.aside.append(delivery)

    def put_again(self, delivery: Delivery) -> None:
        self.again.append(delivery)

    def is_running(self, delivery: Delivery) -> bool:
        return any(delivery is each for each in self.running)

    def progress_of(self, delivery: Delivery) -> Progress | None:
        return reported_here(delivery)

    def stir(self) -> None:
        self.stirred += 1

    def ran_s(self, delivery: Delivery) -> float | None:
        return 0.0 if self.is_running(delivery) else None

    def stop(self, delivery: Delivery) -> None:
        self.stopped.append(delivery)

    def cut_off(self, delivery: Delivery) -> None:
        self.cut.append(delivery)

    def withdraw(self, delivery: Delivery) -> bool:
        if delivery not in self.queued:
            return False
        self.queued.remove(delivery)
        return True


def handle(event: Any) -> Any:
    return event


def handler_of(**options: Any) -> Handler:
    return make_handler(handle, object, **options)


def subscription_of(lane: Any = None, **options: Any) -> Subscription:
    return Subscription(handler_of(**options), FakeLane() if lane is None else lane)


def receipt_for(
    *subscriptions: Subscription,
    event: Any = "event",
    lock: Any = None,
    event_id: int = 1,
) -> Receipt:
    """An open receipt, with a delivery to each subscription, keyed as its handler says."""
    receipt = FanReceipt(event_id, event, None, None, Lock() if lock is None else lock)
    receipt.held = tuple(
        Delivery(s, receipt, s.handler.key(event) if s.handler.key else None, 100.0)
        for s in subscriptions
    )
    receipt.left = len(subscriptions)
    return receipt


def delivery_to(subscription: Subscription, event: Any = "event", event_id: int = 1) -> Delivery:
    return receipt_for(subscription, event=event, event_id=event_id).deliveries[0]


def settlement_for(
    admission: Admission,
    retries: RetryQueue | None = None,
    on_failure: Callable[[DeadLetter], object] | None = None,
    make_context: Callable[[Delivery, Receipt], HandlerContext] | None = None,
) -> Settlement:
    settlement = Settlement(
        admission, RetryQueue() if retries is None else retries, short_s=SAMPLED_BELOW_S
    )
    if on_failure is not None:
        hook = FailureHook(on_failure, no_context if make_context is None else make_context)
        settlement.on_failed += (hook,)
    return settlement


def no_context(delivery: Delivery, receipt: Receipt) -> HandlerContext:
    raise AssertionError("nobody asks for current() here")


class FlowOf:
    """A flow; the test hands in the parts that its lane uses."""

    def __init__(
        self,
        settle: Callable[[Sequence[tuple[Delivery, Outcome]]], None],
        context_of: Callable[[Delivery, Receipt], HandlerContext] = no_context,
    ) -> None:
        self.settle = settle
        self.context_of = context_of
        self.listeners = Listeners()
        self.resources = BusResources()

    def settle_successes(self, *ended: Any) -> None:
        *columns, pid = ended
        self.settle(
            [
                (delivery, Outcome(OutcomeKind.SUCCEEDED, value, None, began_at, ended_at, pid))
                for delivery, (began_at, ended_at, _), value in zip(*columns, strict=True)
            ]
        )

    def publish_children(self, *_: Any) -> BaseException | None:
        raise AssertionError("there is no cpu lane here")

    def guard(self, _: Any) -> None:
        raise AssertionError("there is no cpu lane here")

    def count_in(self, count: int) -> None:
        raise AssertionError("there is no batch handler here")


def settlement_with_room(max_pending: int = 100) -> tuple[Settlement, Admission]:
    admission = Admission(max_pending, "raise")
    return settlement_for(admission), admission


def succeeded(value: Any = None, started_at: float = 101.0, ended_at: float = 103.0) -> Outcome:
    return Outcome(OutcomeKind.SUCCEEDED, value, None, started_at, ended_at, 4711)


def raised(error: BaseException) -> Outcome:
    return Outcome(OutcomeKind.RAISED, None, error, 101.0, 103.0, 4711)


#: For tests that catch warnings of other threads, or change the filters of the process: pytest
#: catches warnings, and then each context has filters of its own.
WARNINGS_BY_CONTEXT = pytest.mark.skipif(
    getattr(sys.flags, "context_aware_warnings", False), reason="each context has its own filters"
)


def in_thread(function: Any) -> threading.Thread:
    """Run a function in a thread of its own; join it with `BOUND_S`."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread


def close_with_only(running: int, bus: EventBus) -> threading.Thread:
    """Begin `bus.close(cancel=True)`, and wait until all but the running deliveries are cancelled.

    There must be others. The bus cancels retries last, after it has cleared the queues of its
    lanes.
    """
    eventually(lambda: bus.stats().pending > running)
    closing = in_thread(lambda: bus.close(cancel=True))
    eventually(lambda: bus.stats().pending == running)
    return closing


def double(number: int) -> int:
    return 2 * number


class Held:
    """A handler that waits until the test lets it go; it keeps the events that it was given."""

    def __init__(self) -> None:
        self.began = threading.Semaphore(0)
        self.go = threading.Event()
        self.events: list[Any] = []

    def __call__(self, event: Any) -> Any:
        self.began.release()
        assert self.go.wait(BOUND_S)
        self.events.append(event)
        return event

    def wait_begun(self, count: int = 1) -> None:
        for _ in range(count):
            assert self.began.acquire(timeout=BOUND_S)
