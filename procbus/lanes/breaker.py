# SPDX-License-Identifier: MIT
"""The circuit breaker: stops the lane for a while when workers die one after the other.

It follows the maximum restart intensity of Erlang's supervisors, and the circuit breaker of M.
Nygard's "Release It!". A closed circuit counts deaths of workers. An open circuit lets no delivery
through. After a while it lets one delivery through as a trial, and the trial closes the circuit or
opens it again. The breaker also stops the lane while memory is short.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitLimits:
    """The thresholds and times of a circuit breaker."""

    #: Maximum of deaths within `deaths_window_s`, while no worker survives a delivery.
    most_deaths: int = 20
    deaths_window_s: float = 30.0
    #: Time that the circuit stays open at first, in seconds; doubled after each failed trial, up to
    #: the maximum.
    cool_s: float = 5.0
    most_cool_s: float = 60.0
    #: Time after which a trial whose delivery is in no handler counts as unused, in seconds;
    #: because the delivery may be unable to travel, or was put back.
    spent_s: float = 1.0
    #: Time of short memory without a running delivery after which the lane begins one delivery, in
    #: seconds; because other programs may use the memory for good, and nothing would ever run
    #: again.
    trickle_s: float = 30.0


#: The limits of an ordinary bus.
CIRCUIT_LIMITS = CircuitLimits()


class CircuitState(enum.Enum):
    """The state of a circuit."""

    CLOSED = "closed"
    OPEN = "open"
    #: One delivery is to be tried, or is being tried.
    TRIAL = "trial"


class Look(NamedTuple):
    """The consequences of a look at the workers and at memory."""

    #: Memory has become short: deliveries not begun go back to the queue.
    stops: bool
    #: A trial begins.
    trial: bool
    #: More deliveries may begin than before: wake a worker.
    wakes: bool


class CircuitBreaker:
    """Decides how many deliveries of a lane may begin: a state machine without its own clock.

    Not thread-safe: the lane's lock guards it.

    Args:
        limits: when the circuit opens, and for how long.
    """

    def __init__(self, limits: CircuitLimits = CIRCUIT_LIMITS) -> None:
        self._limits = limits
        self.state = CircuitState.CLOSED
        #: While it is open: time of the next trial.
        self.trial_at = 0.0
        #: Number of failed trials in a row.
        self.failed_trials = 0
        self._deaths: deque[float] = deque(maxlen=limits.most_deaths + 1)
        self._cool_s = limits.cool_s
        self._hurried = False
        #: During a trial: time when a delivery was taken for the trial; None before.
        self._taken_at: float | None = None
        #: The reason why memory is short; empty while there is enough.
        self._short = ""
        #: Start of short memory without a running delivery, or time of the last trickle.
        self._idle_since: float | None = None
        #: Number of deliveries that may begin although the circuit is open or memory is short.
        self._permits = 0

    @property
    def deaths(self) -> int:
        """Number of counted deaths, since a worker last survived a delivery."""
        return len(self._deaths)

    def reason(self) -> str:
        """The reason why nothing is begun; empty if deliveries are begun."""
        if self.state is CircuitState.CLOSED:
            return self._short
        return f"{self.deaths} workers died, and none survived a delivery in between"

    def most(self) -> int | None:
        """Number of deliveries that may begin now; None for any number."""
        if self.state is CircuitState.CLOSED and not self._short:
            return None
        return self._permits

    def begin(self, now: float) -> None:
        """Note that a delivery is begun."""
        self._permits = max(0, self._permits - 1)
        self._taken_at = now

    def note_death(self, now: float) -> bool:
        """Note that a worker died by itself; return whether this opens the circuit."""
        if self.state is CircuitState.OPEN:
            return False  # the worker got its deliveries before that
        self._deaths.append(now)
        limits, deaths = self._limits, self._deaths
        full = len(deaths) > limits.most_deaths and now - deaths[0] <= limits.deaths_window_s
        if self.state is CircuitState.TRIAL:
            self._cool_s = min(2 * self._cool_s, limits.most_cool_s)
            self.failed_trials += 1
        elif not full:
            return False
        self.state = CircuitState.OPEN
        self.trial_at = now if self._hurried else now + self._cool_s
        self._permits = 0  # a delivery that was let through and has not begun waits too
        return True

    def note_survival(self) -> bool:
        """Note that a worker survived a delivery; return whether this closes the circuit."""
        if self.state is CircuitState.OPEN:
            return False  # the worker got its deliveries before that
        self._deaths.clear()
        if self.state is CircuitState.CLOSED:
            return False
        self.state = CircuitState.CLOSED
        self._cool_s = self._limits.cool_s
        self.failed_trials = 0
        return True

    def hurry(self) -> None:
        """Let the next trial follow a failed one without a wait, from now on."""
        self._hurried = True
        self.trial_at = 0.0

    def look(self, now: float, short: str, running: Sequence[float]) -> Look:
        """Check whether work may begin again, or must stop.

        Args:
            now: the time, in seconds of `time.monotonic()`.
            short: reason why memory is short; empty if there is enough.
            running: start of each delivery that is in a handler.
        """
        was_short, self._short = self._short, short
        trial = self._begin_trial(now, running)
        wakes = trial or self._trickle(now, idle=not running) or bool(was_short and not short)
        return Look(bool(short and not was_short), trial, wakes)

    def _begin_trial(self, now: float, running: Sequence[float]) -> bool:
        """Begin a trial if one is due; return whether one begins.

        A trial may begin before the last trial has ended, because the last one may have been unused
        or may take for ever.
        """
        taken_at = self._taken_at
        if self.state is CircuitState.OPEN:
            due_at = self.trial_at
        elif self.state is CircuitState.TRIAL and taken_at is not None:
            under_way = any(began >= taken_at for began in running)
            due_at = taken_at + (self._limits.most_cool_s if under_way else self._limits.spent_s)
        else:
            return False
        if now < due_at:
            return False
        self.state = CircuitState.TRIAL
        self._taken_at = None
        self._permits = 1
        return True

    def _trickle(self, now: float, *, idle: bool) -> bool:
        """Let one delivery through if memory was short for a long time and nothing runs."""
        if not self._short or not idle or self.state is not CircuitState.CLOSED:
            self._idle_since = None
            return False
        if self._idle_since is None:
            self._idle_since = now
        if now - self._idle_since < self._limits.trickle_s:
            return False
        self._idle_since = now
        self._permits = 1
        return True
