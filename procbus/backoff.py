# SPDX-License-Identifier: MIT
"""How long a delivery that failed waits for its next attempt."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from procbus.outcome import Outcome

Backoff: TypeAlias = Callable[[int, Outcome], float]
"""Seconds to wait, by the number of the attempt that has just failed, from 1, and its outcome."""


def exponential(attempt: int, outcome: Outcome) -> float:  # noqa: ARG001 - waits alike for any
    """Wait for a random part of 0.5 s doubled at each attempt, of 60 s at most: the default.

    The whole of the wait is random ("full jitter"), so that deliveries which failed together, as
    when a server went down, do not all come back together. See the AWS architecture blog,
    "Exponential backoff and jitter".
    """
    from random import uniform  # only now: workers import this module and never wait

    # Bounded before the power, which at a thousand attempts is no float any more.
    return uniform(0.0, min(60.0, 0.5 * 2.0 ** min(attempt - 1, 7)))  # noqa: S311 - no secret
