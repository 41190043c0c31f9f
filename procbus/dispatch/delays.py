# SPDX-License-Identifier: MIT
"""Delays: a delivery that is published for later waits for its time, and is then queued.

The delivery waits in the `RetryQueue`, like a delivery that waits for its next attempt. So there is
one timer, the supervisor's. The lane, the gate and the pacer get the delivery only once it is due.
Until then it holds no worker and no place, and it is not ordered by its key. A delivery that is
cancelled before it is due is settled without lane, gate and pacer.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import Context, copy_context
from functools import partial
from time import monotonic

from procbus.core.context import running
from procbus.core.delivery import Delivery, cancelled
from procbus.core.errors import BusClosed
from procbus.core.listeners import Listeners
from procbus.core.locks import Lock, Tangled, later
from procbus.core.when import When
from procbus.dispatch.retry_queue import Due, RetryQueue


class Delays:
    """Holds the delayed deliveries of one bus until they are due. Thread-safe.

    Its state is in the `RetryQueue`, and in two counters of each subscription: `delayed`, and
    `unqueued`, which counts a delivery until the lane counts it.

    Args:
        retries: the deliveries that wait.
        lock: the lock of the settlement, which guards `unqueued`.
        listeners: are told of deliveries.
        settle: settles deliveries.

    Attributes:
        keep_time: makes sure that a thread sends the deliveries that are due; False if no thread
            can be started. Set once, when the bus is made.
    """

    def __init__(
        self,
        retries: RetryQueue,
        lock: Lock,
        listeners: Listeners,
        settle: Callable[..., None],
    ) -> None:
        self._retries = retries
        self._lock = lock
        self._listeners = listeners
        self._settle = settle
        self.keep_time: Callable[[], bool] = _always

    def due_of(self, when: When) -> Due | None:
        """The time at which an event that is published now is due; None for at once.

        Raises:
            BusClosed: the interpreter is ending, and no thread is left that could wait.
        """
        due = self._retries.due_of(when)
        if due is not None and not self.keep_time():
            raise BusClosed("the script is ending, and no event can be delayed any more")
        return due

    def hold(self, delivery: Delivery, due: Due, context: Context | None = None) -> None:
        """Keep a delivery until it is due. Listeners are told now that it was accepted.

        Args:
            delivery: the delivery, which is counted in.
            due: when it is due.
            context: the publisher's context; None for a copy of the present one.

        Raises:
            Tangled: nothing was done.
        """
        with self._lock:
            delivery.subscription.unqueued += 1
        if context is None:
            context = copy_context()
        if self._listeners.publishing:
            context.run(self._listeners.tell_accepted, delivery)
        # Otherwise the kept context would keep alive the event whose handler is the publisher.
        context.run(running.set, None)
        self._keep(delivery, due, context)

    def _keep(self, delivery: Delivery, due: Due, context: Context) -> None:
        try:
            kept = self._retries.add_first(delivery, due, partial(self._go, context))
        except Tangled:
            later(self._keep, delivery, due, context)
            return
        if not kept:
            self._settle([(delivery, cancelled(delivery))], queued=False)

    def _go(self, context: Context, delivery: Delivery) -> None:
        """Queue a delivery that is due, in its publisher's context."""
        if delivery.receipt is None:
            return
        delivery.queued_at = monotonic()  # the wait for a worker counts from here
        try:
            context.run(delivery.subscription.put, delivery)
        except Tangled:
            later(self._go, context, delivery)
            return
        self._count_queued(delivery)

    def _count_queued(self, delivery: Delivery) -> None:
        """Note that the lane has counted a delivery."""
        try:
            with self._lock:
                delivery.subscription.unqueued -= 1
        except Tangled:
            later(self._count_queued, delivery)

    def cancel(self) -> None:
        """Settle all kept deliveries as cancelled, and keep none from now on."""
        held = self._retries.cancel_firsts()
        if held:
            self._settle([(each, cancelled(each)) for each in held], queued=False)

    def holds(self, delivery: Delivery) -> bool:
        """Whether this delivery is kept until it is due."""
        return self._retries.has_first(delivery)


def _always() -> bool:
    return True
