# SPDX-License-Identifier: MIT
"""The worker processes of joblib's backend: kept from one `joblib.Parallel` to the next."""

from __future__ import annotations

import threading
from functools import partial
from typing import NamedTuple

from procbus.bus import EventBus
from procbus.joblib.calls import limit_threads

#: `max_pending` of the bus: more calls than one `joblib.Parallel` has. joblib bounds its calls
#: itself, and would hold its lock while it waited for room.
_MANY = 1 << 60


class Need(NamedTuple):
    """The properties of workers."""

    workers: int
    #: The process to which the workers belong, because a forked child has no workers.
    pid: int
    #: Maximum of threads of numeric libraries in each worker, if the user gave one, and the
    #: environment variables that set this maximum.
    threads: int | None
    variables: tuple[str, ...]

    def make(self) -> EventBus:
        """Make a bus with such workers, which start with the first calls."""
        init = None
        if self.threads is not None:
            init = partial(limit_threads, self.variables, self.threads)
        return EventBus([], cpu_workers=self.workers, max_pending=_MANY, worker_init=init)


class IdleWorkers:
    """The bus that the last `joblib.Parallel` has left. Thread-safe: `_lock` guards it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left: tuple[Need, EventBus] | None = None

    def take(self, need: Need) -> EventBus:
        """Take the idle bus, if its workers have the needed properties; else make a bus."""
        with self._lock:
            if self._left is not None and self._left[0] == need:
                found, self._left = self._left[1], None
                return found
        return need.make()

    def leave(self, need: Need, bus: EventBus) -> None:
        """Leave a bus to the next `joblib.Parallel`. If a bus is there already, its workers end."""
        with self._lock:
            former, self._left = self._left, (need, bus)
        if former is not None:
            former[1].close()

    def close(self) -> None:
        """End the workers of that bus. Idempotent."""
        with self._lock:
            found, self._left = self._left, None
        if found is not None:
            found[1].close()


IDLE = IdleWorkers()
