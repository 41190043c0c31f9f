# SPDX-License-Identifier: MIT
"""Stalled or slow: whether a handler that takes long does anything.

A handler that gains CPU time is slow. So is a handler that reads or writes, whose subprocesses
work, or that reports its progress. A handler that does none of this for a while is stalled: by a
deadlock, by a socket without an answer, by a lock that is never released.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from math import inf

#: Interval without any activity after which a handler is stalled, in seconds.
STALL_WINDOW_S = 2.0
#: Maximum of CPU time in a window that still counts as none, in seconds: 1.25 % of a core. The
#: kernel rounds user and system time down to 10 ms each, so two such steps may show although almost
#: none was used. A value between two steps and three is also safe from the rounding of floats. A
#: loop that polls ten times a second uses about 1 ms in a window.
LEAST_CPU_S = 0.0125 * STALL_WINDOW_S
#: Interval between two closer looks at a quiet worker, in windows. The interval is longer than one
#: window, so that each look covers the time since the previous look, even if it comes slightly
#: early. A worker that is stalled already is looked at half as often.
_CLOSER_LOOK = 1.125


class Activity:
    """Judges one worker by its samples.

    One thread adds samples, any thread may ask: the verdict is one tuple, replaced as a whole.

    Args:
        window_s: interval without any activity after which a handler is stalled, in seconds.
    """

    def __init__(self, *, window_s: float = STALL_WINDOW_S) -> None:
        self.window_s = window_s
        self._delivery_key: Hashable = None
        self._cpu = _Growth(LEAST_CPU_S, window_s)
        self._tree_cpu = _Growth(LEAST_CPU_S, window_s)
        self._io = _Growth(0, window_s)
        self._quiet = False
        self._reported_at = 0.0
        #: Time of the last sample, and whether there was no activity in the window before that
        #: sample.
        self._verdict = (0.0, False)

    def note(self, at: float, cpu_s: float, io_bytes: int, delivery_key: Hashable) -> None:
        """Add a sample.

        Args:
            at: time of the sample, in seconds of `time.monotonic()`.
            cpu_s: CPU seconds of the worker's process so far.
            io_bytes: bytes that the process has read and written so far; 0 if not measured.
            delivery_key: distinguishes the running delivery from any other; None between two.
        """
        if delivery_key is None or delivery_key != self._delivery_key:
            self._delivery_key = delivery_key
            for meter in (self._cpu, self._tree_cpu, self._io):
                meter.clear()
        if delivery_key is not None:
            self._cpu.note(at, cpu_s)
            if io_bytes:
                self._io.note(at, io_bytes)
        # A worker that is stalled already is looked at half as often: it may stay so for hours.
        every_s = _CLOSER_LOOK * self.window_s * (2 if self._verdict[1] else 1)
        self._quiet = self._cpu.unchanged and at - self._tree_cpu.last_at >= every_s
        self._judge(at)

    def note_tree(self, at: float, tree_cpu_s: float) -> None:
        """Add the CPU seconds of the worker and all its descendants so far, after `note`.

        Reading them takes longer, so do it only if the worker is `quiet`.
        """
        if self._delivery_key is not None:
            self._tree_cpu.note(at, tree_cpu_s)
            self._judge(at)

    def note_starved(self, at: float) -> None:
        """Note that the worker is ready to run but gets no core, so that it is not stalled.

        Call it after `note`, and only if the worker is `quiet`.
        """
        self._cpu.clear()
        self._judge(at)

    def note_report(self, at: float, reported_at: float) -> None:
        """Note the handler's last `current().progress()`, after `note`.

        Args:
            at: time of the sample.
            reported_at: time of the report. Both in seconds of `time.monotonic()`.
        """
        if reported_at != self._reported_at:
            self._reported_at = reported_at
            self._cpu.clear()
            self._judge(at)

    @property
    def quiet(self) -> bool:
        """Whether a closer look is due: at input and output, and at the whole tree of processes.

        It is due if the worker hardly gained CPU in this delivery lately, by two samples or more,
        and its tree was not read for a while. With many workers closer looks are the main cost.
        """
        return self._quiet

    def stalled(self, now: float) -> bool:
        """Whether a delivery is running and has shown no activity for a window.

        A worker that was not sampled for a whole window does not count as stalled.

        Args:
            now: in seconds of `time.monotonic()`.
        """
        at, still = self._verdict
        return still and now - at <= self.window_s

    def _judge(self, at: float) -> None:
        # A figure that was never read in this delivery is left out.
        still = self._cpu.still and all(
            meter.still for meter in (self._tree_cpu, self._io) if meter.last_at > -inf
        )
        self._verdict = (at, still)


class _Growth:
    """A figure that grows with activity, over the last window.

    Args:
        least: maximum change that counts as none.
        window_s: length of the window, in seconds.
    """

    def __init__(self, least: float, window_s: float) -> None:
        self._least = least
        self._window_s = window_s
        self._readings: deque[tuple[float, float]] = deque()

    def clear(self) -> None:
        self._readings.clear()

    def note(self, at: float, value: float) -> None:
        readings = self._readings
        readings.append((at, value))
        # The first reading left is the last one that is a whole window old.
        while len(readings) > 1 and at - readings[1][0] >= self._window_s:
            readings.popleft()

    @property
    def last_at(self) -> float:
        """Time of the last reading; minus infinity if there is none."""
        return self._readings[-1][0] if self._readings else -inf

    @property
    def unchanged(self) -> bool:
        """Whether two readings or more show no change."""
        # A fall counts too: a descendant that ends may take its CPU seconds along, which is a
        # change.
        readings = self._readings
        return len(readings) > 1 and abs(readings[-1][1] - readings[0][1]) <= self._least

    @property
    def still(self) -> bool:
        """Whether the figure did not change for a whole window."""
        return self.unchanged and self._readings[-1][0] - self._readings[0][0] >= self._window_s
