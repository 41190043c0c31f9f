# SPDX-License-Identifier: MIT
"""The functions that lanes run for handlers with resources: they give the handler its resources."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack
from contextvars import Context
from typing import TYPE_CHECKING, Any

from procbus.core.context import HandlerContext, running, running_context
from procbus.core.errors import ProcbusError
from procbus.core.log import log
from procbus.core.resources import Needs, Resource, all_needs
from procbus.core.shelf import Shelf, async_manager_of, manager_of, note_place

if TYPE_CHECKING:
    from procbus.core.worker import CurrentWorker


class _Attempt:
    """The attempt for which resources are opened. See `procbus.core.shelf.Asker`.

    Args:
        handler: name of the handler.
        context: its delivery, which `current()` returns while a resource is opened.
    """

    def __init__(self, handler: str, context: HandlerContext) -> None:
        self.handler = handler
        self._context = context

    def begin(self) -> Context:
        """Make a context in which `current()` works."""
        made = Context()
        made.run(running.set, self._context)
        return made

    def end(self) -> None:
        """Forget the delivery."""
        running.set(None)


class Supplied:
    """Calls a handler with its event and its resources.

    Args:
        function: the handler's function.
        needs: the parameters that are given a resource.
        name: the handler's name.
    """

    def __init__(self, function: Callable[..., Any], needs: Needs, name: str) -> None:
        self.function = function
        self.needs = needs
        self.name = name

    def __reduce__(self) -> Any:
        """Travel with the function and the resources."""
        return type(self), (self.function, self.needs, self.name)

    def __call__(self, event: Any) -> Any:
        """Call the handler."""
        context = self._context()
        shelf = context.worker.shelf
        shelf.look()
        given = shelf.kept.get(self)
        if given is not None:
            return self.function(event, **given)
        with ExitStack() as stack:
            attempt = _Attempt(self.name, context)
            own: dict[str, Any] = {}
            given = {name: _get(needed, shelf, attempt, stack, own) for name, needed in self.needs}
            if not own:
                shelf.keep(self, given)
            return self.function(event, **given)

    def _context(self) -> HandlerContext:
        context = running_context()
        if context is None:
            raise ProcbusError(f"{self.name} uses resources, so only a bus can call it this way")
        return context

    def open_ahead(self, worker: CurrentWorker) -> None:
        """Open the resources that last longer than the attempt that is about to begin.

        Call it while `current()` works.
        """
        attempt = _Attempt(self.name, self._context())
        for each in dict.fromkeys(all_needs(self.needs)):
            if each.scope != "event" and not each.is_async:
                worker.shelf.get(each, attempt)

    def open_eager(self, worker: CurrentWorker) -> None:
        """Open the eager resources, because their worker starts; a failure is logged."""
        for each in self.eager():
            if not each.is_async:
                try:
                    worker.shelf.get(each, self.attempt_at_start(worker))
                except BaseException:  # noqa: BLE001 - the first event that needs it tries again
                    log_late(each)

    def eager(self) -> list[Resource[Any]]:
        """The eager ones of its resources."""
        return [each for each in dict.fromkeys(all_needs(self.needs)) if each.eager]

    def attempt_at_start(self, worker: CurrentWorker) -> _Attempt:
        """Make an attempt without an event, because eager resources are opened before any event."""
        name, about = self.name, (0, None, None, 1)
        return _Attempt(name, HandlerContext(name, *about, _no_event, worker=worker))


class SuppliedAsync(Supplied):
    """Calls an async handler with its event and its resources."""

    async def __call__(self, event: Any) -> Any:
        """Call the handler, and await it."""
        context = self._context()
        shelf = context.worker.shelf
        shelf.look()
        given = shelf.kept.get(self)
        if given is not None:
            return await self.function(event, **given)
        async with AsyncExitStack() as stack:
            attempt = _Attempt(self.name, context)
            own: dict[str, Any] = {}
            given = {
                name: await _get_async(needed, shelf, attempt, stack, own)
                for name, needed in self.needs
            }
            if not own:
                shelf.keep(self, given)
            return await self.function(event, **given)


def supplied(
    function: Callable[..., Any], needs: Needs, name: str, *, is_async: bool
) -> Callable[..., Any]:
    """Make the function that a lane runs for a handler: the handler's own if it needs nothing."""
    if not needs:
        return function
    return (SuppliedAsync if is_async else Supplied)(function, needs, name)


def supplied_in(function: Any) -> Supplied | None:
    """Find the part of a function that gives a handler its resources, as in a call of a batch."""
    while not isinstance(function, Supplied):
        if not type(function).__module__.startswith("procbus."):  # the user's
            return None
        function = getattr(function, "function", None)
    return function


def log_late(resource: Resource[Any]) -> None:
    """Log that an eager resource could not be opened, with the traceback of the present error."""
    log.exception(
        "the eager resource %s could not be opened: the first event that needs it tries again",
        resource.name,
    )


def _no_event(*_: Any) -> None:
    raise ProcbusError("an eager resource is opened before there is an event, and publishes none")


# Resources for one attempt. An error of the handler is raised in each, and is not changed by it.


class _ForAttempt:
    """The context manager of a resource, for one attempt.

    Args:
        manager: the resource's own.
        resource: the resource.
        handler: name of the handler.
    """

    def __init__(self, manager: Any, resource: Resource[Any], handler: str) -> None:
        self._manager = manager
        self._about = resource, handler

    def __enter__(self) -> Any:
        try:
            return self._manager.__enter__()
        except BaseException as error:
            note_place(error, "opening", *self._about)
            raise

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            self._manager.__exit__(kind, error, trace)
        except BaseException as failure:
            self._judge(failure, error)
            if error is None:
                raise
        if error is not None:
            error.__traceback__ = trace  # without the frames of the resource

    async def __aenter__(self) -> Any:
        try:
            return await self._manager.__aenter__()
        except BaseException as error:
            note_place(error, "opening", *self._about)
            raise

    async def __aexit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            await self._manager.__aexit__(kind, error, trace)
        except BaseException as failure:
            self._judge(failure, error)
            if error is None:
                raise
        if error is not None:
            error.__traceback__ = trace

    def _judge(self, failure: BaseException, error: BaseException | None) -> None:
        """Raise a failure to close after a handler that succeeded; after its error only log it."""
        resource, handler = self._about
        if error is None:
            note_place(failure, "closing", resource, handler)
        elif failure is not error:
            log.error(
                "the resource %s failed to close after an error of the handler %s, which counts",
                resource.name,
                handler,
                exc_info=failure,
            )


def _get(
    asked: Resource[Any], shelf: Shelf, attempt: _Attempt, stack: ExitStack, own: dict[str, Any]
) -> Any:
    """Return the object of a resource: on the shelf, or opened for the attempt alone.

    Args:
        asked: the resource, which is not async.
        shelf: the shelf of the worker.
        attempt: the attempt.
        stack: closes the resources that are opened for the attempt.
        own: the objects of these resources, by the token of the resource.
    """
    resource, fake = shelf.resolve(asked)
    if resource is None:
        return fake
    if resource.scope != "event":
        return shelf.get(resource, attempt)
    if resource.token not in own:
        given = {name: _get(each, shelf, attempt, stack, own) for name, each in resource.needs}
        manager = _ForAttempt(manager_of(resource, given), resource, attempt.handler)
        own[resource.token] = stack.enter_context(manager)
    return own[resource.token]


async def _get_async(
    asked: Resource[Any],
    shelf: Shelf,
    attempt: _Attempt,
    stack: AsyncExitStack,
    own: dict[str, Any],
) -> Any:
    """Return the object of a resource as `_get` does; the resource may be async."""
    resource, fake = shelf.resolve(asked)
    if resource is None:
        return fake
    if resource.scope != "event":
        return await shelf.get_async(resource, attempt)
    if resource.token not in own:
        given = {
            name: await _get_async(each, shelf, attempt, stack, own)
            for name, each in resource.needs
        }
        if resource.is_async:
            made = await async_manager_of(resource, given)
            manager = _ForAttempt(made, resource, attempt.handler)
            own[resource.token] = await stack.enter_async_context(manager)
        else:
            manager = _ForAttempt(manager_of(resource, given), resource, attempt.handler)
            own[resource.token] = stack.enter_context(manager)
    return own[resource.token]
