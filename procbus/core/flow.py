# SPDX-License-Identifier: MIT
"""The flow: the one port by which the lanes of a bus reach the rest of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from procbus.core.bus_resources import BusResources
    from procbus.core.context import HandlerContext
    from procbus.core.delivery import Delivery
    from procbus.core.errors import CircuitOpen
    from procbus.core.listeners import Listeners
    from procbus.core.outcome import Outcome
    from procbus.core.receipt import Receipt

#: The events that a cpu handler published, each with its topic or None.
Children = list[tuple[str | None, Any]]
#: The type of `Flow.settle_successes`.
SettleSuccesses = Callable[
    ["Sequence[Delivery]", Sequence[tuple[float, float, int]], Sequence[Any], int | None], None
]


class Circuit(Protocol):
    """The circuit of a cpu lane, as publishing sees it."""

    @property
    def refusal(self) -> Callable[[], CircuitOpen] | None:
        """Makes the error of publishing for cpu handlers; None while they take events."""


class Flow(Protocol):
    """The way from the lanes to the rest of a bus: settling, publishing, contexts. Thread-safe.

    Every bus has a `procbus.dispatch.flow.BusFlow`.
    """

    def settle(self, settled: Sequence[tuple[Delivery, Outcome]], /) -> None:
        """Settle deliveries, each with the outcome of its last attempt."""

    def settle_successes(
        self,
        deliveries: Sequence[Delivery],
        times: Sequence[tuple[float, float, int]],
        values: Sequence[Any],
        pid: int | None,
        /,
    ) -> None:
        """Settle deliveries of one worker that succeeded and published nothing.

        Args:
            deliveries: the deliveries.
            times: start and end of each handler; the third number is unused.
            values: return value of each handler.
            pid: process id of the worker.
        """

    def publish_children(
        self, delivery: Delivery, outcome: Outcome, published: Children, /
    ) -> BaseException | None:
        """Publish the events of a cpu handler, all or none; return the error if none.

        Call it in a new `contextvars` context, because it may set variables there.

        Args:
            delivery: the delivery whose handler published them.
            outcome: its success, which is not settled yet.
            published: topic and event of each.
        """

    def context_of(self, delivery: Delivery, receipt: Receipt, /) -> HandlerContext:
        """Make the return value of `current()` in a handler of this process."""

    @property
    def resources(self) -> BusResources:
        """The resources that live as long as the bus, and shelves for workers."""

    def count_in(self, count: int, /) -> None:
        """Count deliveries that the bus itself makes as pending: never waits, and never refuses."""

    @property
    def listeners(self) -> Listeners:
        """The listeners of the bus."""

    def guard(self, circuit: Circuit, /) -> None:
        """Note that the refusal of the cpu lane's circuit has changed."""
