# SPDX-License-Identifier: MIT
"""Ids that the user gives to events: checked, and those of a stream looked up many at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from procbus.errors import ProcbusError, SerializationError
from procbus.journal.queries import Seen

#: Ids of a stream that are looked up at a time.
_LOOKED_UP = 256


def check_id(given_id: object) -> None:
    """Raise an error for what cannot be an id.

    Raises:
        ProcbusError: it is no string.
        SerializationError: it cannot be written.
    """
    if not isinstance(given_id, str):
        raise ProcbusError(f"id must be a string, not {given_id!r}: write str(...)")
    try:
        given_id.encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair: no database would take it
        raise SerializationError(f"id {given_id!r} cannot be written: {error}") from error


def look_up(
    events: Iterable[Any],
    id_of: Callable[[Any], str],
    find: Callable[[Sequence[str]], Mapping[str, Seen]],
) -> Iterator[tuple[Any, str, Seen | None]]:
    """Each event with its id, and with how it ended where the journal knows that.

    Args:
        events: what is published.
        id_of: gives the id of each.
        find: gives how those of some ids ended that have.

    Raises:
        ProcbusError: an id is none; SerializationError if it cannot be written.
    """
    source = iter(events)
    while some := [(event, id_of(event)) for event in islice(source, _LOOKED_UP)]:
        for _, given_id in some:
            check_id(given_id)
        known = find([given_id for _, given_id in some])
        for event, given_id in some:
            yield event, given_id, known.get(given_id)
