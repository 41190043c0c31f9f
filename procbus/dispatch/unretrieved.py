# SPDX-License-Identifier: MIT
"""Failures that were never looked at: counted, and summed up when the bus closes."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from procbus.core.locks import Lock
from procbus.core.user_objects import class_name

if TYPE_CHECKING:
    from procbus.core.delivery import Delivery
    from procbus.core.outcome import Outcome

#: Maximum number of pairs of handler and error type that are counted separately; further pairs
#: count together.
MOST_KEYS = 1_000

#: Maximum of handlers, and of errors of each, named in the summary.
_MOST_SHOWN = 10

_REST = ("other handlers", "other errors")


class Unseen:
    """Counts failures that were not looked at, by handler and error type. Thread-safe.

    Args:
        lock: the settlement's lock; None for one of its own. It guards the counts, and the field
            `unseen` of the deliveries counted here: a delivery is counted while that field is set.
    """

    def __init__(self, lock: Lock | None = None) -> None:
        self._lock = Lock() if lock is None else lock
        self._counts: Counter[tuple[str, str]] = Counter()

    def note_failed(self, delivery: Delivery, outcome: Outcome) -> None:
        """Count a delivery that failed for good. Call it with the lock held."""
        delivery.unseen = self
        key = _key_of(delivery, outcome)
        if key not in self._counts and len(self._counts) >= MOST_KEYS:
            key = _REST
        self._counts[key] += 1

    def note_seen(self, delivery: Delivery) -> None:
        """Note that the user's code has looked at a failure. Looking again changes nothing."""
        outcome = delivery.outcome
        with self._lock:
            if delivery.unseen is not self or outcome is None:
                return
            delivery.unseen = None
            key = _key_of(delivery, outcome)
            if key not in self._counts:
                key = _REST
            self._counts[key] -= 1
            if not self._counts[key]:
                del self._counts[key]

    def summary(self) -> str | None:
        """Describe in one line the failures that were not looked at; None if there are none."""
        with self._lock:
            counts = Counter(self._counts)
        if not counts:
            return None
        by_handler: dict[str, Counter[str]] = {}
        for (handler, error), count in counts.items():
            by_handler.setdefault(handler, Counter())[error] += count
        totals = Counter({handler: errors.total() for handler, errors in by_handler.items()})
        parts = [
            f"{handler} {count} ({', '.join(_shown(by_handler[handler]))})"
            for handler, count in totals.most_common(_MOST_SHOWN)
        ]
        if len(totals) > _MOST_SHOWN:
            parts.append(f"{len(totals) - _MOST_SHOWN} more handlers")
        total = counts.total()
        return (
            f"{total} failure{'s' if total > 1 else ''} not looked at: "
            f"{', '.join(parts)}; see bus.dead_letters"
        )


def _shown(errors: Counter[str]) -> list[str]:
    shown = [f"{error} {count}" for error, count in errors.most_common(_MOST_SHOWN)]
    if len(errors) > _MOST_SHOWN:
        shown.append(f"{len(errors) - _MOST_SHOWN} more kinds")
    return shown


def _key_of(delivery: Delivery, outcome: Outcome) -> tuple[str, str]:
    return delivery.subscription.handler.name, class_name(outcome.error)
