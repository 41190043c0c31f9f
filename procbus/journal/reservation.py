# SPDX-License-Identifier: MIT
"""Ids of events are never given twice, whatever was lost."""

from __future__ import annotations

from procbus.journal.store import Store

#: Ids that are reserved at a time: far more than are given between two moves into the database.
RESERVED = 1_000_000


class Reservation:
    """The ids that may be given, noted on the disk ahead of time. Not thread-safe.

    With durability="process" a loss of power may take the last events, but not what handlers noted
    of them elsewhere: another event of the same id would seem to be done.

    Args:
        store: the database.
        before: the largest id that may have been given in runs before.
        user: who uses the journal, to be found by the next if this one does not end it: see
            `recovery`.

    Raises:
        JournalError: the database cannot be written.
    """

    def __init__(self, store: Store, before: int, user: str) -> None:
        self._store = store
        self._user = user
        self._before = before
        self._upto = before
        self.extend(before)

    def extend(self, last_id: int) -> None:
        """Reserve more, where half of them are given.

        Raises:
            JournalError: the database cannot be written.
        """
        if last_id + RESERVED // 2 > self._upto:
            self._upto = max(self._upto, last_id) + RESERVED
            self._store.reserve_ids(self._upto, in_use=self._user)

    def end(self, last_id: int) -> None:
        """Give back those that were not used; all is in the database, and nothing in the intake.

        Raises:
            JournalError: the database cannot be written; they stay reserved.
        """
        self._store.reserve_ids(max(self._before, last_id), in_use="")
