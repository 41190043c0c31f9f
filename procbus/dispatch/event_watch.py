# SPDX-License-Identifier: MIT
"""Finds events that were changed after they were published, while `PROCBUS_DEBUG` is set."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from types import FrameType

from procbus.codec.fingerprint import Imprint, changes, listed, look_at
from procbus.core.context import running_context
from procbus.core.frames import is_ours
from procbus.core.locks import Lock
from procbus.core.log import log
from procbus.core.moments import Accepted, Settled, Started
from procbus.core.user_objects import class_name

#: Modules whose frames lie below the ones of a thread's own function.
_OF_THREADS = ("threading", "concurrent.futures.thread")


@dataclass(slots=True)
class _Published:
    """An event as it was published."""

    look: Imprint
    place: str
    #: Number of its open deliveries.
    left: int


class EventWatch:
    """A listener that compares each event with its state at publishing. Thread-safe.

    It compares when a handler begins on a thread or an event loop. For a worker process it compares
    when the handler begins or has ended. It always compares before the delivery is settled, because
    after that the publisher may change the event again.

    The lock `_lock` guards the tables, and is not held while an event is looked at.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._open: dict[int, _Published] = {}
        #: Pairs of handler and topic that were already reported.
        self._told: set[tuple[str, str]] = set()

    def accepted(self, moment: Accepted) -> None:
        """Note the state of an event that is being published, once for all of its handlers."""
        receipt = moment.receipt
        if receipt.id not in self._open:  # one thread publishes it
            made = _Published(look_at(receipt.event), _place_of_publish(), len(receipt.deliveries))
            with self._lock:
                self._open[receipt.id] = made

    def started(self, moment: Started) -> None:
        """Compare an event for a handler."""
        receipt, handler = moment.receipt, moment.delivery.handler
        published = self._open.get(receipt.id)
        if published is None:
            return
        event = receipt.event
        found = changes(published.look, event, "event")
        if not found:
            return
        what = class_name(event) if receipt.topic is None else f"topic {receipt.topic}"
        with self._lock:
            if (handler.name, what) in self._told:
                return
            self._told.add((handler.name, what))
        with_copy = (
            "a worker process has a copy of it, from before the change or from after it"
            if handler.kind == "cpu" and moment.pid != os.getpid()
            else "a handler in this process gets it as it is now"
        )
        log.warning(
            "PROCBUS_DEBUG: event #%d (%s) for %s was changed after it was published at %s: %s "
            "differs, and %s. Publish an event once it is complete, and publish a copy of an "
            "object that you use again; a frozen dataclass cannot be changed",
            receipt.id,
            what,
            handler.name,
            published.place,
            listed(found),
            with_copy,
        )

    def settled(self, moment: Settled) -> None:
        """Forget an event whose deliveries have all ended."""
        event_id = moment.receipt.id
        with self._lock:
            known = self._open.get(event_id)
            if known is not None:
                known.left -= 1
                if known.left <= 0:
                    del self._open[event_id]

    def open_events(self) -> int:
        """The number of events that have open deliveries."""
        return len(self._open)


def _place_of_publish() -> str:
    """The line of the user's code that publishes, or the handler that does."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - documented so
    while frame is not None and is_ours(frame.f_globals.get("__name__")):
        frame = frame.f_back
    if frame is not None and frame.f_globals.get("__name__") not in _OF_THREADS:
        return f"{frame.f_code.co_filename}:{frame.f_lineno}"
    by = running_context()
    return "an unknown place" if by is None else f"the end of the handler {by.handler}"
