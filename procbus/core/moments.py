# SPDX-License-Identifier: MIT
"""Moments in the life of a delivery and of a worker, as a listener gets them."""

from __future__ import annotations

from typing import NamedTuple

from procbus.core.dead_letter import DeadLetter
from procbus.core.delivery import Delivery
from procbus.core.outcome import Outcome
from procbus.core.receipt import Receipt

# All times are in seconds of `time.monotonic()`.


class Published(NamedTuple):
    """A handler published an event that at least one handler takes. Immutable.

    Example:
        ```python
        from procbus import EventBus, Published, current


        class Watch:
            def published(self, moment: Published) -> None:
                print(moment.handler, moment.parent_id)


        def relay(number: str) -> None:
            current().publish("digits", number)


        with EventBus(handlers=[]) as bus, bus.listen(Watch()):
            bus.subscribe("number", relay)
            bus.subscribe("digits", print)
            bus.publish("number", "7")
        ```

    Attributes:
        receipt: the receipt of the event.
        handler: name of the handler that published it.
        parent_id: id of the event that this handler got.
        attempt: the attempt at that event, 1 for the first.
        at: time of publishing. A cpu handler's events are published once it has succeeded.
    """

    receipt: Receipt
    handler: str
    parent_id: int
    attempt: int
    at: float


class Accepted(NamedTuple):
    """The bus has accepted a delivery, which is about to enter its lane. Immutable.

    Example:
        ```python
        from json import loads

        from procbus import EventBus, Accepted


        class Watch:
            def accepted(self, moment: Accepted) -> None:
                print(moment.delivery.handler.name)


        with EventBus(handlers=[]) as bus, bus.listen(Watch()):
            bus.subscribe("number", loads)
            bus.publish("number", "7")
        ```

    Attributes:
        delivery: the delivery.
        receipt: the receipt of its event.
        at: time of publishing.
    """

    delivery: Delivery
    receipt: Receipt
    at: float


class Started(NamedTuple):
    """An attempt of a handler has begun. Immutable.

    Example:
        ```python
        from json import loads

        from procbus import EventBus, Started


        class Watch:
            def started(self, moment: Started) -> None:
                print(moment.attempt, moment.pid)


        with EventBus(handlers=[]) as bus, bus.listen(Watch()):
            bus.subscribe("number", loads)
            bus.publish("number", "7")
        ```

    Attributes:
        delivery: the delivery.
        receipt: the receipt of its event.
        attempt: 1 for the first attempt.
        at: start of the attempt; for a cpu handler by the worker's clock.
        pid: process that runs the handler.
    """

    delivery: Delivery
    receipt: Receipt
    attempt: int
    at: float
    pid: int | None


class Retried(NamedTuple):
    """An attempt has failed, and another will follow. Immutable.

    Example:
        ```python
        from json import loads

        from procbus import EventBus, Retried


        class Watch:
            def retried(self, moment: Retried) -> None:
                print(moment.attempt, moment.wait_s)


        with EventBus(handlers=[]) as bus, bus.listen(Watch()):
            bus.subscribe("number", loads, retries=1)
            bus.publish("number", "seven")
        ```

    Attributes:
        delivery: the delivery.
        receipt: the receipt of its event.
        attempt: the failed attempt, 1 for the first.
        outcome: its outcome.
        wait_s: time until the next attempt, in seconds.
    """

    delivery: Delivery
    receipt: Receipt
    attempt: int
    outcome: Outcome
    wait_s: float


class Settled(NamedTuple):
    """A delivery has ended for good: by success, failure or cancellation. Immutable.

    Example:
        ```python
        from json import loads

        from procbus import EventBus, Settled


        class Watch:
            def settled(self, moment: Settled) -> None:
                print(moment.outcome.kind)


        with EventBus(handlers=[]) as bus, bus.listen(Watch()):
            bus.subscribe("number", loads)
            bus.publish("number", "7")
        ```

    Attributes:
        delivery: the delivery, with the outcomes of its earlier attempts in `earlier`.
        receipt: the receipt of its event.
        outcome: the outcome of the last attempt.
        letter: the dead letter of a delivery that failed; None for other ends, and for the calls of
            an executor.
    """

    delivery: Delivery
    receipt: Receipt
    outcome: Outcome
    letter: DeadLetter | None = None


class WorkerStarted(NamedTuple):
    """A worker of the cpu lane is ready. Immutable.

    Example:
        ```python
        from json import loads

        from procbus import EventBus, WorkerStarted


        class Watch:
            def worker_started(self, moment: WorkerStarted) -> None:
                print(moment.worker, moment.pid)


        with EventBus(handlers=[]) as bus, bus.listen(Watch()):
            bus.subscribe("number", loads, kind="cpu")
            bus.publish("number", "7")
        ```

    Attributes:
        worker: name of its place in the lane, as in `bus.health()`.
        pid: its process; for a thread the script's own.
        at: time when it was ready.
        start_s: time from its launch until it was ready, in seconds.
    """

    worker: str
    pid: int | None
    at: float
    start_s: float


class WorkerEnded(NamedTuple):
    """A worker of the cpu lane has ended, or died. Immutable.

    Example:
        ```python
        from json import loads

        from procbus import EventBus, WorkerEnded


        class Watch:
            def worker_ended(self, moment: WorkerEnded) -> None:
                print(moment.worker, moment.reason)


        with EventBus(handlers=[]) as bus, bus.listen(Watch()):
            bus.subscribe("number", loads, kind="cpu")
            bus.publish("number", "7")
        ```

    Attributes:
        worker: name of its place in the lane, as in `bus.health()`.
        pid: its process; None if it never had one.
        at: time when the bus noticed.
        died: False if the bus ended the worker in good order. True if the worker crashed, was
            killed for a limit, could not start, or was on a host that left.
        reason: the reason, in words.
        exit_code: exit code of its process if it died, negative for a signal; None if unknown.
    """

    worker: str
    pid: int | None
    at: float
    died: bool
    reason: str
    exit_code: int | None


class WorkerStalled(NamedTuple):
    """A worker process makes no progress in a handler: no CPU, no input or output. Immutable.

    Example:
        ```python
        from json import loads

        from procbus import EventBus, WorkerStalled


        class Watch:
            def worker_stalled(self, moment: WorkerStalled) -> None:
                print(moment.worker, moment.delivery)


        with EventBus(handlers=[]) as bus, bus.listen(Watch()):
            bus.subscribe("number", loads, kind="cpu")
            bus.publish("number", "7")
        ```

    Attributes:
        worker: name of its place in the lane, as in `bus.health()`.
        pid: its process.
        at: time when the bus noticed.
        delivery: the running delivery.
        since: start of the attempt.
    """

    worker: str
    pid: int | None
    at: float
    delivery: Delivery
    since: float


class Listener:
    """The methods of an object for `EventBus.listen`. The object needs at least one of them.

    Inherit from this class if a type checker should compare your methods with these. An object of
    any other class will do too. Methods that you leave out cost nothing. docs/listeners.md says
    when each method is called, and in which thread.

    Example:
        ```python
        from procbus import EventBus, Listener, Settled


        class Count(Listener):
            ended = 0

            def settled(self, moment: Settled, /) -> None:
                self.ended += 1


        count = Count()
        with EventBus(handlers=[]) as bus:
            bus.listen(count)
            bus.subscribe("word", print)
            bus.publish("word", "hello")
        assert count.ended == 1
        ```
    """

    def published(self, moment: Published, /) -> None:
        """Note that a handler published an event."""

    def accepted(self, moment: Accepted, /) -> None:
        """Note that a delivery was accepted."""

    def started(self, moment: Started, /) -> None:
        """Note that an attempt has begun."""

    def retried(self, moment: Retried, /) -> None:
        """Note that an attempt failed, and that another will follow."""

    def settled(self, moment: Settled, /) -> None:
        """Note that a delivery has ended."""

    def worker_started(self, moment: WorkerStarted, /) -> None:
        """Note that a worker is ready."""

    def worker_ended(self, moment: WorkerEnded, /) -> None:
        """Note that a worker has ended."""

    def worker_stalled(self, moment: WorkerStalled, /) -> None:
        """Note that a worker makes no progress."""
