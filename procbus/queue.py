# SPDX-License-Identifier: MIT
"""The queue of one lane: by priority, then first in, first out, behind each handler's gate.

Its size is bounded by the admission of the bus: nothing gets here that was not admitted.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable

from procbus.delivery import Delivery
from procbus.subscription import OVERHEAD_S, Subscription


class LaneQueue:
    """Deliveries that wait for a worker of one lane.

    `lock` belongs to the lane. It guards the queue, the gates of the lane's subscriptions and
    whatever else the lane keeps beside them; it is held for microseconds, never while blocking.
    Methods whose name starts with `locked_` are called with the lock held; the others take it.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        #: Notified under `lock` when something became ready for a waiting taker, or on closing.
        self.changed = threading.Condition(self.lock)
        self.closed = False
        self.cancelled = False
        self.waiting = 0
        self._ready: dict[int, deque[Delivery]] = {0: deque()}
        self._by_priority = [self._ready[0]]
        self._gated: set[Subscription] = set()

    def put(self, delivery: Delivery) -> bool:
        """Queue a delivery behind its gate, and wake a waiting taker if it is ready.

        Returns:
            False, and it is not queued, when the queue was cleared for good.
        """
        subscription = delivery.subscription
        with self.lock:
            subscription.published += 1
            if self.cancelled:
                return False
            if subscription.gate is not None:
                self._gated.add(subscription)
                if not subscription.gate.admit(delivery):
                    return True
            self._bucket(subscription.handler.priority).append(delivery)
            if self.waiting:
                self.changed.notify()
        return True

    def release(self, delivery: Delivery) -> int:
        """Open the gate of a settled delivery for those behind it; return how many may go."""
        subscription = delivery.subscription
        if subscription.gate is None:
            return 0
        with self.lock:
            go = subscription.gate.release(delivery)
            self._bucket(subscription.handler.priority).extend(go)
            if self.waiting and go:
                self.changed.notify(len(go))
        return len(go)

    def take(self, timeout: float | None = None) -> Delivery | None:
        """Take the next delivery, waiting for one; None once the queue is closed and empty.

        Args:
            timeout: at most so many seconds; None waits as long as it takes.
        """
        with self.lock:
            while (delivery := self.locked_take()) is None and not self.closed:
                self.waiting += 1
                try:
                    if not self.changed.wait(timeout):
                        return None
                finally:
                    self.waiting -= 1
            return delivery

    def locked_take(self) -> Delivery | None:
        """Take the next delivery if one is ready."""
        for bucket in self._by_priority:
            if bucket:
                return bucket.popleft()
        return None

    def locked_take_batch(self, budget_s: float, most: int) -> list[Delivery]:
        """Take as many deliveries as should run for about `budget_s` seconds together.

        Each counts with its handler's running average. One whose handler has never run, or runs
        longer than the budget, goes alone.
        """
        batch: list[Delivery] = []
        for bucket in self._by_priority:
            while bucket and len(batch) < most:
                average_s = bucket[0].subscription.average_s
                cost_s = budget_s if average_s is None else average_s + OVERHEAD_S
                if batch and cost_s > budget_s:
                    return batch
                budget_s -= cost_s
                batch.append(bucket.popleft())
        return batch

    def locked_put_back(self, deliveries: Iterable[Delivery]) -> None:
        """Put deliveries that were taken but not begun back to the front, in their order."""
        count = 0
        for delivery in reversed(list(deliveries)):
            self._bucket(delivery.handler.priority).appendleft(delivery)
            count += 1
        if self.waiting:
            self.changed.notify(count)

    def locked_ready(self) -> int:
        """How many deliveries are ready for a worker."""
        return sum(map(len, self._by_priority))

    def depth(self) -> int:
        """How many deliveries wait: ready ones, and those behind a gate."""
        with self.lock:
            behind = sum(1 for s in self._gated if s.gate for _ in s.gate.waiting())
            return self.locked_ready() + behind

    def clear_ready(self) -> list[Delivery]:
        """Take out everything that is ready; what waits at a gate moves up later."""
        with self.lock:
            out = [delivery for bucket in self._by_priority for delivery in bucket]
            for bucket in self._by_priority:
                bucket.clear()
            return out

    def clear(self) -> list[Delivery]:
        """Take everything out for good, ready or not: what a cancelled bus will not run."""
        with self.lock:
            self.cancelled = True
            out: list[Delivery] = []
            for bucket in self._by_priority:
                out.extend(bucket)
                bucket.clear()
            for subscription in self._gated:
                if subscription.gate is not None:
                    out.extend(subscription.gate.abandon())
            return out

    def close(self) -> None:
        """Let takers go once nothing is ready. Idempotent."""
        with self.lock:
            self.closed = True
            self.changed.notify_all()

    def _bucket(self, priority: int) -> deque[Delivery]:
        bucket = self._ready.get(priority)
        if bucket is None:
            bucket = self._ready[priority] = deque()
            self._by_priority = [self._ready[p] for p in sorted(self._ready, reverse=True)]
        return bucket
