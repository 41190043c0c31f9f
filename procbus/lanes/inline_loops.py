# SPDX-License-Identifier: MIT
"""The event loops of a bus that runs handlers at once, and the async resources that they keep."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from procbus.core.resources import Needs, Resource, all_needs
from procbus.core.worker import CurrentWorker
from procbus.lanes.loop_shelf import LoopShelf

if TYPE_CHECKING:
    from procbus.core.shelf import Shelf

T = TypeVar("T")


class Loop:
    """An event loop that goes on only while a handler runs in it, and its async resources.

    Args:
        outer: the shelf of the bus, which has all other resources.
    """

    def __init__(self, outer: Shelf) -> None:
        self._runner = asyncio.Runner()
        self._shelf = LoopShelf((), outer, threads=False)
        #: The worker that handlers in this loop see.
        self.worker = CurrentWorker(0, lambda: self._shelf)

    def run(self, coroutine: Any) -> Any:
        """Run a coroutine to its end, in a copy of the caller's context."""
        return self._runner.run(coroutine, context=contextvars.copy_context())

    def close(self) -> None:
        """Close the resources, cancel the tasks that handlers have left, and end the loop."""
        apart(self._end)

    def _end(self) -> None:
        try:
            if self._shelf.tasks:
                self._runner.run(self._shelf.close_async())
        finally:
            self._runner.close()


class Loops:
    """The event loops of an inline bus. Thread-safe: each step on its list is one step.

    A handler runs in the loop that was used last, unless that runs already: an async handler may
    publish an event for another one.

    Args:
        shelf: returns the shelf of the bus.
    """

    def __init__(self, shelf: Callable[[], Shelf]) -> None:
        self._shelf = shelf
        self._idle: list[Loop] = []

    def take(self) -> Loop:
        """Take a loop that is free."""
        try:
            return self._idle.pop()
        except IndexError:
            return Loop(self._shelf())

    def give_back(self, loop: Loop) -> None:
        """Have another handler use a loop."""
        self._idle.append(loop)

    def keep_for(self, needs: Needs) -> bool:
        """Whether a handler with these resources needs a loop that outlives the attempt."""
        return bool(needs) and any(
            each.is_async and each.scope != "event" for each in self._all_of(needs)
        )

    def _all_of(self, needs: Needs) -> list[Resource[Any]]:
        """The resources that are opened for a handler, with the ones that stand in for others."""
        found: list[Resource[Any]] = []
        for each in all_needs(needs):
            resource, _ = self._shelf().resolve(each)
            if resource is not None and resource not in found:
                found.append(resource)
                found.extend(all_needs(resource.needs) if resource is not each else ())
        return found

    def close(self) -> None:
        """End the loops. Idempotent."""
        while True:
            try:
                loop = self._idle.pop()
            except IndexError:
                return
            loop.close()


def apart(function: Callable[[], T]) -> T:
    """Call a function that runs a loop: in this thread, or in a new one if this thread runs one."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return function()
    context = contextvars.copy_context()
    ended: list[T] = []
    errors: list[BaseException] = []

    def call() -> None:
        try:
            ended.append(function())
        except BaseException as error:  # noqa: BLE001 - passed on below
            errors.append(error)

    thread = threading.Thread(target=context.run, args=(call,), name="procbus-inline-loop")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return ended[0]
