# SPDX-License-Identifier: MIT
"""The routes of a bus whose workers keep dying: they refuse events for cpu handlers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from procbus.core.errors import CircuitOpen
from procbus.core.subscription import Subscription
from procbus.routing.router import Router


class Refusing:
    """The routes of a bus while no event may be published for its cpu handlers."""

    def __init__(self, routes: Router[Subscription], error: Callable[[], CircuitOpen]) -> None:
        self._routes = routes
        self._error = error

    def match(self, event: object, topic: str | None = None) -> Sequence[Subscription]:
        """Find the handlers of an event; raise the error if one of them is a cpu handler."""
        return self.check(self._routes.match(event, topic))

    def check(self, found: Sequence[Subscription]) -> Sequence[Subscription]:
        """Raise the error if one of the subscriptions is of a cpu handler whose lane is guarded."""
        if any(each.handler.kind == "cpu" and not each.handler.on_threads for each in found):
            raise self._error()
        return found
