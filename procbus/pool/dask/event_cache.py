# SPDX-License-Identifier: MIT
"""Which large events lie beside a worker process far away, so that none goes there twice.

An event that is for several handlers, or may be tried again, stays on the other side until the
last of its deliveries is settled, and the next batch goes there. This end alone decides; the other
does as it is told.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from procbus.core.delivery import Delivery
from procbus.pool.dask.engine import packed
from procbus.pool.interface import Message
from procbus.pool.wire import events_at

#: An event of fewer bytes is sent each time.
LARGE = 1 << 16
#: Bytes of the events that lie beside one process, at most.
MOST_BYTES = 256 << 20


class Kept:
    """The events beside one worker process. It belongs to the companion.

    Args:
        most: bytes that they may have together.
    """

    def __init__(self, most: int = MOST_BYTES) -> None:
        self._most = most
        self._bytes = 0
        #: Of each, its size and its deliveries, which let go of the event once they are settled;
        #: the one that was sent longest ago first.
        self._events: OrderedDict[int, tuple[int, Sequence[Delivery]]] = OrderedDict()

    def fields(self, message: Message) -> dict[str, Any]:
        """Say what has to be sent of a batch, and what need not be kept any more."""
        gone = [
            number
            for number, (_, deliveries) in self._events.items()
            if all(delivery.receipt is None for delivery in deliveries)
        ]
        for number in gone:
            self._forget(number)
        data, start = message.data, events_at(message.data)
        size = len(data) - start
        if len(message.deliveries) > 1 or size < LARGE:  # what is so large goes alone
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
    """This delivery, and the others of its event that may come here."""
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
