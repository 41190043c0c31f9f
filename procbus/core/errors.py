# SPDX-License-Identifier: MIT
"""Every error that procbus raises, in one tree. Each says who has to act.

An error that the standard library has too inherits from the standard one. Code written for an
executor of the standard library therefore catches ours by the name that it knows.
"""

from __future__ import annotations

from concurrent.futures import BrokenExecutor, CancelledError
from pickle import PicklingError
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from procbus.core.progress import Progress


class ProcbusError(Exception):
    """Base of all errors of procbus. Raised itself for misuse of a receipt or of `current()`."""


class SubscriptionError(ProcbusError):
    """A handler cannot be subscribed as written: its author changes the subscription."""


class TopicError(SubscriptionError):
    """A topic is neither a class nor a well-formed dotted string: the caller changes the topic."""


class OptionError(ProcbusError, ValueError):
    """An option of the bus makes no sense: its user changes the call."""


class NoSuchHandler(ProcbusError):
    """The handler named is not subscribed to this bus."""


class BusClosed(ProcbusError, RuntimeError):
    """The bus takes no more events: it was closed, or belongs to another process."""


class QueueFull(ProcbusError):
    """`max_pending` deliveries are waiting and `on_full="raise"`: the publisher slows down."""


class SerializationError(ProcbusError, PicklingError):
    """A handler, event or result cannot travel between processes.

    Attributes:
        path: the place of the object that cannot travel, for instance ``event.rows[3].lock``; empty
            when unknown.
        raised: for a handler's exception that could not travel, the full names of its class and its
            base classes; empty otherwise.
    """

    def __init__(self, message: str, path: str = "", raised: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.path = path
        self.raised = raised

    def __reduce__(
        self,
    ) -> tuple[type[SerializationError], tuple[str, str, tuple[str, ...]]]:
        """Keep the attributes when the error itself is pickled."""
        return type(self), (str(self), self.path, self.raised)


class HandlerExited(ProcbusError):
    """A handler raised an exception that would end the caller of `result()`: script or task.

    These are SystemExit (`sys.exit()`), KeyboardInterrupt, GeneratorExit, and asyncio's
    CancelledError. If `result()` raised one of them again, it would end the caller: after
    `sys.exit(0)` with a status of success. So `result()` raises this error instead, with the
    original as its `__cause__`.

    Attributes:
        handler: name of the handler.
        event_id: id of the event.
    """

    def __init__(self, message: str, *, handler: str = "", event_id: int = 0) -> None:
        super().__init__(message)
        self.handler = handler
        self.event_id = event_id


class BatchFailed(ProcbusError):
    """Raised by a batch handler to fail some of its events; the others succeed.

    Example:
        ```python
        @subscribe("row", batch=500)
        def store(rows: list[str]) -> None:
            errors: dict[int, Exception] = {}
            for index, row in enumerate(rows):
                try:
                    insert(row)
                except ValueError as error:
                    errors[index] = error
            if errors:
                raise BatchFailed(errors)
        ```

    Args:
        errors: the exception of each event that failed, by its index in the list of events. If it
            is empty, all events succeed.
        results: the results of the batch, one for each event, where the ones at the indices of
            failed events are ignored; None if there are none.
    """

    def __init__(
        self, errors: Mapping[int, BaseException], results: Sequence[object] | None = None
    ) -> None:
        super().__init__(errors, results)
        self.errors = errors
        self.results = results

    def __str__(self) -> str:
        """Say how many events failed, and why the first one did."""
        first = next(iter(self.errors.items()), None)
        told = "" if first is None else f"; index {first[0]}: {first[1]!r}"
        return f"{len(self.errors)} events of the batch failed{told}"


class Cancelled(ProcbusError, CancelledError):
    """A delivery was cancelled, or its handler learned so from `current().check()`.

    Code that catches the `CancelledError` of `concurrent.futures` catches this too. It is not
    asyncio's `CancelledError`, which would end the task that waits for the result.

    Attributes:
        handler: name of the handler.
        event_id: id of the event.
    """

    def __init__(self, message: str, *, handler: str = "", event_id: int = 0) -> None:
        super().__init__(message)
        self.handler = handler
        self.event_id = event_id


class HandlerTimeout(ProcbusError, TimeoutError):
    """A handler ran longer than its time limit.

    Attributes:
        handler: name of the handler.
        event_id: id of the event.
        limit_s: the limit in seconds.
        stack: the Python stack of the handler just before it was stopped, as text; empty when it
            could not be read.
        progress: the last `current().progress()` of the handler; None if it reported none.
    """

    def __init__(
        self,
        message: str,
        *,
        handler: str = "",
        event_id: int = 0,
        limit_s: float = 0.0,
        stack: str = "",
        progress: Progress | None = None,
    ) -> None:
        super().__init__(message)
        self.handler = handler
        self.event_id = event_id
        self.limit_s = limit_s
        self.stack = stack
        self.progress = progress


class MemoryLimitExceeded(ProcbusError):
    """A handler's worker, with the processes that it started, grew above its memory limit.

    Attributes:
        handler: name of the handler.
        event_id: id of the event.
        limit_bytes: the limit.
        peak_bytes: the most resident memory measured, without memory that they share.
        stack: the Python stack of the handler just before it was stopped, as text; empty when it
            could not be read.
        progress: the last `current().progress()` of the handler; None if it reported none.
    """

    def __init__(
        self,
        message: str,
        *,
        handler: str = "",
        event_id: int = 0,
        limit_bytes: int = 0,
        peak_bytes: int = 0,
        stack: str = "",
        progress: Progress | None = None,
    ) -> None:
        super().__init__(message)
        self.handler = handler
        self.event_id = event_id
        self.limit_bytes = limit_bytes
        self.peak_bytes = peak_bytes
        self.stack = stack
        self.progress = progress


class CircuitOpen(ProcbusError):
    """Workers died one after the other without a success, so the cpu lane takes no new work now."""


class JournalError(ProcbusError):
    """The journal cannot be opened, read or written."""


class WorkerDied(ProcbusError, BrokenExecutor):
    """The worker process ended while it ran this delivery, or no worker could be started for it.

    Attributes:
        handler: name of the handler.
        event_id: id of the event.
        pid: process id of the dead worker; None when none could be started.
        exit_code: exit code, negative for a signal, as in `subprocess`; None when unknown.
        ran_s: seconds that the handler had been running.
        out_of_memory: whether the signs say that the kernel killed it for want of memory.
        progress: the last `current().progress()` of the handler; None if it reported none.
    """

    def __init__(
        self,
        message: str,
        *,
        handler: str = "",
        event_id: int = 0,
        pid: int | None = None,
        exit_code: int | None = None,
        ran_s: float = 0.0,
        out_of_memory: bool = False,
        progress: Progress | None = None,
    ) -> None:
        super().__init__(message)
        self.handler = handler
        self.event_id = event_id
        self.pid = pid
        self.exit_code = exit_code
        self.ran_s = ran_s
        self.out_of_memory = out_of_memory
        self.progress = progress


class WorkerTraceback(Exception):
    """The traceback that a handler's exception had in its worker, as text.

    It is the `__cause__` of an exception that came back from a worker process.
    """

    def __str__(self) -> str:
        """Set the text off, as it is shown above the traceback of this process."""
        return f'\n"""\n{self.args[0]}"""'
