# SPDX-License-Identifier: MIT
"""The future of one call of an executor: a delivery seen as `concurrent.futures` has it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from procbus.context import HandlerContext, running
from procbus.delivery import DeliveryState
from procbus.direct import WaitedReceipt
from procbus.errors import WorkerDied
from procbus.outcome import OutcomeKind
from procbus.waiting import pause

T = TypeVar("T")

_INSTEAD = "await asyncio.wrap_future(future)"


class CallFuture(Future[T]):
    """The future of one call. Thread-safe."""

    # Defaults of the class: a method to set them would cost every call as much as the look-up of
    # its handler.
    #: Until it is settled; then it is let go, with the callable and its arguments.
    delivery: WaitedReceipt | None = None
    #: Whether somebody wants to be called.
    called_back = False

    def end(self, delivery: WaitedReceipt, context_of: Callable[..., HandlerContext]) -> None:
        """Take over what became of the delivery, in the thread that settles."""
        # As inside the call: what a callback submits must not wait for room, since it is this
        # thread that makes room.
        before = running.set([context_of, delivery, delivery]) if self.called_back else None
        try:
            outcome = delivery.failure
            if outcome is None:
                self.set_result(delivery.value)
            elif outcome.kind is OutcomeKind.CANCELLED and not outcome.started_at:
                super().cancel()
                self.set_running_or_notify_cancel()
            elif outcome.kind is OutcomeKind.CANCELLED and delivery.handler.kind == "cpu":
                # The standard has no word for it but that of a worker that died.
                self.set_exception(WorkerDied(str(outcome.error), handler=delivery.handler.name))
            else:
                self.set_exception(outcome.error)
        finally:
            if before is not None:
                running.reset(before)

    def result(self, timeout: float | None = None) -> T:
        """Wait for what the call returns, as `Future.result`; a handler lends its place then."""
        if self.delivery is None or timeout == 0:
            return super().result(timeout)
        resume = pause(None, _INSTEAD)
        try:
            return super().result(timeout)
        finally:
            resume()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for what the call raises, as `Future.exception`; a handler lends its place then."""
        if self.delivery is None or timeout == 0:
            return super().exception(timeout)
        resume = pause(None, _INSTEAD)
        try:
            return super().exception(timeout)
        finally:
            resume()

    def cancel(self) -> bool:
        """Cancel the call, if no worker has begun it; say whether it is cancelled."""
        delivery = self.delivery
        if delivery is not None:
            delivery.owner.withdraw(delivery)
        return self.cancelled()

    def running(self) -> bool:
        """Whether a worker is in the call just now."""
        delivery = self.delivery
        return delivery is not None and delivery.state is DeliveryState.RUNNING

    def add_done_callback(self, fn: Callable[[Future[T]], object]) -> None:
        """Have `fn` called with this future once it is done, at once if it is.

        It runs in the thread that settles: keep it short. It may submit more; that never waits.
        """
        self.called_back = True
        super().add_done_callback(fn)

    def __repr__(self) -> str:
        """Say which call it is of, and how that stands."""
        delivery: Any = self.delivery
        if delivery is None:
            return super().__repr__()
        return f"<Future of {delivery.handler.name}: {delivery.state.value}>"
