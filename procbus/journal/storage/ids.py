# SPDX-License-Identifier: MIT
"""Receipts by the ids that publishers gave, until the database knows how they ended."""

from __future__ import annotations

from collections.abc import Sequence

from procbus.core.receipt import Receipt


class Ids:
    """Receipts at hand, by given id. Thread-safe: each operation on the dict is atomic.

    Attributes:
        claimed: how many were claimed so far.
    """

    def __init__(self) -> None:
        self._receipts: dict[str, Receipt] = {}
        self.claimed = 0

    def get(self, given_id: str) -> Receipt | None:
        """The receipt of an id, if it is at hand."""
        return self._receipts.get(given_id)

    def claim(self, given_id: str, receipt: Receipt) -> Receipt:
        """Have an id belong to a receipt; return the one that it belongs to."""
        self.claimed += 1
        return self._receipts.setdefault(given_id, receipt)

    def give_up(self, given_id: str) -> None:
        """The event was not accepted after all."""
        self._receipts.pop(given_id, None)

    def settled(self) -> list[str]:
        """Ids whose deliveries are settled, and so recorded in the intake."""
        return [given_id for given_id, receipt in self._receipts.copy().items() if receipt.done]

    def forget(self, given_ids: Sequence[str]) -> None:
        """The database knows how these ended."""
        for given_id in given_ids:
            self._receipts.pop(given_id, None)
