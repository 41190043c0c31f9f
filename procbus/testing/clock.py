# SPDX-License-Identifier: MIT
"""A clock that tests turn: for the waits before retries, for delays, and for time limits."""

from __future__ import annotations

import threading
import time
import weakref

from procbus.lanes.inline import InlineRun, Sleeper


class TimeIsUp(BaseException):
    """Ends a handler whose time limit is over, as killing its worker would."""


class Clock:
    """Time that passes only when a test advances it.

    Thread-safe, and the same object in every handler.

    In a test, `advance` runs the retries and the delayed events that are due by then, in the
    calling thread. In a handler, `advance` simulates the time that the handler takes: if the
    handler passes its time limit, it ends there.

    Example:
        ```python
        from json import loads

        from procbus.testing import Clock, InlineBus

        clock = Clock()
        bus = InlineBus(handlers=[], clock=clock)
        bus.subscribe("number", loads, retries=1, backoff=60)
        receipt = bus.publish("number", "seven")
        assert not receipt.done
        clock.advance(60)  # the second attempt fails too
        assert receipt.has_failure
        ```

    Args:
        auto: True moves the clock to the next retry whenever no other work is left, so that no
            delivery waits.
    """

    #: Whether time passes by itself.
    passes = False

    def __init__(self, *, auto: bool = False) -> None:
        self.auto = auto
        #: The time of day when the clock was made.
        self._made_at = time.time()
        self._lock = threading.Lock()
        self._now = 0.0
        self._sleepers: weakref.WeakSet[Sleeper] = weakref.WeakSet()
        #: For each thread, the handlers that it is running.
        self._running = threading.local()
        _clocks[id(self)] = self

    def now(self) -> float:
        """Seconds since the clock was made."""
        return self._now

    def wall(self) -> float:
        """The time of day by this clock, in seconds as of `time.time()`.

        It is the time at which the clock was made, and the seconds since then.
        """
        return self._made_at + self._now

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
            ends_at = frames[-1].ends_at
            self.go_to(min(target, ends_at))
            if target >= ends_at:
                raise TimeIsUp
            return
        sleepers = list(self._sleepers)
        while any(sleeper.run_due(target) for sleeper in sleepers):
            pass
        self.go_to(target)

    # Methods for the bus.

    def attach(self, sleeper: Sleeper) -> None:
        """Have a sleeper run as time passes, for as long as the sleeper lives."""
        self._sleepers.add(sleeper)

    def go_to(self, then: float) -> None:
        """Set the clock forward to a time; do nothing if that time is over."""
        with self._lock:
            self._now = max(self._now, then)

    def begin(self, limit_s: float) -> InlineRun:
        """Begin a handler in this thread, with a time limit."""
        run = InlineRun(self._now, self._now + limit_s)
        self._frames().append(run)
        return run

    def ran_s(self, run: InlineRun) -> float:
        """Seconds since the beginning of a handler."""
        return self._now - run.began

    def end_in(self, run: InlineRun, grace_s: float) -> None:
        """Have a handler end `grace_s` seconds from now, or earlier by its time limit."""
        run.ends_at = min(run.ends_at, self._now + grace_s)

    def end(self) -> float:
        """End the handler that began last in this thread; return its duration.

        The duration does not count for the handlers around this one, because on a real bus handlers
        run in parallel.
        """
        frames = self._frames()
        took_s = self._now - frames.pop().began
        for around in frames:
            around.began += took_s
            around.ends_at += took_s
        return took_s

    def _frames(self) -> list[InlineRun]:
        """The handlers that this thread is running, the innermost last."""
        frames: list[InlineRun] | None = getattr(self._running, "frames", None)
        if frames is None:
            frames = self._running.frames = []
        return frames

    def __reduce__(self) -> tuple[object, tuple[int]]:
        """Unpickle in the same process as the same clock, when a handler or event has it."""
        return _clock_of, (id(self),)


_clocks: weakref.WeakValueDictionary[int, Clock] = weakref.WeakValueDictionary()


def _clock_of(number: int) -> Clock:
    return _clocks[number]
