# SPDX-License-Identifier: MIT
"""A limit on the log records that a worker may send in a second.

A handler that logs in a tight loop would otherwise fill the pipe that its results need. Records
above the limit are counted, and the count is logged later.
"""

from __future__ import annotations

import logging
from math import inf

#: Maximum of records and warnings that a worker sends, in the long run a second, and at once after
#: a quiet time; because the script has to log them all.
RATE = 1_000
BURST = 2_000
#: The same for records of ERROR and above, once the maximum above is used up; because a flood of
#: debug records must not hide an error.
ERROR_RATE = 100
ERROR_BURST = 500

#: Interval between two reports of the number of records left out, in seconds; because a flood that
#: lasts for hours should not become a flood of reports.
TELL_S = 5.0


class Allowance:
    """A token bucket. Not thread-safe.

    Args:
        rate: tokens added in each second.
        burst: tokens there are after a quiet time.
    """

    def __init__(self, rate: float, burst: int) -> None:
        self._rate = rate
        self._burst = burst
        self._left: float = burst
        self._at = -inf

    def take(self, now: float) -> bool:
        """Take a token if there is one left, at a time in seconds of `time.monotonic()`."""
        if now > self._at:  # threads may arrive in another order than they read the clock
            self._left = min(self._burst, self._left + (now - self._at) * self._rate)
            self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Flood:
    """Decides which records one worker sends, and counts the others. Not thread-safe."""

    def __init__(self) -> None:
        self._common = Allowance(RATE, BURST)
        self._errors = Allowance(ERROR_RATE, ERROR_BURST)
        #: Records left out since the last report, by handler; None is for threads that belong to no
        #: delivery.
        self.left_out: dict[str | None, int] = {}
        #: Time of the first record left out since the last report, and time of that report.
        self._since = -inf
        self._told_at = -inf

    def admits(self, level: int, handler: str | None, now: float) -> bool:
        """Whether a record of this level may be sent; a record that may not is counted.

        Args:
            level: as in `logging`.
            handler: name of the handler that logged it, None outside handlers.
            now: in seconds of `time.monotonic()`.
        """
        if self._common.take(now) or (level >= logging.ERROR and self._errors.take(now)):
            return True
        self.leave_out({handler: 1}, now)
        return False

    def leave_out(self, counts: dict[str | None, int], now: float) -> None:
        """Count records that are not sent, by handler."""
        if not self.left_out:
            self._since = now
        for handler, count in counts.items():
            self.left_out[handler] = self.left_out.get(handler, 0) + count

    def take_left_out(self, now: float, *, midway: bool = False) -> dict[str | None, int]:
        """Return the counts to report now, by handler; empty when there are none, or not yet.

        Args:
            now: in seconds of `time.monotonic()`; with infinity all counts are returned.
            midway: whether more records are likely to follow, so that a count would soon be wrong.
        """
        last = max(self._told_at, self._since) if midway else self._told_at
        if not self.left_out or now - last < TELL_S:
            return {}
        if now < inf:
            self._told_at = now
        left_out, self.left_out = self.left_out, {}
        return left_out


def describe_left_out(left_out: dict[str | None, int], pid: int) -> str:
    """One line that says how many records were left out, and of which handlers."""
    of = ", ".join(
        f"{name or 'threads that belong to no delivery'} {count:,}"
        for name, count in sorted(left_out.items(), key=lambda item: -item[1])
    )
    return (
        f"worker {pid} left out {sum(left_out.values()):,} log records or warnings, since it made "
        f"more than {RATE:,} a second, or the script was too busy to take them: {of}"
    )
