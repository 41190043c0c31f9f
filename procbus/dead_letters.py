# SPDX-License-Identifier: MIT
"""Dead letters: deliveries that failed for good, kept so that they can be read."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

from procbus.outcome import Outcome

#: So many are kept, the newest; older ones are counted only.
MOST_KEPT = 1_000


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A delivery that failed for good."""

    event_id: int
    event: Any
    topic: str | None
    #: Name of the handler.
    handler: str
    outcome: Outcome


class DeadLetters:
    """The newest dead letters of one bus. Guarded by the settlement's lock."""

    def __init__(self) -> None:
        self._kept: deque[DeadLetter] = deque(maxlen=MOST_KEPT)

    def add(self, letter: DeadLetter) -> None:
        """Keep one more, letting the oldest go when full."""
        self._kept.append(letter)

    def snapshot(self) -> tuple[DeadLetter, ...]:
        """The dead letters kept, oldest first."""
        return tuple(self._kept)
