# SPDX-License-Identifier: MIT
"""Progress on a bar that your own callable makes, such as `tqdm.tqdm`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from procbus.progress.bar import Bar, Reading

#: Interval between two updates, in seconds; because a person sees no more.
UPDATE_EVERY_S = 0.1


class MadeBar(Protocol):
    """A bar as `tqdm` makes it, perhaps with `set_postfix` and a `total` that can be set."""

    def update(self, n: int, /) -> object:
        """Note that `n` more events, calls or deliveries are done."""

    def close(self) -> object:
        """Note the end."""


#: Makes a bar when it is called with `total=`, a number or None.
MakeBar = Callable[..., MadeBar]


class MadeDisplay:
    """Drives one bar that the user's callable made.

    Args:
        made: the bar that the callable made.
        total: the total that the bar was made with.
    """

    every_s = UPDATE_EVERY_S

    def __init__(self, made: MadeBar, total: int | None) -> None:
        self._made: Any = made
        self._total = total
        self._done = 0

    def refresh(self, bars: Sequence[Bar]) -> None:
        """Update the bar."""
        self._update(bars[0].read())

    def finish(self, bar: Bar) -> None:
        """Update the bar a last time."""
        self._update(bar.read_last())

    def close(self) -> None:
        """Close the bar."""
        self._made.close()

    def _update(self, reading: Reading) -> None:
        made = self._made
        if reading.total != self._total:
            self._total = reading.total
            if hasattr(made, "total"):
                made.total = reading.total
        new = reading.done - self._done
        if new > 0:
            self._done = reading.done
            made.update(new)
        if hasattr(made, "set_postfix"):  # last, because tqdm draws the bar in `set_postfix`
            lanes = {lane.kind: f"{lane.running}+{lane.queued}" for lane in reading.lanes}
            made.set_postfix(failed=reading.failed, **lanes)
