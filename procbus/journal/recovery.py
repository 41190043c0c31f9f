# SPDX-License-Identifier: MIT
"""Moving into the database what a dead bus left in the intake."""

from __future__ import annotations

from procbus.errors import JournalError
from procbus.journal.changes import Changes
from procbus.journal.intake import left_in
from procbus.journal.lock import Lock
from procbus.journal.store import Store


def recover(store: Store, seen: int, lock: Lock, *, keep_all: bool) -> int:
    """Move what is in the intake and not in the database yet.

    Args:
        store: the database.
        seen: the last generation that is in it.
        lock: of the journal, which has the intake.
        keep_all: whether what is finished is kept.

    Returns:
        The last generation that there was.

    Raises:
        JournalError: the intake cannot be read, or the database not be written.
    """
    try:
        left = left_in(lock.fd)
    except ValueError as error:
        raise JournalError(
            f"{lock.name} cannot be read: {error}. It holds what was accepted last: take a copy "
            "that is whole; or move it away, and do without"
        ) from error
    last = seen
    for generation, frames in left:
        last = max(last, generation)
        if generation <= seen:
            continue
        changes = Changes(keep_all)
        changes.add_frames(frames)
        store.write(changes, {"generation": generation})
    return last
