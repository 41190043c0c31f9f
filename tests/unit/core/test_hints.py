# SPDX-License-Identifier: MIT
"""Words for error messages."""

import pytest

from procbus.core.validation import did_you_mean, shown


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ("retrys", "; did you mean retries=?"),
        ("RETRIES", "; did you mean retries=?"),
        ("MaxMem", "; did you mean Max_Memory=?"),
        ("zzz", ""),
        (None, ""),
        (7, ""),
    ],
)
def test_the_nearest_known_word_is_suggested_if_any_is_near(given: object, hint: str):
    assert did_you_mean(given, ("retries", "Max_Memory"), "=") == hint


class Unshowable:
    def __repr__(self) -> str:
        raise RuntimeError("no")


def test_any_value_can_be_shown():
    assert shown("a") == "'a'"
    assert shown(Unshowable()) == "a value of type Unshowable"
    assert shown(10**5000) == "a value of type int"
    assert shown("x" * 1000) == "'" + "x" * 199 + "..."
