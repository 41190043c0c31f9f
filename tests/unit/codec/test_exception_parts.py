# SPDX-License-Identifier: MIT
"""Exceptions that are taken apart and put together again are as they were."""

import json
import pickle
import subprocess
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procbus.codec.encoder import Encoder, decode
from procbus.codec.exception_parts import has_own_way


class KeywordOnly(Exception):
    def __init__(self, text: str, *, status: int) -> None:
        super().__init__(text)
        self.status = status


class Composed(OSError):
    def __init__(self, file: str) -> None:
        super().__init__(13, "not yours", file)


@dataclass(frozen=True)
class Frozen(Exception):
    code: int
    why: str = ""


class Slotted(KeyError):
    __slots__ = ("__hidden", "unset")

    def __init__(self, hidden: int) -> None:
        super().__init__(f"of {hidden}")
        self.__hidden = hidden

    def hidden(self) -> int:
        return self.__hidden


class Exit(SystemExit):
    def __init__(self, why: str) -> None:
        super().__init__(3)
        self.why = why


class Undecodable(UnicodeDecodeError):
    def __new__(cls, *args: Any, **_: Any) -> Any:
        return super().__new__(cls, "utf-8", b"\xff", 0, 1, "bad")

    def __init__(self, why: str) -> None:
        super().__init__("utf-8", b"\xff", 0, 1, why)


class Group(ExceptionGroup[Exception]):
    def __new__(cls, errors: list[Exception], *, code: int) -> Any:
        made: Any = super().__new__(cls, f"group {code}", errors)
        made.code = code
        return made

    def __init__(self, *_: Any, **__: Any) -> None:
        pass


class OwnWay(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__("own")
        self.one, self.two = one, two

    def __reduce__(self) -> Any:
        return OwnWay, (self.one, self.two)


def there_and_back(error: BaseException) -> Any:
    return decode(Encoder(7).encode_error(error, reduced_to_what_travels=False))


def facts(error: BaseException) -> Any:
    """All that can be compared of an exception."""
    slots = {name: getattr(error, name, None) for name in ("errno", "filename", "code", "reason")}
    within = getattr(error, "exceptions", ())
    return type(error), str(error), repr(error.args), vars(error), slots, [facts(e) for e in within]


def fetched() -> subprocess.CalledProcessError:
    error = subprocess.CalledProcessError(3, ["cmd"], output=b"out")
    error.add_note("of the shop")
    return error


ERRORS = [
    ValueError(),
    ValueError("a", 1),
    FileNotFoundError(2, "gone", "file"),
    UnicodeEncodeError("ascii", "\udc80", 0, 1, "why"),
    StopIteration(5),
    SystemExit(4),
    KeywordOnly("limit", status=429),
    Composed("/root"),
    Frozen(5, why="no"),
    Exit("done"),
    Undecodable("broken"),
    OwnWay(1, 2),
    fetched(),
    ExceptionGroup("two", [KeywordOnly("a", status=1), ExceptionGroup("in", [Frozen(1)])]),
    Group([KeywordOnly("b", status=2)], code=9),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_exception_is_as_it_was(error: BaseException) -> None:
    arrived = there_and_back(error)

    assert facts(arrived) == facts(error)


def test_slots_are_restored_also_private_ones() -> None:
    arrived = there_and_back(Slotted(5))

    assert arrived.hidden() == 5
    assert arrived.args == ("of 5",)
    assert not hasattr(arrived, "unset")


def test_an_exception_that_refers_to_itself_does_so_again() -> None:
    error = KeywordOnly("loop", status=1)
    error.args = ("loop", error)
    error.status = error  # type: ignore[assignment]
    arrived = there_and_back(error)

    assert arrived.args[1] is arrived
    assert arrived.status is arrived


def test_a_class_that_pickles_its_objects_in_its_own_way_does_so() -> None:
    assert has_own_way(OwnWay)
    assert has_own_way(json.JSONDecodeError)
    assert not has_own_way(KeywordOnly)


def test_plain_pickle_fails_with_such_exceptions() -> None:
    # The reason for all of this; should Python mend it, most of this module can go.
    with pytest.raises(TypeError):
        pickle.loads(pickle.dumps(KeywordOnly("limit", status=429)))


TEXT = st.text(max_size=20)


@given(args=st.lists(TEXT | st.integers()), own=st.dictionaries(TEXT, TEXT), notes=st.lists(TEXT))
def test_any_arguments_attributes_and_notes_arrive(
    args: list[Any], own: dict[str, str], notes: list[str]
) -> None:
    error = KeywordOnly("x", status=1)
    error.args = tuple(args)
    vars(error).update(own)
    for note in notes:
        error.add_note(note)
    arrived = there_and_back(error)

    assert (arrived.args, vars(arrived)) == (error.args, vars(error))
