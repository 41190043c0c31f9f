# SPDX-License-Identifier: MIT
"""An executor that has a bus of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from procbus.bus import EventBus

if TYPE_CHECKING:
    from procbus.bus_executor import BusExecutor, ExecutorOptions
    from procbus.handler import Kind


def executor(
    kind: Kind = "cpu", *, max_workers: int | None = None, **options: Unpack[ExecutorOptions]
) -> BusExecutor:
    """Make a `concurrent.futures.Executor` with a bus of its own, which ends with it.

    To replace a `ProcessPoolExecutor` (`"cpu"`) or a `ThreadPoolExecutor` (`"io"`).

    Args:
        kind: ``"cpu"`` runs calls in worker processes, ``"io"`` on threads (an `async def` on an
            event loop).
        max_workers: processes or threads; None for as many as `EventBus` has by default.
        **options: of every call: `timeout`, `max_memory`, `retries`, `backoff`, `retry_on`,
            `max_crashes`, `writable`, `priority`, as for `procbus.subscribe`.

    Raises:
        OptionError: an option makes no sense.
    """
    if kind == "io":
        bus = EventBus([], io_workers=max_workers)
    else:
        bus = EventBus([], cpu_workers=max_workers)
    made = bus.executor(kind, **options)
    made.own_bus = bus
    return made
