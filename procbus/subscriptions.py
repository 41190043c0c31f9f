# SPDX-License-Identifier: MIT
"""The subscriptions of one bus, and the router made of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

from procbus.annotation import name_of
from procbus.crossing import Crossing
from procbus.errors import NoSuchHandler
from procbus.handler import Handler
from procbus.registry import Registry
from procbus.router import Router
from procbus.subscription import Lane, Subscription


class Subscriptions:
    """Who is subscribed to one bus. Thread-safe.

    Args:
        shared: a registry whose handlers, at any time, are the bus's too; None for an isolated bus.
        own: handlers of this bus alone.
        lane_of: gives the lane that a handler belongs to.
    """

    def __init__(
        self, shared: Registry | None, own: Iterable[Handler], lane_of: Callable[[Handler], Lane]
    ) -> None:
        self._shared = Registry() if shared is None else shared
        self._own = Registry()
        for handler in own:
            self._own.add(handler)
        self._lane_of = lane_of
        # Guards the writing of the fields below; each is replaced whole, so readers need no lock.
        self._lock = threading.Lock()
        self._left: frozenset[Handler] = frozenset()
        self._all: dict[Handler, Subscription] = {}
        #: Those of kind "auto".
        self._crossings: dict[Handler, Crossing] = {}
        self._version = -1
        self._router: Router[Subscription] = Router(())

    def routes(self) -> Router[Subscription]:
        """The router for the subscriptions of the moment."""
        # Versions only grow, so their sum tells every change.
        if self._shared.version + self._own.version != self._version:
            self._rebuild()
        return self._router

    @property
    def fresh(self) -> bool:
        """Whether `routes` has its answer at hand."""
        return self._shared.version + self._own.version == self._version

    def all(self) -> tuple[Subscription, ...]:
        """The subscriptions, in their order."""
        self.routes()
        return tuple(self._all.values())

    def counted(self) -> tuple[Subscription, ...]:
        """All that events were published to: of a handler that moved, both of its lanes."""
        resting = [each for crossing in self.crossings() for each in crossing.sides()[1:]]
        return (*self.all(), *resting)

    def crossings(self) -> tuple[Crossing, ...]:
        """The handlers of kind "auto"."""
        self.routes()
        return tuple(self._crossings.values())

    def reroute(self) -> None:
        """A handler has moved: what is published from now on goes to its new lane."""
        with self._lock:
            self._version = -1

    def handlers(self) -> tuple[Handler, ...]:
        """The handlers subscribed, in their order."""
        return tuple(subscription.handler for subscription in self.all())

    def add(self, handler: Handler) -> None:
        """Subscribe a handler to this bus alone."""
        self._own.add(handler)

    def remove(self, function: Callable[..., Any]) -> None:
        """Unsubscribe a function from this bus, from all its topics.

        Raises:
            NoSuchHandler: it is not subscribed.
        """
        own = self._own.of_function(function)
        shared = [h for h in self._shared.of_function(function) if h not in self._left]
        if not own and not shared:
            raise NoSuchHandler(f"{name_of(function)} is not subscribed to this bus")
        for handler in own:
            self._own.remove(handler)
        if shared:
            with self._lock:
                self._left |= set(shared)
                self._version = -1

    def _rebuild(self) -> None:
        with self._lock:
            # Versions first: a change after this line makes them differ again.
            version = self._shared.version + self._own.version
            handlers = [h for h in self._shared.handlers if h not in self._left]
            handlers += [h for h in self._own.handlers if h not in handlers]
            before, crossings = self._all, self._crossings
            self._crossings = {
                h: crossings.get(h) or Crossing(h, self._lane_of) for h in handlers if h.auto
            }
            self._all = {h: self._subscription(h, before) for h in handlers}
            self._router = Router([(s, h.topics) for h, s in self._all.items()])
            self._version = version

    def _subscription(self, handler: Handler, before: dict[Handler, Subscription]) -> Subscription:
        if handler.auto:
            return self._crossings[handler].current
        return before.get(handler) or Subscription(handler, self._lane_of(handler))
