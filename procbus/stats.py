# SPDX-License-Identifier: MIT
"""What a bus has done so far: immutable snapshots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from procbus.subscription import Subscription


@dataclass(frozen=True, slots=True)
class HandlerStats:
    """Deliveries of one handler on one bus, counted since it was made."""

    published: int
    succeeded: int
    failed: int
    #: Cancelled by closing the bus, before the handler began or in the middle of it.
    cancelled: int
    #: Running average of the handler's run time in seconds; None until it has run once.
    average_s: float | None

    @property
    def pending(self) -> int:
        """Published and not settled."""
        return self.published - self.succeeded - self.failed - self.cancelled


@dataclass(frozen=True, slots=True)
class LaneStats:
    """One lane just now."""

    #: Deliveries that wait for a worker, or behind another of their key or handler.
    depth: int
    #: Workers that there are, and those in a handler.
    workers: int
    busy: int
    #: Workers that had to be replaced.
    restarts: int
    #: Threads left behind in a handler that ran out of time.
    abandoned: int = 0
    #: Share of the workers' time spent in handlers, 0 to 1; None before there was a worker.
    utilisation: float | None = None
    #: Why nothing new is begun; empty while all may be.
    paused: str = ""


@dataclass(frozen=True, slots=True)
class BusStats:
    """A bus just now. The parts are read one after the other, while work goes on."""

    #: Deliveries published and not settled.
    pending: int
    #: Events that no handler took.
    unrouted: int
    #: By name of the handler; handlers of the same name are counted together.
    handlers: Mapping[str, HandlerStats]
    #: By kind: "io" and "cpu".
    lanes: Mapping[str, LaneStats]


def collect_stats(
    pending: int,
    unrouted: int,
    subscriptions: Sequence[Subscription],
    lanes: Mapping[str, LaneStats],
) -> BusStats:
    """Put a snapshot together."""
    handlers: dict[str, HandlerStats] = {}
    for subscription in subscriptions:
        name = subscription.handler.name
        before = handlers.get(name, HandlerStats(0, 0, 0, 0, None))
        handlers[name] = HandlerStats(
            before.published + subscription.published + subscription.unqueued,
            before.succeeded + subscription.succeeded,
            before.failed + subscription.failed,
            before.cancelled + subscription.cancelled + subscription.stopped,
            subscription.average_s if before.average_s is None else before.average_s,
        )
    return BusStats(pending, unrouted, MappingProxyType(handlers), lanes)
