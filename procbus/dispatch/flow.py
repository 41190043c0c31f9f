# SPDX-License-Identifier: MIT
"""The flow of a bus: from its lanes to its settlement and its dispatcher."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from procbus.core.bus_resources import BusResources
    from procbus.dispatch.dispatcher import Dispatcher
    from procbus.dispatch.settlement import Settlement


class BusFlow:
    """Implements `procbus.core.flow.Flow`.

    Its attributes are the methods themselves: a call through it costs no more than without it.

    Args:
        settlement: settles deliveries.
        dispatcher: publishes events.
        resources: the resources of the bus.
    """

    __slots__ = (
        "context_of",
        "count_in",
        "guard",
        "listeners",
        "publish_children",
        "resources",
        "settle",
        "settle_successes",
    )

    def __init__(
        self, settlement: Settlement, dispatcher: Dispatcher, resources: BusResources
    ) -> None:
        self.resources = resources
        self.listeners = settlement.listeners
        self.count_in = settlement.count_in
        self.settle = settlement.settle
        self.settle_successes = settlement.settle_successes
        self.publish_children = dispatcher.publish_children
        self.context_of = dispatcher.context_of
        self.guard = dispatcher.guard
