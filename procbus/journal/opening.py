# SPDX-License-Identifier: MIT
"""What is found when a journal is opened: which one it is, and what it has."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from procbus.errors import JournalError
from procbus.journal.changes import Changes
from procbus.journal.forms import CodecName
from procbus.journal.names import HandlerNames
from procbus.journal.queries import Queries
from procbus.journal.store import Store


@dataclass(frozen=True, slots=True)
class Found:
    """What a journal had when it was opened.

    Attributes:
        pending: deliveries that are not finished, by the name of their handler.
        dead: dead letters, by the name of their handler.
    """

    pending: Mapping[str, int]
    dead: Mapping[str, int]


def what_is_in(queries: Queries, names: HandlerNames) -> Found:
    """Count what a journal has."""
    counts = queries.counts()
    pending, dead = (
        {names.name_of(number): count for number, count in counts[table].items()}
        for table in ("pending", "dead")
    )
    return Found(pending, dead)


def identify(store: Store, queries: Queries, codec: CodecName, *, keep_all: bool) -> str:
    """Give the id of a journal, which is made with its first bus.

    Raises:
        JournalError: it was begun with another codec, or cannot be written.
    """
    journal_id: str = queries.meta("id", None) or secrets.token_hex(4)
    known: str = queries.meta("codec", codec)
    if known != codec:
        raise JournalError(
            f'the journal {store.path} was begun with journal_codec="{known}": open it with that, '
            "or begin a new journal"
        )
    store.write(Changes(True), {"id": journal_id, "codec": codec, "keep_all": keep_all})
    return journal_id
