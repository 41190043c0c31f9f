# SPDX-License-Identifier: MIT
"""Figures and tables as people read them."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procbus.core.text import seconds, share, shown_events, table

UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}


@pytest.mark.parametrize(
    ("value_s", "text"),
    [
        (None, "-"),
        (0.0, "0 s"),
        (2e-10, "0.2 ns"),
        (850e-9, "850 ns"),
        (1e-6, "1.0 us"),
        (9.94e-6, "9.9 us"),
        (9.96e-6, "10 us"),
        (0.0015, "1.5 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1.0 s"),
        (119.6, "120 s"),
        (86_400, "86,400 s"),
    ],
)
def test_durations_are_written_in_the_unit_that_suits_them(value_s: float | None, text: str):
    assert seconds(value_s) == text


@given(st.floats(1e-9, 1e6))
def test_written_duration_is_near_the_value(value_s: float):
    number, unit = seconds(value_s).split()
    assert float(number.replace(",", "")) * UNITS[unit] == pytest.approx(value_s, rel=0.051)


@pytest.mark.parametrize(("value", "text"), [(None, "-"), (0.0, "0%"), (0.456, "46%"), (1, "100%")])
def test_shares_are_written_as_percent(value: float | None, text: str):
    assert share(value) == text


def test_a_table_has_its_columns_under_each_other():
    assert table(("name", "n"), [("a", "1,000"), ("longer", "2")]) == (
        "name        n\n"  # the first to the left, the others to the right
        "a       1,000\n"
        "longer      2"
    )


def test_table_aligns_the_columns_that_are_named_to_the_left():
    assert table(("n", "name"), [("1,000", "a"), ("2", "longer")], left={"name"}) == (
        "    n  name\n1,000  a\n    2  longer"
    )


def test_a_table_may_have_no_rows():
    assert table(("name", "n"), []) == "name  n"


@pytest.mark.parametrize(
    ("ids", "what", "text"),
    [
        ([4], "", "event #4"),
        ([4], "topic row", "event #4 (topic row)"),
        ([4, 9], "Row", "2 events (#4, #9; Row)"),
        (range(1, 501), "", "500 events (#1 to #500)"),
        ([*range(2, 13), 1], "", "12 events (#2, #3, #4, #5, #6, #7, #8, #9, #10, #11 ...)"),
    ],
)
def test_events_are_named_by_their_ids(ids: Sequence[int], what: str, text: str) -> None:
    assert shown_events(ids, what) == text
