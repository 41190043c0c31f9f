# SPDX-License-Identifier: MIT
"""The life of a bus: the methods that start it, wait for it and end it."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from procbus import sigterm
from procbus.assembly import Assembly
from procbus.lifecycle import Lifecycle


class BusLife:
    """What a bus is from its start to its end. All methods may be called from any thread.

    Threads know the parts of a bus, and nothing of this object: so it is gone once its user lets go
    of it.

    Args:
        parts: of the bus.
    """

    def __init__(self, parts: Assembly) -> None:
        self._start = parts.start
        self._lifecycle = parts.lifecycle

    def __del__(self) -> None:
        """Nobody can use the bus any more: finish what is pending, and end the workers."""
        lifecycle: Lifecycle | None = getattr(self, "_lifecycle", None)
        if lifecycle is not None:  # else it could not be made
            lifecycle.drop()

    def start(self) -> Self:
        """Start all workers of the cpu lane now, in parallel, rather than when needed."""
        self._start()
        return self

    def drain(self, timeout: float | None = None) -> bool:
        """Wait until everything published is settled, also what handlers publish meanwhile.

        Args:
            timeout: at most so many seconds; None waits as long as it takes.

        Returns:
            Whether everything is settled.

        Raises:
            ProcbusError: called inside a handler of this bus, which would wait for itself.
        """
        return self._lifecycle.drain(timeout)

    def close(self, timeout: float | None = None, cancel: bool = False) -> None:
        """Take no more events, finish, and end all workers. Idempotent.

        Args:
            timeout: finish within so many seconds; then what has not begun is cancelled and what
                is running is stopped. None waits as long as it takes.
            cancel: cancel at once what has not begun, and wait only for what is running.

        Raises:
            ProcbusError: called inside a handler of this bus, which would wait for itself.
        """
        self._lifecycle.close(timeout, cancel)

    def __enter__(self) -> Self:
        """Use the bus for the length of a block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Drain and close; after Ctrl-C (or SystemExit) cancel what has not begun."""
        self._lifecycle.leave(error)

    async def __aenter__(self) -> Self:
        """Use the bus for the length of a block."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """As `__exit__`, without blocking the event loop; cancelling the task cancels as Ctrl-C."""
        from procbus import aio  # only now: it imports asyncio

        await aio.in_thread(self._lifecycle.leave, error)
        sigterm.restore()  # which only the main thread can
