# SPDX-License-Identifier: MIT
"""Settling with a journal: what became of a delivery is written before anybody is told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from procbus.core.dead_letter import DeadLetter
from procbus.core.delivery import Delivery
from procbus.core.receipt import Receipt
from procbus.dispatch.dead_letters import MOST_KEPT
from procbus.dispatch.settlement import Settled, Settlement
from procbus.journal.journal import Journal


class JournaledSettlement(Settlement):
    """Settles, and writes down what became of each delivery before anybody is told.

    What is cancelled is not written: it is not finished, and runs at the next start. Nothing is
    written of calls of executors: their futures end with this run.
    """

    journal: Journal
    #: Dead letters that the journal has, with their numbers. Each operation on it is atomic.
    numbers: dict[DeadLetter, int]
    #: Deliveries that were written as succeeded together with what they published.
    written: set[Delivery]

    def __init__(self, journal: Journal, *parts: Any) -> None:
        super().__init__(*parts)
        self.journal = journal
        self.numbers = {}
        self.written = set()
        self.dead_letters.removed = self._discard

    def settle(self, settled: Sequence[Settled], *, queued: bool = True) -> None:
        """Settle deliveries; those that succeeded are written down first."""
        written = self.written
        if written:
            self.journal.settled([each for each in settled if each[0] not in written])
            written.difference_update([delivery for delivery, _ in settled])
        else:
            self.journal.settled(settled)
        super().settle(settled, queued=queued)

    def settle_successes(
        self,
        deliveries: Sequence[Delivery],
        times: Sequence[tuple[float, float, int]],
        values: Sequence[Any],
        pid: int | None,
    ) -> None:
        """Settle deliveries that succeeded; that they did is written first."""
        self.journal.settled_successes(deliveries, values)
        super().settle_successes(deliveries, times, values, pid)

    def _tell(self, delivery: Delivery, receipt: Receipt, letter: DeadLetter) -> None:
        self.journal.failed(delivery, letter.outcomes, letter.quarantined)
        self.remember(letter, self.journal.number(delivery))
        super()._tell(delivery, receipt, letter)

    def _note_wait(self, delivery: Delivery, wait_s: float) -> None:
        if not delivery.subscription.answered:
            self.journal.retried(delivery, wait_s)

    def remember(self, letter: DeadLetter, number: int) -> None:
        """The journal has this dead letter."""
        if len(self.numbers) >= 2 * MOST_KEPT:  # those let go from the bus stay in the journal
            for old in list(self.numbers)[:MOST_KEPT]:
                self.numbers.pop(old, None)
        self.numbers[letter] = number

    def _discard(self, letters: Sequence[DeadLetter]) -> None:
        """Dead letters were cleared, or replayed some other way."""
        numbers = [n for letter in letters if (n := self.numbers.pop(letter, None)) is not None]
        if numbers and not self.journal.closed:
            self.journal.write(b"".join(map(self.journal.discarded, numbers)))
