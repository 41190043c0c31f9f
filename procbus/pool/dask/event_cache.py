# SPDX-License-Identifier: MIT
"""The large events kept beside a distant worker process, so that none is sent there twice.

An event may have several handlers, or may be retried. Such an event stays beside the worker until
its last delivery is settled; the next batch after that tells the other end to drop it. Only this
end decides which events are kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from procbus.core.delivery import Delivery
from procbus.pool.dask.engine import packed
from procbus.pool.interface import Message
from procbus.pool.wire import events_at

#: Minimum size of an event that is kept there, in bytes; smaller ones are sent each time.
CACHED_FROM = 1 << 16
#: Maximum of the events kept beside one process, in bytes.
MOST_BYTES = 256 << 20


class RemoteEvents:
    """The events beside one worker process. The events belong to the companion.

    Args:
        most: maximum of the events together, in bytes.
    """

    def __init__(self, most: int = MOST_BYTES) -> None:
        self._most = most
        self._bytes = 0
        #: Size and deliveries of each event, the one sent longest ago first. A delivery drops its
        #: event once it is settled.
        self._events: OrderedDict[int, tuple[int, Sequence[Delivery]]] = OrderedDict()

    def fields(self, message: Message) -> dict[str, Any]:
        """Return the fields of a batch message, with the numbers of events to drop over there."""
        gone = [
            number
            for number, (_, deliveries) in self._events.items()
            if all(delivery.receipt is None for delivery in deliveries)
        ]
        for number in gone:
            self._forget(number)
        data, start = message.data, events_at(message.data)
        size = len(data) - start
        if len(message.deliveries) > 1 or size < CACHED_FROM:  # a large event has its own batch
            return {"data": packed(data), "gone": gone}
        delivery = message.deliveries[0]
        number = delivery.event_id
        if number in self._events:
            self._events.move_to_end(number)
            return {"data": packed(data[:start]), "again": number, "gone": gone}
        deliveries = _open(delivery)
        if size > self._most or not (deliveries[1:] or delivery.handler.retry.retries):
            return {"data": packed(data), "gone": gone}
        while self._bytes + size > self._most:
            oldest = next(iter(self._events))
            self._forget(oldest)
            gone.append(oldest)
        self._events[number] = size, deliveries
        self._bytes += size
        return {
            "data": packed(data[:start]),
            "keep": number,
            "event": packed(data[start:]),
            "gone": gone,
        }

    def _forget(self, number: int) -> None:
        size, _ = self._events.pop(number)
        self._bytes -= size


def _open(delivery: Delivery) -> list[Delivery]:
    """This delivery, and the open ones of its event that may come here."""
    receipt = delivery.receipt
    others = () if receipt is None else receipt.deliveries
    return [
        delivery,
        *(
            other
            for other in others
            if other is not delivery and other.receipt is not None and other.handler.kind == "cpu"
        ),
    ]
