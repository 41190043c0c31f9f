# SPDX-License-Identifier: MIT
"""A shelf: the open resources of one worker, or of the bus."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from contextvars import Context
from types import AsyncGeneratorType, GeneratorType
from typing import Any, Protocol

from procbus.core.errors import ProcbusError
from procbus.core.locks import Lock
from procbus.core.log import log
from procbus.core.notebook import redefined
from procbus.core.resources import (
    Resource,
    Scope,
    all_needs,
    newest_of,
    unshared,
)

#: The scopes of the resources of a worker, and of a bus.
OF_A_WORKER: tuple[Scope, ...] = ("worker",)
OF_A_BUS: tuple[Scope, ...] = ("bus",)

#: Maximum of handlers whose arguments are kept; because arguments are found again in microseconds.
MOST_ARGUMENTS = 200

#: Interval at which a thread that waits for another's opening looks up, in seconds; so that Ctrl-C
#: reaches it.
_LOOK_UP_S = 0.5


class Asker(Protocol):
    """The handler that a resource is opened for."""

    @property
    def handler(self) -> str:
        """Its name."""

    def begin(self) -> Context:
        """Make the context that the resource is opened and closed in."""

    def end(self) -> None:
        """Called in that context once the resource is open: forget the event."""


def manager_of(resource: Resource[Any], given: Mapping[str, Any]) -> Any:
    """Call a resource's function; return a context manager that gives its object.

    Args:
        resource: the resource, which is not async.
        given: the objects of the resources that it uses, by the names of its parameters.
    """
    made = resource.function(**given)
    kind = type(made)
    if kind is GeneratorType:
        return contextmanager(lambda: made)()
    if hasattr(kind, "__enter__") and hasattr(kind, "__exit__"):
        return made
    if hasattr(kind, "__aenter__"):
        raise ProcbusError(
            f"{resource.name} returned an async context manager, and its definition did not say "
            "so: annotate its return type, or make it an async generator"
        )
    return _plain(made)


async def async_manager_of(resource: Resource[Any], given: Mapping[str, Any]) -> Any:
    """Call an async resource's function; return an async context manager that gives its object."""
    made = resource.function(**given)
    if type(made) is AsyncGeneratorType:
        return asynccontextmanager(lambda: made)()
    if hasattr(type(made), "__await__") and not hasattr(type(made), "__aenter__"):
        made = await made
    if hasattr(type(made), "__aenter__"):
        return made
    if hasattr(type(made), "__enter__"):
        return _entered(made)
    return _entered(_plain(made))


@contextmanager
def _plain(made: Any) -> Iterator[Any]:
    yield made


@asynccontextmanager
async def _entered(manager: Any) -> AsyncIterator[Any]:
    with manager as value:
        yield value


def note_place(error: BaseException, doing: str, resource: Resource[Any], handler: str) -> None:
    """Add to an error which resource it comes from, and which handler needed the resource."""
    with suppress(Exception):  # it is the user's class
        error.add_note(
            f"while {doing} the resource {resource.name} (scope {resource.scope!r}) for the "
            f"handler {handler}"
        )


class _Opened:
    """One resource that is open, or is being opened."""

    def __init__(self, resource: Resource[Any], given: Mapping[str, Any]) -> None:
        self.resource = resource
        self.given = given
        self.value: Any = None
        self.ok = False
        #: Set once the resource is open, or cannot be opened.
        self.done = threading.Event()
        #: The thread that opens the resource.
        self.opener = threading.get_ident()
        self._stack = ExitStack()
        self._context = Context()

    def open(self, asker: Asker) -> None:
        """Call the user's code."""
        self._context = asker.begin()
        try:
            manager = self._context.run(manager_of, self.resource, self.given)
            self.value = self._context.run(self._stack.enter_context, manager)
        except BaseException as error:
            note_place(error, "opening", self.resource, asker.handler)
            raise
        self._context.run(asker.end)
        self.ok = True

    def made_with(self, given: Mapping[str, Any]) -> bool:
        """Whether it was opened with these very objects."""
        return all(self.given.get(name) is value for name, value in given.items())

    def close(self) -> KeyboardInterrupt | None:
        """Call the user's code; a failure is logged, and Ctrl-C returned."""
        try:
            self._context.run(self._stack.close)
        except KeyboardInterrupt as error:
            return error
        except BaseException:  # noqa: BLE001 - it is the user's code, and others are to be closed
            log.exception("the resource %s failed to close", self.resource.name)
        return None


class Shelf:
    """Opens resources when they are first asked for, keeps them, and closes them in reverse order.

    Thread-safe. `_lock` guards `_opened`, `_retired` and `_closed`; no user code runs under it.

    Args:
        scopes: the scopes of the resources that it keeps.
        outer: the shelf of the bus; None in a worker process.
        shared: whether several threads use its resources at once. Then a resource that was replaced
            stays open until the end.
        fakes: what stands for some resources, in tests: a value, or another resource.
    """

    def __init__(
        self,
        scopes: Collection[Scope] = OF_A_WORKER,
        outer: Shelf | None = None,
        *,
        shared: bool = False,
        fakes: Mapping[Resource[Any], Any] | None = None,
    ) -> None:
        self._scopes = scopes
        self._outer = outer
        self._shared = shared
        self._fakes = {each.token: fake for each, fake in (fakes or {}).items()}
        self._lock = Lock()
        self._opened: dict[str, _Opened] = {}
        self._retired: list[_Opened] = []
        self._closed = False
        #: Name of the resource that is being closed.
        self._closing = ""
        self._pid = os.getpid()
        #: The arguments of handlers whose resources are all open here, by the handler's function.
        self.kept: dict[object, dict[str, Any]] = {}
        self._seen = redefined.count

    def look(self) -> None:
        """Forget the arguments of handlers if a resource was defined anew."""
        if self._seen != redefined.count:
            self._seen = redefined.count
            self.kept.clear()

    def keep(self, function: object, given: dict[str, Any]) -> None:
        """Keep the arguments of a handler, because all of its resources are open here."""
        if len(self.kept) >= MOST_ARGUMENTS:  # handlers come and go
            self.kept.clear()
        self.kept[function] = given

    def resolve(self, resource: Resource[Any]) -> tuple[Resource[Any] | None, Any]:
        """Return the resource to open; or None, and the value that stands for it."""
        newest = newest_of(resource)
        for token in (newest.token, *newest.former) if self._fakes else ():
            if token in self._fakes:
                fake = self._fakes[token]
                return (newest_of(fake), None) if isinstance(fake, Resource) else (None, fake)
        return newest, None

    def get(self, asked: Resource[Any], asker: Asker) -> Any:
        """Return the object of a resource, which is opened if it is not open.

        Args:
            asked: no async resource, and none of scope "event".
            asker: the handler that needs it.

        Raises:
            ProcbusError: the resource cannot be kept on this shelf.
            BaseException: the user's code raised it.
        """
        resource, fake = self.resolve(asked)
        if resource is None:
            return fake
        if resource.scope not in self._scopes:
            if self._outer is None:
                raise ProcbusError(f"the handler {asker.handler}: {unshared(resource)}")
            return self._outer.get(resource, asker)
        list(all_needs(resource.needs, (resource,)))  # raises if there is a circle
        given = {name: self.get(needed, asker) for name, needed in resource.needs}
        while True:
            gone: list[_Opened] = []
            with self._lock:
                if self._closed:
                    raise self._ended(resource)
                found = self._opened.get(resource.token)
                is_new = found is None or (found.done.is_set() and not found.made_with(given))
                if is_new:
                    gone = self._locked_replace(resource)
                    found = self._opened[resource.token] = _Opened(resource, given)
            assert found is not None
            if is_new:
                for each in gone:
                    each.close()
                return self._open(found, asker)
            if found.opener == threading.get_ident() and not found.done.is_set():
                raise ProcbusError(
                    f"the handler {asker.handler} needs the resource {resource.name}, whose own "
                    "opening waits for the handler: open it without"
                )
            while not found.done.wait(_LOOK_UP_S):
                pass
            if found.ok:
                return found.value

    async def get_async(self, asked: Resource[Any], asker: Asker) -> Any:
        """Return the object of a resource, in a handler on an event loop."""
        return self.get(asked, asker)

    def _open(self, opened: _Opened, asker: Asker) -> Any:
        try:
            opened.open(asker)
        finally:
            with self._lock:
                closed = self._closed
                if not opened.ok and self._opened.get(opened.resource.token) is opened:
                    del self._opened[opened.resource.token]
            opened.done.set()
        if closed:
            opened.close()
            raise self._ended(opened.resource)
        return opened.value

    def _ended(self, resource: Resource[Any]) -> ProcbusError:
        return ProcbusError(f"the resource {resource.name} is needed, but its worker is ending")

    def has(self, resource: Resource[Any]) -> bool:
        """Whether a resource is open, so that `get` returns at once."""
        found = self._opened.get(newest_of(resource).token)
        return found is not None and found.ok

    def _locked_replace(self, resource: Resource[Any]) -> list[_Opened]:
        """Take off older versions of a resource, and resources that use these; the last one first.

        Returns:
            The resources to be closed now.
        """
        gone = [
            found
            for token in (resource.token, *resource.former)
            if (found := self._opened.get(token)) is not None
        ]
        for each in gone:
            users = [
                user
                for user in self._opened.values()
                if user not in gone and any(v is each.value for v in user.given.values())
            ]
            gone.extend(users)
        for each in gone:
            del self._opened[each.resource.token]
        if gone:
            self.kept.clear()  # it must not keep the objects of these resources alive
        gone.reverse()
        if self._shared:
            self._retired.extend(reversed(gone))
            return []
        return gone

    @property
    def is_empty(self) -> bool:
        """Whether no resource is open."""
        return not (self._opened or self._retired)

    def warn_late(self, limit_s: float) -> None:
        """Log the resource that is being closed; its worker has `limit_s` seconds to close all."""
        name = self._closing
        if name:
            log.warning(
                "the resource %s has not closed yet, and its worker ends: a process is killed %g s "
                "after its end began, and a thread is left behind",
                name,
                limit_s,
            )

    def close(self) -> None:
        """Close all resources, the last one first. Idempotent; does nothing in a forked child."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            self._closed = True
            opened = [*self._retired, *self._opened.values()]
            self._retired, self._opened = [], {}
            self.kept.clear()
        interrupt = None
        for each in reversed(opened):
            if each.ok:
                self._closing = each.resource.name
                interrupt = each.close() or interrupt
        self._closing = ""
        if interrupt is not None:
            raise interrupt
