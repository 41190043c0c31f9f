# SPDX-License-Identifier: MIT
"""Events that no handler takes: counted, and logged once for each topic."""

from __future__ import annotations

from typing import Any

from procbus.core.locks import Lock
from procbus.core.log import log
from procbus.core.user_objects import kind_of_event

#: Maximum of topics without a handler that are remembered, so that each is logged once.
_UNROUTED_KEPT = 1_000


class Unrouted:
    """Counts the events of one bus that had no handler. Thread-safe.

    The lock `_lock` guards both fields.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._topics: set[str] = set()
        self.count = 0

    def note(self, event: Any, topic: str | None) -> None:
        """Count an event, and log its topic once."""
        name = repr(topic) if topic is not None else f"class {kind_of_event(event)}"
        with self._lock:
            self.count += 1
            new = name not in self._topics and len(self._topics) < _UNROUTED_KEPT
            if new:
                self._topics.add(name)
        if new:
            hint = ""
            if topic is None and isinstance(event, str):
                hint = ' (to publish to a topic, give a payload too: publish("topic", payload))'
            elif topic is None and isinstance(event, type):
                hint = (
                    f" (the class {event.__qualname__} itself was published, and no object of it)"
                )
            log.warning("no handler takes events of %s%s; they go nowhere", name, hint)
