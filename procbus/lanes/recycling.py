# SPDX-License-Identifier: MIT
"""When a worker process is replaced between two deliveries: it did enough, or grew too large."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from procbus.core.delivery import Delivery
from procbus.core.validation import format_size
from procbus.system.exit_hooks import may_replace

if TYPE_CHECKING:
    from procbus.system.process import Probe


class Wear(NamedTuple):
    """What a worker may go through."""

    #: So many deliveries; None for any number.
    max_events: int | None = None
    #: So many bytes of resident memory after a delivery; None for any.
    max_memory: int | None = None

    @property
    def limited(self) -> bool:
        """Whether workers have to be looked at between two deliveries."""
        return self.max_events is not None or self.max_memory is not None

    def left(self, done: int) -> int | None:
        """How many deliveries a worker may have that has done so many; None for any number."""
        if self.max_events is None or not may_replace():
            return None
        return self.max_events - done

    def worn_out(self, done: int, probe: Probe | None) -> str:
        """Why a worker is to be replaced that has nothing to do; empty if it is not.

        Args:
            done: deliveries that it has finished: with none it would be replaced for ever.
            probe: its process.
        """
        if not self.limited or not done or not may_replace():
            return ""
        if self.max_events is not None and done >= self.max_events:
            return f"{done} events (max_events_per_worker)"
        if self.max_memory is not None and (rss := _rss(probe)) > self.max_memory:
            limit = format_size(self.max_memory)
            return f"growing to {format_size(rss)} (worker_max_memory={limit})"
        return ""


def too_grown_for(delivery: Delivery) -> str:
    """Why a worker was replaced that did not want this delivery."""
    limit = delivery.subscription.handler.limits.max_memory or 0
    return (
        f"growing nearly to the max_memory of {delivery.handler.name}, {format_size(limit)}, "
        "before it ran that"
    )


def _rss(probe: Probe | None) -> int:
    return (probe.own_bytes() or 0) if probe is not None else 0
