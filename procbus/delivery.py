# SPDX-License-Identifier: MIT
"""A delivery: one event for one handler, the unit of work."""

from __future__ import annotations

import enum
import time
from typing import TYPE_CHECKING, Any

from procbus.errors import ProcbusError
from procbus.outcome import Outcome, OutcomeKind

if TYPE_CHECKING:
    from procbus.handler import Handler
    from procbus.receipt import Receipt
    from procbus.subscription import Subscription
    from procbus.unseen import Unseen


class DeliveryState(enum.Enum):
    """Where a delivery stands: pending, running, then one of three terminal states."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


TERMINAL_STATE = {
    kind: {
        OutcomeKind.SUCCEEDED: DeliveryState.SUCCEEDED,
        OutcomeKind.CANCELLED: DeliveryState.CANCELLED,
    }.get(kind, DeliveryState.FAILED)
    for kind in OutcomeKind
}


class Delivery:
    """One event for one handler. Read it from any thread.

    The settlement alone sets `outcome`, once, and `attempts` and `earlier` before that; every
    other field is fixed when it is published.
    """

    __slots__ = (
        "attempts",
        "earlier",
        "event_id",
        "key",
        "outcome",
        "queued_at",
        "receipt",
        "subscription",
        "unseen",
    )

    def __init__(
        self, subscription: Subscription, receipt: Receipt, key: Any, queued_at: float
    ) -> None:
        self.subscription = subscription
        #: The receipt while the delivery is open. Let go at settlement, so that no reference
        #: cycle is left for the garbage collector (there are hundreds of thousands of these).
        self.receipt: Receipt | None = receipt
        self.event_id = receipt.id
        self.key = key
        self.queued_at = queued_at
        #: Attempts that have ended.
        self.attempts = 0
        #: Outcomes of the attempts before the last: those that were followed by another.
        self.earlier: tuple[Outcome, ...] = ()
        self.outcome: Outcome | None = None
        #: Who keeps count of failures that nobody has looked at, once this is one of them.
        self.unseen: Unseen | None = None

    @property
    def handler(self) -> Handler:
        """The handler that this delivery is for."""
        return self.subscription.handler

    @property
    def state(self) -> DeliveryState:
        """Where the delivery stands just now."""
        if self.outcome is not None:
            return TERMINAL_STATE[self.outcome.kind]
        if self.subscription.is_running(self):
            return DeliveryState.RUNNING
        return DeliveryState.PENDING

    def result(self) -> Any:
        """Return what the handler returned.

        Raises:
            ProcbusError: the delivery is not settled yet, or was cancelled.
            BaseException: what the handler raised, or the `ProcbusError` that ended it.
        """
        error = self.exception()
        if error is not None:
            raise error
        outcome = self.outcome
        assert outcome is not None
        return outcome.value

    def exception(self) -> BaseException | None:
        """Return what went wrong, None when the handler succeeded.

        Raises:
            ProcbusError: the delivery is not settled yet.
        """
        if self.outcome is None:
            raise ProcbusError(
                f"{self!r} is not settled yet: wait on its receipt first (receipt.wait())"
            )
        if self.unseen is not None:
            self.unseen.note_seen(self)
        return self.outcome.error

    @property
    def queued_s(self) -> float:
        """Seconds from publish until the handler began (until now while it has not)."""
        if self.outcome is None:
            return time.monotonic() - self.queued_at
        return max(0.0, (self.outcome.started_at or self.outcome.ended_at) - self.queued_at)

    @property
    def run_s(self) -> float | None:
        """Seconds that the handler ran; None while the delivery is open or if it never began."""
        if self.outcome is None or not self.outcome.started_at:
            return None
        return self.outcome.ended_at - self.outcome.started_at

    @property
    def worker_pid(self) -> int | None:
        """Process that ran the handler; None while the delivery is open or if it never began."""
        return None if self.outcome is None else self.outcome.worker_pid

    def __repr__(self) -> str:
        """Say which event, which handler and how it stands."""
        text = f"<Delivery of event {self.event_id} to {self.handler.name}: {self.state.value}"
        if self.run_s is not None:
            text += f" after {self.run_s:.3g} s"
        if self.outcome is not None and self.outcome.error is not None:
            text += f": {self.outcome.error!r}"
        return text + ">"


def cancelled(delivery: Delivery, ran_s: float | None = None) -> Outcome:
    """Make the outcome of a delivery that was cancelled, perhaps in the middle of its handler."""
    how = "before its handler began" if ran_s is None else f"after {ran_s:.3g} s in its handler"
    error = ProcbusError(
        f"the delivery of event {delivery.event_id} to {delivery.handler.name} was cancelled "
        f"{how}: the bus was closed"
    )
    now = time.monotonic()
    started_at = 0.0 if ran_s is None else now - ran_s
    return Outcome(OutcomeKind.CANCELLED, None, error, started_at, now)
