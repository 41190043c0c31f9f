# SPDX-License-Identifier: MIT
"""The subscriptions of one bus, and the router made of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from procbus.core.cancelling import CancelRequest
from procbus.core.delivery import Delivery
from procbus.core.errors import NoSuchHandler
from procbus.core.handler import CpuPlace, Handler, with_topics
from procbus.core.introspection import name_of, same_function
from procbus.core.locks import Lock
from procbus.core.redefinition import provenance_of
from procbus.core.subscription import Lane, Subscription
from procbus.core.topic import Topic, shown_topics, without
from procbus.core.user_objects import short_repr
from procbus.routing.lane_switch import LaneSwitch
from procbus.routing.registry import Registry, tell_of_new_definition
from procbus.routing.router import Router
from procbus.system.uncounted import leave_uncounted


class Subscriptions:
    """The subscribed handlers of one bus. Thread-safe.

    Args:
        shared: a registry whose present handlers belong to the bus too; None for an isolated bus.
        own: handlers of this bus alone.
        lane_of: returns the lane that a handler belongs to.
        cancel: cancels a delivery for a reason.
        place_of: chooses between processes and threads for a cpu handler of a bus with
            ``cpu="auto"``; see `Settings.place_of`.
    """

    def __init__(
        self,
        shared: Registry | None,
        own: Iterable[Handler],
        lane_of: Callable[[Handler], Lane],
        cancel: Callable[[Delivery, CancelRequest], object] | None = None,
        place_of: Callable[[Handler], CpuPlace | None] = lambda _: None,
    ) -> None:
        self._cancel = cancel
        self._place_of = place_of
        self._shared = Registry() if shared is None else shared
        self._own = Registry()
        for handler in own:
            self._own.add(handler)
        self._lane_of = lane_of
        # Guards the writing of the fields below; taken while no other lock is held. Readers need no
        # lock: each change of `_made` is one step, and the other fields are replaced whole.
        self._lock = Lock()
        #: For handlers of the shared registry, by number: the topics that this bus has left.
        self._left: dict[int, tuple[Topic, ...]] = {}
        self._all: dict[int, Subscription] = {}
        #: Subscriptions that exist or are being made, by number; and handlers that may move.
        self._made: dict[int, Subscription | LaneSwitch] = {}
        self._version = -1
        self._router: Router[Subscription] = Router(())

    def routes(self) -> Router[Subscription]:
        """The router for the present subscriptions."""
        # Versions only grow, so their sum changes with every change.
        if self._shared.version + self._own.version != self._version:
            self._rebuild()
        return self._router

    @property
    def fresh(self) -> bool:
        """Whether `routes` is up to date, so that it returns at once."""
        return self._newest() == self._version

    def all(self) -> tuple[Subscription, ...]:
        """The subscriptions, in their order."""
        self.routes()
        return tuple(self._all.values())

    def counted(self) -> tuple[Subscription, ...]:
        """All subscriptions that got events: a handler that moved has one for each lane."""
        sides = [side for switch in self.switches() for side in switch.sides()]
        return tuple(dict.fromkeys((*self.all(), *sides)))  # one may have moved a moment ago

    def switches(self) -> tuple[LaneSwitch, ...]:
        """The handlers that may move to another lane."""
        self.routes()
        return tuple(each for each in self._made.copy().values() if isinstance(each, LaneSwitch))

    def reroute(self) -> None:
        """Send events that are published from now on to the new lane of a handler that moved."""
        self._own.touch()

    def handlers(self) -> tuple[Handler, ...]:
        """The handlers subscribed, in their order."""
        return tuple(subscription.handler for subscription in self.all() if subscription.open)

    def need_processes(self) -> bool:
        """Whether a handler is for processes from the start; makes no lane."""
        handlers = (*self._shared_handlers(), *self._own.handlers)
        return any(each.kind == "cpu" and not self._is_for_threads(each) for each in handlers)

    def reached_by(self, topic: object) -> tuple[Handler, ...]:
        """The handlers that an event of a topic or class would go to, in their order.

        Raises:
            TopicError: it is neither, or not well formed.
        """
        return tuple(each.handler for each in self.routes().reached_by(topic) if each.open)

    def add(self, handler: Handler) -> None:
        """Subscribe a handler to this bus alone, in place of its older definition."""
        provenance = provenance_of(handler.function)
        elsewhere = self._shared.former(handler, provenance)
        if elsewhere:
            self._leave({each.number: each.topics for each in elsewhere})
        gone = self._own.subscribe(handler, provenance)
        tell_of_new_definition(handler, (*elsewhere, *gone))

    @contextmanager
    def held(self, handler: Handler) -> Iterator[None]:
        """Subscribe a handler for a while. Meanwhile it goes before others of its function."""
        self._own.hold(handler)
        try:
            yield
        finally:
            self._own.discard((handler.number,))

    def remove(self, function: Callable[..., Any], topics: Sequence[Topic] | None = None) -> None:
        """Unsubscribe a function from this bus, from these topics or from all.

        Raises:
            NoSuchHandler: it is not subscribed to the bus, or to one of the topics; nothing is
                changed.
        """
        self._clear_away()
        own = self._own.of_function(function)
        shared = [h for h in self._shared.of_function(function) if self._topics_of(h)]
        if not own and not shared:
            raise NoSuchHandler(f"{name_of(function)} is not subscribed to this bus")
        there = [t for h in shared for t in self._topics_of(h)] + [t for h in own for t in h.topics]
        missing = () if topics is None else without(topics, there)
        if missing:
            raise NoSuchHandler(
                f"{name_of(function)} is not subscribed to {shown_topics(missing)} on this bus, "
                f"but to {shown_topics(dict.fromkeys(there))}: give topics as they were subscribed"
            )
        if own:
            self._own.take_off(function, topics)
        if shared:
            self._leave({h.number: tuple(topics or h.topics) for h in shared})

    def of_function(self, function: Callable[..., Any]) -> Subscription:
        """Find the subscription of a function; if there are several, the last one.

        Raises:
            NoSuchHandler: there is none.
        """
        mine = [each for each in self.all() if same_function(each.handler.function, function)]
        if not mine:
            raise self._no_handler(function)
        return mine[-1]

    def _no_handler(self, function: object) -> NoSuchHandler:
        """Say that an object is no handler of this bus, and what to do."""
        if isinstance(function, str):
            return NoSuchHandler(
                f"{short_repr(function)} is a topic, and no handler: call and map run one handler, "
                "as in bus.call(handler, event); to publish to a topic, use "
                f"bus.publish({short_repr(function)}, event), or bus.stream(events, topic=...)"
            )
        if not callable(function):
            return NoSuchHandler(
                f"{short_repr(function)} is no handler: the handler comes first, as in "
                "bus.call(handler, event)"
            )
        name = name_of(function)
        if any(name_of(each.handler.function) == name for each in self.all()):
            return NoSuchHandler(
                f"this {name} is not subscribed to this bus, but another object with that name is: "
                "give the very function, method or functools.partial that you subscribed"
            )
        return NoSuchHandler(
            f"{name} is not subscribed to this bus: subscribe it first, or use bus.executor(), "
            "which takes any function"
        )

    def _topics_of(self, handler: Handler) -> tuple[Topic, ...]:
        """The topics of a handler of the shared registry that this bus has not left."""
        left = self._left.get(handler.number)
        return handler.topics if left is None else without(handler.topics, left)

    def _rebuild(self) -> None:
        self._clear_away()
        while (version := self._newest()) != self._version:
            # The version was read first, so a later change makes it differ again. No lock is held
            # here, because the lanes have locks of their own. Of several threads the newest result
            # counts.
            handlers = (*self._shared_handlers(), *self._own.handlers)
            made = {handler.number: self._subscription(handler) for handler in handlers}
            entries = [(made[handler.number], handler.topics) for handler in handlers]
            router = Router(entries, _without_overtaken)
            leave_uncounted(self, router, *made.values(), *handlers)
            with self._lock:
                if version > self._version:
                    for handler in handlers:
                        subscription = made[handler.number]
                        if len(subscription.handler.topics) != len(handler.topics):
                            subscription.handler = with_topics(subscription.handler, handler.topics)
                    _group(list(made.values()))
                    for number in self._all.keys() - made.keys():
                        self._made.pop(number, None)
                    self._all = made
                    self._router = router
                    self._version = version

    def _newest(self) -> int:
        """The version of the subscriptions: a sum, which grows with every change."""
        return self._shared.version + self._own.version

    def _clear_away(self) -> None:
        """Unsubscribe `once` handlers that have taken their one event."""
        over = {n: each.handler.topics for n, each in self._all.copy().items() if each.over}
        if over:
            self._own.discard(over)
            self._leave(over)

    def _leave(self, topics: Mapping[int, tuple[Topic, ...]]) -> None:
        """Take this bus off topics of handlers of the shared registry, by their numbers."""
        with self._lock:
            left = self._left
            self._left = left | {n: (*left.get(n, ()), *gone) for n, gone in topics.items()}
        self._own.touch()

    def _shared_handlers(self) -> Iterator[Handler]:
        for handler in self._shared.handlers:
            topics = self._topics_of(handler)
            if len(topics) == len(handler.topics):
                yield handler
            elif topics:
                yield with_topics(handler, topics)

    def _subscription(self, handler: Handler) -> Subscription:
        """Return the subscription of a handler, the same one in each thread."""
        made = self._made.get(handler.number)
        if made is None:
            made = self._made.setdefault(handler.number, self._make(handler))
        sides = made.sides() if isinstance(made, LaneSwitch) else (made,)
        for side in sides:
            side.cancel = self._cancel
        return sides[0]

    def _make(self, handler: Handler) -> Subscription | LaneSwitch:
        if handler.auto:
            return LaneSwitch(handler, self._lane_of)
        place = self._place_of(handler)
        if place is None or not place.on_threads:
            made = Subscription(handler, self._lane_of(handler))
        elif handler.once:  # its one event must not go to both lanes, so it stays
            on_threads = replace(handler, on_threads=True)
            made = Subscription(on_threads, self._lane_of(on_threads))
        else:
            switch = LaneSwitch(handler, self._lane_of)
            switch.current.decided = place.why
            return switch
        made.decided = "" if place is None else place.why
        return made

    def _is_for_threads(self, handler: Handler) -> bool:
        place = self._place_of(handler)
        return place is not None and place.on_threads


def _group(subscriptions: Sequence[Subscription]) -> None:
    """Give several subscriptions of one function under one name a common number."""
    counts = Counter(each.key for each in subscriptions)
    firsts: dict[Hashable, int] = {}
    for each in subscriptions:
        several = counts[each.key] > 1
        each.group = firsts.setdefault(each.key, each.handler.number) if several else None


def _without_overtaken(found: Sequence[Subscription]) -> Sequence[Subscription]:
    """Leave out each subscription of a function that has a later one for all these events."""
    kept: list[Subscription] = []
    overtaken: set[int] = set()
    for subscription in reversed(found):
        group = subscription.group
        if group is None or group not in overtaken:
            kept.append(subscription)
            if group is not None and subscription.takes is None:
                overtaken.add(group)
    return kept[::-1]
