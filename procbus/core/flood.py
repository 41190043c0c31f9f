# SPDX-License-Identifier: MIT
"""So many records a second leave a worker; what is above that is counted, and told later."""

from __future__ import annotations

import logging
from math import inf

#: Records and warnings that a worker sends in a second, and at once after a quiet time.
RATE = 1_000
BURST = 2_000
#: The same for records of ERROR and above once the others have used that up: an error is not lost
#: in a flood of debug.
ERROR_RATE = 100
ERROR_BURST = 500

#: A worker tells at most once in so many seconds how much it left out: a flood that goes on for
#: hours should not become one of such lines.
TELL_S = 5.0


class Allowance:
    """A token bucket. Not thread-safe.

    Args:
        rate: how many a second in the long run.
        burst: how many at once after a quiet time.
    """

    def __init__(self, rate: float, burst: int) -> None:
        self._rate = rate
        self._burst = burst
        self._left: float = burst
        self._at = -inf

    def take(self, now: float) -> bool:
        """Take one if there is one left, at a time in seconds of `time.monotonic()`."""
        if now > self._at:  # threads may come in another order than they read the clock
            self._left = min(self._burst, self._left + (now - self._at) * self._rate)
            self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Flood:
    """What one worker lets out, and what it left out. Not thread-safe."""

    def __init__(self) -> None:
        self._common = Allowance(RATE, BURST)
        self._errors = Allowance(ERROR_RATE, ERROR_BURST)
        #: How many were left out of each handler since that was last told; None is for threads
        #: that belong to no delivery.
        self._left_out: dict[str | None, int] = {}
        #: When the first of these was left out, and when others were told of before.
        self._since = -inf
        self._told_at = -inf

    def admits(self, level: int, handler: str | None, now: float) -> bool:
        """Whether a record of this level may leave; if not it is counted.

        Args:
            level: as in `logging`.
            handler: name of the handler it comes from, None if from none.
            now: in seconds of `time.monotonic()`.
        """
        if self._common.take(now) or (level >= logging.ERROR and self._errors.take(now)):
            return True
        self.leave_out({handler: 1}, now)
        return False

    def leave_out(self, counts: dict[str | None, int], now: float) -> None:
        """Count what does not leave, by handler."""
        if not self._left_out:
            self._since = now
        for handler, count in counts.items():
            self._left_out[handler] = self._left_out.get(handler, 0) + count

    def untold(self) -> bool:
        """Whether something was left out that nobody was told of."""
        return bool(self._left_out)

    def take_left_out(self, now: float, *, midway: bool = False) -> dict[str | None, int]:
        """Give what is to be told now, by handler; empty when there is nothing, or not yet.

        Args:
            now: in seconds of `time.monotonic()`; infinity takes it in any case.
            midway: more of the same is likely, so that a count now would soon be wrong.
        """
        last = max(self._told_at, self._since) if midway else self._told_at
        if not self._left_out or now - last < TELL_S:
            return {}
        if now < inf:
            self._told_at = now
        left_out, self._left_out = self._left_out, {}
        return left_out


def describe_left_out(left_out: dict[str | None, int], pid: int) -> str:
    """Say in a line how many were left out, and of which handlers."""
    of = ", ".join(
        f"{name or 'threads that belong to no delivery'} {count:,}"
        for name, count in sorted(left_out.items(), key=lambda item: -item[1])
    )
    return (
        f"worker {pid} left out {sum(left_out.values()):,} log records or warnings, since it made "
        f"more than {RATE:,} a second or they were not taken from it: {of}"
    )
