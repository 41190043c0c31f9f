# SPDX-License-Identifier: MIT
"""Numbers within their bounds, and values that are no numbers."""

import decimal
import fractions
from math import inf, nan

import numpy as np
import pytest

from procbus.core.validation import is_real, is_whole


@pytest.mark.parametrize("value", [1, 2, 3])
def test_integers_within_the_bounds_are_whole_numbers(value: object):
    assert is_whole(value, 1, 3)


@pytest.mark.parametrize("value", [0, 4, -1, True, 1.0, nan, "1", None, [1]])
def test_anything_else_is_no_whole_number(value: object):
    assert not is_whole(value, 1, 3)


def test_bounds_may_be_missing():
    assert is_whole(10**400, 1)
    assert is_whole(-(10**400), -inf)


@pytest.mark.parametrize(
    "value", [0, 0.0, 1, 0.5, fractions.Fraction(1, 3), np.float32(0.5), np.int64(1)]
)
def test_numbers_of_any_library_are_real(value: object):
    assert is_real(value, 0, 1)


@pytest.mark.parametrize(
    "value", [-0.1, 1.1, nan, inf, -inf, True, 10**400, "1", None, 1j, decimal.Decimal(1), [0.5]]
)
def test_other_objects_are_not_real_numbers(value: object):
    assert not is_real(value, 0, 1)
