# SPDX-License-Identifier: MIT
"""When a delayed event is due: in some time, or at a time."""

from __future__ import annotations

from datetime import datetime, timedelta
from math import isnan
from time import time
from typing import Any, NamedTuple

from procbus.core.errors import OptionError
from procbus.core.validation import is_real, parse_duration, shown

#: Maximum delay, in seconds: a hundred years, because dates have four digits.
LONGEST_DELAY_S = 100 * 366 * 86_400.0

#: How long to wait: seconds, a text such as "5 min", or a timedelta.
Duration = float | str | timedelta


class When(NamedTuple):
    """When an event is due. One of the two is None."""

    #: Seconds from its publishing.
    in_s: float | None
    #: The time as of `time.time()`.
    at: float | None


class Delayed(NamedTuple):
    """An event of a cpu handler on its way to the script, where it waits until it is due."""

    event: Any
    when: When


def when_of(delay: Duration | None, at: datetime | None) -> When:
    """Check the options `delay` and `at`, of which at least one is given.

    Args:
        delay: see `EventBus.publish`.
        at: see `EventBus.publish`.

    Raises:
        OptionError: they make no sense; the message says how to mend it.
    """
    if delay is not None and at is not None:
        raise OptionError(
            "an event has one time: give delay= (how long from now) or at= (a datetime), not both"
        )
    if delay is not None:
        return When(_seconds_of(delay), None)
    if not isinstance(at, datetime):
        hint = (
            "; for a number of seconds from now write delay="
            if is_real(at, 0, LONGEST_DELAY_S)
            else ""
        )
        raise OptionError(f"at must be a datetime.datetime, not {shown(at)}{hint}")
    try:
        seconds = at.timestamp()
    except (OverflowError, ValueError, OSError) as error:
        raise OptionError(f"at={shown(at)} is no time that this machine knows: {error}") from error
    if seconds - time() > LONGEST_DELAY_S:
        raise OptionError(f"at must be at most 100 years from now, not {shown(at)}")
    return When(None, seconds)


def _seconds_of(delay: object) -> float:
    if isinstance(delay, datetime):
        raise OptionError(f"delay is how long from now: for a time write at={shown(delay)}")
    try:
        seconds = parse_duration(delay)
    except ValueError as error:
        raise OptionError(f"delay {error}") from None
    if isnan(seconds) or not 0 <= seconds <= LONGEST_DELAY_S:
        raise OptionError(f"delay must be from 0 to 100 years, not {shown(delay)}")
    return seconds
