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


# What keeps the cpu lane from beginning work: workers that die and die, too little memory.

#: Short of memory with nothing running, the lane begins one delivery after so many seconds: perhaps
#: it is not the lane that memory is missing for, and nothing would ever run again.
TRICKLE_S = 30.0


class Brake:
    """The brake of one lane. Not thread-safe: the lane's lock guards it."""

    def __init__(self) -> None:
        self.circuit = Circuit()
        #: Why there is too little memory; empty while there is enough.
        self.short = ""
        #: Deliveries that may be begun all the same.
        self._permits = 0
        self._idle_since: float | None = None

    def reason(self) -> str:
        """Why nothing is begun; empty while all may be."""
        if self.circuit.state is CircuitState.CLOSED:
            return self.short
        return f"{self.circuit.deaths} workers died, and no delivery between them was survived"

    def most(self) -> int | None:
        """How many deliveries may be begun now; None for any number."""
        if self.circuit.state is CircuitState.CLOSED and not self.short:
            return None
        return self._permits

    def begin(self, now: float) -> None:
        """One of them is begun."""
        self._permits = max(0, self._permits - 1)
        self.circuit.note_taken(now)

    def note_death(self, now: float) -> bool:
        """A worker died by itself; say whether this opens the circuit."""
        opens = self.circuit.note_death(now)
        if opens:
            self._permits = 0  # what was let through until now and not begun waits too
        return opens

    def begin_trial(self, now: float, under_way: bool) -> bool:
        """Let one delivery through if the circuit wants a trial now; say whether it does.

        The arguments are those of `Circuit.begin_trial`.
        """
        if not self.circuit.begin_trial(now, under_way):
            return False
        self._permits = 1
        return True

    def trickle(self, now: float, idle: bool) -> bool:
        """Let one delivery through if memory has been short for long with nothing running.

        Args:
            now: the time, in seconds of `time.monotonic()`.
            idle: whether nothing is running.
        """
        if not self.short or not idle or self.circuit.state is not CircuitState.CLOSED:
            self._idle_since = None
            return False
        if self._idle_since is None:
            self._idle_since = now
        if now - self._idle_since < TRICKLE_S:
            return False
        self._idle_since = now
        self._permits = 1
        return True
