# SPDX-License-Identifier: MIT
"""The shelf of the event loop: async resources, each opened and closed by a task of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from typing import Any

from procbus.core.errors import ProcbusError
from procbus.core.log import log
from procbus.core.resources import Resource, Scope, all_needs
from procbus.core.shelf import Asker, Shelf, async_manager_of, note_place
from procbus.core.worker import CLOSE_S


class _Keeper:
    """One async resource: its task opens it, waits, and closes it.

    One task does both, because a task group or a cancel scope must be left where it was entered.
    """

    def __init__(self, resource: Resource[Any], given: Mapping[str, Any], asker: Asker) -> None:
        self.resource = resource
        self.given = given
        loop = asyncio.get_running_loop()
        #: The object of the resource, once it is open.
        self.ready: asyncio.Future[Any] = loop.create_future()
        self.over = asyncio.Event()
        self.task = loop.create_task(self._keep(asker), context=asker.begin())

    async def _keep(self, asker: Asker) -> None:
        opened = False
        try:
            async with await async_manager_of(self.resource, self.given) as value:
                opened = True
                asker.end()
                if not self.ready.done():
                    self.ready.set_result(value)
                await self.over.wait()
        except asyncio.CancelledError:
            if not self.ready.done():
                self.ready.cancel()
        except BaseException as error:  # noqa: BLE001 - it is the user's code
            if opened:
                log.exception("the resource %s failed to close", self.resource.name)
            elif not self.ready.done():
                note_place(error, "opening", self.resource, asker.handler)
                self.ready.set_exception(error)

    @property
    def gone(self) -> bool:
        """Whether the resource could not be opened, or was closed."""
        return self.task.done() or (self.ready.done() and self.ready.cancelled())

    def made_with(self, given: Mapping[str, Any]) -> bool:
        """Whether the resource was opened with these very objects."""
        return all(self.given.get(name) is value for name, value in given.items())


class LoopShelf(Shelf):
    """A shelf that keeps async resources too. Those belong to the loop's thread.

    Args:
        scopes: as for `Shelf`.
        outer: the shelf of the bus, which knows what stands for some resources in tests.
        threads: whether a resource of the bus is opened on another thread, because that may take
            long, and the loop has other work.
    """

    def __init__(self, scopes: Collection[Scope], outer: Shelf, *, threads: bool = True) -> None:
        super().__init__(scopes, outer)
        self._bus = outer
        self._threads = threads
        #: In the order of opening.
        self._keepers: dict[str, _Keeper] = {}
        self._ending = False

    @property
    def tasks(self) -> set[asyncio.Task[None]]:
        """The tasks that keep resources."""
        return {each.task for each in self._keepers.values()}

    def resolve(self, resource: Resource[Any]) -> tuple[Resource[Any] | None, Any]:
        """Return the resource to open; or None, and the value that stands for it."""
        return self._bus.resolve(resource)

    async def get_async(self, asked: Resource[Any], asker: Asker) -> Any:
        """Return the object of a resource. The resource is opened if it is not open."""
        resource, fake = self.resolve(asked)
        if resource is None:
            return fake
        if not resource.is_async:
            if self._threads and resource.scope == "bus" and not self._bus.has(resource):
                return await asyncio.to_thread(self.get, resource, asker)  # it may take long
            return self.get(resource, asker)
        list(all_needs(resource.needs, (resource,)))  # raises if there is a circle
        given = {name: await self.get_async(each, asker) for name, each in resource.needs}
        if self._ending:
            raise ProcbusError(f"the resource {resource.name} is needed, but its bus is closing")
        keeper = self._keepers.get(resource.token)
        if keeper is None or keeper.gone or not keeper.made_with(given):
            for token in (resource.token, *resource.former):
                if (old := self._keepers.pop(token, None)) is not None:
                    # Other handlers may be using this object: it is closed at the end.
                    self._keepers[f"{token} until {id(old)}"] = old
            keeper = self._keepers[resource.token] = _Keeper(resource, given, asker)
            keeper.task.add_done_callback(self._note_closed)
        return await asyncio.shield(keeper.ready)

    def _note_closed(self, _: asyncio.Task[None]) -> None:
        """Have no handler get a closed resource. A handler may have cancelled all tasks."""
        self.kept.clear()

    async def close_async(self) -> None:
        """Close the async resources, the last one first, in a bounded time."""
        self._ending = True
        loop = asyncio.get_running_loop()
        end_at = loop.time() + CLOSE_S
        for keeper in reversed(list(self._keepers.values())):
            keeper.over.set()
            if not keeper.ready.done():
                keeper.task.cancel()
            await asyncio.wait({keeper.task}, timeout=max(0.0, end_at - loop.time()))
            if not keeper.task.done():
                log.warning(
                    "the resource %s did not close within %g s, and is left",
                    keeper.resource.name,
                    CLOSE_S,
                )
                keeper.task.cancel()
        self._keepers.clear()
