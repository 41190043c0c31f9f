# SPDX-License-Identifier: MIT
"""A ticket: stands in a lane's queue for one call of a batch handler.

A lane runs a ticket as it runs any delivery. The events of the call are chosen when a worker takes
the ticket, so that an event that comes late still finds a place in it. The end of the call is told
to the maker of the ticket, which settles the delivery of each event.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any

from procbus.core.delivery import Delivery
from procbus.core.receipt import Callbacks, SoleReceipt
from procbus.core.together import Together

if TYPE_CHECKING:
    from procbus.core.locks import Lock
    from procbus.core.receipt import Receipt
    from procbus.core.subscription import Subscription


class Ticket(SoleReceipt):
    """The delivery, and the receipt, of one call of a batch handler. No user ever gets it.

    Args:
        lock: the lock of its maker.
        subscription: the subscription of the calls.
        fill: has `admit` called with the deliveries of the call, once they are needed.
        tell: called with the ticket once the call has ended.
    """

    __slots__ = ("_fill", "members", "together")

    def __init__(
        self,
        lock: Lock,
        subscription: Subscription,
        fill: Callable[[Ticket], object],
        tell: Callbacks,
    ) -> None:
        #: The deliveries of the call, and their events; None until the events are chosen.
        self.together: Together | None = None
        self.members: Sequence[Delivery] = ()
        self._fill = fill
        super().__init__(0, None, None, None, lock, subscription, monotonic())
        self.callbacks = tell

    @property
    def event(self) -> Any:
        """The events of the call. The first look at them chooses them."""
        if self.together is None:
            self._fill(self)
        return self.together

    @event.setter
    def event(self, event: None) -> None:
        """Take no event: the class above sets it."""

    @property
    def weight(self) -> int:  # type: ignore[override] # the class above has a constant
        """Number of deliveries that it stands for."""
        return len(self.members)

    def filled(self) -> Sequence[Delivery]:
        """The deliveries of the call, which are chosen now if they were not."""
        if self.together is None:
            self._fill(self)
        return self.members

    def admit(self, members: Sequence[Delivery]) -> None:
        """Take these deliveries. One that is settled already is left out."""
        pairs = [(each, receipt) for each in members if (receipt := each.receipt) is not None]
        ids: Sequence[int] = [receipt.id for _, receipt in pairs]
        self.members = [each for each, _ in pairs]
        if pairs:
            first = pairs[0][1]
            self.event_id, self.topic, self.parent_id = first.id, first.topic, first.parent_id
            #: The number of the attempt is the one of the delivery that was tried most often.
            self.earlier = max((each.earlier for each, _ in pairs), key=len)
            in_a_row = range(ids[0], ids[0] + len(ids))
            if ids == list(in_a_row):
                ids = in_a_row
        self.together = Together(ids, [receipt.event for _, receipt in pairs])


def waits_for_itself(delivery: Delivery, receipt: Receipt) -> str:
    """Say why a handler that waits for this receipt would wait for ever; "" if it would not.

    The gate holds back every delivery behind the handler's own delivery; for a call of a batch
    handler, behind each delivery of the call.
    """
    for own in delivery.members if isinstance(delivery, Ticket) else (delivery,):
        subscription = own.subscription
        handler = subscription.handler
        if not subscription.gated:
            return ""
        for other in receipt.deliveries:
            if other.receipt is None or other.subscription is not subscription:
                continue
            if handler.concurrency == 1:
                what = "concurrency=1 lets no other delivery of this handler run"
            elif handler.key is not None and other.key == own.key:
                what = f"key= lets no other delivery with the key {own.key!r} run"
            else:
                continue
            return (
                f"{handler.name} waits in event #{own.event_id} for its own delivery of event "
                f"#{receipt.id}, which would never begin: {what} before this one has ended. Do not "
                "wait for it, or let another handler do that part"
            )
    return ""
