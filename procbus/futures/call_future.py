# SPDX-License-Identifier: MIT
"""The future of one call: a delivery in the form of `concurrent.futures`."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Never, TypeVar

from procbus.core.context import running
from procbus.core.delivery import DeliveryState
from procbus.core.errors import WorkerDied
from procbus.core.locks import Lock
from procbus.core.outcome import Outcome, OutcomeKind
from procbus.core.receipt import WaitedReceipt
from procbus.core.waiting import pause

T = TypeVar("T")

#: The advice for a handler on an event loop that would wait for a call.
INSTEAD = "await asyncio.wrap_future(future)"

#: Guards the making of a future's standard part: either the end of the call goes into that, or the
#: part is made with it. One for all futures, since it is held for less than a microsecond.
_making = Lock()


class CallbackSeat(list[Any]):
    """The value of `running` in a thread that settles, while it calls a callback."""


class _Callback:
    """Calls a callback as if it ran inside the call.

    An event that the callback publishes must not wait for room, because its thread settles
    deliveries, which makes room.
    """

    def __init__(self, function: Callable[[Any], object], delivery: WaitedReceipt) -> None:
        self._function = function
        self._delivery = delivery

    def __call__(self, future: object) -> None:
        delivery = self._delivery
        seat = CallbackSeat((delivery.owner.context_of, delivery, delivery))
        before = running.set(seat)
        try:
            self._function(future)
        finally:
            running.reset(before)


class CallFuture(Future[T]):
    """The future of one call. Thread-safe.

    Its standard part (a condition and three lists) costs more than all of procbus's work on a call.
    Most futures are only asked for their result, so the standard part is made when other code first
    needs it: Python does not find the attribute, and calls `__getattr__`.
    """

    # Defaults of the class: setting them would cost each call as much as finding its handler.
    #: The delivery until it is settled; then it is dropped, with the callable and its arguments.
    delivery: WaitedReceipt | None = None
    #: The delivery while it is being settled: then it is no longer in `delivery`.
    ending: WaitedReceipt | None = None

    # Guarded by `_making`:
    #: Whether the standard part is there. From then on only that part has the outcome.
    made = False
    #: Whether the call succeeded before the standard part was made; and its return value.
    succeeded = False
    value: Any = None

    def __init__(self) -> None:
        """Make the future without its standard part."""

    def __getattr__(self, name: str) -> Any:
        """Make the standard part, when one of its attributes is first asked for."""
        mine = vars(self)
        while not self.made:
            part: Future[T] = Future()
            succeeded = self.succeeded
            if succeeded:
                part.set_result(self.value)
            its = vars(part)
            with _making:
                if "made" not in mine and self.succeeded is succeeded:
                    mine.update(its, made=True)  # one step, because Ctrl-C may come between two
        return object.__getattribute__(self, name)

    def succeed(self, value: T) -> None:
        """Take the result, in the thread that settles."""
        with _making:
            if not self.made:
                self.value = value
                self.succeeded = True
        if not self.succeeded:
            self.set_result(value)

    def fail(self, delivery: WaitedReceipt, outcome: Outcome) -> None:
        """Take an outcome other than success, in the thread that settles."""
        if outcome.kind is not OutcomeKind.CANCELLED:
            self.set_exception(outcome.error)
        elif not outcome.started_at:
            super().cancel()
            self.set_running_or_notify_cancel()
        elif delivery.handler.kind == "cpu":
            # The standard library has the error of a dead worker for a call that was ended.
            self.set_exception(WorkerDied(str(outcome.error), handler=delivery.handler.name))
        else:
            self.set_exception(outcome.error)

    def result(self, timeout: float | None = None) -> T:
        """Wait for the call's result, see `Future.result`; a handler lends its place meanwhile."""
        if self.succeeded:
            return self.value  # type: ignore[no-any-return] # the value of a T
        if self.delivery is None or timeout == 0:
            return super().result(timeout)
        resume = pause(None, INSTEAD)
        try:
            return super().result(timeout)
        finally:
            resume()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the call's exception, see `Future.exception`; a handler lends its place."""
        if self.succeeded:
            return None
        if self.delivery is None or timeout == 0:
            return super().exception(timeout)
        resume = pause(None, INSTEAD)
        try:
            return super().exception(timeout)
        finally:
            resume()

    def cancel(self) -> bool:
        """Cancel the call, if no worker has begun it; return whether it is cancelled."""
        delivery = self.delivery
        if delivery is not None:
            delivery.owner.withdraw(delivery)
        return self.cancelled()

    def cancelled(self) -> bool:
        """Whether the call was cancelled."""
        return self.made and super().cancelled()

    def done(self) -> bool:
        """Whether the call was cancelled, or has ended."""
        return self.succeeded or (self.made and super().done())

    def running(self) -> bool:
        """Whether a worker is running the call now."""
        delivery = self.delivery
        return delivery is not None and delivery.state is DeliveryState.RUNNING

    def add_done_callback(self, fn: Callable[[Future[T]], object]) -> None:
        """Have `fn` called with this future when the call is done; at once if it is done already.

        `fn` runs in the thread that settles the call: keep it short. The function may submit more
        calls; submitting there never waits.
        """
        delivery = self.delivery or self.ending
        super().add_done_callback(fn if delivery is None else _Callback(fn, delivery))

    def __reduce__(self) -> Never:
        """Refuse to be pickled, as every future does."""
        raise TypeError("a future cannot travel to another process: pass its result()")

    def __repr__(self) -> str:
        """Show the function and the state of the call."""
        delivery: Any = self.delivery
        if delivery is None:
            return super().__repr__()
        return f"<Future of {delivery.handler.name}: {delivery.state.value}>"
