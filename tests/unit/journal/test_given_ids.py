# SPDX-License-Identifier: MIT
"""Ids from the user: valid ones, and looking up the ids of a stream."""

from collections.abc import Sequence
from typing import Any

import pytest

from procbus.core.errors import ProcbusError, SerializationError
from procbus.journal.bus_journal import check_id, look_up
from procbus.journal.storage.queries import SeenEvent


def test_any_string_that_can_be_written_is_an_id() -> None:
    check_id("")
    check_id("naïve\x00id")


def test_id_that_is_no_string_is_refused_with_a_remedy() -> None:
    with pytest.raises(ProcbusError, match=r"not 7: write str\(\.\.\.\)"):
        check_id(7)


def test_half_of_a_surrogate_pair_is_refused_since_no_database_takes_it() -> None:
    with pytest.raises(SerializationError, match="cannot be written"):
        check_id("\ud800")


class Finder:
    """Knows the end of events that are multiples of ten; keeps the questions."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, ids: Sequence[str]) -> dict[str, SeenEvent]:
        self.asked.append(len(ids))
        return {given_id: (int(given_id), []) for given_id in ids if int(given_id) % 10 == 0}


def test_each_event_comes_in_order_with_its_id_and_how_it_ended() -> None:
    find = Finder()
    found = list(look_up(range(1000), str, find))

    assert [(event, given_id) for event, given_id, _ in found] == [(n, str(n)) for n in range(1000)]
    assert [seen for _, _, seen in found] == [None if n % 10 else (n, []) for n in range(1000)]
    assert max(find.asked) < 1000, "many at a time, and not all at once"
    assert len(find.asked) < 10


def test_id_is_not_looked_up_before_it_is_wanted() -> None:
    find = Finder()
    found = look_up(range(3), str, find)
    assert find.asked == []
    next(found)
    assert find.asked == [3]


def test_an_id_that_is_none_ends_the_stream_before_any_is_looked_up() -> None:
    find = Finder()

    def number(event: Any) -> Any:
        return event

    with pytest.raises(ProcbusError, match="id must be a string"):
        list(look_up([1, 2], number, find))
    assert find.asked == []
