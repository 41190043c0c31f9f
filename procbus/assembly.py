# SPDX-License-Identifier: MIT
"""The parts of one bus, made and put together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

from procbus import exit_watch
from procbus.admission import Admission
from procbus.dispatcher import Dispatcher
from procbus.lanes import Lanes
from procbus.lifecycle import Lifecycle
from procbus.registry import default_registry, handlers_from
from procbus.retry_queue import RetryQueue
from procbus.settings import Settings
from procbus.settlement import Settlement
from procbus.stats import BusStats, collect_stats
from procbus.subscriptions import Subscriptions


class Assembly:
    """The parts of one bus. They know of each other only what they are given here.

    Args:
        settings: the options of the bus.
        handlers: as for `EventBus`.

    Raises:
        SubscriptionError: one of `handlers` is not subscribed.
    """

    def __init__(
        self, settings: Settings, handlers: Iterable[Callable[..., Any] | ModuleType] | None
    ) -> None:
        self.admission = Admission(settings.max_pending, settings.on_full)
        self.retries = RetryQueue()
        self.settlement = Settlement(
            self.admission,
            self.retries,
            lambda letter: self.dispatcher.redeliver(letter),
            settings.on_failure,
            lambda delivery, receipt: self.dispatcher.context_of(delivery, receipt),
        )
        shared = default_registry if handlers is None else None
        own = () if handlers is None else handlers_from(handlers)
        self.subscriptions = Subscriptions(shared, own, lambda handler: self.lanes.of(handler))
        self.settlement.dead_letters.handlers = self.subscriptions.handlers
        self.dispatcher = Dispatcher(
            self.admission,
            self.settlement,
            self.subscriptions.routes,
            self._get_ready,
            self.subscriptions.all,
        )
        self.lanes = Lanes(
            settings,
            self.settlement.settle,
            self.settlement.settle_bare,
            self.dispatcher.context_of,
            self.dispatcher.publish_children,
            self.dispatcher.guard,
            self.retries,
        )
        self.lifecycle = Lifecycle(
            self.admission,
            self.dispatcher,
            self.lanes,
            self.subscriptions,
            self.settlement.unseen,
        )

    def start(self) -> None:
        """Start all workers of the cpu lane.

        Raises:
            BusClosed: the bus was closed.
        """
        self.lifecycle.check_open()
        exit_watch.watch(self.lifecycle)
        self.lanes.cpu_lane().start()

    def stats(self) -> BusStats:
        """What the bus has done so far, and how its lanes are just now."""
        subscriptions = self.subscriptions.all()
        return collect_stats(
            self.admission.pending,
            self.dispatcher.unrouted,
            subscriptions,
            self.lanes.snapshot(subscriptions),
            running=Counter(delivery.handler.name for delivery, _ in self.lanes.at_hand()),
            retrying=len(self.retries),
            dead_letters=len(self.settlement.dead_letters),
            shared_memory=self.lanes.shared_memory(),
        )

    def _get_ready(self) -> None:
        exit_watch.watch(self.lifecycle)
        self.lanes.prime()
