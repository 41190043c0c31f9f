# SPDX-License-Identifier: MIT
"""A rate: the maximum of runs of a handler that begin in any period, and how to write a rate."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from procbus.core.validation import TIME_UNITS, did_you_mean, shown

_WRITTEN = re.compile(r"\s*(\d+)\s*/\s*(\d+(?:\.\d+)?)?\s*([a-z]+?)s?\s*", re.IGNORECASE)
#: Maximum of runs in a period; because the start of each of them is kept.
_MOST = 1_000_000
#: Minimum period, in seconds; because threads and timers are no more precise.
_SHORTEST_S = 0.01
_LONGEST_S = 366 * 86_400.0


@dataclass(frozen=True, slots=True)
class Rate:
    """At most `count` runs begin in any period of `period_s` seconds.

    `written` is the rate as the user wrote it, such as "300/min".

    Example:
        ```python
        from procbus import EventBus

        bus = EventBus(handlers=[])
        bus.subscribe("word", len, rate="300/min")
        (handler,) = bus.handlers("word")
        assert handler.rate is not None
        assert (handler.rate.count, handler.rate.period_s) == (300, 60)
        ```
    """

    count: int
    period_s: float
    written: str

    def __str__(self) -> str:
        """The rate as it was written."""
        return self.written


def parse_rate(name: str, value: Any) -> Rate | None:
    """Read a rate such as "300/min", "5/s" or "20/10 s"; None for none.

    Args:
        name: the option, for the message.
        value: the rate as the user wrote it.

    Raises:
        ValueError: it makes no sense; the message says how to mend it.
    """
    if value is None:
        return None
    if isinstance(value, Rate):
        return value
    found = _WRITTEN.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise ValueError(
            f'{name} must be a number of events in a period, such as "300/min", "5/s" or '
            f'"20/10 s", not {shown(value)}'
        )
    count, periods, unit = int(found[1]), float(found[2] or 1), found[3].lower()
    if unit not in TIME_UNITS:
        hint = did_you_mean(unit, list(TIME_UNITS)) or "; the units are s, min, h, d and w"
        raise ValueError(f"{name}={shown(value)} has an unknown unit {unit!r}{hint}")
    period_s = periods * TIME_UNITS[unit]
    if not (1 <= count <= _MOST and _SHORTEST_S <= period_s <= _LONGEST_S):
        raise ValueError(
            f"{name}={shown(value)} must allow 1 to {_MOST:,} events in a period of 10 ms to one "
            "year"
        )
    return Rate(count, period_s, value)
