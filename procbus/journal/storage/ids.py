# SPDX-License-Identifier: MIT
"""Receipts by the ids from publishers, until the database has their outcomes."""

from __future__ import annotations

from collections.abc import Iterable

from procbus.core.locks import Lock
from procbus.core.receipt import Receipt


class Ids:
    """Receipts in memory, by given id. Thread-safe: each operation on the dicts is atomic.

    The lock `_lock` guards the exchange of one receipt for another, and the number of claims.

    Attributes:
        claimed: number of claims so far.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._receipts: dict[str, Receipt] = {}
        #: The ids of these receipts, by event.
        self._given: dict[int, str] = {}
        self.claimed = 0

    def get(self, given_id: str) -> Receipt | None:
        """Return the receipt of an id, if that receipt is in memory."""
        return self._receipts.get(given_id)

    def id_of(self, event_id: int) -> str | None:
        """Return the id of an event, if its receipt is in memory."""
        return self._given.get(event_id)

    def claim(self, given_id: str, receipt: Receipt) -> Receipt:
        """Let a receipt have an id; return the receipt that has the id, perhaps an earlier one."""
        with self._lock:
            self.claimed += 1  # before the claim: see `BusJournal.accept_once`
        holder = self._receipts.setdefault(given_id, receipt)
        if holder is receipt:
            self._given[receipt.id] = given_id
        return holder

    def give_up(self, given_id: str) -> None:
        """Free an id, because its event was not accepted."""
        receipt = self._receipts.pop(given_id, None)
        if receipt is not None:
            self._given.pop(receipt.id, None)

    def exchange(self, given_id: str, receipt: Receipt) -> None:
        """Let another receipt of the same event have its id."""
        with self._lock:
            self._receipts[given_id] = receipt
            self._given[receipt.id] = given_id

    def settled(self) -> list[tuple[str, Receipt]]:
        """Return the ids whose deliveries are settled, so that the intake has their ends."""
        return [each for each in self._receipts.copy().items() if each[1].done]

    def forget(self, settled: Iterable[tuple[str, Receipt]]) -> None:
        """Drop receipts, because the database has their outcomes."""
        for given_id, receipt in settled:
            with self._lock:
                if self._receipts.get(given_id) is receipt:
                    self.give_up(given_id)
