# SPDX-License-Identifier: MIT
"""Waiting until something holds, in a thread or in an event loop."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from time import monotonic

from procbus.core.locks import LOOK_UP_S, Bell, check_may_wait
from procbus.core.receipt import call_in_loop
from procbus.core.waiting import here, pause


class Waiters:
    """Threads and tasks that wait for a change. Thread-safe: each step on the dict is one step."""

    def __init__(self) -> None:
        self._calls: dict[Callable[[], object], None] = {}

    def wake(self) -> None:
        """Have all waiters look again."""
        for call in list(self._calls):
            call()

    def wait(
        self,
        ready: Callable[[], bool],
        timeout: float | None,
        instead: str,
        check: Callable[[], object] = check_may_wait,
    ) -> bool:
        """Wait in this thread until `ready` returns true; return whether it did in time.

        Args:
            ready: whether the wait is over.
            timeout: maximum wait in seconds; None waits as long as it takes.
            instead: advice for an async handler, which must not block.
            check: called now and then; it raises an error if the wait would never end.
        """
        if ready():
            return True
        if timeout is not None and timeout <= 0:
            return False
        resume = None if here.runner is None else pause(None, instead)
        bell = Bell()
        self._calls[bell.ring] = None
        deadline = None if timeout is None else monotonic() + timeout
        try:
            while not ready():
                left_s = LOOK_UP_S if deadline is None else deadline - monotonic()
                if left_s <= 0:
                    return False
                if not bell.wait(min(left_s, LOOK_UP_S)):
                    check_may_wait()
                    check()
            return True
        finally:
            self._calls.pop(bell.ring, None)
            if resume is not None:
                resume()

    async def until(self, ready: Callable[[], bool], timeout: float | None) -> bool:
        """Wait in an event loop until `ready` returns true; return whether it did in time."""
        import asyncio  # only here: `import procbus` stays light

        if ready():
            return True
        loop = asyncio.get_running_loop()
        woken = asyncio.Event()

        def wake() -> None:
            call_in_loop(loop, woken.set)

        resume = pause(None, "", blocks=False)
        self._calls[wake] = None
        try:
            async with asyncio.timeout(timeout):
                while not ready():
                    with suppress(TimeoutError):
                        await asyncio.wait_for(woken.wait(), LOOK_UP_S)
                    woken.clear()
        except TimeoutError:
            return ready()
        finally:
            self._calls.pop(wake, None)
            resume()
        return True
