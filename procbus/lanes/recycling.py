# SPDX-License-Identifier: MIT
"""Recycling: replaces a worker process between two deliveries if it has run enough or has grown."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from procbus.core.delivery import Delivery
from procbus.core.validation import format_size
from procbus.system.exit_hooks import may_replace

if TYPE_CHECKING:
    from procbus.system.process import Probe


class RecyclingPolicy(NamedTuple):
    """The limits after which a worker is replaced."""

    #: Maximum number of deliveries of one worker; None for no limit.
    max_events: int | None = None
    #: Maximum resident memory of a worker after a delivery, in bytes; None for no limit.
    max_memory: int | None = None
    #: Whether a new worker could be started now.
    may_replace: Callable[[], bool] = may_replace

    @property
    def limited(self) -> bool:
        """Whether workers have to be measured between two deliveries."""
        return self.max_events is not None or self.max_memory is not None

    def left(self, done: int) -> int | None:
        """Maximum of further deliveries after `done` ones; None for no limit."""
        if self.max_events is None or not self.may_replace():
            return None
        return self.max_events - done

    def reason_to_replace(self, done: int, probe: Probe | None) -> str:
        """The reason to replace an idle worker; empty if there is none.

        Args:
            done: number of deliveries that the worker has finished. A worker without any stays,
                because otherwise workers would be replaced for ever.
            probe: probe of its process.
        """
        if not self.limited or not done or not self.may_replace():
            return ""
        if self.max_events is not None and done >= self.max_events:
            return f"{done} events (max_events_per_worker)"
        if self.max_memory is not None and (rss := _rss(probe)) > self.max_memory:
            limit = format_size(self.max_memory)
            return f"growing to {format_size(rss)} (worker_max_memory={limit})"
        return ""


def too_grown_for(delivery: Delivery) -> str:
    """The reason for replacing a worker that refused this delivery."""
    limit = delivery.subscription.handler.limits.max_memory or 0
    name = delivery.handler.name
    return (
        f"growing nearly to the max_memory of {name} ({format_size(limit)}), before it ran {name}"
    )


def _rss(probe: Probe | None) -> int:
    return (probe.own_bytes() or 0) if probe is not None else 0
