# SPDX-License-Identifier: MIT
"""A delivery: one event for one handler, the unit of work."""

from __future__ import annotations

import enum
import sys
import time
from typing import TYPE_CHECKING, Any, Generic, Protocol

from procbus.core.cancelling import CALLED, CLOSED, CancelRequest
from procbus.core.errors import Cancelled, HandlerExited, ProcbusError
from procbus.core.outcome import Outcome, OutcomeKind
from procbus.core.type_variables import ResultT_co
from procbus.core.user_objects import (
    RaiseOrigin,
    cause_of,
    is_a,
    is_any,
    origin_of,
    restore_origin,
    short_repr,
)

if TYPE_CHECKING:
    from procbus.core.handler import Handler
    from procbus.core.progress import Progress
    from procbus.core.receipt import Receipt
    from procbus.core.subscription import Subscription


class Looked(Protocol):
    """Counts failures until your code looks at them."""

    def note_seen(self, delivery: Delivery) -> None:
        """Note that your code has looked at a failure; looking again changes nothing."""


class DeliveryState(enum.Enum):
    """The state of a delivery: pending, running, then one of three terminal states.

    Example:
        ```python
        from json import loads

        from procbus import DeliveryState, EventBus

        with EventBus(handlers=[]) as bus:
            bus.subscribe("number", loads)
            receipt = bus.publish("number", "seven")
            receipt.wait()
            assert receipt.deliveries[0].state is DeliveryState.FAILED
        ```
    """

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


class Delivery(Generic[ResultT_co]):
    """One event for one handler. Read it from any thread.

    For a type checker it is `Delivery[R]`: `R` is the type of the result.

    All fields are fixed at publishing, except `earlier`, `receipt` and the fields of the end. Only
    the settlement sets these. It sets `earlier` with each attempt that another follows, and the end
    of the delivery once. It lets go of `receipt` last: a thread that finds None there finds all
    other fields set.

    A handler's success is stored in fields of the delivery, and the `Outcome` is made only when
    your code asks for it. That saves one object for nearly every delivery. After any other end
    `failure` has the outcome, and those fields are not set.

    Example:
        ```python
        from procbus import EventBus

        with EventBus(handlers=[]) as bus:
            bus.subscribe("word", len)
            receipt = bus.publish("word", "hello")
            receipt.wait()
            (delivery,) = receipt.deliveries
            print(delivery.handler.name, delivery.state, delivery.run_s)
        ```
    """

    __slots__ = (
        "asked",
        "context",
        "earlier",
        "ended_at",
        "event_id",
        "failure",
        "key",
        "origin",
        "pid",
        "queued",
        "queued_at",
        "rate_key",
        "receipt",
        "started_at",
        "subscription",
        "unseen",
        "value",
    )

    #: Number of deliveries that this object stands for: more than one for a `Ticket`.
    weight = 1

    #: Whether the delivery is or was in its lane; unset before. Written under the lane's lock.
    queued: bool
    #: The key under which the handler's rate counts it; unset without a key. Written at publishing.
    rate_key: str | int | float | bytes | None
    #: The request to cancel the delivery; unset before. Written under the settlement's lock.
    asked: CancelRequest
    value: ResultT_co
    started_at: float
    ended_at: float
    pid: int | None
    #: The origin of the error in `failure`; set together with it.
    origin: RaiseOrigin

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
        #: Outcomes of all attempts that another attempt followed.
        self.earlier: tuple[Outcome, ...] = ()
        #: The outcome, unless the handler succeeded.
        self.failure: Outcome | None = None
        #: The part of the publisher's context that the handler gets; None for nothing. For an io
        #: handler it is a `contextvars.Context`, for a cpu handler a `Carried`. It is dropped at
        #: the end of the delivery. After a success the lane drops it, since few deliveries have a
        #: context.
        self.context: Any = None
        #: The counter of failures that your code has not looked at yet; set once the delivery
        #: failed.
        self.unseen: Looked | None = None

    @property
    def handler(self) -> Handler:
        """The handler that this delivery is for."""
        return self.subscription.handler

    @property
    def outcome(self) -> Outcome | None:
        """How the last attempt ended; None while the delivery is open."""
        if self.receipt is not None:
            return None
        if self.failure is not None:
            return self.failure
        times = self.started_at, self.ended_at
        return Outcome(OutcomeKind.SUCCEEDED, self.value, None, *times, self.pid)

    @property
    def attempts(self) -> int:
        """Attempts that have begun and ended."""
        last = self.outcome
        ended = self.earlier if last is None else (*self.earlier, last)
        return sum(1 for outcome in ended if outcome.started_at)

    @property
    def state(self) -> DeliveryState:
        """The present state of the delivery."""
        outcome = self.outcome
        if outcome is not None:
            return TERMINAL_STATE[outcome.kind]
        if self.subscription.is_running(self):
            return DeliveryState.RUNNING
        return DeliveryState.PENDING

    @property
    def progress(self) -> Progress | None:
        """The last report of the running handler by `current().progress()`.

        None before the first report of an attempt, and once the delivery is settled.
        """
        return None if self.receipt is None else self.subscription.lane.progress_of(self)

    def cancel(self) -> bool:
        """Cancel the delivery: take it off the queue, or have its running handler stop.

        A delivery that no worker has begun is cancelled at once. An async handler gets asyncio's
        `CancelledError`. Any other running handler is told by `current().cancelled` and
        `current().check()`; `grace` seconds later its worker process is killed and replaced, or its
        thread left behind. See docs/cancelling.md.

        The delivery then ends as cancelled: it is not retried, and leaves no dead letter. If the
        handler succeeds before it is stopped, the delivery counts as succeeded. `cancel` returns at
        once, and may be called from any thread.

        Example:
            ```python
            from procbus import EventBus

            with EventBus(handlers=[]) as bus:
                bus.subscribe("image", print)
                for delivery in bus.publish("image", "large.png").deliveries:
                    delivery.cancel()
            ```

        Returns:
            True if the delivery is cancelled, or will be unless its handler succeeds first. False
            if the delivery has already ended in another way.
        """
        return self.ask_to_cancel(CancelRequest(time.monotonic(), CALLED, for_good=True))

    def ask_to_cancel(self, request: CancelRequest) -> bool:
        """Cancel the delivery for a reason, see `cancel`."""
        if self.receipt is not None and self.subscription.cancel is not None:
            self.subscription.cancel(self, request)
        outcome = self.outcome
        return outcome is None or outcome.kind is OutcomeKind.CANCELLED

    def end(self, outcome: Outcome) -> None:
        """Store the final outcome. For the settlement alone, under its lock."""
        if outcome.kind is OutcomeKind.SUCCEEDED:
            _, self.value, _, self.started_at, self.ended_at, self.pid, _ = outcome
        else:
            self.failure = outcome
            if outcome.error is not None:
                self.origin = origin_of(outcome.error)
            self.context = None
        self.receipt = None

    def result(self) -> ResultT_co:
        """Return the handler's return value.

        Raises:
            ProcbusError: the delivery is not settled yet, or was cancelled.
            BaseException: the exception that the handler raised, or the `ProcbusError` that ended
                the delivery.
        """
        if self.receipt is None and self.failure is None:
            return self.value
        error = self.exception()
        assert error is not None
        raise error

    def exception(self) -> BaseException | None:
        """Return the error of the delivery; None if the handler succeeded.

        The error always has the traceback of the handler, however often it was raised since.

        Raises:
            ProcbusError: the delivery is not settled yet.
        """
        if self.receipt is not None:
            raise ProcbusError(
                f"{self!r} is not settled yet: wait on its receipt first (receipt.wait())"
            )
        if self.failure is None:
            return None
        unseen = self.unseen  # another thread may look at it at the same time
        if unseen is not None:
            unseen.note_seen(self)
        error = self.failure.error
        if error is not None:
            restore_origin(error, self.origin)
        return error

    @property
    def queued_s(self) -> float:
        """Seconds from publishing until the handler began, or until now if it has not begun."""
        outcome = self.outcome
        if outcome is None:
            return time.monotonic() - self.queued_at
        return max(0.0, (outcome.started_at or outcome.ended_at) - self.queued_at)

    @property
    def run_s(self) -> float | None:
        """Seconds that the handler ran; None while the delivery is open or if it never began."""
        outcome = self.outcome
        if outcome is None or not outcome.started_at:
            return None
        return outcome.ended_at - outcome.started_at

    @property
    def worker_pid(self) -> int | None:
        """Id of the process that ran the handler; None while open, or if the run never began."""
        outcome = self.outcome
        return None if outcome is None else outcome.worker_pid

    def __repr__(self) -> str:
        """Say which event, which handler and how it stands."""
        text = f"<Delivery of event #{self.event_id} to {self.handler.name}: {self.state.value}"
        if self.run_s is not None:
            text += f" after {self.run_s:.3g} s"
        if self.receipt is None and self.failure is not None:
            text += f": {short_repr(self.failure.error)}"
        return text + ">"


#: A delivery with the outcome of its last attempt.
LastAttempt = tuple[Delivery, Outcome]


def cancelled(delivery: Delivery, ran_s: float | None = None, why: str = "") -> Outcome:
    """Make the outcome of a delivery that was cancelled, perhaps in the middle of its handler.

    Args:
        delivery: the delivery.
        ran_s: duration of the run, in seconds; None if its handler had not begun.
        why: the reason; "" takes the reason of the request, or without a request the closing of the
            bus.
    """
    request = asked_of(delivery)
    why = why or (CLOSED if request is None else request.why)
    how = "before its handler began" if ran_s is None else f"after {ran_s:.3g} s in its handler"
    handler, event_id = delivery.handler.name, delivery.event_id
    error = Cancelled(
        f"the delivery of event #{event_id} to {handler} was cancelled {how}: {why}",
        handler=handler,
        event_id=event_id,
    )
    now = time.monotonic()
    started_at = 0.0 if ran_s is None else now - ran_s
    return Outcome(OutcomeKind.CANCELLED, None, error, started_at, now)


def asked_of(delivery: Delivery) -> CancelRequest | None:
    """The request that a delivery be cancelled; None if there is none."""
    return getattr(delivery, "asked", None)


def as_asked(delivery: Delivery, outcome: Outcome) -> Outcome:
    """The outcome to settle: after a request to cancel, each failure counts as a cancellation.

    The error of the handler becomes the cause, unless it only says that the handler was stopped.
    This runs no code of the user's.
    """
    if outcome.kind is OutcomeKind.CANCELLED or asked_of(delivery) is None:
        return outcome
    ran_s = outcome.ended_at - outcome.started_at if outcome.started_at else None
    made = cancelled(delivery, ran_s)
    error, cause = made.error, outcome.error
    if cause is not None and is_a(cause, HandlerExited):
        cause = cause_of(cause)
    if error is not None and cause is not None and not is_any(cause, _says_stopped()):
        error.__cause__ = cause
    return outcome._replace(kind=made.kind, value=None, error=error)


def _says_stopped() -> tuple[type[BaseException], ...]:
    loaded = sys.modules.get("asyncio.exceptions")
    return (Cancelled,) if loaded is None else (Cancelled, loaded.CancelledError)


def error_to_tell(error: BaseException, delivery: Delivery) -> BaseException:
    """Choose the error that `result()` raises for an exception of the handler.

    `result()` raises the exception itself, unless that would end the caller. SystemExit would end
    the script, with status 0 after `sys.exit(0)`, and CancelledError would end the task. A
    `HandlerExited` takes the place of such an exception. The futures of an executor do raise such
    an exception, as the futures of the standard library do.
    """
    if is_a(error, Exception) or not is_any(error, _ends_callers()):
        return error
    if delivery.subscription.answered:
        return error
    handler, event_id = delivery.handler.name, delivery.event_id
    exited = HandlerExited(
        f"{handler} raised {short_repr(error)} with event #{event_id}: that fails the delivery, "
        "and ends neither script nor worker. Return from the handler to end it early, or raise an "
        "exception of your own",
        handler=handler,
        event_id=event_id,
    )
    exited.__cause__ = error
    return exited


def _ends_callers() -> tuple[type[BaseException], ...]:
    kinds = (SystemExit, KeyboardInterrupt, GeneratorExit)
    # While asyncio is not imported, no code can raise its CancelledError.
    loaded = sys.modules.get("asyncio.exceptions")
    return kinds if loaded is None else (*kinds, loaded.CancelledError)
