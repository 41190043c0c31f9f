# SPDX-License-Identifier: MIT
"""Delays: a delivery that is published for later waits for its time, and is then queued.

It waits in the `RetryQueue`, as a delivery does that waits for its next attempt: so there is one
timer, the supervisor's. Its lane, its gate and its pacer see it only once it is due. Until then it
holds no worker and no place, and its key has no order. A delivery that is cancelled before is
settled without them.
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

    Its state is in the queue, and in two counters of each subscription: `delayed`, and `unqueued`
    until the lane counts the delivery.

    Args:
        retries: the deliveries that wait.
        lock: the lock of the settlement, which guards `unqueued`.
        listeners: are told of deliveries.
        settle: settles deliveries.

    Attributes:
        keep_time: has a thread send the deliveries that are due; False if none can be started. Set
            once, when the bus is made.
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
        """The time at which an event is due that is published now; None for at once.

        Raises:
            BusClosed: the interpreter is ending, and no thread is left that could wait.
        """
        due = self._retries.due_of(when)
        if due is not None and not self.keep_time():
            raise BusClosed("the script is ending, and no event can be delayed any more")
        return due

    def hold(self, delivery: Delivery, due: Due, context: Context | None = None) -> None:
        """Keep a delivery until it is due. Listeners are told of it now.

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
        # Otherwise it would keep the event alive whose handler is the publisher.
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
        delivery.queued_at = monotonic()  # what it waits for a worker counts from here
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
        """Settle all that it keeps as cancelled, and keep nothing from now on."""
        held = self._retries.cancel_firsts()
        if held:
            self._settle([(each, cancelled(each)) for each in held], queued=False)

    def holds(self, delivery: Delivery) -> bool:
        """Whether it keeps a delivery."""
        return self._retries.has_first(delivery)


def _always() -> bool:
    return True
