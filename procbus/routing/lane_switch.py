# SPDX-License-Identifier: MIT
"""Moves a handler from one lane to another, and keeps its promises.

A handler of kind "auto" moves between threads of the io lane and processes. A cpu handler of a bus
with `cpu="auto"` moves from threads to processes once the GIL is on.

A delivery stays on the lane that it was published to, retries included. A handler with a `key` or a
`concurrency` begins no delivery on its new lane while deliveries of it are left on the old one.
Events published meanwhile are held, in order. Any other handler may run on both lanes for a while.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextvars import Context, copy_context

from procbus.core.context import kept
from procbus.core.delivery import Delivery
from procbus.core.handler import Handler, Kind, as_kind
from procbus.core.locks import Lock
from procbus.core.progress import Progress
from procbus.core.subscription import Lane, Subscription


class LaneSwitch:
    """A handler that may move on one bus, with a subscription for each lane, one of them in use.

    Thread-safe. For a handler with a key or a limit it also acts as the lane of both subscriptions.

    Args:
        handler: the handler as it was subscribed.
        lane_of: returns the lane that a handler belongs to.
    """

    def __init__(self, handler: Handler, lane_of: Callable[[Handler], Lane]) -> None:
        self._handler = handler
        self._lane_of = lane_of
        #: Guards the fields below. Not held while a lane is called, which may wait for a worker.
        self._lock = Lock()
        self._lanes: dict[Subscription, Lane] = {}
        #: Open deliveries on each side; counted only for a handler with a gate.
        self._inside: dict[Subscription, int] = {}
        #: Deliveries published while the other side had open deliveries; and whether a thread is
        #: putting them into their lane now, one by one in order.
        self._held: deque[Delivery] = deque()
        self._putting = False
        self.current = self._side("io" if handler.auto else "cpu", on_threads=not handler.auto)

    def sides(self) -> tuple[Subscription, ...]:
        """The subscriptions so far, the present one first."""
        with self._lock:
            return (self.current, *(each for each in self._lanes if each is not self.current))

    def move(self, why: str) -> None:
        """Send events that are published from now on to the other lane.

        Args:
            why: the reason in words, for the statistics.
        """
        current = self.current
        to_io = self._handler.auto and current.handler.kind == "cpu"
        others = [side for side in self.sides() if side is not current]
        side = others[0] if others else self._side("io" if to_io else "cpu")
        side.meter.clear()
        side.decided = why
        with self._lock:
            self.current = side

    def _side(self, kind: Kind, *, on_threads: bool = False) -> Subscription:
        handler = as_kind(self._handler, kind, on_threads=on_threads)
        lane = self._lane_of(handler)
        side = Subscription(handler, self if handler.gated else lane)
        with self._lock:
            self._lanes[side] = lane
            self._inside[side] = 0
        return side

    # Methods of a lane, for subscriptions with a gate.

    def put(self, delivery: Delivery) -> None:
        """Queue a delivery in the present lane, unless the other lane has to empty first."""
        delivery.context = kept(copy_context())  # now: another thread may put it
        with self._lock:
            side = delivery.subscription = self.current
            elsewhere = any(count for each, count in self._inside.items() if each is not side)
            if elsewhere or self._held or self._putting:
                self._held.append(delivery)
                return
            self._inside[side] += 1
        self._lanes[side].put(delivery)

    def release(self, delivery: Delivery) -> None:
        """Note that a delivery was settled. After the last one of its side, queue the held ones."""
        side = delivery.subscription
        if getattr(delivery, "queued", False):  # not one that was withdrawn while it was held
            self._lanes[side].release(delivery)
        with self._lock:
            self._inside[side] -= 1
        self._put_held()

    def _put_held(self) -> None:
        while True:
            with self._lock:
                current = self.current
                elsewhere = any(n for each, n in self._inside.items() if each is not current)
                if self._putting or not self._held or elsewhere:
                    return
                self._putting = True
                delivery = self._held.popleft()
                delivery.subscription = current
                self._inside[current] += 1
            try:
                Context().run(self._lanes[current].put, delivery)  # without this thread's context
            finally:
                with self._lock:
                    self._putting = False

    def step_aside(self, delivery: Delivery) -> None:
        """Note that a delivery waits for its next attempt; it stays on its side."""
        self._lanes[delivery.subscription].step_aside(delivery)

    def put_again(self, delivery: Delivery) -> None:
        """Queue a delivery for its next attempt, on its side."""
        self._lanes[delivery.subscription].put_again(delivery)

    def is_running(self, delivery: Delivery) -> bool:
        """Whether a worker is running the delivery now."""
        return self._lanes[delivery.subscription].is_running(delivery)

    def progress_of(self, delivery: Delivery) -> Progress | None:
        """The last progress report of the delivery's running handler."""
        return self._lanes[delivery.subscription].progress_of(delivery)

    def held(self) -> list[Delivery]:
        """The deliveries that are in no lane yet."""
        with self._lock:
            return list(self._held)

    def ran_s(self, delivery: Delivery) -> float | None:
        """Time that the delivery's handler has been running, in seconds."""
        return self._lanes[delivery.subscription].ran_s(delivery)

    def stop(self, delivery: Delivery) -> None:
        """Ask the delivery's running handler to stop."""
        self._lanes[delivery.subscription].stop(delivery)

    def cut_off(self, delivery: Delivery) -> None:
        """Settle the delivery if its handler goes on after its grace."""
        self._lanes[delivery.subscription].cut_off(delivery)

    def withdraw(self, delivery: Delivery) -> bool:
        """Take a delivery back for good; False if a worker has begun it."""
        with self._lock:
            if delivery in self._held:
                self._held.remove(delivery)
                self._inside[delivery.subscription] += 1  # `release` will subtract 1 again
                delivery.subscription.withdrawn += 1
                return True
        return self._lanes[delivery.subscription].withdraw(delivery)

    def stir(self) -> None:
        """Have the advisor evaluate the measurements."""
        self._lanes[self.current].stir()
