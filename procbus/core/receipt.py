# SPDX-License-Identifier: MIT
"""A receipt: the object that `publish` returns, with the deliveries of one event."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable
from time import monotonic
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self

from procbus.core.cancelling import CALLED, INTERRUPTED, CancelRequest
from procbus.core.delivery import Delivery, DeliveryState
from procbus.core.errors import ProcbusError
from procbus.core.locks import LOOK_UP_S, Bell, Lock, acquire, check_may_wait, in_main_thread
from procbus.core.log import log
from procbus.core.notebook import when_interrupted
from procbus.core.outcome import OutcomeKind
from procbus.core.text import seconds
from procbus.core.type_variables import EventT_co, ResultT_co
from procbus.core.user_objects import kind_of_event, short_repr
from procbus.core.waiting import here, pause

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

    from procbus.core.progress import Progress
    from procbus.core.subscription import Subscription


#: Maximum of handlers that an error names.
_NAMED = 5


def call_in_loop(loop: AbstractEventLoop, function: Callable[..., object], *args: Any) -> None:
    """Call a function in an event loop, from any thread; nothing happens in a closed loop."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *args)


#: Functions to call with a receipt, once every delivery is settled.
Callbacks = tuple[Callable[["Receipt"], object], ...]


def call_all(receipts: Iterable[Receipt], callbacks: Callbacks | None = None) -> None:
    """Call the callbacks of receipts that are done, even if another callback raises.

    Args:
        receipts: the receipts, which let go of their callbacks.
        callbacks: called in place of the receipts' own callbacks.

    Raises:
        KeyboardInterrupt: Ctrl-C came meanwhile.
    """
    interrupt: KeyboardInterrupt | None = None
    for receipt in receipts:
        calls = callbacks
        if calls is None:
            calls, receipt.callbacks = receipt.callbacks, None
        for callback in calls or ():
            try:
                callback(receipt)
            except BaseException as error:  # noqa: BLE001 - the user's code: other callbacks follow
                interrupt = _told(receipt, error) or interrupt
    if interrupt is not None:
        raise interrupt


def _told(receipt: Receipt, error: BaseException) -> KeyboardInterrupt | None:
    """Log the exception of a callback, and never raise; return it if it is Ctrl-C."""
    if not (isinstance(error, KeyboardInterrupt) and in_main_thread()):
        try:
            log.error("a callback for event #%d raised", receipt.id, exc_info=error)
        except BaseException as raised:  # noqa: BLE001 - the user's log handler, or Ctrl-C in it
            error = raised
    return error if isinstance(error, KeyboardInterrupt) and in_main_thread() else None


class SharedBlock(Protocol):
    """The large buffers of one event, put by its pool into memory that workers see."""

    #: Deliveries of the event that workers run and that are open. Written by the settlement.
    users: int

    def release(self) -> None:
        """Let the pool use the memory again: the last delivery of the event is settled."""


class Receipt(Generic[EventT_co, ResultT_co]):
    """The deliveries of one event. Thread-safe; wait on it from any thread or event loop.

    For a type checker it is `Receipt[E, R]`: `E` is the type of the event, and `R` the type of the
    results. See docs/typing.md.

    `left` and `callbacks` are guarded by `lock`, which belongs to the bus's settlement. Two
    subclasses store the fields: one for a single handler, one for any number.

    Example:
        ```python
        from procbus import EventBus

        with EventBus(handlers=[]) as bus:
            bus.subscribe("word", len)
            receipt = bus.publish("word", "hello")
            assert receipt.result(timeout=10) == 5
            assert receipt.done
        ```
    """

    if not TYPE_CHECKING:  # it would want the fields named here, where two layouts could not meet
        __slots__ = ()

        def __class_getitem__(cls, types: Any) -> Any:
            """Give `Receipt[E]` as `Receipt[E, Any]`, as a type checker does on every Python."""
            given = types if isinstance(types, tuple) else (types, Any)
            return super().__class_getitem__(given)

    event: EventT_co
    topic: str | None
    #: Id of the event whose handler published this event; None if no handler published it.
    parent_id: int | None
    lock: Lock
    #: Number of open deliveries.
    left: int
    #: The event's large buffers in shared memory, until its last delivery is settled.
    block: SharedBlock | None
    #: Called once the receipt is done. The tuple is replaced and never changed, because several
    #: receipts may share it.
    callbacks: Callbacks | None

    @property
    def id(self) -> int:
        """Number of the event, unique on its bus."""
        raise NotImplementedError

    @property
    def deliveries(self) -> tuple[Delivery[ResultT_co], ...]:
        """One delivery for each handler of the event, in the order of their subscription."""
        raise NotImplementedError

    @property
    def done(self) -> bool:
        """Whether every delivery is settled."""
        return self.left == 0

    @property
    def has_failure(self) -> bool:
        """Whether a delivery of the event failed. A cancelled delivery does not count as failed."""
        ends = [each.failure for each in self._present()]
        return any(end is not None and end.kind is not OutcomeKind.CANCELLED for end in ends)

    def when_done(self, callback: Callable[[Receipt[EventT_co, ResultT_co]], object]) -> None:
        """Call `callback(receipt)` once every delivery is settled; at once if all are already.

        The callback runs in the thread that settles the last delivery: keep the callback short, and
        never let it block. An exception from the callback is logged.
        """
        if not self.tell((callback,)):
            call_all((self,), (callback,))

    def tell(self, callbacks: Callbacks) -> bool:
        """Have callbacks called as by `when_done`, unless every delivery is settled already.

        Many receipts may be given the same tuple: then `tell` costs a third of `when_done`.

        Returns:
            False if every delivery is settled, and nothing will be called.
        """
        lock = self.lock
        try:  # as `with` does, which takes longer
            if not lock.acquire(False):
                acquire(lock)
            if still := self.left > 0:
                self.callbacks = (*self.callbacks, *callbacks) if self.callbacks else callbacks
            lock.release()
        except BaseException:  # Ctrl-C, which may arrive while the lock is being taken
            if lock.owned():
                lock.release()
            raise
        return still

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until every delivery is settled.

        Example:
            ```python
            from procbus import EventBus

            with EventBus(handlers=[]) as bus:
                bus.subscribe("word", print)
                assert bus.publish("word", "hello").wait(timeout=10)
            ```

        Args:
            timeout: maximum wait in seconds; None waits as long as it takes.

        Returns:
            Whether every delivery is settled.
        """
        if not self.left:
            return True
        if timeout is not None and timeout <= 0:
            return self.done
        resume = None
        if here.runner is not None:
            resume = pause(self, "await the receipt, or await receipt.settled()")
        try:
            return self._wait(timeout)
        except KeyboardInterrupt:
            when_interrupted(self.give_up)
            raise
        finally:
            if resume is not None:
                resume()

    def cancel(self) -> bool:
        """Cancel each delivery that is not settled, see `Delivery.cancel`.

        Example:
            ```python
            from procbus import EventBus

            with EventBus(handlers=[]) as bus:
                bus.subscribe("image", print)
                receipt = bus.publish("image", "large.png")
                receipt.cancel()
            ```

        Returns:
            True if every delivery is cancelled, or will be unless its handler succeeds first.
        """
        return self.ask_all(CancelRequest(monotonic(), CALLED, for_good=True))

    def ask_all(self, request: CancelRequest) -> bool:
        """Cancel each delivery that is not settled, for a reason."""
        asked = [each.ask_to_cancel(request) for each in self._present()]
        return bool(asked) and all(asked)

    def give_up(self) -> None:
        """Cancel the open deliveries: a notebook cell that waited for them was interrupted."""
        self.ask_all(CancelRequest(monotonic(), INTERRUPTED, for_good=False))

    def _present(self) -> tuple[Delivery[ResultT_co], ...]:
        """The delivery objects that lanes and settlement use."""
        return self.deliveries

    def _wait(self, timeout: float | None) -> bool:
        bell = Bell()
        wake = bell.ring
        self.when_done(wake)
        try:
            if timeout is None:
                while not bell.wait(LOOK_UP_S):
                    check_may_wait()
                return True
            deadline = monotonic() + timeout
            while True:
                left_s = max(0.0, deadline - monotonic())
                if bell.wait(min(left_s, LOOK_UP_S)):
                    return True
                if left_s <= LOOK_UP_S:
                    return self.done
                check_may_wait()
        finally:
            if self.callbacks is not None:  # nearly always the callback was called already
                self._call_no_more(wake)

    def _call_no_more(self, callback: Callable[[Receipt], object]) -> None:
        with self.lock:
            if self.callbacks is not None:
                self.callbacks = tuple(c for c in self.callbacks if c is not callback) or None

    def result(self, timeout: float | None = None) -> ResultT_co:
        """Wait, then return the return value of the event's only handler.

        Example:
            ```python
            from json import loads

            from procbus import EventBus

            with EventBus(handlers=[]) as bus:
                bus.subscribe("number", loads)
                assert bus.publish("number", "7").result() == 7
            ```

        Args:
            timeout: maximum wait in seconds; None waits as long as it takes.

        Raises:
            TimeoutError: not settled in time.
            ProcbusError: the event has no handler or more than one.
            BaseException: the exception of the handler, or the `ProcbusError` that ended the
                delivery.
        """
        delivery = self._only_delivery()
        if self.left:
            self._wait_or_raise(timeout)
        return delivery.result()

    def results(self, timeout: float | None = None) -> list[ResultT_co]:
        """Wait, then return the return value of each handler, in the order of `deliveries`.

        Example:
            ```python
            from procbus import EventBus

            with EventBus(handlers=[]) as bus:
                bus.subscribe("word", len)
                bus.subscribe("word", str.upper)
                assert bus.publish("word", "hello").results() == [5, "HELLO"]
            ```

        Args:
            timeout: maximum wait in seconds; None waits as long as it takes.

        Raises:
            TimeoutError: not settled in time.
            BaseException: the handler's exception, if one handler failed.
            BaseExceptionGroup: the exceptions of all failed handlers, if several failed.
        """
        self._wait_or_raise(timeout)
        errors = [e for d in self.deliveries if (e := d.exception()) is not None]
        if len(errors) > 1:
            raise BaseExceptionGroup(f"{len(errors)} handlers failed for event #{self.id}", errors)
        if errors:
            raise errors[0]
        return [delivery.result() for delivery in self.deliveries]

    async def settled(self) -> Self:
        """Wait in an event loop until every delivery is settled; never raises for a failure.

        Example:
            ```python
            import asyncio
            from json import loads

            from procbus import EventBus


            async def main() -> None:
                async with EventBus(handlers=[]) as bus:
                    bus.subscribe("number", loads)
                    receipt = await bus.apublish("number", "seven")
                    await receipt.settled()  # raises nothing, whatever became of the event
                    assert receipt.has_failure


            asyncio.run(main())
            ```
        """
        import asyncio  # only here: `import procbus` stays light

        if self.left:
            loop = asyncio.get_running_loop()
            woken = asyncio.Event()

            def wake(_: Receipt) -> None:
                call_in_loop(loop, woken.set)

            resume = pause(self, "", blocks=False)
            try:
                self.when_done(wake)
                await woken.wait()
            finally:
                self._call_no_more(wake)
                resume()
        return self

    def __await__(self) -> Generator[Any, None, ResultT_co]:
        """Wait in an event loop: `await receipt` gives the value of `result()`."""
        delivery = self._only_delivery()
        yield from self.settled().__await__()
        return delivery.result()

    def _only_delivery(self) -> Delivery[ResultT_co]:
        deliveries = self.deliveries
        if len(deliveries) == 1:
            return deliveries[0]
        if not deliveries:
            wanted = kind_of_event(self.event) if self.topic is None else repr(self.topic)
            raise ProcbusError(
                f"event #{self.id} has no result, because no handler takes {wanted}: subscribe one "
                "before publishing"
            )
        names = ", ".join([each.handler.name for each in deliveries[:_NAMED]])
        more = ", ..." if len(deliveries) > _NAMED else ""
        raise ProcbusError(
            f"event #{self.id} has {len(deliveries)} handlers ({names}{more}), so it has no one "
            "result: use results(), or look at each of receipt.deliveries"
        )

    def _wait_or_raise(self, timeout: float | None) -> None:
        if not self.wait(timeout):
            raise TimeoutError(f"event #{self.id} was not settled within {timeout} s: {self!r}")

    def __repr__(self) -> str:
        """Say which event it is and how its deliveries stand."""
        what = self.topic if self.topic is not None else type(self.event).__name__
        if not self.deliveries:
            return f"<Receipt of event #{self.id} ({what}): no handler>"
        states = [delivery.state for delivery in self.deliveries]
        counts = [f"{n} {s.value}" for s in DeliveryState if (n := states.count(s))]
        return f"<Receipt of event #{self.id} ({what}): {', '.join(counts)}>"

    def _repr_html_(self) -> str:
        """Show the receipt in a notebook, as a table with a row for each delivery."""
        from procbus.core.overview import Table, html_of  # only now: few scripts need it

        first = repr(self)[1:-1]
        if not self.deliveries:
            return html_of([first])
        head = "handler", "state", "attempts", "queued", "run", "error"
        rows = [_cells_of(delivery) for delivery in self.deliveries]
        return html_of([first, Table(head, rows, ("handler", "state", "error"))])


def _cells_of(delivery: Delivery) -> tuple[str, ...]:
    """The cells of a delivery in the table of its receipt."""
    failure = delivery.failure
    return (
        delivery.handler.name,
        delivery.state.value,
        f"{delivery.attempts:,}",
        seconds(delivery.queued_s),
        seconds(delivery.run_s),
        "" if failure is None else short_repr(failure.error),
    )


class FanReceipt(Receipt[EventT_co, ResultT_co]):
    """The receipt of an event with any number of handlers, which keeps a delivery for each."""

    __slots__ = (
        "_id",
        "block",
        "callbacks",
        "event",
        "held",
        "left",
        "lock",
        "parent_id",
        "topic",
    )

    def __init__(
        self,
        id: int,
        event: EventT_co,
        topic: str | None,
        parent_id: int | None,
        lock: Lock,
    ) -> None:
        self._id = id
        self.event = event
        self.topic = topic
        self.parent_id = parent_id
        self.lock = lock
        #: Set once, when the event is published.
        self.held: tuple[Delivery[ResultT_co], ...] = ()
        self.left = 0
        self.block = None
        self.callbacks = None

    @property
    def id(self) -> int:
        """Number of the event, unique on its bus."""
        return self._id

    @property
    def deliveries(self) -> tuple[Delivery[ResultT_co], ...]:
        """One delivery for each handler of the event, in the order of their subscription."""
        return self.held


class SoleReceipt(Receipt[EventT_co, ResultT_co], Delivery[ResultT_co]):
    """The receipt of an event with one handler, as most events have. It is also the delivery.

    Lanes and settlement use the object as the delivery, the publisher uses it as the receipt. So
    there is one object for each event instead of two. In a script that keeps its receipts, the
    garbage collector takes a quarter of the time; one object instead of two halves its work.
    """

    __slots__ = ("block", "callbacks", "event", "left", "lock", "parent_id", "topic")

    def __init__(
        self,
        id: int,
        event: EventT_co,
        topic: str | None,
        parent_id: int | None,
        lock: Lock,
        subscription: Subscription,
        queued_at: float,
    ) -> None:
        self.event_id = id
        self.event = event
        self.topic = topic
        self.parent_id = parent_id
        self.lock = lock
        self.left = 1
        self.block = self.callbacks = None
        # Repeats Delivery.__init__, without the cost of the call.
        self.subscription = subscription
        self.queued_at = queued_at
        self.receipt = self
        self.earlier = ()
        self.key = self.failure = self.unseen = self.context = None

    @property
    def id(self) -> int:
        """Number of the event, unique on its bus."""
        return self.event_id

    @property
    def deliveries(self) -> tuple[Delivery[ResultT_co], ...]:
        """The one delivery of the event."""
        return (SoleDelivery(self),)

    def _present(self) -> tuple[Delivery[ResultT_co], ...]:
        return (self,)

    def result(self, timeout: float | None = None) -> ResultT_co:
        """As `Receipt.result`."""
        if self.left:
            self._wait_or_raise(timeout)
        return Delivery.result(self)

    def _only_delivery(self) -> Delivery[ResultT_co]:
        return self


class SoleDelivery(Delivery[ResultT_co]):
    """The delivery of a `SoleReceipt`, as users see it: made only when your code asks for it.

    No field of a delivery is set here, so that Python looks up each field by `__getattr__`.
    """

    __slots__ = ("_of",)

    def __init__(self, of: SoleReceipt[Any, ResultT_co]) -> None:
        self._of = of

    def __getattr__(self, name: str) -> Any:
        """Give a field of the delivery."""
        if name == "_of":  # a copy of it, which is not filled yet
            raise AttributeError(name)
        return getattr(self._of, name)

    @property
    def state(self) -> DeliveryState:
        """The present state of the delivery."""
        return self._of.state

    @property
    def progress(self) -> Progress | None:
        """How far its running handler is, see `Delivery.progress`."""
        return self._of.progress

    def ask_to_cancel(self, request: CancelRequest) -> bool:
        """Cancel the delivery for a reason."""
        return self._of.ask_to_cancel(request)

    def exception(self) -> BaseException | None:
        """Return the error of the delivery, see `Delivery.exception`."""
        return self._of.exception()

    def __eq__(self, other: object) -> bool:
        """Equal to the other objects for the same delivery."""
        return other is self._of or (isinstance(other, SoleDelivery) and other._of is self._of)

    def __hash__(self) -> int:
        """The hash of the receipt."""
        return hash(self._of)


class Waiter(Protocol):
    """An object that waits for one delivery."""

    delivery: WaitedReceipt | None


class Owner(Protocol):
    """The object that had the delivery made."""

    #: Makes the return value of `current()` in a callback, of a delivery and its receipt.
    context_of: Callable[..., Any]

    def settled(self, delivery: WaitedReceipt) -> None:
        """Note that the delivery is settled. Must not raise: it runs in the thread that settles."""

    def withdraw(self, delivery: WaitedReceipt) -> None:
        """Note that the delivery's waiter gave up waiting."""


class WaitedReceipt(SoleReceipt):
    """The receipt of a delivery that has a waiter from the start. No caller ever gets it."""

    __slots__ = ("owner", "waiter")

    owner: Owner
    waiter: Any

    def answer(self, owner: Owner, waiter: Waiter) -> None:
        """Tell the end of the delivery to the object that waits. Called before it is queued."""
        self.owner = owner
        self.waiter = waiter
        # One tuple for all receipts: a list and a bound method for each receipt were a seventh of
        # the garbage collector's work for a call.
        self.callbacks = _TELL
        waiter.delivery = self


def _tell(receipt: Any) -> None:
    receipt.owner.settled(receipt)


_TELL = (_tell,)
