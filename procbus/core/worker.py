# SPDX-License-Identifier: MIT
"""The worker that runs a handler, as the handler sees it: `current().worker`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from procbus.core.shelf import Shelf


#: Maximum time for closing the resources of a worker, in seconds. After it a thread is left behind,
#: and a process is killed.
CLOSE_S = 5.0
#: Time after which a resource that is still being closed is logged, in seconds; below `CLOSE_S`.
LATE_S = 4.0


class CurrentWorker:
    """The worker that runs a handler.

    Attributes:
        number: 0 for the first worker of its lane, 1 for the second, and so on. The replacement of
            a dead worker has the same number. Async handlers have 0, because they share one event
            loop.

    Args:
        number: the attribute `number`.
        make: makes the shelf of its resources, once the first handler needs the shelf; None for a
            shelf that only this worker has, in a worker process.
        late_s: time after which a resource that is still being closed is logged, in seconds.

    Example:
        ```python
        from procbus import EventBus, current, subscribe


        @subscribe("image", kind="cpu")
        def device(image: int) -> str:
            return f"cuda:{current().worker.number}"


        with EventBus(cpu_workers=1) as bus:
            assert bus.publish("image", 1).result() == "cuda:0"
        ```
    """

    __slots__ = ("_late_s", "_make", "_shelf", "closing", "number")

    def __init__(
        self,
        number: int = 0,
        make: Callable[[], Shelf] | None = None,
        *,
        late_s: float = LATE_S,
    ) -> None:
        self.number = number
        self._late_s = late_s
        self._make = make
        self._shelf: Shelf | None = None
        #: Whether it is closing its resources.
        self.closing = False

    @property
    def shelf(self) -> Shelf:
        """The open resources of the worker; for the worker's own thread."""
        found = self._shelf
        if found is None:
            if self._make is None:
                from procbus.core.shelf import Shelf  # only now: few workers need it

                found = Shelf()
            else:
                found = self._make()
            self._shelf = found
        return found

    @property
    def has_shelf(self) -> bool:
        """Whether a handler has asked for a resource."""
        return self._shelf is not None

    def close(self) -> None:
        """Close its resources, in reverse order. Idempotent. Logs a resource that takes long."""
        shelf = self._shelf
        if shelf is None or shelf.is_empty:
            return
        from procbus.core.own_thread import OwnThread  # only now: few workers need it

        self.closing = True
        closed = threading.Event()
        watch = OwnThread("procbus-closing", _watch, closed, shelf, self._late_s)
        with suppress(RuntimeError):  # Python 3.12 starts no thread once the script has ended
            watch.start()
        try:
            shelf.close()
        finally:
            closed.set()

    def __repr__(self) -> str:
        """Tell the number."""
        return f"<worker {self.number}>"


def _watch(closed: threading.Event, shelf: Shelf, late_s: float) -> None:
    if not closed.wait(late_s):
        shelf.warn_late(CLOSE_S)


#: Stands for the worker where no worker runs the code, such as in a callback.
NO_WORKER = CurrentWorker()
