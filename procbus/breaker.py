# SPDX-License-Identifier: MIT
"""Stops the cpu lane from beginning work while that would harm, and lets it go on after that."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from procbus.circuit import CircuitState
from procbus.errors import CircuitOpen
from procbus.log import log
from procbus.outcome import Outcome, OutcomeKind
from procbus.sharing import Sharing

#: When the bus is closing, what waits fails after so many trials that did.
TRIALS_AT_CLOSE = 3

#: Has publishing for the lane raise such errors from now on, or no more.
Guard = Callable[["Callable[[], CircuitOpen] | None"], object]


class Breaker:
    """Works the brake of one lane. Thread-safe; its fields are guarded by the lane's lock.

    Args:
        sharing: has the brake, and what is taken back when it is applied.
        guard: has publishing raise while workers die and die.
        fail_ready: settles all that is ready for a worker.
    """

    def __init__(
        self, sharing: Sharing, guard: Guard, fail_ready: Callable[[Outcome], object]
    ) -> None:
        self._sharing = sharing
        self._brake = sharing.brake
        self._guard = guard
        self._fail_ready = fail_ready
        #: A worker died since the last time that one survived a delivery, or the circuit is not
        #: closed: a glance without the lock tells `note_survival` whether there is a thing to note.
        self._troubled = False
        self._closing = False
        #: What all that is ready fails with, once a closing bus has tried enough.
        self.given_up: Outcome | None = None

    def reason(self) -> str:
        """Why nothing is begun; empty while all may be."""
        with self._sharing.queue.lock:
            return self._brake.reason()

    def look(self, now: float, short: str) -> None:
        """See whether work may begin again, or must not. The supervisor calls it.

        Args:
            now: the time, in seconds of `time.monotonic()`.
            short: why there is too little memory; empty when there is enough.
        """
        since = [at[2] for _, _, _, at in self._sharing.running()]
        queue, brake = self._sharing.queue, self._brake
        with queue.lock:
            taken_at = brake.circuit.taken_at
            under_way = taken_at is not None and any(began >= taken_at for began in since)
            was_short, brake.short = brake.short, short
            if short and not was_short:
                self._take_all_back()
            trial = brake.begin_trial(now, under_way)
            if trial or brake.trickle(now, not since) or (was_short and not short):
                queue.locked_wake()
        if trial:
            self._guard(None)

    def expect_close(self) -> None:
        """The bus is closing: do not keep it from that for longer than some trials take."""
        with self._sharing.queue.lock:
            self._closing = True
            self._brake.circuit.hurry()

    def note_survival(self) -> None:
        """A worker came through deliveries."""
        if not self._troubled:
            return
        with self._sharing.queue.lock:
            closed = self._brake.circuit.note_survival()
            # While the circuit is open the next survival, that of a trial, has to be noted too.
            self._troubled = self._brake.circuit.state is not CircuitState.CLOSED
            if closed:
                self.given_up = None
                self._sharing.queue.locked_wake()
        if closed:
            self._guard(None)
            log.warning("a worker survived a delivery: the cpu lane works again")

    def note_death(self, last: str) -> None:
        """A worker died, and it was not the supervisor that killed it.

        Args:
            last: which one, how, and what it was at, in words.
        """
        queue, circuit = self._sharing.queue, self._brake.circuit
        now = monotonic()
        with queue.lock:
            self._troubled = True
            if queue.cancelled or not self._brake.note_death(now):
                return
            self._take_all_back()
            wait_s = circuit.trial_at - now
            text = (
                f"{circuit.deaths} worker processes died, and no delivery between them was "
                f"survived; the last one was {last}"
            )
            if self._closing and circuit.failed_trials >= TRIALS_AT_CLOSE:
                error = CircuitOpen(f"{text}. The bus was closing, so no more were tried")
                self.given_up = Outcome(OutcomeKind.WORKER_DIED, error=error)
            given_up = self.given_up
        if given_up is not None:
            self._fail_ready(given_up)
            return
        text += f". The cpu lane takes no new work for {wait_s:.0f} s, then it tries one delivery"
        # Before the log, which may be slow: by the time that it said so, a trial may be through.
        self._guard(lambda: CircuitOpen(f"{text}: see to what kills workers, and publish again"))
        log.error("%s; what is pending waits", text)

    def _take_all_back(self) -> None:
        back = self._sharing.locked_take_all_back()
        if back:
            self._sharing.queue.locked_put_back(back)
