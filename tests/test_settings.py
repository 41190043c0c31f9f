# SPDX-License-Identifier: MIT
"""The options of a bus: what passes and what is refused."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procbus.errors import OptionError
from procbus.settings import check_settings


def check(**options: Any) -> None:
    known: dict[str, Any] = {
        "cpu_workers": None,
        "io_workers": None,
        "max_pending": 10_000,
        "on_full": "block",
        "journal": None,
    }
    unknown = {k: v for k, v in options.items() if k not in known}
    given_options = {**known, **{k: v for k, v in options.items() if k in known}}
    check_settings(**given_options, unknown=unknown)


@given(st.integers(1, 10_000), st.integers(1, 10_000), st.integers(1))
def test_whole_numbers_from_one_up_pass(cpu, io, pending):
    check(cpu_workers=cpu, io_workers=io, max_pending=pending, on_full="raise")


@given(
    st.sampled_from(["cpu_workers", "io_workers", "max_pending"]),
    st.one_of(
        st.integers(max_value=0), st.floats(), st.booleans(), st.text(), st.lists(st.integers())
    ),
)
def test_anything_else_is_refused_with_the_name_and_the_value(name, value):
    with pytest.raises(OptionError) as caught:
        check(**{name: value})
    assert str(caught.value).startswith(f"{name} must be a whole number from 1")
    assert repr(value) in str(caught.value)


def test_more_workers_than_anybody_means_are_refused():
    with pytest.raises(OptionError, match="from 1 to 10000, not 10001"):
        check(cpu_workers=10_001)


@pytest.mark.parametrize("value", ["drop", "", None, 1, "Block", ["block"]])
def test_on_full_is_one_of_two_words(value):
    with pytest.raises(OptionError, match='on_full must be "block" or "raise"'):
        check(on_full=value)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("cpu_worker", "did you mean cpu_workers=?"), ("zzz", "It has: handlers, cpu_workers")],
)
def test_an_unknown_option_gets_a_hint(name, hint):
    with pytest.raises(OptionError) as caught:
        check(**{name: 1})
    assert hint in str(caught.value)


def test_options_of_later_versions_are_named():
    with pytest.raises(OptionError, match="journal= is not supported by this version"):
        check(journal="events.sqlite")
