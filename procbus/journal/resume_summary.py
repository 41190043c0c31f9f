# SPDX-License-Identifier: MIT
"""What a bus found in its journal: `bus.resume_summary`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ResumeSummary:
    """What a bus found in its journal when it was made, and what became of that. Immutable.

    Attributes:
        unfinished: deliveries of runs before that were not finished.
        resumed: how many of them were given to each handler so far, by its name.
        missing: how many are kept for handlers that are not subscribed, by their names.
        unreadable: events that could not be loaded, and are kept.
        dead_letters: dead letters of runs before.
        lost: what the journal has lost, in a sentence each: because its files are damaged, or were
            taken away, or are not of one moment. Empty where all is well.
    """

    unfinished: int
    resumed: Mapping[str, int]
    missing: Mapping[str, int]
    unreadable: int
    dead_letters: int
    lost: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Say it in a line."""
        text = f"{sum(self.resumed.values())} of {self.unfinished} unfinished deliveries resumed"
        if self.missing:
            names = ", ".join(f"{name} {count}" for name, count in self.missing.items())
            text += f"; kept for handlers that are not there: {names}"
        if self.unreadable:
            text += f"; {self.unreadable} events could not be loaded"
        if self.dead_letters:
            text += f"; {self.dead_letters} dead letters"
        for each in self.lost:
            text += f"; LOST: {each}"
        return text
