"""The reports of a handler on how far it is: the record, its text, and refused arguments."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from math import inf, nan
from typing import Any, cast

import numpy as np
import pytest

from procbus.core.context import HandlerContext, RunState
from procbus.core.progress import MOST, NOTE_BYTES, Progress
from procbus.core.reporting import RunOf, reported_here
from procbus.pool.logbook import Logbook
from tests.parts import delivery_to, subscription_of

Reported = Callable[..., Any]


@pytest.fixture(params=["here", "in a worker process"])
def reported(request: pytest.FixtureRequest) -> Iterator[Reported]:
    """Makes a report as a handler does; returns what the bus reads of it."""
    logbook = Logbook.create()
    here = request.param == "here"
    delivery = delivery_to(subscription_of())
    state = RunOf(delivery) if here else logbook
    context = HandlerContext("h", 1, None, None, 1, lambda *_: None, state=cast("RunState", state))

    def report(*args: Any) -> Any:
        context.progress(*args)
        if here:
            return reported_here(delivery)
        found = logbook.reported()
        return None if found is None else found.during(0, -1)

    yield report
    logbook.close()


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
        ((3,), (3, None, "")),
        ((3, 7, "page"), (3, 7, "page")),
        ((0.5, 1.0), (0.5, 1.0, "")),
        ((1, 2.5), (1, 2.5, "")),
        ((0.5, None, "half"), (0.5, None, "half")),
        ((MOST, MOST), (MOST, MOST, "")),
        ((np.int64(3), np.float32(0.5)), (3, 0.5, "")),
        ((Fraction(1, 2), Decimal(2)), (0.5, 2.0, "")),
    ],
)
def test_numbers_of_any_kind_become_ints_and_floats(
    reported: Reported, given: Any, taken: Any
) -> None:
    progress = reported(*given)
    assert progress[:3] == taken
    assert [type(each) for each in progress[:3]] == [type(each) for each in taken]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (("3",), TypeError, r"progress\(done=\.\.\.\) takes an int or a float, and got a str"),
        ((None,), TypeError, "got a NoneType"),
        ((1, [5]), TypeError, r"progress\(total=\.\.\.\) .* got a list"),
        ((1, 2, 3), TypeError, r"progress\(note=\.\.\.\) takes a string, and got a int"),
        ((1, 2, None), TypeError, "got a NoneType"),
        ((-1,), ValueError, "an amount of 0 or more, and got -1"),
        ((1, -0.5), ValueError, r"progress\(total=\.\.\.\) .* got -0.5"),
        ((nan,), ValueError, "got nan"),
        ((1, inf), ValueError, "got inf"),
        ((1 << 64,), ValueError, r"below 2\*\*64"),
        ((10**400,), ValueError, r"below 2\*\*64"),
    ],
)
def test_bad_report_is_a_clear_error(
    reported: Reported, arguments: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        reported(*arguments)


@pytest.mark.parametrize("character", ["a", "\u00e4", "\u20ac", "\U0001f600"])
def test_long_note_is_cut_at_a_character(reported: Reported, character: str) -> None:
    note = reported(1, None, character * 300).note
    assert note == character * (NOTE_BYTES // len(character.encode()))


def test_lone_surrogate_in_a_note_is_replaced(reported: Reported) -> None:
    assert reported(1, 2, "a\udc80b").note == "a?b"


def test_report_outside_a_run_goes_nowhere() -> None:
    HandlerContext("h", 1, None, None, 1, lambda *_: None).progress(1, 2)
