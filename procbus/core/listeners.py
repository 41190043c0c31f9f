# SPDX-License-Identifier: MIT
"""The listeners of one bus: which listener is told of which moment."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any, Self

from procbus.core.context import HandlerContext, running, running_context
from procbus.core.delivery import Delivery
from procbus.core.errors import OptionError
from procbus.core.locks import Lock, Tangled, in_main_thread, later
from procbus.core.log import log
from procbus.core.moments import Accepted, Listener, Published, Started
from procbus.core.receipt import Receipt
from procbus.core.ticket import Ticket
from procbus.core.validation import did_you_mean, shown

#: Names of the moments: the methods of a listener.
MOMENTS = (
    "published",
    "accepted",
    "started",
    "retried",
    "settled",
    "worker_started",
    "worker_ended",
    "worker_stalled",
)


class Ear:
    """One method of one listener, with a note of whether it has failed."""

    __slots__ = ("_failed", "_name", "hear")

    def __init__(self, listener: object, moment: str, hear: Callable[[Any], object]) -> None:
        self._name = f"{type(listener).__name__}.{moment}"
        self._failed = False
        self.hear = hear

    def fail(self, error: BaseException) -> KeyboardInterrupt | None:
        """Log the first error of the method, and never raise; return it if it is Ctrl-C."""
        if not (isinstance(error, KeyboardInterrupt) and in_main_thread()):
            if self._failed:
                return None
            self._failed = True
            try:
                log.error(
                    "the listener %s raised (logged once; it is called again all the same)",
                    self._name,
                    exc_info=error,
                )
            except BaseException as raised:  # noqa: BLE001 - the user's log handler, or Ctrl-C in it
                error = raised
        return error if isinstance(error, KeyboardInterrupt) and in_main_thread() else None


#: The methods to call at one moment.
Ears = tuple[Ear, ...]


def tell(ears: Ears, moment: object) -> None:
    """Call listeners one after the other, even if one of them raises.

    Raises:
        KeyboardInterrupt: Ctrl-C came meanwhile.
    """
    interrupt: KeyboardInterrupt | None = None
    for ear in ears:
        try:
            ear.hear(moment)
        except Tangled:
            later(ear.hear, moment)
        except BaseException as error:  # noqa: BLE001 - the user's code: other listeners follow
            interrupt = ear.fail(error) or interrupt
    if interrupt is not None:
        raise interrupt


class Listeners:
    """The listeners of one bus, by moment. Thread-safe.

    Each field is a tuple, replaced whole. While a moment has no listener, its tuple is empty, and
    no record of that moment is made. The lock `_lock` guards the replacing.

    Attributes:
        publishing: whether any listener has a method `published` or `accepted`.
    """

    __slots__ = ("_lock", "_make_seat", "publishing", *MOMENTS)

    published: Ears
    accepted: Ears
    started: Ears
    retried: Ears
    settled: Ears
    worker_started: Ears
    worker_ended: Ears
    worker_stalled: Ears

    def __init__(self) -> None:
        self._lock = Lock()
        self._make_seat: Callable[[Delivery | None, Receipt | None], Any] = _no_seat
        self.publishing = False
        for moment in MOMENTS:
            setattr(self, moment, ())

    def seat_by(self, make_seat: Callable[[Delivery | None, Receipt | None], Any]) -> None:
        """Have a function make the value of `running` while listeners are told of a moment.

        It gets the delivery and its receipt; None for a moment of a worker.
        """
        self._make_seat = make_seat

    def add(self, listener: object) -> Listening:
        """Tell a listener of the moments that it has methods for, from now on.

        Raises:
            OptionError: it has no method for any moment.
        """
        ears = _ears_of(listener)
        with self._lock:
            for moment, ear in ears.items():
                setattr(self, moment, (*getattr(self, moment), ear))
            self.publishing = bool(self.published or self.accepted)
        return Listening(self, ears)

    def remove(self, ears: dict[str, Ear]) -> None:
        """Tell a listener no more. Idempotent."""
        with self._lock:
            for moment, ear in ears.items():
                setattr(self, moment, tuple(e for e in getattr(self, moment) if e is not ear))
            self.publishing = bool(self.published or self.accepted)

    # Telling: call these only if somebody listens.

    def tell_of(
        self, ears: Ears, moment: object, delivery: Delivery | None, receipt: Receipt | None
    ) -> None:
        """Tell listeners of a moment; events that they publish never wait for room.

        Of a `Ticket` they are told nothing; they are told of its deliveries instead.

        Args:
            ears: the listeners.
            moment: the record.
            delivery: the delivery whose moment it is; None for a worker's.
            receipt: the receipt of its event.
        """
        if isinstance(receipt, Ticket):
            return
        before = running.set(self._make_seat(delivery, receipt))
        try:
            tell(ears, moment)
        finally:
            running.reset(before)

    def tell_worker(self, ears: Ears, moment: object) -> None:
        """Tell listeners of a worker's moment."""
        self.tell_of(ears, moment, None, None)

    def tell_started(
        self, delivery: Delivery, receipt: Receipt, at: float, pid: int | None
    ) -> None:
        """Tell listeners that an attempt has begun."""
        if isinstance(receipt, Ticket):
            for member in receipt.filled():
                if (own := member.receipt) is not None:
                    self.tell_started(member, own, at, pid)
            return
        attempt = len(delivery.earlier) + 1
        started = Started(delivery, receipt, attempt, at, pid)
        self.tell_of(self.started, started, delivery, receipt)

    def tell_accepted(self, delivery: Delivery) -> None:
        """Tell listeners of an accepted delivery. Before an event's first one, tell of the event.

        It is called in the context of the publisher: the variable `running` has the publisher.
        """
        receipt = delivery.receipt
        if receipt is None:
            return
        if self.published and delivery == receipt.deliveries[0]:
            by = running_context()
            if by is not None and by.event_id and by.event_id == receipt.parent_id:
                at = monotonic()
                published = Published(receipt, by.handler, by.event_id, by.attempt, at)
                tell(self.published, published)
        if self.accepted:
            tell(self.accepted, Accepted(delivery, receipt, delivery.queued_at))


class Listening:
    """The return value of `EventBus.listen`: call `stop`, or use it in a `with` block.

    Example:
        ```python
        from procbus import EventBus, Settled


        class Show:
            def settled(self, moment: Settled) -> None:
                print(moment.outcome.kind)


        with EventBus(handlers=[]) as bus:
            listening = bus.listen(Show())
            listening.stop()
        ```
    """

    def __init__(self, listeners: Listeners, ears: dict[str, Ear]) -> None:
        self._listeners = listeners
        self._ears = ears

    def stop(self) -> None:
        """Call the listener no more. A call that has begun goes on to its end. Idempotent."""
        self._listeners.remove(self._ears)

    def __enter__(self) -> Self:
        """Listen for the length of a block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.stop()

    def __repr__(self) -> str:
        """Name the moments."""
        return f"<Listening to {', '.join(self._ears)}>"


def _ears_of(listener: object) -> dict[str, Ear]:
    """Find the methods of a listener.

    Raises:
        OptionError: there are none.
    """
    methods = {
        moment: method
        for moment in MOMENTS
        if callable(method := getattr(listener, moment, None))
        and getattr(method, "__func__", None) is not getattr(Listener, moment)
    }
    if isinstance(listener, type):
        raise OptionError(f"listen() takes an object: make one, listen({listener.__name__}())")
    if methods:
        return {moment: Ear(listener, moment, hear) for moment, hear in methods.items()}
    own = [name for name in dir(listener) if not name.startswith("_")]
    hint = next(filter(None, (did_you_mean(name, MOMENTS) for name in own)), "")
    raise OptionError(
        f"{shown(listener)} listens to nothing: give it one of the methods {', '.join(MOMENTS)}"
        f"{hint}"
    )


def _no_seat(delivery: Delivery | None, receipt: Receipt | None) -> HandlerContext | None:  # noqa: ARG001 - as its parameters are for others
    return None
