# SPDX-License-Identifier: MIT
"""The resources of one bus: the resources of scope "bus", and shelves for workers here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from procbus.core.worker import CurrentWorker

if TYPE_CHECKING:
    from procbus.core.handler import Handler
    from procbus.core.shelf import Shelf
    from procbus.core.supplied import Supplied

S = TypeVar("S", bound="Shelf")


class BusResources:
    """Makes shelves when handlers need them. Thread-safe.

    Args:
        handlers: returns the handlers of the bus.
    """

    def __init__(self, handlers: Callable[[], Iterable[Handler]] = tuple) -> None:
        self._handlers = handlers
        self._made: dict[str, Shelf] = {}

    def bus_shelf(self) -> Shelf:
        """The shelf of the resources of scope "bus", the same one each time."""
        found = self._made.get("bus")
        if found is None:
            from procbus.core.shelf import OF_A_BUS, Shelf  # only now: few scripts need it

            found = self._made.setdefault("bus", Shelf(OF_A_BUS, shared=True))
        return found

    def worker(self, number: int) -> CurrentWorker:
        """Make a worker of this process that runs plain handlers."""
        return CurrentWorker(number, partial(self._shelf, None))

    def worker_with(self, kind: Callable[..., S]) -> CurrentWorker:
        """Make the worker of an event loop, with a shelf of its own kind."""
        return CurrentWorker(0, partial(self._shelf, kind))

    def _shelf(self, kind: Callable[..., Shelf] | None) -> Shelf:
        from procbus.core.shelf import OF_A_WORKER, Shelf  # only now: few scripts need it

        return (kind or Shelf)(OF_A_WORKER, self.bus_shelf())

    def eager(self, wanted: Callable[[Handler], bool]) -> Iterator[Supplied]:
        """The functions of handlers that have an eager resource.

        Args:
            wanted: says whether the worker may run a handler.
        """
        for handler in self._handlers():
            if handler.needs and wanted(handler):
                from procbus.core.supplied import Supplied  # loaded with the handler

                call = handler.call
                if isinstance(call, Supplied) and call.eager():
                    yield call

    def close(self) -> None:
        """Close the resources of scope "bus". Idempotent."""
        if self._made:
            self.bus_shelf().close()
