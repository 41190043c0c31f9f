# SPDX-License-Identifier: MIT
"""`procbus.executor`: an executor with a bus of its own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Unpack

from procbus.bus import EventBus
from procbus.core.errors import OptionError, SerializationError
from procbus.core.handler import OPTIONS_OF_A_HANDLER
from procbus.core.validation import is_whole, shown
from procbus.futures.thread_set_up import ThreadSetUp
from procbus.settings import MOST_WORKERS

if TYPE_CHECKING:
    from procbus.core.handler import CallOptions, Kind
    from procbus.futures.executor import BusExecutor


def executor(
    kind: Kind = "cpu",
    *,
    max_workers: int | None = None,
    initializer: Callable[..., object] | None = None,
    initargs: tuple[Any, ...] = (),
    **options: Unpack[CallOptions],
) -> BusExecutor:
    """Make a `concurrent.futures.Executor` with its own bus, which closes at the shutdown.

    It replaces a `ProcessPoolExecutor` (`"cpu"`) or a `ThreadPoolExecutor` (`"io"`).

    Example:
        ```python
        import procbus

        with procbus.executor("cpu", max_workers=2, timeout=60) as pool:
            assert list(pool.map(abs, [-1, -2, -3])) == [1, 2, 3]
        ```

    Args:
        kind: ``"cpu"`` runs calls in worker processes, ``"io"`` on threads (an `async def` on an
            event loop).
        max_workers: number of processes or threads; None for the default of `EventBus`.
        initializer: called once in each worker before its first call. If it raises, the calls for
            which the worker was started fail with `WorkerDied`, whose cause is that exception.
        initargs: arguments of `initializer`.
        **options: options of every call: `timeout`, `max_memory`, `retries`, `backoff`, `retry_on`,
            `max_crashes`, `writable` (True by default), `priority`, as for `procbus.subscribe`.

    Raises:
        OptionError: an option makes no sense.
        SerializationError: `initializer` or `initargs` cannot travel to a worker.
        TypeError: `initializer` is not callable.
    """
    for name in options:
        if name not in OPTIONS_OF_A_HANDLER:
            from procbus.core.foreign_names import meant_by  # only when something is wrong

            if own := meant_by(name, ("max_workers", "initializer")):
                raise OptionError(f"executor has no option {name}=; did you mean {own}=?")
    if max_workers is not None and not is_whole(max_workers, 1, MOST_WORKERS):
        raise OptionError(
            f"max_workers must be greater than 0: a whole number to {MOST_WORKERS}, or None for "
            f"the default, not {shown(max_workers)}"
        )
    if initializer is not None and not callable(initializer):
        raise TypeError(f"initializer must be a callable, not {shown(initializer)}")
    set_up = None
    if kind == "io":
        bus = EventBus([], io_workers=max_workers)
        if initializer is not None:
            set_up = ThreadSetUp(initializer, tuple(initargs))
    else:
        init = None if initializer is None else partial(initializer, *initargs)
        bus = _with_initializer(max_workers, init)
    made = bus.executor(kind, **options)
    made.own(set_up)
    return made


def _with_initializer(workers: int | None, init: Callable[[], object] | None) -> EventBus:
    """Make a bus whose errors name the option `initializer`, because the user gave that one."""
    try:
        return EventBus([], cpu_workers=workers, worker_init=init)
    except SerializationError as error:
        text = str(error).replace("worker_init=", "initializer ", 1)
        raise SerializationError(text, error.path) from error.__cause__
    except OptionError as error:
        raise OptionError(str(error).replace("worker_init=", "initializer ", 1)) from None
