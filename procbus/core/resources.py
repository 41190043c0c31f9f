# SPDX-License-Identifier: MIT
"""Resources: objects that handlers need and workers keep, such as a model or a connection.

`@resource` declares how a resource is opened and closed. `use` names the resource in a parameter of
a handler, or of another resource.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import os
import sys
import typing
from collections.abc import (
    AsyncIterator,
    Callable,
    Coroutine,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, Generic, Literal, NoReturn, Protocol, TypeAlias, TypeVar, cast, overload
from weakref import WeakValueDictionary

from procbus.core.errors import ProcbusError, SubscriptionError
from procbus.core.introspection import is_async, is_async_generator, name_of, signature_of
from procbus.core.notebook import redefined
from procbus.core.redefinition import Provenance, provenance_of, takes_its_place
from procbus.core.validation import did_you_mean, shown

T = TypeVar("T")

Scope: TypeAlias = Literal["worker", "bus", "event"]
"""The life of a resource: as long as a worker, as the bus, or as one attempt of a handler."""

#: From the longest life to the shortest. A resource may use only resources that live at least as
#: long.
_SCOPES: tuple[Scope, ...] = ("bus", "worker", "event")

#: Parameters that are given a resource: their names, and the resources.
Needs: TypeAlias = tuple[tuple[str, "Resource[Any]"], ...]


class Resource(Generic[T]):
    """An object that handlers need and workers keep. Made by `resource`; handlers `use` it.

    Calling the resource calls the function of which it was made.

    Attributes:
        function: opens the resource.
        name: module and qualified name of that function.
        scope: ``"worker"``, ``"bus"`` or ``"event"``.
        eager: whether it is opened when the worker starts.
        needs: the other resources that it uses, with the names of its parameters.
        is_async: whether it is opened and closed on the event loop.
        token: names this definition, in all processes of the script.
        former: the tokens of the definitions that this one has replaced in a notebook.

    Example:
        ```python
        from procbus import Resource, resource


        @resource(scope="bus")
        def settings() -> dict[str, int]:
            return {"retries": 3}


        assert isinstance(settings, Resource)
        assert settings.scope == "bus"
        ```
    """

    function: Callable[..., Any]
    name: str
    scope: Scope
    eager: bool
    needs: Needs
    is_async: bool
    token: str
    former: tuple[str, ...]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function, which opens nothing by itself if it is a generator function."""
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        """Show name and scope."""
        return f"<resource {self.name}, scope {self.scope}>"

    def __reduce__(self) -> Any:
        """Travel by name, or else whole: once in each process, however many handlers use it."""
        newest = newest_of(self)
        if newest is not self:
            return newest.__reduce__()
        if (place := _place_of(self.function)) and _found_at(*place) is self:
            return place[1]
        inside = {name: getattr(self, name) for name in _TRAVELLING}
        return _arrived, (self.token,), inside

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        """Take in the definition; the resources that it uses may be newer than at the last time."""
        if not self.token.startswith(f"{_origin()}-"):  # one that was made here is whole
            self.__dict__.update(state)


_TRAVELLING = ("function", "name", "scope", "eager", "needs", "is_async", "former")


class Use:
    """Stands for a resource, as the default of a parameter, until a bus calls the function."""

    __slots__ = ("_resource",)

    def __init__(self, used: Resource[Any]) -> None:
        self._resource = used

    def __reduce__(self) -> Any:
        """Travel as a call of `use`."""
        return use, (resource_in(self),)

    def __repr__(self) -> str:
        """Show it as it is written."""
        return f"use({resource_in(self).name.rpartition('.')[2]})"

    def __getattr__(self, name: str) -> NoReturn:
        """Refuse: the function was called without a bus."""
        if name.startswith("__") and name.endswith("__"):  # Python itself asks
            raise AttributeError(name)
        raise _missing(self)

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse likewise."""
        raise _missing(self)

    def __getitem__(self, _: Any) -> NoReturn:
        """Refuse likewise."""
        raise _missing(self)

    def __iter__(self) -> NoReturn:
        """Refuse likewise."""
        raise _missing(self)

    def __len__(self) -> NoReturn:
        """Refuse likewise."""
        raise _missing(self)

    def __enter__(self) -> NoReturn:
        """Refuse likewise."""
        raise _missing(self)

    def __exit__(self, *_: object) -> None:
        """Never called."""


class ResourceNotGiven(ProcbusError, AttributeError):
    """A function that uses a resource was called without it, and without a bus."""


def _missing(marker: Use) -> ResourceNotGiven:
    name = resource_in(marker).name.rpartition(".")[2]
    return ResourceNotGiven(
        f"the resource {name} is not here: a bus opens it for a handler that it calls. To call the "
        f"function yourself, give the argument too, in place of use({name})"
    )


def resource_in(marker: Use) -> Resource[Any]:
    """The resource that a marker stands for."""
    found: Resource[Any] = object.__getattribute__(marker, "_resource")
    return found


def use(resource: Resource[T]) -> T:
    """Name the resource of a parameter: write `use(resource)` as the parameter's default.

    For type checkers, the type of `use(resource)` is the type of the object that the resource
    gives.

    Args:
        resource: a function decorated with `resource`, or ``resource(SomeContextManager)``.

    Raises:
        SubscriptionError: it is no resource.

    Example:
        ```python
        from procbus import EventBus, resource, subscribe, use


        @resource
        def words() -> set[str]:
            return {"in", "a", "bus"}


        @subscribe("word", kind="cpu")
        def known(word: str, words: set[str] = use(words)) -> bool:
            return word in words


        with EventBus() as bus:
            assert bus.publish("word", "bus").result()
        ```
    """
    if not isinstance(resource, Resource):
        raise SubscriptionError(
            f"use() takes a resource, not {shown(resource)}: decorate the function that opens it "
            "with @resource"
        )
    return cast(T, Use(resource))


class _Decorator(Protocol):
    """Makes a resource of a function, with options."""

    @overload
    def __call__(self, function: Callable[..., AbstractContextManager[T]], /) -> Resource[T]: ...

    @overload
    def __call__(
        self, function: Callable[..., AbstractAsyncContextManager[T]], /
    ) -> Resource[T]: ...

    @overload
    def __call__(self, function: Callable[..., Iterator[T]], /) -> Resource[T]: ...

    @overload
    def __call__(self, function: Callable[..., AsyncIterator[T]], /) -> Resource[T]: ...

    @overload
    def __call__(self, function: Callable[..., Coroutine[Any, Any, T]], /) -> Resource[T]: ...

    @overload
    def __call__(self, function: Callable[..., T], /) -> Resource[T]: ...


@overload
def resource(function: Callable[..., AbstractContextManager[T]], /) -> Resource[T]: ...


@overload
def resource(function: Callable[..., AbstractAsyncContextManager[T]], /) -> Resource[T]: ...


@overload
def resource(function: Callable[..., Iterator[T]], /) -> Resource[T]: ...


@overload
def resource(function: Callable[..., AsyncIterator[T]], /) -> Resource[T]: ...


@overload
def resource(function: Callable[..., Coroutine[Any, Any, T]], /) -> Resource[T]: ...


@overload
def resource(function: Callable[..., T], /) -> Resource[T]: ...


@overload
def resource(*, scope: Scope = "worker", eager: bool = False) -> _Decorator: ...


def resource(
    function: Callable[..., Any] | None = None,
    /,
    *,
    scope: Scope = "worker",
    eager: bool = False,
) -> Any:
    """Declare an object that handlers need and workers keep, such as a model or a connection.

    The function is a generator function that yields the object once, and closes it after the
    ``yield``. It may also be a function or class that returns a context manager, which is entered;
    or a plain function that returns the object, which then needs no closing. An async generator
    function, a function that returns an async context manager, or an ``async def`` opens the object
    on the event loop of the bus, for async handlers.

    Args:
        function: opens the object. Its parameters have defaults; the ones with ``use(...)`` are
            other resources.
        scope: ``"worker"``: one object for each worker process of the cpu lane, for each thread of
            the io lane, and for the event loop. ``"bus"``: one object for the bus, shared by its
            threads and its event loop; worker processes cannot have it. ``"event"``: one object for
            each attempt of a handler; an error of the handler is raised at the ``yield`` too.
        eager: True opens the object when the worker starts, False with the first event that needs
            it.

    Returns:
        The resource, for `use`.

    Raises:
        SubscriptionError: the function cannot be called without arguments, or it uses a resource
            with a shorter life than its own.

    Example:
        ```python
        import sqlite3
        from collections.abc import Iterator

        from procbus import EventBus, resource, subscribe, use


        @resource
        def database() -> Iterator[sqlite3.Connection]:
            connection = sqlite3.connect(":memory:")
            yield connection
            connection.close()


        @subscribe("question")
        def ask(query: str, database: sqlite3.Connection = use(database)) -> list[tuple[int]]:
            return database.execute(query).fetchall()


        with EventBus() as bus:
            assert bus.publish("question", "select 42").result() == [(42,)]
        ```
    """
    if scope not in _SCOPES:
        raise SubscriptionError(
            f'@resource: scope must be "worker", "bus" or "event", not {shown(scope)}'
            f"{did_you_mean(scope, _SCOPES)}"
        )
    if not isinstance(eager, bool):
        raise SubscriptionError(f"@resource: eager must be True or False, not {shown(eager)}")
    if eager and scope == "event":
        raise SubscriptionError(
            '@resource: scope="event" is opened for each event, and cannot be eager; leave eager '
            "out"
        )
    if function is None:
        return functools.partial(_make, scope=scope, eager=eager)
    return _make(function, scope=scope, eager=eager)


def _make(function: Callable[..., Any], *, scope: Scope, eager: bool) -> Resource[Any]:
    if isinstance(function, Resource):
        raise SubscriptionError(f"{function!r} is a resource already: decorate it once")
    if not callable(function):
        raise SubscriptionError(
            f"@resource takes a function that opens the resource, not {shown(function)}"
        )
    name = name_of(function)
    made: Resource[Any] = Resource()
    with contextlib.suppress(AttributeError, TypeError):
        functools.update_wrapper(made, function)
    made.function, made.name, made.scope, made.eager = function, name, scope, eager
    made.is_async = _opens_async(function)
    made.token, made.former = f"{_origin()}-{next(_numbers)}", ()
    _known[made.token] = made
    made.needs = needs_of(function)
    for problem in _problems(made):
        raise SubscriptionError(f"resource {name}: {problem}")
    _take_place(made)
    return made


def _problems(made: Resource[Any]) -> Iterator[str]:
    signature = signature_of(made.function)
    if signature is not None:
        required = [
            p.name
            for p in signature.parameters.values()
            if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        ]
        if required:
            yield (
                f"it requires {', '.join(required)}, but is called without arguments: give each "
                "parameter a default, such as use(other_resource)"
            )
    for parameter, needed in made.needs:
        if _SCOPES.index(needed.scope) > _SCOPES.index(made.scope):
            yield (
                f'{parameter}={needed.name} has scope="{needed.scope}", and is closed before this '
                f'one, which has scope="{made.scope}": give both the same scope'
            )
        if needed.is_async and not made.is_async:
            yield (
                f"{parameter}={needed.name} is async, and only an async resource can use it: make "
                "this one an async generator"
            )


def needs_of(function: Callable[..., Any]) -> Needs:
    """The resources that a function's parameters name, in their order.

    Raises:
        SubscriptionError: such a parameter cannot be given by its name, or `use` was left out.
    """
    signature = signature_of(function)
    if signature is None:
        return ()
    found = []
    for parameter in signature.parameters.values():
        if type(parameter.default) is Resource:
            name = parameter.default.name.rpartition(".")[2]
            raise SubscriptionError(
                f"{name_of(function)}: its parameter {parameter.name} has the resource {name} "
                f"itself as its default: write {parameter.name}=use({name})"
            )
        if type(parameter.default) is Use:
            if parameter.kind is parameter.POSITIONAL_ONLY:
                raise SubscriptionError(
                    f"{name_of(function)}: its parameter {parameter.name} cannot be given by its "
                    "name, as a resource is: put it behind the / in the list of parameters"
                )
            found.append((parameter.name, resource_in(parameter.default)))
    return tuple(found)


def all_needs(needs: Needs, above: Sequence[Resource[Any]] = ()) -> Iterator[Resource[Any]]:
    """Yield the newest definitions of these resources, and of all resources that these use.

    Raises:
        SubscriptionError: they use each other in a circle.
    """
    for _, needed in needs:
        newest = newest_of(needed)
        if newest in above:
            circle = [*above[above.index(newest) :], newest]
            raise SubscriptionError(
                "resources use each other in a circle: "
                f"{' uses '.join(each.name for each in circle)}; one of them has to do without"
            )
        yield newest
        yield from all_needs(newest.needs, (*above, newest))


def problems_of_use(function: Callable[..., Any], needs: Needs, *, is_async: bool) -> Iterator[str]:
    """Say why a handler cannot be given the resources that its parameters name."""
    signature = signature_of(function)
    first = None if signature is None else next(iter(signature.parameters), None)
    for parameter, needed in needs:
        if parameter == first:
            yield (
                f"its first parameter {parameter} takes the event, and no resource: put the "
                "event's parameter before it"
            )
        if needed.is_async and not is_async:
            yield (
                f"{parameter}={needed.name} is an async resource, which lives on the event loop: "
                "make the handler an async def, or the resource a plain generator"
            )
    try:
        list(all_needs(needs))
    except SubscriptionError as error:
        yield str(error)


def unshared(resource: Resource[Any]) -> str:
    """Say why a worker process cannot have a resource of the bus."""
    return (
        f'the resource {resource.name} has scope="bus", which is one object for the threads of the '
        "script, and no worker process can share a live object with them: give it "
        'scope="worker", for one in each worker'
    )


def _opens_async(function: Callable[..., Any]) -> bool:
    """Whether a resource has to be opened on an event loop, as far as its definition tells."""
    try:
        inner: Any = inspect.unwrap(function)
    except ValueError:  # decorators that wrap each other in a circle
        inner = function
    if is_async_generator(inner) or is_async(inner):
        return True
    given = inner
    if not isinstance(inner, type):
        try:
            given = typing.get_type_hints(inner).get("return")
        except Exception:  # noqa: BLE001 - an annotation is the user's code
            return False
        given = typing.get_origin(given) or given
    return (
        isinstance(given, type) and hasattr(given, "__aenter__") and not hasattr(given, "__enter__")
    )


# Definitions that are run again in a notebook, or by the reload of a module.

_numbers = itertools.count(1)
_process: list[tuple[int, str]] = []
#: The newest definition of each name, and where it comes from.
_latest: dict[tuple[str, str], tuple[Resource[Any], Provenance]] = {}
#: The newer definition of each replaced one, by the token of the replaced definition.
_successors: dict[str, Resource[Any]] = {}
#: All resources of this process, by token: the ones that arrived from another process too.
_known: WeakValueDictionary[str, Resource[Any]] = WeakValueDictionary()


def _origin() -> str:
    """A name for this process that no other process has; a forked child gets a new name."""
    if not _process or _process[-1][0] != os.getpid():
        _process.append((os.getpid(), os.urandom(8).hex()))
    return _process[-1][1]


def _place_of(function: Callable[..., Any]) -> tuple[str, str] | None:
    """Module and name under which others find a resource; None for one made inside a function."""
    module = getattr(function, "__module__", None)
    name = getattr(function, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str) or "<" in name:
        return None
    return module, name


def _found_at(module: str, name: str) -> object:
    """The object with this name in an importable module."""
    if module in ("__main__", "__mp_main__"):
        return None
    found: object = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def _take_place(made: Resource[Any]) -> None:
    """Note that a definition replaces an older one of its name, if its code was run again.

    In a single run of a script, two definitions of one name are two resources.
    """
    place = _place_of(made.function)
    if place is None:
        return
    provenance = provenance_of(made.function)
    before = _latest.get(place)
    _latest[place] = made, provenance
    if before is not None and takes_its_place(provenance, before[1], same_topics=False):
        old, _ = before
        made.former = (*old.former, old.token)
        _successors[old.token] = made
        redefined.count += 1


def newest_of(resource: Resource[T]) -> Resource[T]:
    """The definition that has replaced a resource; the resource itself in most cases."""
    while (newer := _successors.get(resource.token)) is not None:
        resource = newer
    return resource


def _arrived(token: str) -> Resource[Any]:
    """Return the resource with this token in this process; its state follows."""
    found = _known.get(token)
    if found is None:
        found = Resource()
        found.token = token
        _known[token] = found
    return found
