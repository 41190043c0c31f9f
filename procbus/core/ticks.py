# SPDX-License-Identifier: MIT
"""The times of a schedule: an interval, or a line of cron, and how these are written."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime, tzinfo
from math import floor
from typing import Any, Protocol

from procbus.core.errors import OptionError
from procbus.core.validation import TIME_UNITS, did_you_mean, parse_duration, shown
from procbus.core.when import LONGEST_DELAY_S

#: Minimum interval, in seconds; because threads and timers are no more precise.
_SHORTEST_S = 0.01
#: Numbers of fields of a cron line: without the seconds, and with them.
_FIELDS = (5, 6)
#: Words that stand for a cron line.
_NICKNAMES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
#: Units in which an interval is written, the longest first.
_UNITS = ("week", "day", "h", "min")
_HOW = (
    'Write how long, such as "5 min", a number of seconds or a timedelta; or a cron line of five '
    'fields, such as "0 9 * * mon-fri" (minute, hour, day, month, day of the week)'
)


class Ticks(Protocol):
    """The times at which a schedule publishes."""

    #: The same text for the same times, however they were written.
    written: str
    #: Whether the times follow the time of day, and not the time that passes.
    by_wall: bool

    def next_of(self, last: float) -> float:
        """The tick that follows a tick, or the beginning, which may be over."""

    def after(self, last: float, now: float) -> float:
        """The first tick that follows a tick, and that is not over."""

    def latest(self, last: float, now: float) -> float:
        """The time from which `next_of` finds the same: the last tick that is over, if known."""


class Interval:
    """A tick after each interval, in seconds."""

    by_wall = False

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.written = _in_words(seconds)

    def next_of(self, last: float) -> float:
        """See `Ticks`."""
        return last + self.seconds

    def after(self, last: float, now: float) -> float:
        """See `Ticks`: the phase stays, however many ticks are left out."""
        left_out = max(0, floor((now - last) / self.seconds))
        found = last + (left_out + 1) * self.seconds
        return found if found > now else found + self.seconds

    def latest(self, last: float, now: float) -> float:
        """See `Ticks`."""
        return self.after(last, now) - self.seconds


class CronLine:
    """The ticks of a line of cron, in local time or in a time zone."""

    by_wall = True

    def __init__(
        self, line: str, make: Callable[[str, datetime], Any], zone: tzinfo | None
    ) -> None:
        self.written = line if zone is None else f"{line} {zone}"
        self._line = line
        self._make = make
        self._zone = _local_zone() if zone is None else zone

    def next_of(self, last: float) -> float:
        """See `Ticks`."""
        since = datetime.fromtimestamp(last, self._zone)
        times = (float(each.timestamp()) for each in self._make(self._line, since))
        return next(at for at in times if at > last)

    def after(self, last: float, now: float) -> float:
        """See `Ticks`."""
        return self.next_of(max(last, now))

    def latest(self, last: float, now: float) -> float:
        """See `Ticks`."""
        return max(last, now)


def parse_ticks(spec: object, tz: object = None) -> Ticks:
    """Read the times of a schedule as the user wrote them.

    Args:
        spec: the interval or the cron line.
        tz: the time zone of a cron line, or its name; None for local time.

    Raises:
        OptionError: they make no sense; the message says how to mend it.
    """
    if isinstance(spec, str) and (len(spec.split()) in _FIELDS or spec.strip().startswith("@")):
        return _cron_line(spec, _zone(tz))
    if tz is not None:
        raise OptionError(
            f"tz={shown(tz)} is for a line of cron, and an interval such as {shown(spec)} has no "
            "time zone: leave tz out"
        )
    try:
        seconds = parse_duration(spec)
    except ValueError:
        hint = _hint(spec)
        end = "" if hint.endswith("?") else "."
        raise OptionError(f"every({shown(spec)}, ...) is no time{hint}{end} {_HOW}") from None
    if not _SHORTEST_S <= seconds <= LONGEST_DELAY_S:
        raise OptionError(f"every({shown(spec)}, ...) must be from 10 ms to 100 years. {_HOW}")
    return Interval(seconds)


def _hint(spec: object) -> str:
    """The end of a sentence about a text that is neither an interval nor a cron line."""
    words = spec.lower().split() if isinstance(spec, str) else []
    if not words:
        return ""
    if words[0] == "every" and len(words) > 1:
        return f'; leave out "every": {" ".join(words[1:])!r}'
    if len(words) == 1 and (nickname := "@" + words[0]) in _NICKNAMES:
        return f"; did you mean {nickname!r}?"
    if len(words) > 2:
        return f"; a cron line has five fields, or six with seconds first, and this {len(words)}"
    unit = words[-1].lstrip("0123456789.")
    return did_you_mean(unit, [*_UNITS, "s", "hour", "minute", "second"]) if unit else ""


def _zone(tz: object) -> tzinfo | None:
    """The time zone that the user gave, perhaps by its name."""
    if tz is None or isinstance(tz, tzinfo):
        return tz
    if not isinstance(tz, str):
        raise OptionError(
            f'tz must be the name of a time zone, such as "Europe/Berlin", or a datetime.tzinfo, '
            f"not {shown(tz)}"
        )
    from zoneinfo import ZoneInfo, available_timezones  # only now: few scripts need it

    try:
        return ZoneInfo(tz)
    except (KeyError, OSError, ValueError):  # no such zone; a folder of zones; no such path
        known = available_timezones()
        lacking = "; this machine has no time zones: pip install tzdata"
        hint = did_you_mean(tz, sorted(known)) if known else lacking
        how = "" if hint else '; write a name such as "Europe/Berlin" or "UTC"'
        raise OptionError(f"tz={shown(tz)} is no known time zone{hint}{how}") from None


def _cron_line(spec: str, zone: tzinfo | None) -> CronLine:
    line = " ".join(spec.split())
    if line.startswith("@"):
        if line.lower() not in _NICKNAMES:
            hint = did_you_mean(line, list(_NICKNAMES)) or f"; there are {', '.join(_NICKNAMES)}"
            raise OptionError(f"every({spec!r}, ...) is no time{hint}")
        line = _NICKNAMES[line.lower()]
    try:
        from cronsim import CronSim, CronSimError  # only now: an extra
    except ImportError as error:
        raise OptionError(
            f"the cron line {spec!r} needs cronsim: pip install 'procbus[cron]'; or write an "
            'interval, such as every("1 day", ...)'
        ) from error
    try:
        next(CronSim(line, datetime.now()))
    except (CronSimError, StopIteration) as error:
        reason = str(error).lower() or "no day has it"
        raise OptionError(
            f"every({spec!r}, ...) is no cron line: {reason}. The fields are minute, hour, day, "
            'month and day of the week, such as "0 9 * * mon-fri" or "*/15 * * * *"'
        ) from None
    return CronLine(line, CronSim, zone)


def _in_words(seconds: float) -> str:
    for unit in _UNITS:
        length = TIME_UNITS[unit]
        if seconds % length == 0:
            return f"{int(seconds // length)} {unit}"
    return f"{int(seconds) if seconds == int(seconds) else seconds!r} s"


def _local_zone() -> tzinfo | None:
    """The rules of local time; None if they cannot be found: then each day has its own offset."""
    from zoneinfo import ZoneInfo  # only now: few scripts need it

    name = os.environ.get("TZ", "").lstrip(":")
    try:
        if name:
            return ZoneInfo(name)
        with open("/etc/localtime", "rb") as file:
            return ZoneInfo.from_file(file, "localtime")
    except (KeyError, OSError, ValueError):  # no such zone or file; a rule: "EST5EDT,M3.2.0"
        return None
