# SPDX-License-Identifier: MIT
"""A clock that tests turn: for the waits before retries, and for time limits."""

from __future__ import annotations

import threading
import weakref
from typing import Protocol


class TimeIsUp(BaseException):
    """Ends a handler whose time limit is over, as killing its worker would."""


class Sleeper(Protocol):
    """Who has something to do at a certain time."""

    def run_due(self, now: float) -> bool:
        """Do the next thing that is due by then, if there is one; say whether there was."""


class Clock:
    """Time that passes only when it is told to. Thread-safe, and the same object in every handler.

    In a test, `advance` runs the retries that are due by then, in the calling thread. Inside a
    handler it says how long that takes: over its time limit, the handler ends there.

    Args:
        auto: when nothing else is left to be run, go on to the next retry at once, so that nothing
            waits.
    """

    def __init__(self, *, auto: bool = False) -> None:
        self.auto = auto
        self._lock = threading.Lock()
        self._now = 0.0
        self._sleepers: weakref.WeakSet[Sleeper] = weakref.WeakSet()
        #: Of each thread, the handlers that it is in.
        self._running = threading.local()
        _clocks[id(self)] = self

    def now(self) -> float:
        """Seconds since the clock was made."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Let time pass.

        Raises:
            ValueError: `seconds` is negative.
        """
        if seconds < 0:
            raise ValueError(f"time does not go back: {seconds} s")
        target = self._now + seconds
        frames = self._frames()
        if frames:
            _, ends_at = frames[-1]
            self.go_to(min(target, ends_at))
            if target >= ends_at:
                raise TimeIsUp
            return
        sleepers = list(self._sleepers)
        while any(sleeper.run_due(target) for sleeper in sleepers):
            pass
        self.go_to(target)

    # What the bus calls.

    def attach(self, sleeper: Sleeper) -> None:
        """Have something run as time passes, for as long as it lives."""
        self._sleepers.add(sleeper)

    def go_to(self, then: float) -> None:
        """Set the clock, unless it is later already."""
        with self._lock:
            self._now = max(self._now, then)

    def begin(self, limit_s: float) -> None:
        """A handler begins in this thread, which may take so long."""
        self._frames().append((self._now, self._now + limit_s))

    def end(self) -> float:
        """The handler that began last in this thread has ended; return how long it took.

        That is no part of the time of those around it: on a real bus they run beside each other.
        """
        frames = self._frames()
        began, _ = frames.pop()
        took_s = self._now - began
        frames[:] = [(began + took_s, ends_at + took_s) for began, ends_at in frames]
        return took_s

    def _frames(self) -> list[tuple[float, float]]:
        """The handlers that this thread is in, the innermost last: since when, and until when."""
        frames: list[tuple[float, float]] | None = getattr(self._running, "frames", None)
        if frames is None:
            frames = self._running.frames = []
        return frames

    def __reduce__(self) -> tuple[object, tuple[int]]:
        """Stay what it is when a handler or event is pickled in its process."""
        return _clock_of, (id(self),)


_clocks: weakref.WeakValueDictionary[int, Clock] = weakref.WeakValueDictionary()


def _clock_of(number: int) -> Clock:
    return _clocks[number]
