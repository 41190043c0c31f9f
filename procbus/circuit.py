# SPDX-License-Identifier: MIT
"""Restart intensity: when workers die one after the other, stop starting work for a while.

After the maximum restart intensity of Erlang's supervisors, and the circuit breaker of M. Nygard's
"Release It!": closed, it counts; open, it lets nothing through; after a while it lets one trial
through, which closes or opens it again. A state machine, told the time; it knows no threads.
"""

from __future__ import annotations

import enum
from collections import deque

#: More deaths than this within `WINDOW_S` seconds, and no delivery survived between them.
MOST_DEATHS = 20
WINDOW_S = 30.0
#: How long it stays open at first, in seconds; twice as long after each trial that failed.
COOL_S = 5.0
MOST_COOL_S = 60.0
#: What was let through as a trial, and is in no handler after so many seconds, was no trial: a
#: delivery that cannot travel, or that was put back.
SPENT_S = 1.0


class CircuitState(enum.Enum):
    """Where a circuit stands."""

    CLOSED = "closed"
    OPEN = "open"
    #: One delivery is to be tried, or under way.
    TRIAL = "trial"


class Circuit:
    """The circuit of one lane. Not thread-safe: the lane's lock guards it."""

    def __init__(self) -> None:
        self.state = CircuitState.CLOSED
        self._deaths: deque[float] = deque(maxlen=MOST_DEATHS + 1)
        self._cool_s = COOL_S
        self._hurried = False
        #: While it is open: when the next trial may be.
        self.trial_at = 0.0
        #: During a trial: when a delivery was taken for it; None before that.
        self.taken_at: float | None = None
        #: Trials in a row that failed.
        self.failed_trials = 0

    def note_death(self, now: float) -> bool:
        """A worker died by itself; say whether this opens the circuit."""
        if self.state is CircuitState.OPEN:
            return False  # it had been given its work before
        self._deaths.append(now)
        full = len(self._deaths) > MOST_DEATHS and now - self._deaths[0] <= WINDOW_S
        if self.state is CircuitState.TRIAL:
            self._cool_s = min(2 * self._cool_s, MOST_COOL_S)
            self.failed_trials += 1
        elif not full:
            return False
        self.state = CircuitState.OPEN
        self.trial_at = now if self._hurried else now + self._cool_s
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

    def begin_trial(self, now: float, under_way: bool) -> bool:
        """Begin a trial if one is due; say whether it begins.

        There may be another before one knows how the last went: it may have been spent on nothing,
        or may take for ever.

        Args:
            now: the time, in seconds of `time.monotonic()`.
            under_way: whether what was taken for a trial is in its handler.
        """
        if self.state is CircuitState.OPEN:
            due_at = self.trial_at
        elif self.state is CircuitState.TRIAL and self.taken_at is not None:
            due_at = self.taken_at + (MOST_COOL_S if under_way else SPENT_S)
        else:
            return False
        if now < due_at:
            return False
        self.state = CircuitState.TRIAL
        self.taken_at = None
        return True

    def note_taken(self, now: float) -> None:
        """A delivery was taken for the trial."""
        self.taken_at = now

    def hurry(self) -> None:
        """Have trials that fail be followed by others without a wait from now on."""
        self._hurried = True
        self.trial_at = 0.0

    @property
    def deaths(self) -> int:
        """Worker deaths, without a survival between them, as far as they are counted."""
        return len(self._deaths)
