"""A cpu lane on workers in this process, with real settlement, to be watched and meddled with."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from procbus.core.bus_resources import BusResources
from procbus.core.context import HandlerContext
from procbus.core.delivery import Delivery
from procbus.core.errors import CircuitOpen
from procbus.core.flow import Circuit
from procbus.core.handler import make_handler
from procbus.core.outcome import Outcome, OutcomeKind
from procbus.core.receipt import FanReceipt, Receipt
from procbus.core.subscription import Subscription
from procbus.dispatch.admission import Admission
from procbus.dispatch.retry_queue import RetryQueue
from procbus.lanes.cpu import CpuLane
from procbus.lanes.recycling import RecyclingPolicy
from procbus.pool.child.self import resident_bytes
from procbus.pool.inline import InlinePool, InlineWorker
from procbus.pool.interface import At, Message, Pool, Report
from procbus.system.cooperative import Task
from tests.parts import settlement_for

# A worker in this process opens a file for good: now, so that no test seems to leave it behind.
resident_bytes()

BOUND_S = 60.0
NO_RECYCLING = RecyclingPolicy()


class Spot:
    """A door at which a handler waits until it is told to go on."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go_on = threading.Event()

    def wait_begun(self) -> None:
        assert self.begun.wait(BOUND_S), "the handler did not begin"


#: For the running test: the spots where `visit` waits, and its events, in order.
spots: dict[str, Spot] = {}
visited: list[str] = []


def visit(event: str) -> str:
    """The handler: note the event, and wait at its spot if it has one."""
    visited.append(event)
    spot = spots.get(event)
    if spot is not None:
        spot.begun.set()
        assert spot.go_on.wait(BOUND_S), f"nobody let {event} go on"
    return event


def spot(name: str) -> Spot:
    spots[name] = Spot()
    return spots[name]


class SpyWorker(InlineWorker):
    """Passes on to the pool every call it gets."""

    pool: SpyPool
    probe: Any = None

    def prepare(self, batch: int, deliveries: Sequence[Delivery]) -> Message:
        self.pool.batches.append([d.receipt.event for d in deliveries if d.receipt is not None])
        self.pool.on_prepare(self)
        return super().prepare(batch, deliveries)

    def fits_ahead(self, message: Message) -> bool:
        return self.pool.fits_ahead

    def send(self, message: Message) -> None:
        super().send(message)
        self.pool.on_send(self)

    def receive(self, patience_s: float | None = None) -> Report:
        self.pool.on_receive(self)
        return super().receive(patience_s)

    def kill_in(self, at: At, condemn: Callable[[str], None]) -> Task[bool]:
        yield from self.pool.on_kill(self)
        killed = yield from super().kill_in(at, condemn)
        self.pool.kills.append(killed)
        return killed

    def hang_up(self) -> None:
        self.pool.hung_up.append(self)
        super().hang_up()

    def stop(self) -> None:
        self.pool.stopped.append(self)
        super().stop()


def _go_on(_: SpyWorker) -> Task[None]:
    yield from ()


class SpyPool(InlinePool):
    """Notes the calls to its workers; a test may replace a function on the way."""

    def __init__(self, workers: int) -> None:
        super().__init__(workers)
        self.batches: list[list[Any]] = []
        self.started: list[SpyWorker] = []
        self.stopped: list[InlineWorker] = []
        self.hung_up: list[InlineWorker] = []
        self.kills: list[bool] = []
        self.fits_ahead = True
        self.make_probe: Callable[[], Any] = lambda: None
        self.on_start: Callable[[], object] = lambda: None
        self.on_prepare: Callable[[SpyWorker], object] = lambda _: None
        self.on_send: Callable[[SpyWorker], object] = lambda _: None
        self.on_receive: Callable[[SpyWorker], object] = lambda _: None
        self.on_kill: Callable[[SpyWorker], Task[None]] = _go_on

    def start(self, launched: Callable[[InlineWorker], None], place: int = 0) -> SpyWorker:
        self.on_start()
        worker = SpyWorker(self.definitions, self.memory, place)
        worker.pool = self
        worker.probe = self.make_probe()
        self.started.append(worker)
        launched(worker)
        return worker


class Stage:
    """A cpu lane of at most `workers` workers, with its flow; `limits` as for `CpuLane`."""

    def __init__(
        self, workers: int, recycling: RecyclingPolicy = NO_RECYCLING, **limits: Any
    ) -> None:
        self.pool = SpyPool(workers)
        self.admission = Admission(100_000, "raise")
        self.retries = RetryQueue()
        self.settlement = settlement_for(self.admission, self.retries)
        self.resources = BusResources()
        self.listeners = self.settlement.listeners
        self.children: list[tuple[str | None, Any]] = []
        self.children_error: Exception | None = None
        self.guarded: list[CircuitOpen | None] = []
        self.lane = self.lane_on(self.pool, recycling, **limits)
        self.visits = self.subscribe(visit)
        self._events = 0
        self._receipts: dict[int, Receipt] = {}

    def lane_on(
        self, pool: Pool, recycling: RecyclingPolicy = NO_RECYCLING, **limits: Any
    ) -> CpuLane:
        self.settle = self.settlement.settle
        self.settle_successes = self.settlement.settle_successes
        return CpuLane(pool, self, recycling, **limits)

    def context_of(self, *_: Any) -> HandlerContext:
        raise AssertionError("a cpu handler has its context in the worker")

    def guard(self, circuit: Circuit) -> None:
        refusal = circuit.refusal
        self.guarded.append(None if refusal is None else refusal())

    def subscribe(self, function: Callable[[Any], Any], **options: Any) -> Subscription:
        subscription = Subscription(make_handler(function, "t", kind="cpu", **options), self.lane)
        subscription.average_s = 1e-6  # known to be short, so that batches are large
        return subscription

    def put(
        self,
        *events: Any,
        to: Subscription | None = None,
        put: Callable[[Delivery], object] | None = None,
    ) -> list[Delivery]:
        """Publish events; `put` replaces the method of the lane."""
        made = []
        for event in events:
            self._events += 1
            receipt = FanReceipt(self._events, event, "t", None, self.settlement.lock)
            delivery = Delivery(to or self.visits, receipt, None, time.monotonic())
            receipt.held = (delivery,)
            receipt.left = 1
            self.admission.enter(1, False)
            made.append(delivery)
            self._receipts[receipt.id] = receipt
            (put or self.lane.put)(delivery)
        return made

    def receipt_of(self, delivery: Delivery) -> Receipt:
        return self._receipts[delivery.event_id]

    def forget(self, delivery: Delivery) -> None:
        del self._receipts[delivery.event_id]

    def settled(self, *deliveries: Delivery) -> list[OutcomeKind]:
        """Wait until these are settled, and say how."""
        kinds = []
        for delivery in deliveries:
            assert self._receipts[delivery.event_id].wait(BOUND_S), f"{delivery!r} is not settled"
            assert delivery.outcome is not None
            kinds.append(delivery.outcome.kind)
        return kinds

    def count_in(self, count: int) -> None:
        raise AssertionError("there is no batch handler here")

    def publish_children(
        self, _: Delivery, _outcome: Outcome, events: list[tuple[str | None, Any]]
    ) -> Exception | None:
        if self.children_error is None:
            self.children += events
        return self.children_error

    def finish(self) -> None:
        """Let everybody go on, and end the lane."""
        for each in spots.values():
            each.go_on.set()
        self.lane.close()
        spots.clear()
        visited.clear()
