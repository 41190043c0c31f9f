# SPDX-License-Identifier: MIT
"""Measures the steps of one coroutine among many on an event loop."""

from __future__ import annotations

from collections.abc import Awaitable, Generator
from time import monotonic, thread_time
from typing import Any


class Steps:
    """Awaits something, and sums up the CPU time of its own steps in this thread.

    What runs between two of its steps, while it is suspended, is not its own. (The loop below is
    what `yield from` does, see PEP 380, with a look at the clock around each step.)

    Args:
        awaited: what to await.
    """

    __slots__ = ("_awaited", "cpu_s", "longest_s", "suspended_s")

    def __init__(self, awaited: Awaitable[Any]) -> None:
        self._awaited = awaited
        self.cpu_s = 0.0
        #: Seconds between its steps.
        self.suspended_s = 0.0
        #: Seconds of the longest step.
        self.longest_s = 0.0

    def __await__(self) -> Generator[Any, Any, Any]:
        """Await it."""
        steps = self._awaited.__await__()
        # A plain iterator takes neither values nor exceptions.
        send: Any = getattr(steps, "send", None) or (lambda _: next(steps))
        throw = getattr(steps, "throw", None)
        step, argument = send, None
        resumed_at = monotonic()
        while True:
            began_s = thread_time()
            try:
                yielded = step(argument)
            except StopIteration as stop:
                return stop.value
            finally:
                self.cpu_s += thread_time() - began_s
                suspended_at = monotonic()
                if suspended_at - resumed_at > self.longest_s:
                    self.longest_s = suspended_at - resumed_at
            try:
                step, argument = send, (yield yielded)
            except GeneratorExit:
                close = getattr(steps, "close", None)
                if close is not None:
                    close()
                raise
            except BaseException as error:
                if throw is None:
                    raise
                step, argument = throw, error
            resumed_at = monotonic()
            self.suspended_s += resumed_at - suspended_at
