"""The reports of a handler on how far it is: the record, its text, and refused arguments."""

from __future__ import annotations

import pickle
from decimal import Decimal
from fractions import Fraction
from math import inf, nan
from typing import Any

import numpy as np
import pytest

from procbus.core.context import HandlerContext
from procbus.core.progress import MOST, NOTE_BYTES, Progress, checked


def reported(*args: Any, **kwargs: Any) -> list[Any]:
    """The report that reaches the bus."""
    found: list[Any] = []

    def begin() -> Any:
        return lambda *report: found.append(report)

    context = HandlerContext("h", 1, None, None, 1, lambda *_: None, begin_reports=begin)
    context.progress(*args, **kwargs)
    [report] = found
    return list(report)


@pytest.mark.parametrize(
    ("progress", "text"),
    [
        (Progress(4211, 5000, "", 1.0), "4,211 of 5,000"),
        (Progress(4211, None, "parsing", 1.0), "4,211: parsing"),
        (Progress(0, 0, "", 1.0), "0 of 0"),
        (Progress(0.5, 1.5, "", 1.0), "0.5 of 1.5"),
        (Progress(1234567.8, 2e6, "", 1.0), "1,234,568 of 2,000,000"),
        (Progress(7, 5, " two\nlines ", 1.0), "7 of 5: two lines"),
    ],
)
def test_progress_prints_as_words_on_one_line(progress: Progress, text: str) -> None:
    assert str(progress) == text


def test_progress_is_pickled_with_an_error() -> None:
    progress = Progress(4211, 5000, "parsing", 1.0)
    assert pickle.loads(pickle.dumps(progress)) == progress


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ((3,), [3, None, ""]),
        ((3, 7, "page"), [3, 7, "page"]),
        ((0.5, 1.0), [0.5, 1.0, ""]),
        ((MOST, MOST), [MOST, MOST, ""]),
        ((np.int64(3), np.float32(0.5)), [3, 0.5, ""]),
        ((Fraction(1, 2), Decimal(2)), [0.5, 2.0, ""]),
    ],
)
def test_numbers_of_any_kind_become_ints_and_floats(given: Any, taken: Any) -> None:
    report = reported(*given)
    assert report == taken
    assert {type(each) for each in report} <= {int, float, str, type(None)}


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (("3",), TypeError, r"progress\(done=\.\.\.\) takes an int or a float, and got a str"),
        ((None,), TypeError, "got a NoneType"),
        ((True,), TypeError, "got a bool"),
        ((1, [5]), TypeError, r"progress\(total=\.\.\.\) .* got a list"),
        ((1, 2, 3), TypeError, r"progress\(note=\.\.\.\) takes a string, and got a int"),
        ((1, 2, None), TypeError, "got a NoneType"),
        ((-1,), ValueError, "an amount of 0 or more, and got -1"),
        ((1, -0.5), ValueError, r"progress\(total=\.\.\.\) .* got -0.5"),
        ((nan,), ValueError, "got nan"),
        ((1, inf), ValueError, "got inf"),
        ((1 << 63,), ValueError, r"below 2\*\*63"),
        ((10**400,), ValueError, r"below 2\*\*63"),
    ],
)
def test_bad_report_is_a_clear_error(arguments: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        reported(*arguments)


@pytest.mark.parametrize("character", ["a", "\u00e4", "\u20ac", "\U0001f600"])
def test_long_note_is_cut_at_a_character(character: str) -> None:
    _, _, note = checked(1, None, character * 300)

    assert note == character * (NOTE_BYTES // len(character.encode()))
    assert reported(1, None, character * 300)[2] == note


def test_report_outside_a_run_goes_nowhere() -> None:
    HandlerContext("h", 1, None, None, 1, lambda *_: None).progress(1, 2)
