# SPDX-License-Identifier: MIT
"""The subscriptions of one bus, and the router made of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

from procbus.annotation import name_of
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
            before = self._all
            self._all = {
                h: before[h] if h in before else Subscription(h, self._lane_of(h)) for h in handlers
            }
            self._router = Router([(s, h.topics) for h, s in self._all.items()])
            self._version = version
