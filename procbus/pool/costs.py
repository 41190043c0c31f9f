# SPDX-License-Identifier: MIT
"""What the handlers of one worker cost: its sums, and what they take of the parent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from procbus.codec import decode
from procbus.delivery import Delivery
from procbus.pool.tally import Sums
from procbus.pool.wire import Tag
from procbus.subscription import Subscription


class Costs:
    """Hands what was measured to the meters. It belongs to the companion of one worker."""

    def __init__(self) -> None:
        #: By number of the handler.
        self._subscriptions: dict[int, Subscription] = {}

    def know(self, subscription: Subscription) -> None:
        """Take note of whose handler has which number."""
        self._subscriptions[subscription.handler.number] = subscription

    def forget(self, handlers: Iterable[int]) -> None:
        """Handlers are not needed any more."""
        for handler in handlers:
            self._subscriptions.pop(handler, None)

    def note_sent(self, deliveries: Sequence[Delivery], kinds: int, cpu_s: float) -> None:
        """A batch of deliveries, of so many kinds, was made ready in so many CPU seconds."""
        subscription = deliveries[0].subscription
        # What each of several handlers costs does not show. To ask each delivery takes long.
        if kinds == 1 or all(delivery.subscription is subscription for delivery in deliveries):
            subscription.meter.note_sent(cpu_s / len(deliveries))

    def note_received(self, first: Delivery, count: int, cpu_s: float) -> None:
        """The results of so many deliveries were read, which took so many CPU seconds."""
        first.subscription.meter.note_received(cpu_s / count)

    def take_in(self, message: bytes | bytearray) -> bool:
        """Take in a message of the worker, if it tells its sums; else say False."""
        if message[:1] != Tag.MEASURED.value:
            return False
        for handler, sums in decode(memoryview(message)[1:]).items():
            subscription = self._subscriptions.get(handler)
            if subscription is not None:
                subscription.note_sums(*Sums(*sums))
        return True
