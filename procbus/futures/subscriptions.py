# SPDX-License-Identifier: MIT
"""Subscriptions without routes, which executors make for their calls."""

from __future__ import annotations

from typing import Any

from procbus.core.handler import calling
from procbus.core.locks import Lock
from procbus.core.subscription import Subscription

#: Maximum of names whose past counts are kept apart; calls of further names count together.
MOST_NAMES = 1_000
OTHER_CALLS = "(other calls)"


class DirectSubscriptions:
    """The present subscriptions without routes, and the counts of dropped ones. Thread-safe.

    The lock `_lock` guards both fields; it is taken last.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._present: dict[Subscription, None] = {}
        self._past: dict[str, Subscription] = {}

    def add(self, subscription: Subscription) -> None:
        """Count a new subscription in."""
        with self._lock:
            self._present[subscription] = None

    def retire(self, subscription: Subscription) -> None:
        """Drop an idle subscription, and keep its counts under its name."""
        handler = subscription.handler
        with self._lock:
            if self._present.pop(subscription, 0) == 0:
                return
            name = handler.name
            if name not in self._past and len(self._past) >= MOST_NAMES:
                name = OTHER_CALLS
            if name not in self._past:
                nameless = calling(handler, _gone, name=name)
                self._past[name] = Subscription(nameless, subscription.lane, answered=True)
            self._past[name].absorb(subscription)

    def all(self) -> tuple[Subscription, ...]:
        """All subscriptions that count, past ones included."""
        with self._lock:
            return (*self._present, *self._past.values())


def _gone(event: Any) -> None:
    """Stands for dropped functions."""
