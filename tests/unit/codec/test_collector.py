"""The garbage collector's threshold while a large object is decoded: as before in the end."""

from __future__ import annotations

import gc
import pickle
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from procbus.codec.encoder import decode

#: Makes a pickle large enough.
FILLER = "x" * 20_000
USUAL = (600, 9, 8)
#: The collector of these Pythons never runs in the middle of `loads`.
QUIET = sys.version_info >= (3, 12)

seen: list[tuple[int, int, int]] = []


class Seer:
    """Notes the threshold while it is made."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Seer.made, ()

    @staticmethod
    def made() -> None:
        seen.append(gc.get_threshold())


class Setter:
    """Sets a threshold while it is made."""

    def __reduce__(self) -> tuple[Any, ...]:
        return gc.set_threshold, (1234, 5, 6)


class Breaker:
    """Cannot be made."""

    def __reduce__(self) -> tuple[Any, ...]:
        return int, ("no number",)


@pytest.fixture(autouse=True)
def usual() -> Iterator[None]:
    before = gc.get_threshold()
    gc.set_threshold(*USUAL)
    seen.clear()
    yield
    gc.set_threshold(*before)


def made(*parts: Any) -> Any:
    return decode(pickle.dumps((*parts, FILLER), pickle.HIGHEST_PROTOCOL))


def test_collections_are_rare_while_a_large_object_is_made() -> None:
    made(Seer())
    assert (seen[0] == USUAL) is QUIET
    assert gc.get_threshold() == USUAL


def test_small_object_changes_nothing() -> None:
    decode(pickle.dumps(Seer()))
    assert seen == [USUAL]


def test_threshold_is_back_after_an_object_that_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="no number"):
        made(Breaker())
    assert gc.get_threshold() == USUAL


def test_threshold_that_the_object_itself_sets_stays() -> None:
    made(Setter())
    assert gc.get_threshold() == (1234, 5, 6)


@pytest.mark.parametrize("first", [0, 10_000_000])
def test_threshold_that_makes_collections_rarer_still_is_left_alone(first: int) -> None:
    gc.set_threshold(first, 5, 6)
    made(Seer())
    assert seen == [(first, 5, 6)]
    assert gc.get_threshold() == (first, 5, 6)
