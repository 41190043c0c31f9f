# SPDX-License-Identifier: MIT
"""The event bus that scripts start from: a dictionary of handlers and a pool of four threads.

This bus serves as a comparison: plain, complete for its purpose, and without a handicap.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any


class ThreadBus:
    """Runs every handler of an event on one thread pool. Any thread may publish.

    Args:
        workers: threads of the pool.
    """

    def __init__(self, workers: int = 4) -> None:
        self.workers = workers
        self._handlers: dict[Any, list[Callable[[Any], object]]] = defaultdict(list)
        self._pool = ThreadPoolExecutor(workers)
        # A handler publishes before it ends, so futures of its events are behind its own in this
        # queue. Once the queue is empty, all is done. `deque` is safe for one reader and many
        # writers.
        self._futures: deque[Future[object]] = deque()
        self.handled = 0  # deliveries that ended, as far as drain has looked
        self.failures: list[BaseException] = []

    def subscribe(self, topic: Hashable, handler: Callable[[Any], object]) -> None:
        """Call `handler` with each event of a topic: an event's `event_type`, or else its class."""
        self._handlers[topic].append(handler)

    def publish(self, event: Any) -> None:
        """Hand the event to the pool, once for each of its handlers."""
        for handler in self._handlers.get(getattr(event, "event_type", type(event)), ()):
            self._futures.append(self._pool.submit(handler, event))

    def drain(self, timeout: float | None = None) -> bool:
        """Wait until all events are handled, also events that handlers publish.

        Args:
            timeout: maximum wait in seconds; None for as long as it takes.

        Returns:
            Whether all are handled. Exceptions of handlers are in `failures`.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._futures:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                error = self._futures[0].exception(left)
            except FutureTimeout:
                return False
            self._futures.popleft()
            self.handled += 1
            if error is not None:
                self.failures.append(error)
        return True

    def close(self, cancel: bool = False) -> None:
        """End the threads, after pending events or, with `cancel`, without them.

        With `cancel` the call does not wait for running handlers, because no thread can be ended.
        """
        self._pool.shutdown(wait=not cancel, cancel_futures=cancel)
