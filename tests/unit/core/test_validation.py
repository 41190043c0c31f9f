# SPDX-License-Identifier: MIT
"""Amounts of memory: readable texts, refusals with advice, and their display."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procbus.core.validation import format_size, parse_limit, parse_size

FACTORS = {"B": 1, "kB": 1000, "MB": 1000**2, "GB": 1000**3, "TB": 1000**4} | {
    "KiB": 1024,
    "MiB": 1024**2,
    "GiB": 1024**3,
    "TiB": 1024**4,
}


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (0, 0),
        (512, 512),
        ("512B", 512),
        ("512MiB", 512 * 1024**2),
        ("512 mib", 512 * 1024**2),
        (" 1.5 GB ", 1_500_000_000),
        ("1.5GiB", 1_610_612_736),
        ("300 KB", 300_000),
        ("300\tkb", 300_000),
        ("0.1 TB", 100_000_000_000),
        ("0.3 B", 0),
        ("9007199254740993 B", 9_007_199_254_740_993),  # no float on the way
    ],
)
def test_amounts_are_read(value: Any, size: int):
    assert parse_size(value) == size


@given(
    st.integers(0, 10**5),
    st.sampled_from(list(FACTORS)),
    st.sampled_from(["", " ", "  "]),
    st.sampled_from([str.lower, str.upper, str]),
)
def test_any_whole_number_of_any_unit_is_read(number: int, unit: str, space: str, case: Any):
    assert parse_size(f"{number}{space}{case(unit)}") == number * FACTORS[unit]


@pytest.mark.parametrize(
    ("value", "advice"),
    [
        ("300M", 'did you mean "300 MB" or "300 MiB"?'),
        ("1.5 g", 'did you mean "1.5 GB" or "1.5 GiB"?'),
        ("2Ki", 'did you mean "2 kB" or "2 KiB"?'),
        ("512", 'did you mean "512 MB" or "512 MiB", or the integer 512 for bytes?'),
        ("0.5", 'did you mean "0.5 MB" or "0.5 MiB"?'),
        ("3 MiBB", "MiBB; did you mean MiB?"),
        ("3 parsecs", "parsecs; the units are B, kB, MB, GB, TB, KiB, MiB, GiB, TiB"),
        ("", "such as"),
        ("MiB", "such as"),
        ("-1 MB", "such as"),
        ("1,5 GB", "such as"),
        ("1e3 MB", "such as"),
        (".5 GB", "such as"),
        ("1. GB", "such as"),
        ("nan GB", "such as"),
        pytest.param("1" * 5000 + "B", "such as", id="many digits"),
        ("9999999999 TB", "such as"),
        (2**60 + 1, "such as"),
        pytest.param(10**5000, "such as", id="huge"),
        (-1, "such as"),
        (True, "such as"),
        (1.5, "such as"),
        (None, "such as"),
        (b"1 MB", "such as"),
    ],
)
def test_other_values_are_refused_with_advice(value: Any, advice: str):
    with pytest.raises(ValueError, match=r".") as caught:
        parse_size(value)
    assert advice in str(caught.value)


@given(st.text())
def test_any_text_is_read_or_refused(text: str):
    try:
        size = parse_size(text)
    except ValueError:
        return
    assert size >= 0


@pytest.mark.parametrize("value", ["32 MiB", "33.6 MB", 32 * 1024**2])
def test_limit_of_an_empty_process_is_accepted(value: Any):
    assert parse_limit(value) == parse_size(value)


@pytest.mark.parametrize("value", [0, 1, "31.9 MiB", "32 MB"])
def test_a_smaller_limit_is_refused(value: Any):
    with pytest.raises(ValueError, match=r"less than an empty Python process needs.* 32 MiB"):
        parse_limit(value)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (1024**2 - 1, "1 MiB"),  # never "1024 KiB"
        (512 * 1024**2, "512 MiB"),
        (1_503_238_553, "1.4 GiB"),
        (3 * 1024**5, "3072 TiB"),
    ],
)
def test_amounts_are_shown_for_people(size: int, text: str):
    assert format_size(size) == text


@given(st.integers(0, 2**60))
def test_formatted_size_can_be_read_and_is_near(size: int):
    assert abs(parse_size(format_size(size)) - size) <= 0.06 * size
