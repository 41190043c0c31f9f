# SPDX-License-Identifier: MIT
"""A copy of a journal that is one of its own, taken at any time, while a bus has it too.

First the intake is read and then the database, which may have moved on by then: so whatever was
accepted before is in one of them, and what is in both is told by its generation. What is in the
intake goes into the copy as it would into the journal of a dead bus.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Sequence

from procbus.core.errors import JournalError
from procbus.journal.storage.database import Store
from procbus.journal.storage.files import SUFFIXES, cannot_write, place, prepare, tidy
from procbus.journal.storage.frames import Half
from procbus.journal.storage.opening import recover
from procbus.journal.storage.queries import Queries


def back_up(source: Store, left: Sequence[Half], dest: str) -> None:
    """Copy a journal.

    Args:
        source: its database.
        left: what was in its intake, read just before.
        dest: the file to be made.

    Raises:
        JournalError: it is there already, or cannot be written. Nothing is there of it then.
    """
    real = place(dest)
    for suffix in SUFFIXES:
        if os.path.lexists(real + suffix):
            raise JournalError(
                f"{real + suffix} is there already: name a file that is not, or remove that"
            )
    part = f"{real}.{secrets.token_hex(4)}.part"
    try:
        prepare(part)
        source.copy_to(part)
        _complete(part, left, source.path + "-intake")
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        try:
            os.link(part, real)  # unlike a renaming, this never takes the place of another file
        except PermissionError:  # a file system without links
            os.rename(part, real)
    except OSError as error:
        raise cannot_write(dest, error) from error
    finally:
        tidy(part)
        for suffix in SUFFIXES:
            with contextlib.suppress(OSError):
                os.unlink(part + suffix)


def _complete(part: str, left: Sequence[Half], name: str) -> None:
    """Move into the copy what the database did not have yet."""
    store = Store(part)
    try:
        queries = Queries(store)
        keep_all = bool(queries.meta("keep_all", True))
        recover(store, queries, left, name, keep_all=keep_all, moved_on=True)
    finally:
        store.close()
