# SPDX-License-Identifier: MIT
"""What the limits of a handler say of a run: errors that tell which limit, and where it was."""

from __future__ import annotations

from collections.abc import Sequence
from traceback import FrameSummary, format_list
from typing import TYPE_CHECKING, NamedTuple

from procbus.delivery import Delivery
from procbus.errors import HandlerTimeout, MemoryLimitExceeded
from procbus.footprint import Footprint
from procbus.outcome import Outcome, OutcomeKind
from procbus.sizes import format_size

if TYPE_CHECKING:
    from procbus.pool.seam import At  # only then: it imports cloudpickle

NO_STACK = "(where the handler was could not be had)"


class Verdict(NamedTuple):
    """Why a worker is killed, and what becomes of the delivery that it was at."""

    at: At
    kind: OutcomeKind
    error: BaseException
    #: When it was given, in seconds of `time.monotonic()`.
    ended_at: float

    def is_for(self, batch: int, index: int) -> bool:
        """Whether it is this delivery that it is about."""
        return self.at[:2] == (batch, index)

    def outcome(self, pid: int | None) -> Outcome:
        """The outcome of that delivery, now that its worker `pid` is dead."""
        started_at = min(self.at[2], self.ended_at)  # of a handler that is loaded, it is to come
        return Outcome(self.kind, None, self.error, started_at, self.ended_at, pid)


def stack_text(frames: Sequence[FrameSummary], caller: str) -> str:
    """Lay out the stack of a handler in this process, without what called it.

    Args:
        frames: the stack, the innermost frame last.
        caller: file of the module that called the handler.
    """
    inner = list(frames)
    while any(frame.filename == caller for frame in inner):
        del inner[0]
    return "Stack (most recent call last):\n" + "".join(format_list(inner)) if inner else ""


def timeout_error(delivery: Delivery, ran_s: float, stack: str, how: str) -> HandlerTimeout:
    """Make the error of a run that took too long.

    Args:
        delivery: what was run.
        ran_s: for how many seconds.
        stack: where the handler was; empty when that could not be had.
        how: what was done about it, to go on with the sentence.
    """
    handler = delivery.handler
    limit_s = handler.timeout or 0.0
    error = HandlerTimeout(
        f"{handler.name} with event {delivery.event_id} ran longer than its timeout of "
        f"{limit_s:g} s and {how} after {ran_s:.3g} s",
        handler=handler.name,
        event_id=delivery.event_id,
        limit_s=limit_s,
        stack=stack,
    )
    error.add_note(stack or NO_STACK)
    return error


def memory_error(
    delivery: Delivery, ran_s: float, peak: Footprint, stack: str
) -> MemoryLimitExceeded:
    """Make the error of a run that took too much memory.

    Args:
        delivery: what was run.
        ran_s: for how many seconds.
        peak: the most that the worker and the processes it started were seen to have.
        stack: where the handler was; empty when that could not be had.
    """
    handler = delivery.handler
    limit = handler.max_memory or 0
    error = MemoryLimitExceeded(
        f"{handler.name} with event {delivery.event_id} had {peak}, above its "
        f"max_memory of {format_size(limit)}, and its worker was killed after {ran_s:.3g} s",
        handler=handler.name,
        event_id=delivery.event_id,
        limit_bytes=limit,
        peak_bytes=peak.total,
        stack=stack,
    )
    error.add_note(stack or NO_STACK)
    return error
