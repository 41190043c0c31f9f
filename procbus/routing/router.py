# SPDX-License-Identifier: MIT
"""From an event to the handlers that take it: an immutable snapshot of the subscriptions."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, TypeVar

from procbus.core.redefinition import is_class_anew
from procbus.core.topic import Topic, check_concrete, exact, matches

T = TypeVar("T")

CACHE_LIMIT = 4096
"""Maximum number of routes in one cache; because the number of topic strings may be unlimited."""


class Router(Generic[T]):
    """Finds the targets of an event, of any type. Any thread may use it, without a lock.

    The route of a class or topic string is computed once and remembered. The caches are plain dicts
    whose single operations are atomic. Two threads that miss at the same time compute equal tuples,
    and either tuple may stay. Clearing a full cache loses only work. A cache can exceed its limit
    by the number of threads at most.

    A class registered with an ABC (``ABC.register``) after its first event was routed goes
    unnoticed until the next router is made: register classes before publishing.
    """

    __slots__ = ("_by_event", "_by_topic", "_entries", "_has_strings", "_thin")

    def __init__(
        self,
        entries: Iterable[tuple[T, tuple[Topic, ...]]],
        thin: Callable[[Sequence[T]], Sequence[T]] | None = None,
    ) -> None:
        """Take the subscriptions.

        Args:
            entries: targets with their well-formed topics, in order of subscription.
            thin: removes the targets of a route that another target replaces.
        """
        self._thin = thin
        self._entries = tuple(entries)
        self._has_strings = any(isinstance(t, str) for _, topics in self._entries for t in topics)
        self._by_topic: dict[str, tuple[T, ...]] = {}
        self._by_event: dict[type | tuple[type, str], tuple[T, ...]] = {}

    def match(self, event: object, topic: str | None = None) -> tuple[T, ...]:
        """Find the targets of an event.

        Args:
            event: the event.
            topic: the string that the event is published to; then this string alone decides. None
                routes by the class of the event, and by its `event_type` if that is a string.

        Returns:
            The targets in order of subscription, each once even if several of its topics match.

        Raises:
            TopicError: `topic` or `event_type` is malformed, or is a pattern.
            Exception: raised by a property `event_type` of the event; an AttributeError is not
                passed on.
        """
        if topic is not None:
            try:
                return self._by_topic[topic]
            except (
                KeyError,
                TypeError,
            ):  # TypeError: no string and not hashable; refused below
                return self._route_topic(topic)
        cls = type(event)
        if self._has_strings:
            event_type = getattr(event, "event_type", None)
            if issubclass(type(event_type), str):
                event_type = exact(event_type)
                try:
                    return self._by_event[cls, event_type]
                except (KeyError, TypeError):  # TypeError: a class that cannot be hashed
                    return self._route_event(cls, event_type)
        try:
            return self._by_event[cls]
        except (KeyError, TypeError):
            return self._route_event(cls, None)

    def reached_by(self, topic: Any) -> tuple[T, ...]:
        """Find the targets of all events of a topic or class.

        Args:
            topic: a dotted string without wildcards, or a class. If the class has a string
                `event_type`, its events are taken to have it.

        Raises:
            TopicError: it is neither, or not well formed.
        """
        if not isinstance(topic, type):
            return self._route_topic(check_concrete(topic))
        event_type = getattr(topic, "event_type", None)
        if self._has_strings and issubclass(type(event_type), str):
            return self._route_event(topic, exact(event_type))
        return self._route_event(topic, None)

    def _route_topic(self, topic: str) -> tuple[T, ...]:
        check_concrete(topic)
        route = self._scan(None, topic)
        _remember(self._by_topic, topic, route)
        return route

    def _route_event(self, cls: type, event_type: str | None) -> tuple[T, ...]:
        if event_type is not None:
            check_concrete(event_type)
        route = self._scan(cls, event_type)
        _remember(self._by_event, cls if event_type is None else (cls, event_type), route)
        return route

    def _scan(self, cls: type | None, string: str | None) -> tuple[T, ...]:
        def takes(topic: Topic) -> bool:
            if isinstance(topic, str):
                return string is not None and matches(topic, string)
            return cls is not None and (issubclass(cls, topic) or is_class_anew(cls, topic))

        found = tuple(target for target, topics in self._entries if any(map(takes, topics)))
        return found if self._thin is None else tuple(self._thin(found))


K = TypeVar("K")


def _remember(cache: dict[K, tuple[T, ...]], key: K, route: tuple[T, ...]) -> None:
    if len(cache) >= CACHE_LIMIT:
        cache.clear()
    with contextlib.suppress(TypeError):  # a class whose metaclass has no hash is routed each time
        cache[key] = route
