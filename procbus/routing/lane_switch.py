# SPDX-License-Identifier: MIT
"""Moves a handler from one lane to another without breaking what it was promised.

A delivery stays on the lane that it was published to, retries included. A handler with a `key` or
a `concurrency` has nothing begun on its new lane while there is anything of it on the old one: what
is published meanwhile is held, in order. Any other handler may run on both for a while.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextvars import Context, copy_context

from procbus.core.context import kept
from procbus.core.delivery import Delivery
from procbus.core.handler import Handler, as_kind
from procbus.core.locks import Lock
from procbus.core.subscription import Lane, Subscription


class LaneSwitch:
    """A handler of kind "auto" on one bus: a subscription for each lane, one of them in use.

    Thread-safe. It is the lane of both subscriptions where the handler has a key or a limit.

    Args:
        handler: as it was subscribed.
        lane_of: gives the lane that a handler belongs to.
    """

    def __init__(self, handler: Handler, lane_of: Callable[[Handler], Lane]) -> None:
        self._handler = handler
        self._lane_of = lane_of
        #: Guards the fields below. Never held while a lane is called, which may wait for a worker.
        self._lock = Lock()
        self._lanes: dict[Subscription, Lane] = {}
        #: Deliveries on each side that are not settled; counted where there is a gate.
        self._inside: dict[Subscription, int] = {}
        #: Published while there was something on the other side; and whether a thread is putting
        #: them into their lane, in order, one by one.
        self._held: deque[Delivery] = deque()
        self._putting = False
        self.current = self._side("io")

    def sides(self) -> tuple[Subscription, ...]:
        """The subscriptions so far: the one in use first."""
        with self._lock:
            return (self.current, *(each for each in self._lanes if each is not self.current))

    def move(self, why: str) -> None:
        """Send what is published from now on to the other lane.

        Args:
            why: in words, for the statistics.
        """
        current = self.current
        kind = "io" if current.handler.kind == "cpu" else "cpu"
        others = [side for side in self.sides() if side is not current]
        side = others[0] if others else self._side(kind)
        side.meter.clear()
        side.decided = why
        with self._lock:
            self.current = side

    def _side(self, kind: str) -> Subscription:
        handler = as_kind(self._handler, "cpu" if kind == "cpu" else "io")
        lane = self._lane_of(handler)
        side = Subscription(handler, self if handler.gated else lane)
        with self._lock:
            self._lanes[side] = lane
            self._inside[side] = 0
        return side

    # As the lane of its subscriptions, where they have gates.

    def put(self, delivery: Delivery) -> None:
        """Queue a delivery in the lane of the moment, unless the other has to empty first."""
        delivery.context = kept(copy_context())  # now: perhaps it is put by another thread
        with self._lock:
            side = delivery.subscription = self.current
            elsewhere = any(count for each, count in self._inside.items() if each is not side)
            if elsewhere or self._held or self._putting:
                self._held.append(delivery)
                return
            self._inside[side] += 1
        self._lanes[side].put(delivery)

    def release(self, delivery: Delivery) -> None:
        """Take note that a delivery was settled; if it was the last on its side, go on."""
        side = delivery.subscription
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
                Context().run(self._lanes[current].put, delivery)  # none of this thread's
            finally:
                with self._lock:
                    self._putting = False

    def step_aside(self, delivery: Delivery) -> None:
        """A delivery waits for its next attempt; it stays on its side."""
        self._lanes[delivery.subscription].step_aside(delivery)

    def put_again(self, delivery: Delivery) -> None:
        """Queue a delivery for its next attempt, on its side."""
        self._lanes[delivery.subscription].put_again(delivery)

    def is_running(self, delivery: Delivery) -> bool:
        """Whether a worker is in the handler with this delivery just now."""
        return self._lanes[delivery.subscription].is_running(delivery)

    def withdraw(self, delivery: Delivery) -> bool:
        """Take a delivery back for good that no worker has begun; False when there is none."""
        with self._lock:
            if delivery in self._held:
                self._held.remove(delivery)
                self._inside[delivery.subscription] += 1  # which its release takes back
                return True
        return self._lanes[delivery.subscription].withdraw(delivery)

    def stir(self) -> None:
        """Have somebody see what was measured."""
        self._lanes[self.current].stir()
