# SPDX-License-Identifier: MIT
import datetime
from collections import namedtuple
from dataclasses import dataclass

import pytest

from procbus.core.text import printable
from procbus.live.plain import plain_error, plain_text


class Hostile:
    """Every method that a look could call ends the test."""

    def __init__(self) -> None:
        self.page = 7

    def _refuse(self, *args: object) -> object:
        raise AssertionError("the user's code was run")

    __repr__ = __str__ = __getattr__ = __hash__ = __eq__ = __iter__ = __len__ = _refuse  # type: ignore[assignment]
    __getattribute__ = _refuse
    __class__ = property(_refuse)


@dataclass(slots=True)
class Slotted:
    url: str
    size: int


@dataclass
class Page:
    url: str
    parts: list[int]


Point = namedtuple("Point", "x y")


@pytest.mark.parametrize(
    ("obj", "text"),
    [
        ("a\x1b[31m", r"'a\x1b[31m'"),
        (Slotted("u", 3), "Slotted(url='u', size=3)"),
        (Page("u", [1, 2]), "Page(url='u', parts=[1, 2])"),
        (Point(1, 2), "Point(1, 2)"),
        (list(range(100)), "[0, 1, 2, 3, 4, 5, 6, 7, ... 100 in all]"),
        ({"a": (1,), "b": {2}}, "{'a': (1), 'b': {2}}"),
        ([[[[1]]]], "[[[...]]]"),
        (datetime.date(2026, 1, 2), "<date>"),
        (object(), "<object>"),
    ],
)
def test_an_object_is_shown_by_its_parts(obj: object, text: str) -> None:
    assert plain_text(obj) == text


def test_no_method_of_an_event_or_error_runs() -> None:
    class HostileError(Exception):
        def __str__(self) -> str:
            raise AssertionError("the user's code was run")

    assert plain_text(Hostile()) == "Hostile(page=7)"
    assert plain_text({"h": [Hostile()]}) == "{'h': [Hostile(page=7)]}"
    assert plain_error(HostileError("why", Hostile())) == "HostileError: 'why', Hostile(page=7)"


def test_an_error_is_shown_in_one_line() -> None:
    assert plain_error(ValueError("no\ngood")) == "ValueError: no good"
    assert plain_error(KeyError("k")) == "KeyError: 'k'"
    assert plain_error(FileNotFoundError(2, "not there")) == "FileNotFoundError: not there"
    assert plain_error(ValueError()) == "ValueError"
    assert plain_error(None) == ""


def test_a_text_is_cut_and_moves_no_cursor() -> None:
    assert plain_text("x" * 1000, 20) == "'xxxxxxxxxxxxxxxx..."
    assert plain_text(1 << 100_000) == "<int of 100001 bits>"
    assert printable("a\x1b[2Jb\n") == "a\\x1b[2Jb\\n"
