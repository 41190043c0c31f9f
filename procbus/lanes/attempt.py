# SPDX-License-Identifier: MIT
"""One attempt of a handler: the errors of its limits, its outcome, and its context."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import Context, copy_context
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from procbus.core.carry import Carried
from procbus.core.context import another, kept
from procbus.core.delivery import Delivery, error_to_tell
from procbus.core.errors import HandlerTimeout, MemoryLimitExceeded, ProcbusError
from procbus.core.frames import begin_at_the_user
from procbus.core.outcome import Outcome, OutcomeKind
from procbus.core.progress import Progress
from procbus.core.unfinished import fault_in
from procbus.core.validation import format_size
from procbus.system.footprint import Footprint

if TYPE_CHECKING:
    from procbus.pool.interface import At, WorkerGone


#: The measures taken after a run that took too long, in words for the error message.
KILLED, LEFT_BEHIND = "its worker was killed", "its thread was left behind"
NO_STACK = "(the stack of the handler could not be read)"


class Verdict(NamedTuple):
    """The reason why a worker is killed, and the end of its running delivery."""

    at: At
    kind: OutcomeKind
    #: Makes the error from the last progress report of the handler.
    error_of: Callable[[Progress | None], BaseException]
    #: Time of the verdict, in seconds of `time.monotonic()`.
    ended_at: float

    def is_for(self, batch: int, index: int) -> bool:
        """Whether the verdict is on this delivery."""
        return self.at[:2] == (batch, index)

    def outcome(self, gone: WorkerGone) -> Outcome:
        """The outcome of that delivery, after the death of its worker."""
        started_at = min(self.at[2], self.ended_at)  # during loading the start lies in the future
        error = self.error_of(gone.last_words.progress)
        return Outcome(self.kind, None, error, started_at, self.ended_at, gone.pid)


def timeout_error(
    delivery: Delivery, ran_s: float, stack: str, how: str, progress: Progress | None = None
) -> HandlerTimeout:
    """Make the error of a run that took too long.

    Args:
        delivery: the delivery that ran.
        ran_s: duration of the run, in seconds.
        stack: stack of the handler; empty if it could not be read.
        how: the measure taken, in words that end the message.
        progress: the last report of the handler.
    """
    handler = delivery.handler
    limit_s = handler.limits.timeout or 0.0
    error = HandlerTimeout(
        f"{handler.name} with event #{delivery.event_id} ran longer than its timeout of "
        f"{limit_s:g} s and {how} after {ran_s:.3g} s{_at(progress)}",
        handler=handler.name,
        event_id=delivery.event_id,
        limit_s=limit_s,
        stack=stack,
        progress=progress,
    )
    error.add_note(stack or NO_STACK)
    return error


def memory_error(
    delivery: Delivery,
    ran_s: float,
    peak: Footprint,
    stack: str,
    progress: Progress | None = None,
) -> MemoryLimitExceeded:
    """Make the error of a run that took too much memory.

    Args:
        delivery: the delivery that ran.
        ran_s: duration of the run, in seconds.
        peak: the most memory measured of the worker and the processes it started.
        stack: stack of the handler; empty if it could not be read.
        progress: the last report of the handler.
    """
    handler = delivery.handler
    limit = handler.limits.max_memory or 0
    error = MemoryLimitExceeded(
        f"{handler.name} with event #{delivery.event_id} had {peak}, above its "
        f"max_memory of {format_size(limit)}, and its worker was killed after {ran_s:.3g} s"
        f"{_at(progress)}",
        handler=handler.name,
        event_id=delivery.event_id,
        limit_bytes=limit,
        peak_bytes=peak.total,
        stack=stack,
        progress=progress,
    )
    error.add_note(stack or NO_STACK)
    return error


def _at(progress: Progress | None) -> str:
    return "" if progress is None else f", at {progress}"


# Outcomes of handlers that run in this process, on a thread or on the event loop.


def failure(error: BaseException, delivery: Delivery, started_at: float, pid: int) -> Outcome:
    """Make the outcome of a handler that raised, in this process, just now."""
    ended_at = monotonic()
    begin_at_the_user(error)
    error = error_to_tell(error, delivery)
    return Outcome(OutcomeKind.RAISED, None, error, started_at, ended_at, pid)


def context_for(delivery: Delivery) -> Context | None:
    """The context for an attempt; None for an empty one."""
    found: Context | Carried | None = delivery.context
    if isinstance(found, Carried):
        return found.context()
    if found is None or not delivery.subscription.handler.retry.retries:
        return found
    return another(found)  # a copy, so that the next attempt begins in the same context


def keep_contexts(deliveries: Sequence[Delivery]) -> None:
    """Give each delivery a copy of the publisher's context, unless that is empty."""
    for delivery in deliveries:
        own = kept(copy_context())
        if own is None:  # the publisher's context is for the other deliveries too
            return
        delivery.context = own


def place_of(delivery: Delivery) -> str:
    """Name the place of a thread that runs a delivery, in words."""
    return f"the handler {delivery.handler.name} with event #{delivery.event_id}"


def look_at(delivery: Delivery, value: object, started_at: float, pid: int) -> Outcome | None:
    """Return the failure of a handler that returned unfinished work; None if its result is whole.

    Args:
        delivery: the delivery that ran.
        value: the return value of its handler.
        started_at: start of the handler, in seconds of `time.monotonic()`.
        pid: this process.
    """
    error = fault_in(delivery, value)
    return None if error is None else failure(error, delivery, started_at, pid)


def no_thread(delivery: Delivery, error: RuntimeError) -> Outcome:
    """Make the outcome of a delivery for which no thread could be started."""
    fault = ProcbusError(
        f"{delivery.handler.name} cannot run with event #{delivery.event_id}: {error}. Close the "
        "bus before the script ends, or leave it by `with`"
    )
    fault.__cause__ = error
    return Outcome(OutcomeKind.RAISED, error=fault)
