# SPDX-License-Identifier: MIT
"""Who is subscribed: the handlers in order, the default registry, and `@subscribe`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable, Sequence
from types import ModuleType
from typing import Any, Never, TypeVar

from procbus.annotation import module_of, name_of
from procbus.backoff import Backoff
from procbus.callables import travels_by_value
from procbus.errors import NoSuchHandler, SubscriptionError
from procbus.handler import DeclaredKind, Handler, make_handler
from procbus.options import DEFAULT_MAX_CRASHES
from procbus.topic import topics_in

F = TypeVar("F", bound=Callable[..., Any])


class Registry:
    """The subscribed handlers, in order of subscription. All of it may be used from any thread.

    Attributes:
        handlers: all of them; never changed in place, so it can be kept and iterated freely.
        version: larger after each change. Reading `version` first and `handlers` after it never
            gives handlers that are older than the version.
    """

    def __init__(self) -> None:
        # Guards the writing of both fields, so that no change is lost between two writers.
        # Readers need no lock: each field is replaced whole.
        self._lock = threading.Lock()
        self.handlers: tuple[Handler, ...] = ()
        self.version = 0

    def __repr__(self) -> str:
        """Show how many handlers there are."""
        return f"<Registry of {len(self.handlers)} handlers>"

    def add(self, handler: Handler) -> None:
        """Append a handler; one that is there already stays where it is."""
        with self._lock:
            if handler not in self.handlers:
                self._replace((*self.handlers, handler))

    def remove(self, handler: Handler) -> None:
        """Take a handler out.

        Raises:
            NoSuchHandler: it is not in this registry.
        """
        with self._lock:
            if handler not in self.handlers:
                raise NoSuchHandler(
                    f"handler {handler.name} is not subscribed here; it may have been unsubscribed "
                    f"before, or belong to another bus"
                )
            self._replace(tuple(each for each in self.handlers if each is not handler))

    def of_function(self, function: Callable[..., Any]) -> tuple[Handler, ...]:
        """Give the handlers of one function, or of an equal bound method."""
        return tuple(each for each in self.handlers if each.function == function)

    def of_module(self, module: ModuleType) -> tuple[Handler, ...]:
        """Give the handlers whose function was written in a module."""
        return tuple(each for each in self.handlers if module_of(each.function) == module.__name__)

    def _replace(self, handlers: tuple[Handler, ...]) -> None:
        # In this order, for readers without the lock: see `version`.
        self.handlers = handlers
        self.version += 1


default_registry = Registry()
"""Where `@subscribe` puts handlers, and where a bus made without `handlers=` finds them."""


def subscribe(
    topic: object = None,
    *,
    kind: DeclaredKind = "io",
    name: str | None = None,
    timeout: float | None = None,
    retries: int = 0,
    backoff: float | Sequence[float] | Backoff | None = None,
    retry_on: type[BaseException] | Sequence[type[BaseException]] = (Exception,),
    max_crashes: int = DEFAULT_MAX_CRASHES,
    max_memory: int | str | None = None,
    writable: bool = False,
    key: Callable[[Any], Hashable] | None = None,
    priority: int = 0,
    concurrency: int | None = None,
    where: Callable[[Any], bool] | None = None,
    **unknown: Never,  # typed so that checkers refuse it, there to be refused with advice
) -> Callable[[F], F]:
    """Subscribe the decorated function to a topic, in the default registry.

    Args:
        topic: a class, a dotted string (``*`` is one word, ``#`` zero or more), a tuple or list of
            those; None takes it from the annotation of the function's first parameter.
        kind: ``"io"`` for a function that waits, ``"cpu"`` for one that computes. ``"auto"`` starts
            on the io lane, and moves to the other and back by what is measured; so the function
            must do the same in another process, and not be async.
        name: defaults to the function's module and qualified name.
        timeout: seconds that one attempt may run, 30 days at most; None for no limit. At the limit
            the delivery fails with HandlerTimeout. The worker process of a cpu handler is killed
            and replaced; an async handler is cancelled; a thread cannot be stopped, so it is
            abandoned with what it runs, and replaced.
        retries: attempts that may follow the first one, 0 to 1,000.
        backoff: the wait before each retry: a number of seconds; a sequence of such, one for each
            retry, the last repeated; or a function of (attempt, outcome) that returns seconds, the
            attempt being the one that has failed, counted from 1. It is tried at once with an
            outcome of each kind of failure. None for a random wait, which grows from up to 0.5 s
            to up to 60 s. No wait is longer than a day; none holds a worker.
        retry_on: an exception class, or several: there is another attempt only after an error that
            is an instance of one. HandlerTimeout, WorkerDied and MemoryLimitExceeded count as
            errors here. What cannot be serialized (SerializationError) is never retried.
        max_crashes: a delivery that killed its worker, by ending the process or by going over
            max_memory, is retried at most so often, within `retries`. cpu handlers only.
        max_memory: the most memory that the worker may have while the handler runs: bytes, or such
            as "512 MiB" or "1.5 GB"; 32 MiB at least; None for no limit. Above it the worker is
            killed and replaced, and the delivery fails with MemoryLimitExceeded. cpu handlers only.
        writable: large arrays and other buffers of an event are shared with the workers, and read
            only (see `shared_memory_threshold` of EventBus). True gives each attempt a copy of its
            own that it may write to. cpu handlers only.
        key: of an event, the key whose deliveries go one at a time, in order.
        priority: among waiting deliveries, the larger goes first.
        concurrency: most deliveries that may run at the same time.
        where: of an event, whether the handler takes it.
        **unknown: none; here to be refused with the names of the options that exist.

    Returns:
        A decorator that returns the function unchanged.

    Raises:
        SubscriptionError: function or options cannot work; the sentence says what to change.
        TopicError: the topic is neither a class nor a well-formed dotted string.
        SerializationError: a cpu handler holds something that cannot travel to a worker.
    """
    topics = topics_in(topic)  # now: under a bare @subscribe the decorator below is never called

    def decorate(function: F) -> F:
        handler = make_handler(
            function,
            topics or None,
            kind=kind,
            name=name,
            timeout=timeout,
            retries=retries,
            backoff=backoff,
            retry_on=retry_on,
            max_crashes=max_crashes,
            max_memory=max_memory,
            writable=writable,
            key=key,
            priority=priority,
            concurrency=concurrency,
            where=where,
            **unknown,
        )
        check_can_travel(handler)
        default_registry.add(handler)
        return function

    return decorate


def handlers_from(items: Iterable[Callable[..., Any] | ModuleType]) -> tuple[Handler, ...]:
    """Look up the handlers for ``EventBus(handlers=[...])`` in the default registry.

    Args:
        items: functions decorated with `subscribe`, and modules that hold such functions.

    Returns:
        Their handlers, each once, in the order of the items.

    Raises:
        SubscriptionError: an item has no handler in the default registry.
    """
    if not isinstance(items, Iterable):
        raise SubscriptionError(f"handlers= takes a list of functions and modules, not {items!r}")
    return tuple(dict.fromkeys(handler for item in items for handler in _handlers_of(item)))


def _handlers_of(item: object) -> tuple[Handler, ...]:
    if isinstance(item, ModuleType):
        found = default_registry.of_module(item)
        reason = (
            f"the module {item.__name__} has no handlers: no function written in it is decorated "
            f"with @subscribe; give the module that defines them"
        )
    elif callable(item):
        found = default_registry.of_function(item)
        reason = (
            f"{name_of(item)} is not subscribed: decorate it with @subscribe, "
            f"or make the bus without it and call bus.subscribe(topic, function)"
        )
    else:
        found, reason = (), f"handlers= takes functions and modules, but {item!r} is neither"
    if not found:
        raise SubscriptionError(reason)
    return found


def check_can_travel(handler: Handler) -> None:
    """Make sure that a cpu handler can be sent to a worker.

    Raises:
        SerializationError: it cannot; the message names the variable at fault.
    """
    if handler.kind == "cpu" and travels_by_value(handler.function):
        # Imported here because it needs cloudpickle, and `import procbus` stays light.
        from procbus.blame import check_travels

        check_travels(handler)
