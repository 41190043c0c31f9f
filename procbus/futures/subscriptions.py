# SPDX-License-Identifier: MIT
"""Subscriptions that nothing is routed to: those of the calls of executors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from procbus.core.locks import Lock
from procbus.core.subscription import Subscription

#: Names whose past counts are kept apart; those of any more names are counted as one.
MOST_NAMES = 1_000
OTHER_CALLS = "(other calls)"


class DirectSubscriptions:
    """Those that there are, and what those that are let go have counted. Thread-safe.

    `_lock` belongs to this object and guards both fields; it is taken last.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._present: dict[Subscription, None] = {}
        self._past: dict[str, Subscription] = {}

    def add(self, subscription: Subscription) -> None:
        """Count one in."""
        with self._lock:
            self._present[subscription] = None

    def retire(self, subscription: Subscription) -> None:
        """Let one go that is idle, and keep what it has counted, under its name."""
        handler = subscription.handler
        with self._lock:
            if self._present.pop(subscription, 0) == 0:
                return
            name = handler.name
            if name not in self._past and len(self._past) >= MOST_NAMES:
                name = OTHER_CALLS
            if name not in self._past:
                nameless = replace(handler, name=name, function=_gone)
                self._past[name] = Subscription(nameless, subscription.lane)
            self._past[name].absorb(subscription)

    def all(self) -> tuple[Subscription, ...]:
        """All that count."""
        with self._lock:
            return (*self._present, *self._past.values())


def _gone(event: Any) -> None:
    """Stands for functions that were let go."""
