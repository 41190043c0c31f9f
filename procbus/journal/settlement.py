# SPDX-License-Identifier: MIT
"""The ends of deliveries in a journal: a success is written before any waiter is told."""

from __future__ import annotations

import threading
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
        numbers: numbers of the dead letters that the journal has or is about to have. Each
            operation on it is atomic.
        replayed: numbers of the deliveries that this run replays, or has replayed.
        written: deliveries that were written as succeeded together with the events that they
            published.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self.numbers: dict[DeadLetter, int] = {}
        self.replayed: set[int] = set()
        self.written: set[Delivery] = set()
        #: Dead letters that users can see, and whose failure is not written yet.
        self._unwritten: set[DeadLetter] = set()
        #: Guards `_unwritten`, and is held while the end of such a letter is written: either its
        #: failure, or that it was cleared. Code that interrupts the writing may take it once more.
        self._ending = threading.RLock()

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

    def expect(self, letter: DeadLetter, delivery: Delivery) -> None:
        """Note a new dead letter, before users can see it: `failed` is called for it later."""
        self._unwritten.add(letter)
        self.remember(letter, self._journal.number(delivery))

    def failed(self, settled: Settled) -> None:
        """Write that a delivery failed for good, unless its letter was replayed or cleared."""
        letter = settled.letter
        if letter is None or letter not in self._unwritten:
            return
        record = self._journal.failed(
            self._journal.number(settled.delivery), letter.outcomes, letter.quarantined
        )
        with self._ending:
            if letter in self._unwritten:
                self._unwritten.remove(letter)
                self._journal.note(record)

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
        with self._ending:  # its failure was written before this, or is not written at all
            self._unwritten.discard(letter)
        number = self.numbers.pop(letter, None)
        if number is not None:
            self.replayed.add(number)
        return number

    def discard(self, letters: Sequence[DeadLetter]) -> list[tuple[DeadLetter, int]]:
        """Write that dead letters were cleared; return the ones that the journal had."""
        journal = self._journal
        if journal.closed:
            return []
        had = [(each, n) for each in letters if (n := self.numbers.pop(each, None)) is not None]
        unwritten = [each for each in had if each[0] in self._unwritten]
        records = {n: journal.failed(n, each.outcomes, each.quarantined) for each, n in unwritten}
        with self._ending:
            for letter, number in unwritten:
                if letter in self._unwritten:
                    self._unwritten.remove(letter)
                else:  # written meanwhile
                    del records[number]
            ends = [records.get(number, b"") + journal.discarded(number) for _, number in had]
            journal.write(b"".join(ends))
        return had
