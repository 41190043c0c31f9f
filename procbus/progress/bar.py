# SPDX-License-Identifier: MIT
"""One bar: the figures of something that goes on, such as a stream, and these figures as text.

A bar reads counters that other code keeps. The bar itself counts nothing, so that showing progress
costs no time for each event.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic
from typing import NamedTuple

from procbus.core.locks import Bell
from procbus.core.text import printable

#: Span of time over which the rate is measured, in seconds, and minimum interval between two
#: samples of the rate; because a rate over a shorter span jumps.
RATE_SPAN_S = 10.0
RATE_STEP_S = 0.5


class Standing(NamedTuple):
    """The counters of something that goes on."""

    done: int
    #: None if it is not known.
    total: int | None
    #: Deliveries, or calls, that failed for good.
    failed: int


class LaneCounts(NamedTuple):
    """The deliveries of one lane now."""

    kind: str
    running: int
    queued: int


class BusFacts(NamedTuple):
    """The facts of a bus that are shown beside its bars. The functions may run in any thread."""

    #: The lanes that have workers.
    lanes: Callable[[], Sequence[LaneCounts]]
    #: A line for each running handler that reports its progress.
    notes: Callable[[], Sequence[str]]
    #: Whether the bus is closed, so that nothing can go on.
    closed: Callable[[], bool]


class Reading(NamedTuple):
    """The figures of a bar at one moment."""

    label: str
    done: int
    total: int | None
    failed: int
    elapsed_s: float
    #: Number done in each second: lately, or over the whole time once the bar is at its end. None
    #: before the first is done.
    rate: float | None
    #: Expected time until all are done, in seconds; None if it is not known.
    left_s: float | None
    lanes: Sequence[LaneCounts] = ()
    notes: Sequence[str] = ()

    @property
    def part(self) -> float | None:
        """The part that is done, from 0 to 1; None without a total."""
        if self.total is None:
            return None
        return min(1.0, self.done / self.total) if self.total else 1.0


class Bar:
    """Something that goes on, and is shown. Its readings are taken by one thread.

    Args:
        label: the bar's name for people.
        counts: returns the counters; called from another thread.
        bus: the facts of the bus.
        clock: replaces `monotonic`.

    Attributes:
        ending: whether the bar is at its end, set by the thread of the stream, map or drain.
        ended: rung once its last figures are shown.
    """

    def __init__(
        self,
        label: str,
        counts: Callable[[], Standing],
        bus: BusFacts,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.label = printable(label)
        self._counts = counts
        self.bus = bus
        self._clock = clock
        self._started_at = clock()
        self._samples: deque[tuple[float, int]] = deque([(self._started_at, 0)])
        self.ending = False
        self.ended = Bell()

    def read(self) -> Reading:
        """Take the figures now."""
        now = self._clock()
        done, total, failed = self._counts()
        elapsed_s = now - self._started_at
        rate = self._rate(now, done)
        left_s = None
        if total is not None and rate:
            left_s = max(0, total - done) / rate
        return Reading(
            self.label,
            done,
            total,
            failed,
            elapsed_s,
            rate,
            left_s,
            self.bus.lanes(),
            [*map(printable, self.bus.notes())],
        )

    def read_last(self) -> Reading:
        """Take the figures at the end: with the rate over the whole time, and without lanes."""
        now = self._clock()
        done, total, failed = self._counts()
        elapsed_s = now - self._started_at
        rate = done / elapsed_s if done and elapsed_s else None
        return Reading(self.label, done, total, failed, elapsed_s, rate, None)

    def _rate(self, now: float, done: int) -> float | None:
        samples = self._samples
        if now - samples[-1][0] >= RATE_STEP_S:
            samples.append((now, done))
        while len(samples) > 2 and now - samples[1][0] >= RATE_SPAN_S:
            samples.popleft()
        since, before = samples[0]
        return max(0, done - before) / (now - since) if done and now > since else None


# A reading as text.


def time_text(value_s: float) -> str:
    """Write a time as "0:12", "12:34" or "1:02:03"."""
    minutes, rest_s = divmod(round(value_s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest_s:02}" if hours else f"{minutes}:{rest_s:02}"


def rate_text(rate: float | None) -> str:
    """Write a rate in the unit that suits it, as "1,234/s", "1.5/s" or "12/min"; None as "-/s"."""
    if rate is None:
        return "-/s"
    if rate >= 9.95 or not rate:
        return f"{rate:,.0f}/s"
    if rate >= 1:
        return f"{rate:.1f}/s"
    return f"{60 * rate:.1f}/min" if rate >= 1 / 60 else f"{3600 * rate:.1f}/h"


def count_text(reading: Reading) -> str:
    """Write the number done, and the total if it is known: "4,211/5,000"."""
    if reading.total is None:
        return f"{reading.done:,}"
    return f"{reading.done:,}/{reading.total:,}"


def end_text(reading: Reading) -> str:
    """Write the time until the end; if it is not known, the time since the start."""
    if reading.left_s is None:
        return f"{time_text(reading.elapsed_s)} so far"
    return f"{time_text(reading.left_s)} left"


def lane_text(lane: LaneCounts) -> str:
    """Write the deliveries of a lane."""
    return f"{lane.kind} {lane.running:,} running, {lane.queued:,} queued"


def line_of(reading: Reading) -> str:
    """Write a reading in one line, for a log."""
    parts = [_done_text(reading), rate_text(reading.rate), end_text(reading)]
    parts += [f"{reading.failed:,} failed"]
    beside = [", ".join(parts), *map(lane_text, reading.lanes), *reading.notes]
    return f"{reading.label}: {'; '.join(beside)}"


def last_line_of(reading: Reading) -> str:
    """Write the last reading of a bar in one line, for a log."""
    took = f"{_done_text(reading)} in {_took(reading.elapsed_s)}"
    return f"{reading.label}: {took}, {rate_text(reading.rate)}, {reading.failed:,} failed"


def _took(elapsed_s: float) -> str:
    return f"{elapsed_s:.1f} s" if elapsed_s < 60 else time_text(elapsed_s)


def _done_text(reading: Reading) -> str:
    if reading.total is None:
        return f"{reading.done:,} done"
    return f"{reading.done:,} of {reading.total:,} ({reading.part:.0%})"
