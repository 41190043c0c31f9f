# SPDX-License-Identifier: MIT
"""A dead letter: a delivery that failed for good, with everything known about its failure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from procbus.core.errors import HandlerExited, HandlerTimeout, MemoryLimitExceeded, WorkerTraceback
from procbus.core.outcome import Outcome
from procbus.core.user_objects import (
    cause_of,
    class_name,
    is_a,
    short_repr,
    text_of,
    traceback_of,
    words_of,
)

if TYPE_CHECKING:
    from procbus.core.delivery import Delivery
    from procbus.core.handler import Kind
    from procbus.core.receipt import Receipt

#: Maximum length of an event or a message that is shown, in characters; the rest is cut.
_LONGEST = 200


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class DeadLetter:
    """A delivery that failed for good. Immutable, so any thread may read it.

    Equal only to itself, since events need not be comparable.

    Example:
        ```python
        from json import loads

        from procbus import DeadLetter, EventBus


        def report(letter: DeadLetter) -> None:
            print(letter.describe())


        with EventBus(handlers=[], on_failure=report) as bus:
            bus.subscribe("number", loads)
            bus.publish("number", "seven")
        ```

    Attributes:
        event_id: id of the event.
        event: the event itself.
        topic: the topic that it was published to; None when it was routed by its class.
        handler: name of the handler.
        kind: kind of the handler, ``"io"`` or ``"cpu"``.
        outcomes: how each attempt ended, the last one last; there is at least one.
        failed_at: when it failed for good; aware, in UTC.
        quarantined: whether the delivery was given up because it killed its workers too often.
    """

    event_id: int
    event: Any
    topic: str | None
    handler: str
    kind: Kind
    outcomes: tuple[Outcome, ...]
    failed_at: datetime
    quarantined: bool = False

    @property
    def outcome(self) -> Outcome:
        """How the last attempt ended."""
        return self.outcomes[-1]

    @property
    def error(self) -> BaseException | None:
        """The error of the last attempt."""
        return self.outcome.error

    @property
    def attempts(self) -> int:
        """Number of attempts."""
        return len(self.outcomes)

    @property
    def stacks(self) -> tuple[str, ...]:
        """The place in the code where each attempt failed, as the text of a traceback or stack.

        A cpu handler's traceback comes from its worker. A handler that was stopped at a limit has
        the stack at which it was stopped. The text is empty if there is no traceback, as for a dead
        worker.
        """
        return tuple(stack_of(outcome.error) for outcome in self.outcomes)

    def describe(self) -> str:
        """Say in a few lines what failed, how often, when and why."""
        what = event_in(self)
        lines = [
            f"{self.handler} ({self.kind}) failed with event #{self.event_id} ({what}) "
            f"at {self.failed_at:%Y-%m-%d %H:%M:%S} UTC",
            f"  event: {short_repr(self.event)}",
        ]
        for number, outcome in enumerate(self.outcomes, 1):
            ran = f" after {outcome.ended_at - outcome.started_at:.3g} s"
            lines.append(
                f"  attempt {number}: {outcome.kind.value}{ran if outcome.started_at else ''}: "
                f"{summary_of(outcome.error)}"
            )
        if self.quarantined:
            lines.append("  quarantined: it killed its workers too often to be tried again")
        return "\n".join(lines)

    def __str__(self) -> str:
        """As `describe`."""
        return self.describe()

    def __repr__(self) -> str:
        """Say which event, which handler and why, in one short line."""
        why = short_repr(self.error)
        return f"<DeadLetter of event #{self.event_id} for {self.handler}: {why}>"


def event_in(letter: DeadLetter) -> str:
    """Name the topic that the event of a letter was published to, or else its class."""
    return class_name(letter.event) if letter.topic is None else f"topic {letter.topic}"


def letter_of(
    delivery: Delivery, receipt: Receipt, outcomes: tuple[Outcome, ...], quarantined: bool
) -> DeadLetter:
    """Make the dead letter of a delivery that failed just now.

    Args:
        delivery: the delivery that failed.
        receipt: the receipt of its event.
        outcomes: how each attempt ended, the last one last.
        quarantined: whether it was given up because it killed its workers too often.
    """
    handler = delivery.subscription.handler
    return DeadLetter(
        delivery.event_id,
        receipt.event,
        receipt.topic,
        handler.name,
        handler.kind,
        outcomes,
        datetime.now(UTC),
        quarantined,
    )


def stack_of(error: BaseException | None) -> str:
    """The traceback of an error, as text; empty where the error has none."""
    if error is None:
        return ""
    if (is_a(error, HandlerTimeout) or is_a(error, MemoryLimitExceeded)) and error.stack:
        return error.stack
    cause = cause_of(error)
    if cause is not None and is_a(error, HandlerExited):
        error, cause = cause, cause_of(cause)
    if cause is not None and is_a(cause, WorkerTraceback):
        return str(cause.args[0])
    where = traceback_of(error)
    if where is None and cause is None:
        return ""
    return text_of(error, where)


def summary_of(error: BaseException | None) -> str:
    """An error in one line: its class and its message, even where the message cannot be had."""
    if error is None:
        return "no error"
    words = " ".join(words_of(error).split())
    if len(words) > _LONGEST:
        words = f"{words[:_LONGEST]}..."
    return f"{class_name(error)}: {words}" if words else class_name(error)
