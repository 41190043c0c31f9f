# SPDX-License-Identifier: MIT
"""How many runs of a handler begin in a window of time."""

from __future__ import annotations

from collections.abc import Sequence


def most_in_a_window(times: Sequence[float], window_s: float) -> int:
    """The largest number of times that lie in any window, which is open at its end."""
    return max(
        (sum(first <= each < first + window_s for each in times) for first in times), default=0
    )
