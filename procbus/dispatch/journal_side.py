# SPDX-License-Identifier: MIT
"""What publishing and settling ask of a journal, where the bus has one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from procbus.core.dead_letter import DeadLetter
from procbus.core.delivery import Delivery, LastAttempt
from procbus.core.outcome import Outcome
from procbus.core.receipt import Receipt
from procbus.dispatch.settled import Settled


class SettlingSide(Protocol):
    """The journal, as settling uses it."""

    def settled(self, settled: Sequence[LastAttempt]) -> None:
        """Write which deliveries succeeded, before anybody can know."""

    def settled_successes(self, deliveries: Sequence[Delivery], values: Sequence[Any]) -> None:
        """Write that deliveries succeeded, with their results, before anybody can know."""

    def failed(self, settled: Settled) -> None:
        """Write that a delivery failed for good."""

    def retried(self, delivery: Delivery, wait_s: float) -> None:
        """Write that an attempt failed, and that the next one is due in so many seconds."""


class JournalSide(Protocol):
    """The journal, as publishing uses it."""

    #: The routes for whose handlers all is fed that runs before have left.
    resumed_for: object
    #: How many ids were claimed so far.
    claims: int

    def accept(
        self,
        receipt: Receipt,
        deliveries: Sequence[Delivery],
        *,
        before: bytes = b"",
        wait: bool = True,
    ) -> None:
        """Write an event and its deliveries, behind the records `before`."""

    def accept_once(
        self,
        receipt: Receipt,
        deliveries: Sequence[Delivery],
        given_id: str,
        claims: int,
        wait: bool,
    ) -> bool:
        """Write an event with the id that was claimed for it; False if another had that before.

        Args:
            receipt: of the event.
            deliveries: all of it.
            given_id: claimed for it.
            claims: how many ids were claimed when the publisher began to look for this one.
            wait: whether to wait for the disk.
        """

    def accept_children(
        self, receipts: Sequence[Receipt], delivery: Delivery, outcome: Outcome
    ) -> None:
        """Write events together with the success of the delivery that published them."""

    def check_id(self, given_id: object) -> None:
        """Raise an error for what cannot be an id."""

    def known(self, given_id: str, event: Any, topic: str | None) -> Receipt | None:
        """Give the receipt of an event that was published with an id before."""

    def claim(self, given_id: str, receipt: Receipt) -> Receipt:
        """Have an id belong to a receipt; return the one that it belongs to."""

    def give_up(self, given_id: str) -> None:
        """The event was not accepted after all."""

    def look_up(
        self,
        events: Sequence[Any],
        topic: str | None,
        id_of: Callable[[Any], str],
        resume: Callable[[], object],
    ) -> Iterator[tuple[Any, str, Receipt | None]]:
        """Give each event with its id, and with its receipt where the journal knows its end."""

    def discarding(self, letter: DeadLetter) -> bytes:
        """Lay out the record that a dead letter is one no more; nothing if the journal lacks it."""

    def forget(self, letter: DeadLetter) -> None:
        """A dead letter was published again."""

    def resume(self) -> None:
        """Feed what runs before have left unfinished to the handlers that are subscribed."""
