# SPDX-License-Identifier: MIT
"""The `initializer` of an executor whose calls run on threads: it runs once in each thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from procbus.core.errors import WorkerDied


class ThreadSetUp:
    """Sets up the thread that calls it, once. Thread-safe.

    Args:
        initializer: the user's function.
        initargs: its arguments.
    """

    def __init__(self, initializer: Callable[..., object], initargs: tuple[Any, ...]) -> None:
        self._initializer = initializer
        self._initargs = initargs
        self._done = threading.local()

    def __call__(self) -> None:
        """Set up this thread, unless it is set up already.

        Raises:
            WorkerDied: the user's function raised; its error is the cause. The next call tries
                again.
        """
        if hasattr(self._done, "once"):
            return
        try:
            self._initializer(*self._initargs)
        except BaseException as error:  # SystemExit too: only this call fails
            raise WorkerDied(
                f"the initializer of this executor raised {type(error).__name__}: {error}. The "
                "call for which the thread was to be set up was not run"
            ) from error
        self._done.once = True


class InThread:
    """Runs a handler in a thread that is set up.

    Args:
        handler: the handler to run.
        set_up: sets up the thread.
    """

    def __init__(self, handler: Callable[[Any], Any], set_up: ThreadSetUp) -> None:
        self._handler = handler
        self._set_up = set_up

    def __call__(self, event: Any) -> Any:
        """Set up the thread, and run the handler."""
        self._set_up()
        return self._handler(event)


class InLoop(InThread):
    """Runs an async handler in the thread of an event loop that is set up."""

    async def __call__(self, event: Any) -> Any:
        """Set up the thread, and await the handler."""
        return await super().__call__(event)
