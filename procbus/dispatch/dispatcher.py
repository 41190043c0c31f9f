# SPDX-License-Identifier: MIT
"""The dispatcher: routes each event to the lanes of its handlers, by their declared kind."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from functools import partial
from time import monotonic
from typing import Any, Never

from procbus.core.context import ONLY_RUN, HandlerContext, Run, running, running_context
from procbus.core.dead_letter import DeadLetter
from procbus.core.delivery import Delivery
from procbus.core.errors import CircuitOpen, JournalError, OptionError, ProcbusError
from procbus.core.locks import Lock, Tangled, in_main_thread, later
from procbus.core.log import log
from procbus.core.outcome import Outcome, OutcomeKind
from procbus.core.receipt import FanReceipt, Owner, Receipt, SoleReceipt, WaitedReceipt, Waiter
from procbus.core.subscription import Subscription
from procbus.core.user_key import UserKey
from procbus.dispatch.admission import Admission, Disturbed, Reserved
from procbus.dispatch.dead_letters import handler_for
from procbus.dispatch.settlement import Settled, Settlement
from procbus.routing.router import Router

# From an event to its deliveries: whose predicate takes it, and by which key it goes.

#: A subscription, and what its predicate raised.
Broken = tuple[Subscription, BaseException]

#: Types whose hash and comparison are not the user's.
_PLAIN = frozenset((str, int, bytes, float, bool, type(None)))


def choose(
    subscriptions: Sequence[Subscription], event: Any
) -> tuple[list[Subscription], list[Broken]]:
    """Ask each handler's `where`; a predicate that raises fails the delivery to its handler.

    An event goes once to a function, however often that was subscribed: by the last of those
    subscriptions that takes it.
    """
    chosen: list[Subscription] = []
    broken: list[Broken] = []
    rivals = False
    for subscription in subscriptions:
        takes = subscription.takes
        try:
            if takes is None:
                chosen.append(subscription)
            elif takes(event):
                chosen.append(subscription)
                if subscription.group is not None:
                    rivals = True
        except BaseException as error:  # noqa: BLE001 - whatever the user's predicate raises
            broken.append((subscription, _noted(error, "where", subscription)))
    return (_last_of_each(chosen) if rivals else chosen), broken


def _last_of_each(chosen: Sequence[Subscription]) -> list[Subscription]:
    kept: list[Subscription] = []
    seen: set[int] = set()
    for subscription in reversed(chosen):
        if subscription.group in seen:
            subscription.give_back()
            continue
        if subscription.group is not None:
            seen.add(subscription.group)
        kept.append(subscription)
    return kept[::-1]


def give_back(chosen: Sequence[Subscription]) -> None:
    """An event is not published after all: those that were to take one event take another."""
    for subscription in chosen:
        subscription.give_back()


def address(
    receipt: FanReceipt,
    chosen: Sequence[Subscription],
    broken: Sequence[Broken],
) -> tuple[list[Delivery], list[tuple[Delivery, Outcome]]]:
    """Make the deliveries of an event: those to be queued, and those that failed at once."""
    event = receipt.event
    now = monotonic()
    queued: list[Delivery] = []
    failed: list[tuple[Delivery, Outcome]] = []
    for subscription in chosen:
        key, error = _key_of(subscription, event)
        delivery = Delivery(subscription, receipt, key, now)
        if error is None:
            queued.append(delivery)
        else:
            failed.append((delivery, Outcome(OutcomeKind.RAISED, error=error)))
    for subscription, error in broken:
        delivery = Delivery(subscription, receipt, None, now)
        failed.append((delivery, Outcome(OutcomeKind.RAISED, error=error)))
    receipt.held = (*queued, *(delivery for delivery, _ in failed))
    receipt.left = len(receipt.held)
    return queued, failed


def _key_of(subscription: Subscription, event: Any) -> tuple[Any, BaseException | None]:
    key_of = subscription.handler.key
    if key_of is None:
        return None, None
    try:
        key = key_of(event)
        return (key if type(key) in _PLAIN else UserKey(key)), None
    except BaseException as error:  # noqa: BLE001 - whatever the user's function raises
        return None, _noted(error, "key", subscription)


def _noted(error: BaseException, option: str, subscription: Subscription) -> BaseException:
    """Say in an error which option of which handler raised it.

    Ctrl-C is no fault of the user's function: it is raised, and nothing is published.
    """
    if isinstance(error, KeyboardInterrupt) and in_main_thread():
        raise error
    with contextlib.suppress(BaseException):  # it may refuse notes
        error.add_note(f"raised by {option}= of {subscription.handler.name}")
    return error


#: Topics remembered as having no handler, so that each is logged once.
_UNROUTED_KEPT = 1_000


class Phase(Enum):
    """Whether a bus publishes events."""

    #: It has published none yet: first it gets ready.
    NEW = "new"
    OPEN = "open"
    #: It publishes none for cpu handlers, whose workers die and die.
    GUARDED = "guarded"
    #: This is a forked child of the bus's process: it publishes none.
    FORKED = "forked"


_OPEN = Phase.OPEN


class Dispatcher:
    """Turns events into deliveries. Thread-safe.

    Each publish begins with a look at `_phase`: in a phase other than `OPEN` it takes the way over
    `_routes_by_phase`.

    Args:
        admission: bounds what is pending.
        settlement: settles what fails before it gets into a lane.
        routes: gives the router of the moment.
        first_publish: is called before the first event is published, with the routes made.
        subscriptions: gives the subscriptions of the moment.
        run: tells the deliveries of this bus from those of others.
    """

    def __init__(
        self,
        admission: Admission,
        settlement: Settlement,
        routes: Callable[[], Router[Subscription]],
        first_publish: Callable[[], None],
        subscriptions: Callable[[], Sequence[Subscription]],
        run: Run = ONLY_RUN,
    ) -> None:
        self.run = run
        self._admission = admission
        self._settlement = settlement
        self._subscriptions = subscriptions
        self._lock = settlement.lock
        self._routes = routes
        self._get_ready = first_publish
        self._phase = Phase.NEW
        self._is_ready = False
        #: What the phases `GUARDED` and `FORKED` raise.
        self._circuit_error: Callable[[], CircuitOpen] | None = None
        self._fork_error: Callable[[], Never] | None = None
        self._next_id = itertools.count(run.first_id).__next__
        #: Guards the two fields below.
        self._unrouted_lock = Lock()
        self._unrouted_topics: set[str] = set()
        self.unrouted = 0

    def _routes_by_phase(self) -> Router[Subscription] | _Refusing:
        """Give the routes for one publish, or raise the error of the phase."""
        phase = self._phase
        if phase is Phase.FORKED and self._fork_error is not None:
            self._fork_error()
        routes = self._routes()
        if not self._is_ready:
            self._get_ready()
            self._is_ready = True
            if self._phase is Phase.NEW:
                self._phase = Phase.OPEN
        if phase is Phase.GUARDED and self._circuit_error is not None:
            return _Refusing(routes, self._circuit_error)
        return routes

    def guard(self, error: Callable[[], CircuitOpen] | None) -> None:
        """Have publishing for cpu handlers raise such errors from now on; None for no more."""
        if error is None:
            self._phase = Phase.OPEN if self._is_ready else Phase.NEW
            return
        self._circuit_error = error
        self._phase = Phase.GUARDED
        self._admission.disturb()  # those that wait for room: they look again

    def refuse(self, error: Callable[[], Never]) -> None:
        """Have publishing raise an error from now on: this is a forked child. It takes no lock."""
        self._fork_error = error
        self._phase = Phase.FORKED

    def publish(self, event: Any, topic: str | None) -> Receipt:
        """Publish one event, waiting for room on the bus if need be.

        From inside a handler of this bus it never waits, and the event has that handler's event
        for its parent.
        """
        parent_id = None
        nested = False
        if running.get() is not None:  # in a handler, but it may be one of another bus
            context = running_context()
            if context is not None and context.owner is self:
                parent_id = context.event_id
                nested = True
        seen = 0
        while True:
            routes = self._routes() if self._phase is _OPEN else self._routes_by_phase()
            subscriptions = routes.match(event, topic)
            if len(subscriptions) == 1:
                subscription = subscriptions[0]
                if subscription.plain:  # by far the most common case, without the loops below
                    receipt: SoleReceipt | None = None
                    entered = False
                    try:
                        self._admission.enter(1, nested, seen)
                        entered = True
                        receipt = SoleReceipt(
                            self._next_id(),
                            event,
                            topic,
                            parent_id,
                            self._lock,
                            subscription,
                            monotonic(),
                        )
                        subscription.put(receipt)
                    except Disturbed:  # while it waited for room: see whether it may be published
                        seen = self._admission.disturbed
                        continue
                    except Tangled:
                        if receipt is None:
                            receipt = SoleReceipt(
                                self._next_id(),
                                event,
                                topic,
                                parent_id,
                                self._lock,
                                subscription,
                                monotonic(),
                            )
                        later(self._send_later, [receipt], [], entered)
                    except BaseException:  # Ctrl-C, most likely
                        self._take_back(receipt, entered)
                        raise
                    return receipt
            chosen, broken = choose(subscriptions, event)
            try:
                return self._publish_fan(event, topic, parent_id, chosen, broken, nested, seen)
            except Disturbed:
                seen = self._admission.disturbed

    def publish_to(
        self, subscription: Subscription, event: Any, owner: Owner, waiter: Waiter
    ) -> None:
        """Publish an event for one plain subscription, which nothing is routed to.

        It waits for room as `publish` does. `waiter` has the delivery from the start, and `owner`
        is told once it is settled.
        """
        context = running_context() if running.get() is not None else None
        if context is not None and context.owner is not self:
            context = None
        parent_id = None if context is None else context.event_id
        seen = 0
        while True:
            if self._phase is not _OPEN:
                routes = self._routes_by_phase()
                if isinstance(routes, _Refusing):
                    routes.check((subscription,))
            delivery: WaitedReceipt | None = None
            entered = False
            try:
                self._admission.enter(1, context is not None, seen)
                entered = True
                delivery = WaitedReceipt(
                    owner,
                    waiter,
                    self._next_id(),
                    event,
                    None,
                    parent_id,
                    self._lock,
                    subscription,
                    monotonic(),
                )
                subscription.put(delivery)
            except Disturbed:
                seen = self._admission.disturbed
                continue
            except Tangled:
                if delivery is None:
                    delivery = WaitedReceipt(
                        owner,
                        waiter,
                        self._next_id(),
                        event,
                        None,
                        parent_id,
                        self._lock,
                        subscription,
                        monotonic(),
                    )
                later(self._send_later, [delivery], [], entered)
            except BaseException:  # Ctrl-C, most likely
                self._take_back(delivery, entered)
                raise
            return

    def redeliver(self, letter: DeadLetter) -> Receipt:
        """Publish the event of a dead letter again, for its handler alone.

        It waits for room as `publish` does. `where` is not asked: the handler took the event.
        """
        context = running_context()
        if context is not None and context.owner is not self:
            context = None
        subscriptions = self._subscriptions()
        handler = handler_for(letter, [each.handler for each in subscriptions])
        chosen = [each for each in subscriptions if each.handler is handler]
        parent_id = None if context is None else context.event_id
        while True:
            seen = self._admission.disturbed
            routes = self._routes_by_phase()
            if isinstance(routes, _Refusing):
                routes.check(chosen)
            try:
                self._admission.enter(1, context is not None, seen)
            except Disturbed:
                continue
            return self._deliver_again(letter, parent_id, chosen)

    def _deliver_again(
        self, letter: DeadLetter, parent_id: int | None, chosen: Sequence[Subscription]
    ) -> Receipt:
        return self._deliver(letter.event, letter.topic, parent_id, chosen, [])

    def publish_once(self, event: Any, topic: str | None, given_id: str) -> Receipt:  # noqa: ARG002 - see `journaled`
        """Publish an event unless one was published with that id: for that a journal is needed.

        Raises:
            OptionError: the bus has none.
        """
        raise OptionError(
            f"an id ({given_id!r}) is remembered by a journal, and this bus has none: make it with "
            "EventBus(journal=...), or leave out id="
        )

    def streaming(
        self, events: Iterable[Any], topic: str | None, id_of: Callable[[Any], str] | None
    ) -> tuple[Iterable[Any], Callable[[Any], Receipt]]:
        """Give the source of a stream, and what publishes each that comes from it.

        Args:
            events: what the user streams.
            topic: what each is published to.
            id_of: gives the id of each; None for none.
        """
        if id_of is None:
            return events, lambda event: self.publish(event, topic)
        return events, lambda event: self.publish_once(event, topic, id_of(event))

    def make_safe(self) -> None:
        """Wait until all that was published survives what it has to: nothing, without a journal."""

    def resume(self) -> None:
        """Take up what a journal has left from runs before: there is none."""

    #: Whether `resume` has nothing to do, and whether publishing may wait for a disk.
    resumed = True
    may_wait = False
    #: Whether what is cancelled is kept for the next run.
    keeps = False

    def back_up(self, dest: str) -> None:
        """Copy the journal to a file.

        Raises:
            JournalError: there is none.
        """
        raise JournalError(f"there is no journal to be copied to {dest}: give the bus journal=...")

    def close(self) -> None:
        """Nothing will be published any more. Idempotent."""

    def try_publish(
        self, event: Any, topic: str | None, when_room: Callable[[], object]
    ) -> Receipt | Reserved:
        """Publish one event if there is room; else stand in line for it.

        Args:
            event: the event.
            topic: what it is published to.
            when_room: is called once there is room for the event, or it has to be tried again.
        """
        context = running_context()
        if context is not None and context.owner is self:
            return self.publish(event, topic)
        seen = self._admission.disturbed
        chosen, broken = choose(self._routes_by_phase().match(event, topic), event)
        place = self._admission.ask(len(chosen) + len(broken), when_room)
        if place is None:
            return self._deliver(event, topic, None, chosen, broken)
        if self._admission.disturbed != seen:  # before it was there to be called
            when_room()
        return Reserved(
            self._admission,
            place,
            partial(self._deliver, event, topic, None, chosen, broken),
            partial(give_back, chosen),
        )

    def publish_children(
        self,
        delivery: Delivery,
        outcome: Outcome,  # noqa: ARG002 - a journal writes it
        published: Sequence[tuple[str | None, Any]],
    ) -> BaseException | None:
        """Publish what a cpu handler published, all or none; return the error if none.

        Args:
            delivery: what it published them with.
            outcome: the success of that, which is not settled yet.
            published: topic and event of each.
        """
        chosen: list[tuple[Any, str | None, list[Subscription], Any]] = []
        try:
            routes = self._routes_by_phase()
            for topic, event in published:
                chosen.append((event, topic, *choose(routes.match(event, topic), event)))
            self._admission.enter(sum(len(c) + len(b) for _, _, c, b in chosen), True)
        except BaseException as error:  # noqa: BLE001 - routing asks the event for its event_type
            for _, _, subscriptions, _ in chosen:
                give_back(subscriptions)
            return error
        for event, topic, subscriptions, broken in chosen:
            self._deliver(event, topic, delivery.event_id, subscriptions, broken)
        return None

    def _take_back(self, delivery: Delivery | None, entered: bool) -> None:
        """Publishing was interrupted: what is not in its lane never gets there, and is cancelled.

        What is in its lane runs.
        """
        if delivery is not None and entered:
            self._cancel_unqueued([delivery])
        elif entered:
            self._admission.leave(1)

    def _cancel_unqueued(
        self, deliveries: Iterable[Delivery], error: ProcbusError | None = None
    ) -> None:
        """Settle those of some deliveries that never got into their lanes."""
        left = [each for each in deliveries if not getattr(each, "queued", False)]
        self._settle_unqueued(
            [
                (
                    each,
                    Outcome(
                        OutcomeKind.CANCELLED,
                        error=error
                        or ProcbusError(f"publishing event {each.event_id} was interrupted"),
                    ),
                )
                for each in left
            ]
        )

    def _settle_unqueued(self, settled: Sequence[Settled]) -> None:
        if settled:
            try:
                with self._lock:
                    for delivery, _ in settled:
                        delivery.subscription.unqueued += 1
            except Tangled:
                later(self._settle_unqueued, settled)
                return
            self._settlement.settle(settled, queued=False)

    def _send_later(
        self, queued: Sequence[Delivery], failed: Sequence[Settled], entered: bool
    ) -> None:
        """Do what is left of a publishing that was tangled up with another, in another thread."""
        if not entered:
            count = len(queued) + len(failed)
            try:
                self._admission.enter(count, True)
            except ProcbusError as error:
                self._admission.leave(-count)  # settling them counts them out
                self._cancel_unqueued([*queued, *(delivery for delivery, _ in failed)], error)
                return
        self._send_off([each for each in queued if not getattr(each, "queued", False)], failed)

    def context_of(self, delivery: Delivery, receipt: Receipt) -> HandlerContext:
        """Make what `current()` returns in a handler that runs in this process, or in its hook."""
        return HandlerContext(
            delivery.subscription.handler.name,
            receipt.id,
            receipt.parent_id,
            receipt.topic,
            len(delivery.earlier) + 1,
            self.publish,
            self,
            self.run,
        )

    def _publish_fan(
        self,
        event: Any,
        topic: str | None,
        parent_id: int | None,
        chosen: Sequence[Subscription],
        broken: Sequence[Broken],
        nested: bool,
        seen: int,
    ) -> Receipt:
        """Publish an event for any number of handlers, once there is room."""
        queued: Sequence[Delivery] = ()
        failed: Sequence[Settled] = ()
        entered = False
        try:
            receipt = FanReceipt(self._next_id(), event, topic, parent_id, self._lock)
            queued, failed = address(receipt, chosen, broken)
            self._admission.enter(len(chosen) + len(broken), nested, seen)
            entered = True
            for delivery in queued:
                delivery.subscription.put(delivery)
        except Tangled:
            later(self._send_later, queued, failed, entered)
            return receipt
        except BaseException:  # Ctrl-C, perhaps, or there is no room
            if entered:
                self._cancel_unqueued(queued)
                self._settle_unqueued(failed)
            else:
                give_back(chosen)
            raise
        if failed:
            self._settle_unqueued(failed)
        elif not queued:
            self._note_unrouted(event, topic)
        return receipt

    def _deliver(
        self,
        event: Any,
        topic: str | None,
        parent_id: int | None,
        chosen: Sequence[Subscription],
        broken: Sequence[Broken],
        *,
        entered: bool = True,
    ) -> Receipt:
        try:
            receipt = FanReceipt(self._next_id(), event, topic, parent_id, self._lock)
            if not chosen and not broken:
                self._note_unrouted(event, topic)
                return receipt
            queued, failed = address(receipt, chosen, broken)
        except BaseException:  # Ctrl-C, perhaps in the user's function for the key
            give_back(chosen)
            if entered:
                self._admission.leave(len(chosen) + len(broken))
            raise
        if entered:
            self._send_off(queued, failed)
        else:
            later(self._send_later, queued, failed, False)
        return receipt

    def _send_off(self, queued: Sequence[Delivery], failed: Sequence[Settled]) -> None:
        """Queue the deliveries of an event in their lanes."""
        try:
            for delivery in queued:
                delivery.subscription.put(delivery)
        except Tangled:
            later(self._send_later, queued, failed, True)
            return
        except BaseException:  # Ctrl-C, most likely
            self._cancel_unqueued(queued)
            self._settle_unqueued(failed)
            raise
        if failed:
            self._settle_unqueued(failed)

    def _note_unrouted(self, event: Any, topic: str | None) -> None:
        name = repr(topic) if topic is not None else _kind_of(event)
        with self._unrouted_lock:
            self.unrouted += 1
            new = name not in self._unrouted_topics and len(self._unrouted_topics) < _UNROUTED_KEPT
            if new:
                self._unrouted_topics.add(name)
        if new:
            hint = ""
            if topic is None and isinstance(event, str):
                hint = ' (to publish to a topic, give a payload too: publish("topic", payload))'
            log.warning("no handler takes events of %s%s; they go nowhere", name, hint)


class _Refusing:
    """The routes, while nothing new may be published for cpu handlers."""

    def __init__(self, routes: Router[Subscription], error: Callable[[], CircuitOpen]) -> None:
        self._routes = routes
        self._error = error

    def match(self, event: object, topic: str | None = None) -> Sequence[Subscription]:
        """Find who takes an event; raise the error where that is a cpu handler."""
        return self.check(self._routes.match(event, topic))

    def check(self, found: Sequence[Subscription]) -> Sequence[Subscription]:
        """Raise the error if there is a cpu handler among them."""
        if any(subscription.handler.kind == "cpu" for subscription in found):
            raise self._error()
        return found


def _kind_of(event: Any) -> str:
    """Name what an event is routed by when it was published without a topic."""
    name = f"class {type(event).__qualname__}"
    try:
        event_type = getattr(event, "event_type", None)
        return f"{name} ({event_type!r})" if isinstance(event_type, str) else name
    except BaseException:  # noqa: BLE001 - a property of the user's, and nobody takes the event anyway
        return name
