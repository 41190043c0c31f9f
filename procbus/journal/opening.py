# SPDX-License-Identifier: MIT
"""What is found when a journal is opened: which one it is, and what it has."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from procbus.errors import JournalError
from procbus.journal.changes import Changes
from procbus.journal.forms import CodecName
from procbus.journal.names import name_of_nameless
from procbus.journal.queries import Queries
from procbus.journal.recovery import lost_in
from procbus.journal.store import Store
from procbus.log import log


@dataclass(frozen=True, slots=True)
class Found:
    """What a journal had when it was opened.

    Attributes:
        pending: deliveries that are not finished, by the name of their handler.
        dead: dead letters, by the name of their handler.
        lost: what of the journal is lost, in a sentence each.
    """

    pending: Mapping[str, int]
    dead: Mapping[str, int]
    lost: tuple[str, ...]


def what_is_in(store: Store, queries: Queries) -> Found:
    """Count what a journal has, and log what is lost of it.

    Handlers whose names are lost are given others, so that what is for them is kept and told, and
    their numbers are not given to others.

    Raises:
        JournalError: the journal cannot be read or written.
    """
    lost = tuple(lost_in(queries))
    for each in lost:
        log.error("the journal %s has lost something: %s", store.path, each)
    counts = queries.counts()
    names = {number: name for number, _, name in queries.handlers()}
    numbers = counts["pending"].keys() | counts["dead"].keys()
    if lost:
        numbers |= queries.handlers_of_finished()
    nameless = sorted(numbers - names.keys())
    if nameless or lost:
        changes = Changes(True)
        changes.handlers = [(number, "io", name_of_nameless(number)) for number in nameless]
        store.write(changes, {"lost": "[]"})
        names |= {number: name for number, _, name in changes.handlers}
    pending, dead = (
        {names[number]: count for number, count in counts[table].items()}
        for table in ("pending", "dead")
    )
    return Found(pending, dead, lost)


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
