# SPDX-License-Identifier: MIT
"""The registry of handlers: in order of subscription, with the default one for `@subscribe`."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, TypeVar, Unpack, overload

from procbus.codec.loose_modules import is_loose
from procbus.core.errors import NoSuchHandler, SubscriptionError
from procbus.core.handler import (
    Handler,
    HandlerOptions,
    make_handler,
    options_key,
    shows_handler_options,
    with_topics,
)
from procbus.core.introspection import (
    identity_of,
    is_function,
    looks_unimportable,
    module_of,
    name_of,
    same_function,
)
from procbus.core.log import log
from procbus.core.redefinition import Provenance, provenance_of, takes_its_place
from procbus.core.topic import Topic, Topics, shown_topics, topics_in, without
from procbus.core.user_objects import short_repr
from procbus.core.validation import is_whole

F = TypeVar("F", bound=Callable[..., Any])


class Registry:
    """The subscribed handlers, in order of subscription. Thread-safe.

    Attributes:
        handlers: all handlers, as a tuple. A change makes a new tuple, so you can keep this one and
            iterate over it.
        version: a number that grows with each change. If you read `version` first and `handlers`
            second, the handlers are never older than the version.
    """

    def __init__(self) -> None:
        # Guards the writing of all fields, so that no change is lost between two writers. Readers
        # of the first two need no lock, because each is replaced whole. A signal handler or a
        # `__del__` may subscribe while a section runs: so sections iterate over copies, and expect
        # a looked-up handler to be gone.
        self._lock = threading.RLock()
        self.handlers: tuple[Handler, ...] = ()
        self.version = 0
        self._present: dict[int, Handler] = {}
        #: Number of changes so far, and number of them that `handlers` contains.
        self._changes = self._published = 0
        self._provenances: dict[int, Provenance] = {}
        #: Numbers of the handlers of each function and name, by their options, and by topic: one
        #: function can take thousands of topics, so these are never compared one by one.
        self._of: dict[Hashable, dict[Hashable, set[int]]] = {}
        self._on: dict[Hashable, set[int]] = {}
        #: Numbers of handlers by the two keys of `_kinship`; versions differ in the second one.
        self._kin: dict[Hashable, dict[Hashable, set[int]]] = {}
        #: Numbers of the handlers that stand beside others of their function for a while.
        self._held: set[int] = set()

    def __repr__(self) -> str:
        """Show the number of handlers."""
        return f"<Registry of {len(self.handlers)} handlers>"

    def add(self, handler: Handler) -> None:
        """Append a handler. A handler that is already present stays in its place."""
        with self._lock:
            if handler.number not in self._present:
                self._put(handler)
                self._publish()

    def remove(self, handler: Handler) -> None:
        """Take a handler out.

        Raises:
            NoSuchHandler: it is not in this registry.
        """
        with self._lock:
            if handler.number not in self._present:
                raise NoSuchHandler(
                    f"handler {handler.name} is not subscribed here; it may have been unsubscribed "
                    f"before, or belong to another bus"
                )
            self._drop(handler)
            self._publish()

    def subscribe(self, handler: Handler, provenance: Provenance) -> tuple[Handler, ...]:
        """Add a handler in place of older versions of it.

        Returns:
            The handlers that it replaced because their definition was run again.
        """
        with self._lock:
            gone = self._former(handler, provenance)
            for each in gone:
                self._drop(each)
            if handler.once or not self._says_nothing_new(handler):
                if handler.where is None and not handler.once:
                    # An older handler of the same function on the same topics would get no events.
                    for each in self._sharing(handler):
                        if _covers(handler, each):
                            self._drop(each)
                self._put(handler, provenance)
            self._publish()
            return gone

    def former(self, handler: Handler, provenance: Provenance) -> tuple[Handler, ...]:
        """Return the older definitions of a handler that comes from outside this registry."""
        with self._lock:
            return self._former(handler, provenance)

    def hold(self, handler: Handler) -> None:
        """Add a handler beside others of its function, until it is discarded."""
        with self._lock:
            self._put(handler)
            self._held.add(handler.number)
            self._publish()

    def discard(self, numbers: Iterable[int]) -> None:
        """Remove handlers by their numbers; unknown numbers are ignored."""
        with self._lock:
            for number in numbers:
                handler = self._present.get(number)
                if handler is not None:
                    self._drop(handler)
            self._publish()

    def take_off(self, function: Callable[..., Any], topics: Sequence[Topic] | None) -> None:
        """Remove a function from these topics, or from all of its topics."""
        with self._lock:
            for each in list(self._present.values()):
                if same_function(each.function, function):
                    left = () if topics is None else without(each.topics, topics)
                    if left:
                        self._unindex(each)
                        self._present[each.number] = changed = with_topics(each, left)
                        self._index(changed)
                        self._changes += 1
                    else:
                        self._drop(each)
            self._publish()

    def touch(self) -> None:
        """Raise the version, because something other than a handler has changed for readers."""
        with self._lock:
            self.version += 1

    def of_function(self, function: Callable[..., Any]) -> tuple[Handler, ...]:
        """Return the handlers of one function, or of an equal bound method."""
        return tuple(each for each in self.handlers if same_function(each.function, function))

    def of_module(self, module: ModuleType) -> tuple[Handler, ...]:
        """Return the handlers whose function was written in a module."""
        return tuple(each for each in self.handlers if module_of(each.function) == module.__name__)

    # Called under the lock.

    def _former(self, handler: Handler, provenance: Provenance) -> tuple[Handler, ...]:
        numbers: set[int] = set()
        for key, apart in _kinship(provenance):
            for each, those in list(self._kin.get(key, {}).items()):
                if each != apart:
                    numbers |= those
        return tuple(
            each
            for each in self._at(numbers)
            if (old := self._provenances.get(each.number)) is not None
            and not same_function(each.function, handler.function)
            and takes_its_place(provenance, old, _covers(each, handler) and _covers(handler, each))
        )

    def _says_nothing_new(self, handler: Handler) -> bool:
        """Whether an equal handler covers its topics, with no later one that differs."""
        alike = options_key(handler)
        by_options = self._of.get(_function_key(handler), {})
        equal = by_options.get(alike, set())
        covering = [
            each.number
            for each in self._sharing(handler)
            if each.number in equal and _covers(each, handler)
        ]
        if not covering:
            return False
        different = (n for key, those in list(by_options.items()) if key != alike for n in those)
        return max(covering) > max(set(different) - self._held, default=-1)

    def _sharing(self, handler: Handler) -> list[Handler]:
        """Return the handlers of its function that share a topic with it, by age."""
        numbers: set[int] = set()
        for key in _topic_keys(handler):
            numbers |= self._on.get(key, set())
        return self._at(numbers - self._held)

    def _index(self, handler: Handler) -> None:
        by_options = self._of.setdefault(_function_key(handler), {})
        by_options.setdefault(options_key(handler), set()).add(handler.number)
        for key in _topic_keys(handler):
            self._on.setdefault(key, set()).add(handler.number)

    def _unindex(self, handler: Handler) -> None:
        function = _function_key(handler)
        by_options = self._of.get(function, {})
        _discard(by_options, options_key(handler), handler.number)
        if not by_options:
            self._of.pop(function, None)
        for key in _topic_keys(handler):
            _discard(self._on, key, handler.number)

    def _at(self, numbers: set[int]) -> list[Handler]:
        found = [self._present.get(number) for number in sorted(numbers)]
        return [each for each in found if each is not None]

    def _put(self, handler: Handler, provenance: Provenance | None = None) -> None:
        number = handler.number
        self._present[number] = handler
        self._changes += 1
        self._index(handler)
        if provenance is not None:
            self._provenances[number] = provenance
            for key, apart in _kinship(provenance):
                self._kin.setdefault(key, {}).setdefault(apart, set()).add(number)

    def _drop(self, handler: Handler) -> None:
        number = handler.number
        self._present.pop(number, None)
        self._changes += 1
        self._held.discard(number)
        self._unindex(handler)
        provenance = self._provenances.pop(number, None)
        for key, apart in () if provenance is None else _kinship(provenance):
            kin = self._kin.get(key, {})
            _discard(kin, apart, number)
            if not kin:
                self._kin.pop(key, None)

    def _publish(self) -> None:
        while self._published != (changes := self._changes):
            # In this order, for readers without the lock: see `version`. Code that interrupts this
            # may have made a change that the tuple lacks: then the loop runs once more.
            self.handlers = tuple(self._present.values())
            self.version += 1
            self._published = changes


def _function_key(handler: Handler) -> Hashable:
    return "function", handler.name, identity_of(handler.function)


def _topic_keys(handler: Handler) -> list[Hashable]:
    """Return a key for each topic of a handler; no code of the user's classes hashes them."""
    function = _function_key(handler)
    return [(function, topic if isinstance(topic, str) else id(topic)) for topic in handler.topics]


def _kinship(provenance: Provenance) -> Iterator[tuple[Hashable, Hashable]]:
    """Yield pairs of keys: versions of one handler share the first and differ in the second.

    With these keys a loop that makes thousands of handlers never compares them one by one.
    """
    if provenance.name is not None:
        yield ("name", provenance.name), id(provenance.code)
    if provenance.cell is not None:
        yield ("statement", provenance.statement), provenance.cell


def _discard(sets: dict[Hashable, set[int]], key: Hashable, number: int) -> None:
    found = sets.get(key, set())
    found.discard(number)
    if not found:
        sets.pop(key, None)


def _covers(one: Handler, other: Handler) -> bool:
    """Whether a handler is subscribed to all topics of another."""
    return not without(other.topics, one.topics)


def tell_of_new_definition(handler: Handler, gone: Sequence[Handler]) -> None:
    """Log that a handler replaced others.

    A replacement is normal in a notebook. But if the topics differ, the user may have meant to add
    a second handler.
    """
    if gone:
        before = list(dict.fromkeys(shown_topics((t,)) for each in gone for t in each.topics))
        now = [shown_topics((topic,)) for topic in handler.topics]
        log.log(
            logging.WARNING if set(before).isdisjoint(now) else logging.INFO,
            "%s was defined anew: the new definition, on %s, takes the place of the old one, on %s",
            handler.name,
            ", ".join(now),
            ", ".join(before),
        )


default_registry = Registry()
"""The registry that `@subscribe` adds handlers to, and that a bus without `handlers=` uses."""


@overload
def subscribe(topic: Topics = None, **options: Unpack[HandlerOptions]) -> Callable[[F], F]: ...


@overload
def subscribe(function: F, /, **options: Unpack[HandlerOptions]) -> F: ...


@shows_handler_options
def subscribe(topic: Any = None, **options: Unpack[HandlerOptions]) -> Any:
    """Subscribe the decorated function to a topic, in the default registry.

    Without arguments it needs no parentheses: ``@subscribe`` takes the topic from the annotation.

    Example:
        ```python
        from procbus import EventBus, subscribe


        @subscribe("number", kind="cpu", timeout=10)
        def square(number: int) -> int:
            return number * number


        @subscribe  # the annotation is the topic
        def show(word: str) -> None:
            print(word)


        with EventBus() as bus:
            bus.publish("hello")
            assert bus.publish("number", 7).result() == 49
        ```

    Args:
        topic: a class, a dotted string (``*`` is one word, ``#`` zero or more), a tuple or list of
            these; None takes it from the annotation of the function's first parameter.
        kind: ``"io"`` for a function that waits, ``"cpu"`` for one that computes. ``"auto"`` starts
            on the io lane, and moves to the other lane and back, depending on measurements. So the
            function must work the same in another process, and must not be async.
        name: name of the handler; by default the function's module and qualified name.
        timeout: maximum duration of one attempt in seconds, 30 days at most; None for no limit. At
            the limit the delivery fails with HandlerTimeout. The worker process of a cpu handler is
            killed and replaced. An async handler is cancelled. A thread cannot be stopped, so it is
            abandoned with its handler, and replaced.
        grace: time that the running handler of a cancelled delivery has to end, in seconds, 30 days
            at most. Then its worker process is killed and replaced, or its thread is abandoned. See
            docs/cancelling.md.
        retries: maximum number of attempts after the first one, 0 to 1,000.
        backoff: the wait before each retry: a number of seconds; a sequence of numbers, one for
            each retry, with the last repeated; or a function of (attempt, outcome) that returns
            seconds. `attempt` is the number of the failed attempt, from 1. `subscribe` calls the
            function at once with an outcome of each kind of failure, to check it. None means a
            random wait, whose maximum grows from 0.5 s to 60 s. No wait is longer than a day; none
            holds a worker.
        retry_on: an exception class, or several: only an error that is an instance of one is
            retried. HandlerTimeout, WorkerDied and MemoryLimitExceeded count as errors here. An
            event or result that cannot be serialized (SerializationError) is never retried.
        max_crashes: maximum number of retries of a delivery that killed its worker, by ending the
            process or by going over max_memory, within `retries`. cpu handlers only.
        max_memory: maximum memory of the worker while the handler runs: bytes, or a string such as
            "512 MiB" or "1.5 GB"; 32 MiB at least; None for no limit. Above it the worker is killed
            and replaced, and the delivery fails with MemoryLimitExceeded. cpu handlers only.
        writable: large arrays and other buffers of an event are shared with the workers, and
            read-only (see `shared_memory_threshold` of EventBus). True gives each attempt its own
            copy, which the handler may change. cpu handlers only.
        key: a function of the event; deliveries with the same key run one at a time, in order.
        priority: deliveries of handlers with a larger number go first.
        concurrency: maximum number of deliveries that run at the same time.
        where: a function of the event that returns whether the handler takes the event.
        once: True unsubscribes the handler after the first event of any of its topics. The retries
            of that one delivery still happen. Each bus counts for itself.
        batch: maximum number of events in one call of a handler that takes a list: see
            docs/batches.md. An annotation such as ``list[Page]`` gives the topic `Page`. The
            handler returns None, or a list with one result for each event, and raises `BatchFailed`
            to fail some of them.
        batch_wait: maximum time that an event waits for its batch to fill, in seconds.
        rate: maximum number of runs that begin in any period: ``"300/min"``, ``"5/s"``,
            ``"20/10 s"``. Each attempt counts. An event that has to wait holds no worker and no
            place of `concurrency`. See docs/rates.md.
        rate_key: a function of the event that returns a string, a number or bytes; the rate then
            holds for the events of each key.

    A function that is subscribed several times still gets each event once. The last of its
    subscriptions that takes the event counts, with its options. The same function under another
    `name` is another handler. When a notebook cell is run again, or a module reloaded, the new
    definition of a function replaces the old one.

    Returns:
        A decorator that returns the function unchanged; or the function, if that is given.

    Raises:
        SubscriptionError: function or options cannot work; the message says what to change.
        TopicError: the topic is neither a class nor a well-formed dotted string.
        SerializationError: a cpu handler holds something that cannot travel to a worker.
    """

    def decorate(function: F) -> F:
        handler = make_handler(function, topics or None, **options)
        check_can_travel(handler)
        gone = default_registry.subscribe(handler, provenance_of(function))
        tell_of_new_definition(handler, gone)
        return function

    bare = is_function(topic)
    topics = () if bare else topics_in(topic)  # now: a wrong topic raises at the decorator's line
    return decorate(topic) if bare else decorate


def handlers_from(items: Iterable[Callable[..., Any] | ModuleType]) -> tuple[Handler, ...]:
    """Look up the handlers for ``EventBus(handlers=[...])`` in the default registry.

    Args:
        items: functions decorated with `subscribe`, and modules that hold such functions.

    Returns:
        Their handlers, each once, in the order of the items.

    Raises:
        SubscriptionError: an item has no handler in the default registry.
    """
    given: object = items
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise _no_handlers(given)
    return tuple(dict.fromkeys(handler for item in items for handler in _handlers_of(item)))


def _no_handlers(given: object) -> SubscriptionError:
    hint = ""
    if is_whole(given, 1):
        hint = f": EventBus(cpu_workers={given}) has that many worker processes"
    elif isinstance(given, ModuleType) or callable(given):
        hint = ": put it into a list, [...]"
    return SubscriptionError(
        f"handlers= takes a list of functions and modules, not {short_repr(given)}{hint}"
    )


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
    """Check that a cpu handler can be sent to a worker.

    Raises:
        SerializationError: it cannot be sent; the message names the variable at fault.
    """
    if handler.kind != "cpu":
        return
    function = handler.function
    classes = (topic for topic in handler.topics if isinstance(topic, type))
    named = [module_of(function), *(cls.__module__ for cls in classes)]
    loose = [module for module in named if is_loose(module)]
    by_name = isinstance(function, FunctionType | BuiltinFunctionType)
    if not by_name or loose or looks_unimportable(function):
        # Imported here because it needs cloudpickle, and `import procbus` stays light.
        from procbus.codec.encoder import send_by_value_if_loose
        from procbus.codec.fault_path import check_travels

        for module in loose:
            send_by_value_if_loose(module)
        check_travels(function, handler.name)
