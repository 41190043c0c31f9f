# SPDX-License-Identifier: MIT
"""Every error that procbus raises, in one tree, with who has to act."""

from __future__ import annotations


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


class BusClosed(ProcbusError):
    """The bus takes no more events: it was closed, or belongs to another process."""


class QueueFull(ProcbusError):
    """`max_pending` deliveries are waiting and `on_full="raise"`: the publisher slows down."""


class SerializationError(ProcbusError):
    """A handler, event or result cannot travel between processes.

    Attributes:
        path: where the culprit sits, for instance ``event.rows[3].lock``; empty when unknown.
    """

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(message)
        self.path = path

    def __reduce__(self) -> tuple[type[SerializationError], tuple[str, str]]:
        """Keep `path` when the error itself is pickled."""
        return type(self), (str(self), self.path)


class HandlerTimeout(ProcbusError):
    """A handler ran longer than its time limit."""


class MemoryLimitExceeded(ProcbusError):
    """A handler's worker grew above its memory limit."""


class JournalError(ProcbusError):
    """The journal cannot be opened, read or written."""


class WorkerDied(ProcbusError):
    """The worker process ended while it ran this delivery, or no worker could be started for it.

    Attributes:
        handler: name of the handler.
        event_id: id of the event.
        pid: process id of the dead worker; None when none could be started.
        exit_code: exit code, negative for a signal, as in `subprocess`; None when unknown.
        ran_s: seconds that the handler had been running.
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
    ) -> None:
        super().__init__(message)
        self.handler = handler
        self.event_id = event_id
        self.pid = pid
        self.exit_code = exit_code
        self.ran_s = ran_s


class WorkerTraceback(Exception):
    """The traceback that a handler's exception had in its worker, as text.

    It is the `__cause__` of an exception that came back from a worker process.
    """

    def __str__(self) -> str:
        """Set the text off, as it is shown above the traceback of this process."""
        return f'\n"""\n{self.args[0]}"""'
