# SPDX-License-Identifier: MIT
"""Events that no handler takes: counted, and logged once for each topic."""

from __future__ import annotations

from typing import Any

from procbus.core.locks import Lock
from procbus.core.log import log

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
        name = repr(topic) if topic is not None else _kind_of(event)
        with self._lock:
            self.count += 1
            new = name not in self._topics and len(self._topics) < _UNROUTED_KEPT
            if new:
                self._topics.add(name)
        if new:
            hint = ""
            if topic is None and isinstance(event, str):
                hint = ' (to publish to a topic, give a payload too: publish("topic", payload))'
            log.warning("no handler takes events of %s%s; they go nowhere", name, hint)


def _kind_of(event: Any) -> str:
    """Name the property that an event without a topic is routed by."""
    name = f"class {type(event).__qualname__}"
    try:
        event_type = getattr(event, "event_type", None)
        return f"{name} ({event_type!r})" if isinstance(event_type, str) else name
    except BaseException:  # noqa: BLE001 - a property of the user's; the event has no handler anyway
        return name
