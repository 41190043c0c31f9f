# SPDX-License-Identifier: MIT
"""Whether it was the kernel's out-of-memory killer that struck."""

from __future__ import annotations

from collections.abc import Callable

from procbus.machine import oom_kills


class OomWatch:
    """Compares the kernel's counter of such kills with what it was. Thread-safe.

    The supervisor notes it now and then. What has risen since the last note but one rose within
    the last second: several workers may be killed at once, and each is to be told so.

    Args:
        count: gives the counter.
    """

    def __init__(self, count: Callable[[], int] = oom_kills) -> None:
        self._count = count
        self._before = self._last = count()

    def note(self) -> None:
        """Note the counter."""
        self._before, self._last = self._last, self._count()

    def struck(self) -> bool:
        """Whether it has risen just now."""
        return self._count() > self._before
