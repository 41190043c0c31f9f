# SPDX-License-Identifier: MIT
"""A thread of a lane, which may be joined before it is started."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic

from procbus.core.own_thread import OwnThread


class LaneThread(OwnThread):
    """A thread that its lane lists before it starts it.

    So a thread that closes the lane in between finds this thread in the list. It waits for the
    start of this thread, and then for its end.
    """

    def __init__(self, name: str, target: Callable[[], object] | None = None) -> None:
        super().__init__(name, target)
        #: Set once the thread was started, or could not be started.
        self._begun = threading.Event()

    def start(self) -> None:
        """Start the thread.

        Raises:
            RuntimeError: no thread can be started.
        """
        try:
            super().start()
        finally:
            self._begun.set()

    def join(self, timeout: float | None = None) -> None:
        """Wait at most `timeout` seconds for the thread to end; not if it could not be started."""
        deadline = None if timeout is None else monotonic() + timeout
        if self._begun.wait(timeout) and self.ident is not None:
            super().join(None if deadline is None else max(0.0, deadline - monotonic()))
