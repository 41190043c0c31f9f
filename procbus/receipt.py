# SPDX-License-Identifier: MIT
"""A receipt: what `publish` returns, the deliveries of one event."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Generator
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any

from procbus.delivery import Delivery, DeliveryState
from procbus.errors import ProcbusError
from procbus.locks import LOOK_UP_S

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

    from procbus.pool.blocks import Block


def call_in_loop(loop: AbstractEventLoop, function: Callable[..., object], *args: Any) -> None:
    """Call something in an event loop, from any thread; where the loop is closed, nobody waits."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *args)


class Receipt:
    """The deliveries of one event. Thread-safe; wait on it from any thread or event loop.

    `left` and `callbacks` are guarded by `lock`, which belongs to the bus's settlement.
    """

    __slots__ = ("block", "callbacks", "event", "held", "id", "left", "lock", "parent_id", "topic")

    def __init__(
        self,
        id: int,
        event: Any,
        topic: str | None,
        parent_id: int | None,
        lock: threading.Lock,
    ) -> None:
        self.id = id
        self.event = event
        self.topic = topic
        #: Id of the event whose handler published this one; None when it came from outside.
        self.parent_id = parent_id
        self.lock = lock
        #: The deliveries; the one itself where there is just one, which saves a tuple for nearly
        #: every event. Set once, when it is published.
        self.held: Delivery | tuple[Delivery, ...] = ()
        self.left = 0
        #: The event's large buffers in shared memory, until the last delivery is settled.
        self.block: Block | None = None
        self.callbacks: list[Callable[[Receipt], object]] | None = None

    @property
    def deliveries(self) -> tuple[Delivery, ...]:
        """One delivery for each handler of the event, in the order of their subscription."""
        held = self.held
        return held if isinstance(held, tuple) else (held,)

    @property
    def done(self) -> bool:
        """Whether every delivery is settled."""
        return self.left == 0

    def when_done(self, callback: Callable[[Receipt], object]) -> None:
        """Call `callback(receipt)` once every delivery is settled, at once if they are.

        It runs in the thread that settles: keep it short, and never let it raise or block.
        """
        with self.lock:
            if self.left:
                if self.callbacks is None:
                    self.callbacks = []
                self.callbacks.append(callback)
                return
        callback(self)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until every delivery is settled.

        Args:
            timeout: at most so many seconds; None waits as long as it takes.

        Returns:
            Whether every delivery is settled.
        """
        if not self.left:
            return True
        woken = threading.Lock()
        woken.acquire()

        def wake(_: Receipt) -> None:
            woken.release()

        self.when_done(wake)
        deadline = inf if timeout is None else monotonic() + timeout
        while True:
            left_s = max(0.0, deadline - monotonic())
            if woken.acquire(timeout=min(left_s, LOOK_UP_S)):
                return True
            if left_s <= LOOK_UP_S:
                break
        with self.lock:
            if self.callbacks is not None and wake in self.callbacks:
                self.callbacks.remove(wake)
        return self.done

    def result(self, timeout: float | None = None) -> Any:
        """Wait, and return what the one handler of this event returned.

        Args:
            timeout: at most so many seconds; None waits as long as it takes.

        Raises:
            TimeoutError: not settled in time.
            ProcbusError: the event has no handler or more than one.
            BaseException: what the handler raised, or the `ProcbusError` that ended it.
        """
        delivery = self._only_delivery()
        if self.left:
            self._wait_or_raise(timeout)
        return delivery.result()

    def results(self, timeout: float | None = None) -> list[Any]:
        """Wait, and return what each handler returned, in the order of `deliveries`.

        Args:
            timeout: at most so many seconds; None waits as long as it takes.

        Raises:
            TimeoutError: not settled in time.
            BaseException: what the handler raised if one failed.
            BaseExceptionGroup: all that the handlers raised if several failed.
        """
        self._wait_or_raise(timeout)
        errors = [e for d in self.deliveries if (e := d.exception()) is not None]
        if len(errors) > 1:
            raise BaseExceptionGroup(f"{len(errors)} handlers failed for event {self.id}", errors)
        if errors:
            raise errors[0]
        return [delivery.result() for delivery in self.deliveries]

    async def settled(self) -> Receipt:
        """Wait in an event loop until every delivery is settled; never raises for a failure."""
        import asyncio  # only here: `import procbus` stays light

        if self.left:
            loop = asyncio.get_running_loop()
            woken = asyncio.Event()

            self.when_done(lambda _: call_in_loop(loop, woken.set))
            await woken.wait()
        return self

    def __await__(self) -> Generator[Any, None, Any]:
        """Wait in an event loop; the value is that of `result()`."""
        delivery = self._only_delivery()
        yield from self.settled().__await__()
        return delivery.result()

    def _only_delivery(self) -> Delivery:
        held = self.held
        if not isinstance(held, tuple):
            return held
        if len(held) == 1:
            return held[0]
        raise ProcbusError(
            f"event {self.id} has {len(held)} handlers, so it has no one result: "
            "use results(), or look at each of receipt.deliveries"
        )

    def _wait_or_raise(self, timeout: float | None) -> None:
        if not self.wait(timeout):
            raise TimeoutError(f"event {self.id} was not settled within {timeout} s: {self!r}")

    def __repr__(self) -> str:
        """Say which event it is and how its deliveries stand."""
        what = self.topic if self.topic is not None else type(self.event).__name__
        if not self.deliveries:
            return f"<Receipt of event {self.id} ({what}): no handler>"
        states = [delivery.state for delivery in self.deliveries]
        counts = [f"{n} {s.value}" for s in DeliveryState if (n := states.count(s))]
        return f"<Receipt of event {self.id} ({what}): {', '.join(counts)}>"
