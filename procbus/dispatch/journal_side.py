# SPDX-License-Identifier: MIT
"""The parts of a journal that publishing and settling use, as protocols.

So the dispatcher and the settlement need not import the journal, which imports sqlite3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from procbus.core.dead_letter import DeadLetter
from procbus.core.delivery import Delivery, LastAttempt
from procbus.core.moments import Settled
from procbus.core.outcome import Outcome
from procbus.core.receipt import Receipt


class SettlingSide(Protocol):
    """The journal, as far as the settlement uses it."""

    def settled(self, settled: Sequence[LastAttempt]) -> None:
        """Write which deliveries succeeded, before any waiter wakes."""

    def settled_successes(self, deliveries: Sequence[Delivery], values: Sequence[Any]) -> None:
        """Write that deliveries succeeded, with their results, before any waiter wakes."""

    def expect(self, letter: DeadLetter, delivery: Delivery) -> None:
        """Note a new dead letter, before users can see it. `failed` is called for it later."""

    def failed(self, settled: Settled) -> None:
        """Write that a delivery failed for good, unless its letter was replayed or cleared."""

    def cancelled(self, delivery: Delivery) -> None:
        """Write that a delivery was cancelled for good."""

    def retried(self, delivery: Delivery, wait_s: float) -> None:
        """Write that an attempt failed, and that the next one is due in `wait_s` seconds."""


class JournalSide(Protocol):
    """The journal, as far as the dispatcher uses it."""

    #: The routes whose handlers have been fed all their deliveries of earlier runs.
    resumed_for: object
    #: Number of ids claimed so far.
    claims: int

    def accept(
        self,
        receipt: Receipt,
        deliveries: Sequence[Delivery],
        *,
        wait: bool = True,
        due_at: float = 0.0,
        beside: bytes = b"",
    ) -> None:
        """Write an event and its deliveries.

        Args:
            receipt: receipt of the event.
            deliveries: all deliveries of the event.
            wait: whether to wait for the disk.
            due_at: when they run, in seconds as of `time.time()`; 0 for now.
            beside: a record that is written together with the event.
        """

    def last_tick(self, schedule: str) -> float | None:
        """The last tick of a schedule, or its beginning; None if the journal does not know it."""

    def tick(self, schedule: str, spec: str, at: float) -> bytes:
        """Make the record of a schedule's tick. Time 0 records that the schedule was cancelled."""

    def note_tick(self, record: bytes) -> None:
        """Write a record of `tick` without an event."""

    def accept_once(
        self,
        receipt: Receipt,
        deliveries: Sequence[Delivery],
        given_id: str,
        claims: int,
        wait: bool,
        due_at: float,
    ) -> bool:
        """Write an event with the id claimed for it; False if another event had that id before.

        Args:
            receipt: receipt of the event.
            deliveries: all deliveries of the event.
            given_id: the id claimed for it.
            claims: number of claims when the publisher began to look for this id.
            wait: whether to wait for the disk.
            due_at: when its deliveries run, in seconds as of `time.time()`; 0 for now.
        """

    def accept_children(
        self, receipts: Sequence[tuple[Receipt, float]], delivery: Delivery, outcome: Outcome
    ) -> None:
        """Write events together with the success of the delivery that published them.

        Each event comes with the time at which its deliveries run, as for `accept`.
        """

    def check_id(self, given_id: object) -> None:
        """Raise an error for an object that cannot be an id."""

    def known(self, given_id: str, event: Any, topic: str | None) -> Receipt | None:
        """Return the receipt of an event that was published with an id before."""

    def claim(self, given_id: str, receipt: Receipt) -> Receipt:
        """Let a receipt have an id; return the receipt that has it, which may be an earlier one."""

    def give_up(self, given_id: str) -> None:
        """Free an id, because its event was not accepted."""

    def look_up(
        self,
        events: Sequence[Any],
        topic: str | None,
        id_of: Callable[[Any], str],
        resume: Callable[[], object],
    ) -> Iterator[tuple[Any, str, Receipt | None]]:
        """Yield each event with its id, and with its receipt if the journal knows its end."""

    def take(self, letter: DeadLetter) -> int | None:
        """Take over a dead letter that is about to be replayed; None if the journal lacks it."""

    def revive(self, letter: DeadLetter, number: int, receipt: Receipt) -> None:
        """Write that a letter's delivery is unfinished again, and let the receipt have its id."""

    def return_letter(self, letter: DeadLetter, number: int) -> None:
        """Take back a letter that could not be replayed."""

    def resume(self) -> None:
        """Feed unfinished deliveries of earlier runs to the subscribed handlers."""
