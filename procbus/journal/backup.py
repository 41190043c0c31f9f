# SPDX-License-Identifier: MIT
"""A complete copy of a journal, taken at any time, even while a bus uses the journal.

The intake is read first, then the database, which may have moved on meanwhile. So every accepted
record is in one of the two. Records that are in both are recognised by their generation. The
intake's records go into the copy in the same way as a new bus takes over the intake of a dead bus.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Sequence

from procbus.core.errors import JournalError
from procbus.journal.storage.database import Store
from procbus.journal.storage.files import SUFFIXES, cannot_write, place, prepare_files, tidy
from procbus.journal.storage.frames import Half
from procbus.journal.storage.opening import recover
from procbus.journal.storage.queries import Queries


def back_up(source: Store, left: Sequence[Half], dest: str) -> None:
    """Copy a journal.

    Args:
        source: the database of the journal.
        left: the records that were in the journal's intake, read just before.
        dest: the file to be made.

    Raises:
        JournalError: the file exists already, or cannot be written. No incomplete copy stays
            behind.
    """
    real = place(dest)
    for suffix in SUFFIXES:
        if os.path.lexists(real + suffix):
            raise JournalError(
                f"{real + suffix} is there already: name another file, or remove this one"
            )
    part = f"{real}.{secrets.token_hex(4)}.part"
    try:
        prepare_files(part)
        source.copy_to(part)
        _complete(part, left, source.path + "-intake")
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        try:
            os.link(part, real)  # unlike renaming, linking never replaces an existing file
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
    """Move records into the copy that the database did not have yet."""
    store = Store(part)
    try:
        queries = Queries(store)
        keep_all = bool(queries.meta("keep_all", True))
        recover(store, queries, left, name, keep_all=keep_all, moved_on=True)
    finally:
        store.close()
