# SPDX-License-Identifier: MIT
"""Whether an option is a number within its bounds. True and False are no numbers here."""

from __future__ import annotations

from math import inf
from numbers import Real
from typing import Any, TypeGuard

# In a variable of this type, because for mypy an int is no Real.
_REAL: type[Any] = Real


def is_whole(value: object, least: float, most: float = inf) -> TypeGuard[int]:
    """Whether it is an integer from `least` to `most`."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def is_real(value: object, least: float, most: float) -> TypeGuard[float]:
    """Whether it is a number from `least` to `most`, of Python's own or another library's.

    NaN is not.
    """
    return isinstance(value, _REAL) and not isinstance(value, bool) and bool(least <= value <= most)
