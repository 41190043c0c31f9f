# SPDX-License-Identifier: MIT
"""Receipts by the ids from publishers, until the database has their outcomes."""

from __future__ import annotations

from collections.abc import Sequence

from procbus.core.receipt import Receipt


class Ids:
    """Receipts in memory, by given id. Thread-safe: each operation on the dict is atomic.

    Attributes:
        claimed: number of claims so far.
    """

    def __init__(self) -> None:
        self._receipts: dict[str, Receipt] = {}
        self.claimed = 0

    def get(self, given_id: str) -> Receipt | None:
        """Return the receipt of an id, if it is in memory."""
        return self._receipts.get(given_id)

    def claim(self, given_id: str, receipt: Receipt) -> Receipt:
        """Let a receipt have an id; return the receipt that has it, which may be an earlier one."""
        self.claimed += 1
        return self._receipts.setdefault(given_id, receipt)

    def give_up(self, given_id: str) -> None:
        """Free an id, because its event was not accepted."""
        self._receipts.pop(given_id, None)

    def settled(self) -> list[str]:
        """Return the ids whose deliveries are settled, and so recorded in the intake."""
        return [given_id for given_id, receipt in self._receipts.copy().items() if receipt.done]

    def forget(self, given_ids: Sequence[str]) -> None:
        """Drop receipts, because the database has their outcomes."""
        for given_id in given_ids:
            self._receipts.pop(given_id, None)
