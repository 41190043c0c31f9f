# SPDX-License-Identifier: MIT
"""Stalled or slow: whether a handler that takes long still gets anywhere.

A handler that gains CPU time is slow, and so is one that reads or writes, or whose subprocesses
work. One that does nothing of all this for a while is stalled: a deadlock, a socket that nobody
answers on, a lock that nobody lets go.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from math import inf

#: A handler that did nothing for so many seconds is stalled.
WINDOW_S = 2.0
#: CPU seconds in a window that still count as nothing: 1.25 % of a core. The kernel rounds user and
#: system time down to 10 ms each, so two such steps may show where next to nothing was used; what
#: lies between two steps and three is safe from the rounding of floats too. A loop that wakes ten
#: times a second to look whether it may go on uses about 1 ms in a window.
LEAST_CPU_S = 0.0125 * WINDOW_S
#: A quiet worker is looked at more closely once in so many seconds. More than a window, so that
#: each look tells what happened since the one before, also when it comes a bit early. One that is
#: stalled already is looked at half as often.
_CLOSER_LOOK_S = 1.125 * WINDOW_S


class Progress:
    """Judges one worker by what is noted of it.

    One thread notes, any thread may ask: the verdict is one tuple, replaced as a whole.
    """

    def __init__(self) -> None:
        self._delivery_key: Hashable = None
        self._cpu = _Growth(LEAST_CPU_S)
        self._tree_cpu = _Growth(LEAST_CPU_S)
        self._io = _Growth(0)
        self._quiet = False
        #: When the last note was made, and whether nothing had happened for a window then.
        self._verdict = (0.0, False)

    def note(self, at: float, cpu_s: float, io_bytes: int, delivery_key: Hashable) -> None:
        """Note a sample.

        Args:
            at: when it was taken, in seconds of `time.monotonic()`.
            cpu_s: CPU seconds of the worker's process so far.
            io_bytes: bytes that it has read and written so far; 0 if that was not asked.
            delivery_key: tells the delivery it is at from any other; None between two.
        """
        if delivery_key is None or delivery_key != self._delivery_key:
            self._delivery_key = delivery_key
            for meter in (self._cpu, self._tree_cpu, self._io):
                meter.clear()
        if delivery_key is not None:
            self._cpu.note(at, cpu_s)
            if io_bytes:
                self._io.note(at, io_bytes)
        # Of one that is stalled already, half as often: it may be so for hours.
        every_s = 2 * _CLOSER_LOOK_S if self._verdict[1] else _CLOSER_LOOK_S
        self._quiet = self._cpu.unchanged and at - self._tree_cpu.last_at >= every_s
        self._judge(at)

    def note_tree(self, at: float, tree_cpu_s: float) -> None:
        """Note the CPU seconds of the worker and all its descendants so far, after `note`.

        It takes longer to find out, so ask for it only when the worker is `quiet`.
        """
        if self._delivery_key is not None:
            self._tree_cpu.note(at, tree_cpu_s)
            self._judge(at)

    def note_starved(self, at: float) -> None:
        """Note that the worker wants to run and gets no core, after `note`: it is not its fault.

        Ask for it when the worker is `quiet`.
        """
        self._cpu.clear()
        self._judge(at)

    @property
    def quiet(self) -> bool:
        """Whether it is time to look closer: at input and output, at the whole tree.

        It is when the worker hardly gained CPU in this delivery lately, by two notes or more, and
        its tree was not noted for a while. With many workers closer looks are what costs.
        """
        return self._quiet

    def stalled(self, now: float) -> bool:
        """Whether a delivery is at hand and nothing has happened for `WINDOW_S`.

        Nobody is stalled who was not looked at for as long.

        Args:
            now: in seconds of `time.monotonic()`.
        """
        at, still = self._verdict
        return still and now - at <= WINDOW_S

    def _judge(self, at: float) -> None:
        # What was never asked for this delivery says nothing.
        still = self._cpu.still and all(
            meter.still for meter in (self._tree_cpu, self._io) if meter.last_at > -inf
        )
        self._verdict = (at, still)


class _Growth:
    """A figure that grows while something happens, over the last window.

    Args:
        least: a change of so much, or less, is none.
    """

    def __init__(self, least: float) -> None:
        self._least = least
        self._readings: deque[tuple[float, float]] = deque()

    def clear(self) -> None:
        self._readings.clear()

    def note(self, at: float, value: float) -> None:
        readings = self._readings
        readings.append((at, value))
        # The first one left is the last that is a whole window old.
        while len(readings) > 1 and at - readings[1][0] >= WINDOW_S:
            readings.popleft()

    @property
    def last_at(self) -> float:
        """When it was noted last; before all time if never."""
        return self._readings[-1][0] if self._readings else -inf

    @property
    def unchanged(self) -> bool:
        """Whether two notes or more show no change."""
        # Either way: a descendant that ends may take its CPU seconds along, and that is a change.
        readings = self._readings
        return len(readings) > 1 and abs(readings[-1][1] - readings[0][1]) <= self._least

    @property
    def still(self) -> bool:
        """Whether it did not change for a whole window."""
        return self.unchanged and self._readings[-1][0] - self._readings[0][0] >= WINDOW_S
