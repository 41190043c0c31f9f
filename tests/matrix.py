"""Large matrices: `make test` runs the first cases of one, `make test-all` runs all of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def quick_first(cases: Iterable[Any], quick: int = 1) -> list[Any]:
    """Mark all but the first `quick` cases `slow`, for `pytest.mark.parametrize`.

    A case that is a tuple has several values.
    """
    return [
        case if number < quick else pytest.param(*_values(case), marks=pytest.mark.slow)
        for number, case in enumerate(cases)
    ]


def _values(case: Any) -> tuple[Any, ...]:
    return case if isinstance(case, tuple) else (case,)
