# SPDX-License-Identifier: MIT
"""How long a journal keeps what is finished."""

from __future__ import annotations

import re
import time
from datetime import timedelta
from math import inf
from typing import Literal

Keep = Literal["unfinished", "all"] | float | str | timedelta

_UNITS = {"s": 1, "second": 1, "min": 60, "minute": 60, "h": 3_600, "hour": 3_600}
_UNITS |= {"d": 86_400, "day": 86_400, "w": 604_800, "week": 604_800}
_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+?)s?\s*", re.IGNORECASE)


class Calendar:
    """The time of day, for deleting what is old: a clock that is set forward deletes nothing.

    It is the earlier of what the clock says and of what it would say, had nobody set it since this
    was made.
    """

    def __init__(self) -> None:
        self._ahead_s = time.time() - _steady()

    def now(self) -> float:
        """Seconds as of `time.time()`."""
        return min(time.time(), _steady() + self._ahead_s)


def _steady() -> float:
    """A clock that nobody sets, and that goes on while the machine sleeps, where there is one."""
    boottime = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boottime is None else time.clock_gettime(boottime)


def parse_keep(value: object) -> float:
    """Give the seconds for which what is finished is kept: 0 for "unfinished", inf for "all".

    Args:
        value: "unfinished", "all", or how long: a number of seconds, such as "7 days" or "36 h", or
            a `timedelta`.

    Raises:
        ValueError: it is none of these; the sentence says what would be.

    >>> parse_keep("7 days"), parse_keep("all"), parse_keep("unfinished")
    (604800.0, inf, 0.0)
    """
    if value == "unfinished":
        return 0.0
    if value == "all":
        return inf
    seconds: float | None = None
    if isinstance(value, timedelta):
        seconds = value.total_seconds()
    elif isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    elif isinstance(value, str) and (found := _DURATION.fullmatch(value)):
        unit = _UNITS.get(found[2].lower())
        seconds = None if unit is None else float(found[1]) * unit
    if seconds is None or not 0 < seconds < inf:
        raise ValueError(
            'must be "unfinished", "all", or how long: a number of seconds, such as "7 days" or '
            f'"36 h", or a timedelta, not {value!r}'
        )
    return seconds
