# SPDX-License-Identifier: MIT
"""A thread of a lane, which may be joined before it is started."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic


class LaneThread(threading.Thread):
    """A daemon thread that its lane lists before it starts it.

    So whoever closes the lane may come by in between, and must wait for both start and end.
    """

    def __init__(self, name: str, target: Callable[[], object] | None = None) -> None:
        super().__init__(target=target, name=name, daemon=True)
        #: Set once it was started, or could not be.
        self._begun = threading.Event()

    def start(self) -> None:
        """Start it.

        Raises:
            RuntimeError: no thread is to be had.
        """
        try:
            super().start()
        finally:
            self._begun.set()

    def join(self, timeout: float | None = None) -> None:
        """Wait for its end, at most so many seconds; not at all if it could not be started."""
        deadline = None if timeout is None else monotonic() + timeout
        if self._begun.wait(timeout) and self.ident is not None:
            super().join(None if deadline is None else max(0.0, deadline - monotonic()))
