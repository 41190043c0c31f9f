# SPDX-License-Identifier: MIT
"""What keeps the cpu lane from beginning work: workers that die and die, too little memory."""

from __future__ import annotations

from procbus.circuit import Circuit, CircuitState

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
