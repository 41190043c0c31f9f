# SPDX-License-Identifier: MIT
"""Restart intensity: when workers die one after the other, stop starting work for a while.

After the maximum restart intensity of Erlang's supervisors, and the circuit breaker of M. Nygard's
"Release It!": closed, it counts; open, it lets nothing through; after a while it lets one trial
through, which closes or opens it again. It stops work while memory is short, too.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

#: Maximum of deaths within `DEATHS_WINDOW_S` seconds, with no delivery survived between them.
MOST_DEATHS = 20
DEATHS_WINDOW_S = 30.0
#: How long it stays open at first, in seconds; twice as long after each trial that failed.
COOL_S = 5.0
MOST_COOL_S = 60.0
#: A trial whose delivery is in no handler after this time, in seconds, was spent on nothing: on a
#: delivery that cannot travel, or that was put back.
SPENT_S = 1.0
#: Short of memory with nothing running, the lane begins one delivery after this time, in seconds:
#: perhaps others use the memory, and nothing would ever run again.
TRICKLE_S = 30.0


class CircuitState(enum.Enum):
    """Where a circuit stands."""

    CLOSED = "closed"
    OPEN = "open"
    #: One delivery is to be tried, or under way.
    TRIAL = "trial"


class Look(NamedTuple):
    """What follows from a look at the workers and at memory."""

    #: Memory has become short: what no worker has begun is to go back.
    stops: bool
    #: A trial begins.
    trial: bool
    #: More may be begun than before: wake a worker.
    wakes: bool


class CircuitBreaker:
    """Says how many deliveries of a lane may be begun. A state machine that is told the time.

    Not thread-safe: the lane's lock guards it.
    """

    def __init__(self) -> None:
        self.state = CircuitState.CLOSED
        #: While it is open: when the next trial may be.
        self.trial_at = 0.0
        #: Trials in a row that failed.
        self.failed_trials = 0
        self._deaths: deque[float] = deque(maxlen=MOST_DEATHS + 1)
        self._cool_s = COOL_S
        self._hurried = False
        #: During a trial: when a delivery was taken for it; None before that.
        self._taken_at: float | None = None
        #: Why there is too little memory; empty while there is enough.
        self._short = ""
        #: Since when memory has been short with nothing running, or since the last trickle.
        self._idle_since: float | None = None
        #: Deliveries that may be begun while it lets nothing else through.
        self._permits = 0

    @property
    def deaths(self) -> int:
        """Worker deaths, without a survival between them, as far as they are counted."""
        return len(self._deaths)

    def reason(self) -> str:
        """Why nothing is begun; empty while all may be."""
        if self.state is CircuitState.CLOSED:
            return self._short
        return f"{self.deaths} workers died, and no delivery between them was survived"

    def most(self) -> int | None:
        """How many deliveries may be begun now; None for any number."""
        if self.state is CircuitState.CLOSED and not self._short:
            return None
        return self._permits

    def begin(self, now: float) -> None:
        """One of them is begun."""
        self._permits = max(0, self._permits - 1)
        self._taken_at = now

    def note_death(self, now: float) -> bool:
        """A worker died by itself; say whether this opens the circuit."""
        if self.state is CircuitState.OPEN:
            return False  # it had been given its work before
        self._deaths.append(now)
        full = len(self._deaths) > MOST_DEATHS and now - self._deaths[0] <= DEATHS_WINDOW_S
        if self.state is CircuitState.TRIAL:
            self._cool_s = min(2 * self._cool_s, MOST_COOL_S)
            self.failed_trials += 1
        elif not full:
            return False
        self.state = CircuitState.OPEN
        self.trial_at = now if self._hurried else now + self._cool_s
        self._permits = 0  # a delivery that was let through and is not begun waits too
        return True

    def note_survival(self) -> bool:
        """A worker came through a delivery; say whether this closes the circuit."""
        if self.state is CircuitState.OPEN:
            return False  # it had been given its work before
        self._deaths.clear()
        if self.state is CircuitState.CLOSED:
            return False
        self.state = CircuitState.CLOSED
        self._cool_s = COOL_S
        self.failed_trials = 0
        return True

    def hurry(self) -> None:
        """Have trials that fail be followed by others without a wait from now on."""
        self._hurried = True
        self.trial_at = 0.0

    def look(self, now: float, short: str, running: Sequence[float]) -> Look:
        """See whether work may begin again, or must not.

        Args:
            now: the time, in seconds of `time.monotonic()`.
            short: why there is too little memory; empty when there is enough.
            running: when each delivery began that is in a handler.
        """
        was_short, self._short = self._short, short
        trial = self._begin_trial(now, running)
        wakes = trial or self._trickle(now, idle=not running) or bool(was_short and not short)
        return Look(bool(short and not was_short), trial, wakes)

    def _begin_trial(self, now: float, running: Sequence[float]) -> bool:
        """Begin a trial if one is due; say whether it begins.

        There may be another before one knows how the last went: it may have been spent on nothing,
        or may take for ever.
        """
        taken_at = self._taken_at
        if self.state is CircuitState.OPEN:
            due_at = self.trial_at
        elif self.state is CircuitState.TRIAL and taken_at is not None:
            under_way = any(began >= taken_at for began in running)
            due_at = taken_at + (MOST_COOL_S if under_way else SPENT_S)
        else:
            return False
        if now < due_at:
            return False
        self.state = CircuitState.TRIAL
        self._taken_at = None
        self._permits = 1
        return True

    def _trickle(self, now: float, *, idle: bool) -> bool:
        """Let one delivery through if memory has been short for long with nothing running."""
        if not self._short or not idle or self.state is not CircuitState.CLOSED:
            self._idle_since = None
            return False
        if self._idle_since is None:
            self._idle_since = now
        if now - self._idle_since < TRICKLE_S:
            return False
        self._idle_since = now
        self._permits = 1
        return True
