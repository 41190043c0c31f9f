# SPDX-License-Identifier: MIT
"""The ends of deliveries in a journal: a success is written before any waiter is told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from procbus.core.dead_letter import DeadLetter
from procbus.core.delivery import Delivery, LastAttempt
from procbus.dispatch.dead_letters import MOST_KEPT
from procbus.dispatch.settled import Settled
from procbus.journal.journal import Journal


class SettlingJournal:
    """Writes the ends of deliveries: see `SettlingSide`. Thread-safe.

    A cancelled delivery is not written: it is unfinished, and runs at the next start. Calls of
    executors are not written either, because their futures end with this run.

    Attributes:
        numbers: numbers of the dead letters that the journal has. Each operation on it is atomic.
        replayed: numbers of the deliveries that this run replays, or has replayed.
        written: deliveries that were written as succeeded together with the events that they
            published.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self.numbers: dict[DeadLetter, int] = {}
        self.replayed: set[int] = set()
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
        """Write that an attempt failed, and the time of the next one."""
        if not delivery.subscription.answered:
            self._journal.retried(delivery, wait_s)

    def remember(self, letter: DeadLetter, number: int) -> None:
        """Note that the journal has a dead letter."""
        if len(self.numbers) >= 2 * MOST_KEPT:  # letters dropped by the bus stay in the journal
            for old in list(self.numbers)[:MOST_KEPT]:
                self.numbers.pop(old, None)
        self.numbers[letter] = number

    def take(self, letter: DeadLetter) -> int | None:
        """Take over a dead letter that is about to be replayed; None if the journal lacks it."""
        number = self.numbers.pop(letter, None)
        if number is not None:
            self.replayed.add(number)
        return number

    def discard(self, letters: Sequence[DeadLetter]) -> list[tuple[DeadLetter, int]]:
        """Write that dead letters were cleared; return the ones that the journal had."""
        if self._journal.closed:
            return []
        had = [(each, n) for each in letters if (n := self.numbers.pop(each, None)) is not None]
        self._journal.write(b"".join(self._journal.discarded(number) for _, number in had))
        return had
