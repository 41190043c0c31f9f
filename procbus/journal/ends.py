# SPDX-License-Identifier: MIT
"""The ends of deliveries, on their way to the disk, before any waiter wakes.

Each end becomes a record. `Journal.note` copies it into the intake, and soon the writer moves it
into the database, where it changes the delivery's row (`procbus/journal/storage/changes.py`):

| end | method | record | row of the delivery |
|---|---|---|---|
| success | `settled`, `settled_successes` | succeeded or result | to `done` if kept, or out |
| success that published events | `success`, with the events | the same | the same |
| failure that another attempt follows | `retried` | retry | stays in `pending` |
| failure for good | `expect`, then `failed` | failed | from `pending` to `dead` |
| dead letter replayed | `take`, then `revive` | revived | from `dead` to `pending` |
| dead letter cleared | `discard` | discarded | to `done` if kept, or out |
| cancellation for good | `cancelled` | cancelled, failed, discarded | to `done` if kept, or out |
| other cancellation | none: it runs at the next start | none | stays in `pending` |
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from time import time
from typing import Any

from procbus.core.dead_letter import DeadLetter, summary_of
from procbus.core.delivery import Delivery, LastAttempt
from procbus.core.log import journal_log as log
from procbus.core.moments import Settled
from procbus.core.outcome import OutcomeKind
from procbus.dispatch.dead_letters import MOST_KEPT
from procbus.journal.journal import Journal
from procbus.journal.storage import records
from procbus.journal.storage.records import SHIFT

_SUCCEEDED = OutcomeKind.SUCCEEDED


class DeliveryEnds:
    """Writes the ends of deliveries: see `SettlingSide`. Thread-safe.

    Calls of executors leave no records, because their futures end with this run. If an end cannot
    be written, it is dropped, and the delivery runs again at the next start.

    Args:
        journal: the journal of the bus.

    Attributes:
        numbers: numbers of the dead letters that the journal has or is about to have. Each
            operation on it is atomic.
        replayed: numbers of the deliveries that this run replays, or has replayed.
        written: deliveries that were written as succeeded together with the events that they
            published.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._note = journal.note
        self.numbers: dict[DeadLetter, int] = {}
        self.replayed: set[int] = set()
        self.written: set[Delivery] = set()
        #: Dead letters that users can see, but whose failure is not written yet.
        self._unwritten: set[DeadLetter] = set()
        #: Guards `_unwritten`, and is held while the end of such a letter is written: either its
        #: failure, or that it was cleared. Code that interrupts the writing may take the lock once
        #: more.
        self._ending = threading.RLock()

    def _number(self, delivery: Delivery) -> int:
        """The number of a delivery in the journal."""
        handler = delivery.subscription.handler
        return delivery.event_id << SHIFT | self._journal.names.number_of(handler)

    # Success.

    def settled(self, settled: Sequence[LastAttempt]) -> None:
        """Write which deliveries succeeded."""
        written = self.written
        ended = [each for each in settled if each[1].kind is _SUCCEEDED and each[0] not in written]
        if written:
            written.difference_update([delivery for delivery, _ in settled])
        if ended:
            self.settled_successes([each[0] for each in ended], [each[1].value for each in ended])

    def settled_successes(self, deliveries: Sequence[Delivery], values: Sequence[Any]) -> None:
        """Write that deliveries succeeded, with their results."""
        if self._journal.keep_results:
            parts = [
                self.success(delivery, value)
                for delivery, value in zip(deliveries, values, strict=True)
                if delivery.receipt is not None and not delivery.subscription.answered
            ]
            self._note(b"".join(parts))
            return
        known = self._journal.names.numbers
        numbers = [
            each.event_id << SHIFT | known[subscription.handler.name]
            for each in deliveries
            if each.receipt is not None and not (subscription := each.subscription).answered
        ]
        if numbers:
            self._note(records.pack_succeeded(numbers, time()))

    def success(self, delivery: Delivery, value: Any) -> bytes:
        """Lay out the record of a delivery that succeeded, with its result if results are kept."""
        journal, number = self._journal, self._number(delivery)
        if journal.keep_results:
            try:
                form, data = journal.codec.encode(value, "result")
            except BaseException as error:  # noqa: BLE001 - the user's code; the success is kept
                text = summary_of(error)
                log.warning("the journal does not keep a result of %s: %s", delivery.handler, text)
            else:
                data = journal.type_name(type(value)) + b"\0" + data
                return records.pack_result(number, time(), form, data)
        return records.pack_succeeded([number], time())

    # Failure.

    def retried(self, delivery: Delivery, wait_s: float) -> None:
        """Write that an attempt failed, and the time of the next one."""
        if delivery.subscription.answered:
            return
        outcomes = self._journal.codec.encode_outcomes(delivery.earlier)
        attempts = len(delivery.earlier)
        due_at = time() + wait_s
        self._note(records.pack_retry(self._number(delivery), attempts, due_at, outcomes))

    def expect(self, letter: DeadLetter, delivery: Delivery) -> None:
        """Note a new dead letter, before users can see it. `failed` is called for it later."""
        self._unwritten.add(letter)
        self.remember(letter, self._number(delivery))

    def failed(self, settled: Settled) -> None:
        """Write that a delivery failed for good, unless its letter was replayed or cleared."""
        letter = settled.letter
        if letter is None or letter not in self._unwritten:
            return
        record = self._failure(letter, self._number(settled.delivery))
        with self._ending:
            if letter in self._unwritten:
                self._unwritten.remove(letter)
                self._note(record)

    def cancelled(self, delivery: Delivery) -> None:
        """Write that a delivery was cancelled for good, as a dead letter that is cleared."""
        outcome = delivery.outcome
        if delivery.subscription.answered or outcome is None or self._journal.closed:
            return
        outcomes, now = (*delivery.earlier, outcome), time()
        data = self._journal.codec.encode_outcomes(outcomes)
        number = self._number(delivery)
        failed = records.pack_failed(number, len(outcomes), now, False, data)
        cancelled = records.pack_cancelled(number)
        self._note(cancelled + failed + records.pack_discarded(number, now))

    def _failure(self, letter: DeadLetter, number: int) -> bytes:
        outcomes, attempts = letter.outcomes, len(letter.outcomes)
        data = self._journal.codec.encode_outcomes(outcomes)
        return records.pack_failed(number, attempts, time(), letter.quarantined, data)

    # Dead letters: remembered, replayed, cleared.

    def remember(self, letter: DeadLetter, number: int) -> None:
        """Note that the journal has a dead letter."""
        if len(self.numbers) >= 2 * MOST_KEPT:  # letters dropped by the bus stay in the journal
            for old in list(self.numbers)[:MOST_KEPT]:
                self.numbers.pop(old, None)
        self.numbers[letter] = number

    def take(self, letter: DeadLetter) -> int | None:
        """Take over a dead letter that is about to be replayed; None if the journal lacks it."""
        with self._ending:  # the letter's failure was written before this, or is never written
            self._unwritten.discard(letter)
        number = self.numbers.pop(letter, None)
        if number is not None:
            self.replayed.add(number)
        return number

    def revive(self, number: int, parent_id: int | None) -> None:
        """Write that a dead letter is replayed; return once the record is safe.

        Args:
            number: number of its delivery.
            parent_id: the event whose handler replays it.

        Raises:
            JournalError: the journal cannot be written.
        """
        data = records.pack_revived(number)
        owners = self._journal.owners
        if owners is not None and (jobs := owners(parent_id)):
            data += records.pack_owned(jobs, [number])
        self._journal.write(data)

    def discard(self, letters: Sequence[DeadLetter]) -> list[tuple[DeadLetter, int]]:
        """Write that dead letters were cleared; return the ones that the journal had."""
        journal = self._journal
        if journal.closed:
            return []
        had = [(each, n) for each in letters if (n := self.numbers.pop(each, None)) is not None]
        unwritten = [each for each in had if each[0] in self._unwritten]
        failures = {number: self._failure(letter, number) for letter, number in unwritten}
        with self._ending:
            for letter, number in unwritten:
                if letter in self._unwritten:
                    self._unwritten.remove(letter)
                else:  # written meanwhile
                    del failures[number]
            ends = [failures.get(n, b"") + records.pack_discarded(n, time()) for _, n in had]
            journal.write(b"".join(ends))
        return had
