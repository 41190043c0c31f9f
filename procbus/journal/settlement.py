# SPDX-License-Identifier: MIT
"""The ends of deliveries in a journal: a success is written before anybody is told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from procbus.core.dead_letter import DeadLetter
from procbus.core.delivery import Delivery, LastAttempt
from procbus.dispatch.dead_letters import MOST_KEPT
from procbus.dispatch.settled import Settled
from procbus.journal.journal import Journal


class SettlingJournal:
    """Writes the ends of deliveries down: see `SettlingSide`. Thread-safe.

    A cancelled delivery is not written: it is not finished, and runs at the next start. Nothing is
    written of calls of executors: their futures end with this run.

    Attributes:
        numbers: dead letters that the journal has, with their numbers. Each operation on it is
            atomic.
        written: deliveries that were written as succeeded together with the events that they
            published.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self.numbers: dict[DeadLetter, int] = {}
        self.written: set[Delivery] = set()

    def settled(self, settled: Sequence[LastAttempt]) -> None:
        """Write which deliveries succeeded."""
        written = self.written
        if written:
            self._journal.settled([each for each in settled if each[0] not in written])
            written.difference_update([delivery for delivery, _ in settled])
        else:
            self._journal.settled(settled)

    def settled_successes(self, deliveries: Sequence[Delivery], values: Sequence[Any]) -> None:
        """Write that deliveries succeeded, with their results."""
        self._journal.settled_successes(deliveries, values)

    def failed(self, settled: Settled) -> None:
        """Write that a delivery failed for good."""
        delivery, letter = settled.delivery, settled.letter
        if letter is not None:
            self._journal.failed(delivery, letter.outcomes, letter.quarantined)
            self.remember(letter, self._journal.number(delivery))

    def retried(self, delivery: Delivery, wait_s: float) -> None:
        """Write that an attempt failed, and when the next one is due."""
        if not delivery.subscription.answered:
            self._journal.retried(delivery, wait_s)

    def remember(self, letter: DeadLetter, number: int) -> None:
        """The journal has this dead letter."""
        if len(self.numbers) >= 2 * MOST_KEPT:  # those let go from the bus stay in the journal
            for old in list(self.numbers)[:MOST_KEPT]:
                self.numbers.pop(old, None)
        self.numbers[letter] = number

    def discard(self, letters: Sequence[DeadLetter]) -> None:
        """Dead letters were cleared, or replayed some other way."""
        numbers = [n for letter in letters if (n := self.numbers.pop(letter, None)) is not None]
        if numbers and not self._journal.closed:
            self._journal.write(b"".join(map(self._journal.discarded, numbers)))
