# SPDX-License-Identifier: MIT
"""The future of one call of an executor: a delivery seen as `concurrent.futures` has it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import TYPE_CHECKING, Any, TypeVar

from procbus.context import running
from procbus.delivery import Delivery, DeliveryState
from procbus.outcome import Outcome, OutcomeKind
from procbus.receipt import Receipt

if TYPE_CHECKING:
    from procbus.bus_executor import BusExecutor

T = TypeVar("T")


class CallFuture(Future[T]):
    """The future of one call. Thread-safe."""

    def __init__(self, executor: BusExecutor) -> None:
        super().__init__()
        self._executor = executor
        #: Until it is settled; then it is let go, with the callable and its arguments.
        self.delivery: Delivery | None = None
        self._called_back = False

    def settled(self, receipt: Receipt) -> None:
        """Take over what became of the delivery, in the thread that settles."""
        delivery = self.delivery
        assert delivery is not None
        self.delivery = None
        # As inside the call: what a callback submits must not wait for room, since it is this
        # thread that makes room.
        before = None
        if self._called_back:
            before = running.set([self._executor.context_of, delivery, receipt])
        try:
            if delivery.failure is None:
                self.set_result(delivery.value)
            else:
                self._end_without_result(delivery.failure)
        except InvalidStateError:
            pass  # somebody else gave this future a result
        finally:
            if before is not None:
                running.reset(before)
            self._executor.ended(self)

    def _end_without_result(self, outcome: Outcome) -> None:
        if outcome.kind is OutcomeKind.CANCELLED and not outcome.started_at:
            super().cancel()
            self.set_running_or_notify_cancel()
        else:
            self.set_exception(outcome.error)

    def cancel(self) -> bool:
        """Cancel the call, if no worker has begun it; say whether it is cancelled."""
        delivery = self.delivery
        if delivery is not None:
            self._executor.withdraw(delivery)
        return self.cancelled()

    def running(self) -> bool:
        """Whether a worker is in the call just now."""
        delivery = self.delivery
        return delivery is not None and delivery.state is DeliveryState.RUNNING

    def add_done_callback(self, fn: Callable[[Future[T]], object]) -> None:
        """Have `fn` called with this future once it is done, at once if it is.

        It runs in the thread that settles: keep it short. It may submit more; that never waits.
        """
        self._called_back = True
        super().add_done_callback(fn)

    def __repr__(self) -> str:
        """Say which call it is of, and how that stands."""
        delivery: Any = self.delivery
        if delivery is None:
            return super().__repr__()
        return f"<Future of {delivery.handler.name}: {delivery.state.value}>"
