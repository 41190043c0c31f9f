# SPDX-License-Identifier: MIT
"""The dispatcher: routes each event to the lanes of its handlers, by their declared kind."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from functools import partial
from time import monotonic
from typing import Any, Never

from procbus.core.context import ONLY_RUN, HandlerContext, Run, running, running_context
from procbus.core.dead_letter import DeadLetter
from procbus.core.delivery import Delivery, LastAttempt
from procbus.core.errors import CircuitOpen, OptionError, ProcbusError
from procbus.core.locks import Lock, Tangled
from procbus.core.log import log
from procbus.core.outcome import Outcome
from procbus.core.receipt import FanReceipt, Owner, Receipt, SoleReceipt, WaitedReceipt, Waiter
from procbus.core.subscription import Subscription
from procbus.dispatch.addressing import Broken, address, choose, give_back
from procbus.dispatch.admission import Admission, Disturbed, Reserved
from procbus.dispatch.dead_letters import handler_for
from procbus.dispatch.journal_side import JournalSide
from procbus.dispatch.send_off import SendOff
from procbus.dispatch.settlement import Settlement
from procbus.routing.router import Router

#: Topics remembered as having no handler, so that each is logged once.
_UNROUTED_KEPT = 1_000


#: A subscription, who had the delivery to it made, and who waits for it.
Addressee = tuple[Subscription, Owner, Waiter]


class Phase(Enum):
    """Whether a bus publishes events."""

    #: It has published none yet: first it gets ready.
    NEW = "new"
    OPEN = "open"
    #: It is open, and has a journal, which may have something for handlers that are new.
    RESUMING = "resuming"
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
        journal: what must survive is written there; None where nothing must.
        sole: makes the receipt of an event with one handler.
        fan: makes the receipt of any other event.
    """

    def __init__(
        self,
        admission: Admission,
        settlement: Settlement,
        routes: Callable[[], Router[Subscription]],
        first_publish: Callable[[], None],
        subscriptions: Callable[[], Sequence[Subscription]],
        run: Run = ONLY_RUN,
        journal: JournalSide | None = None,
        sole: Callable[..., SoleReceipt] = SoleReceipt,
        fan: Callable[..., FanReceipt] = FanReceipt,
    ) -> None:
        self.run = run
        self.journal = journal
        self._sole = sole
        self._fan = fan
        self._admission = admission
        self._send_off = SendOff(admission, settlement)
        self._subscriptions = subscriptions
        self._lock = settlement.lock
        self._routes = routes
        self._get_ready = first_publish
        self._phase = Phase.NEW
        self._when_ready = Phase.OPEN if journal is None else Phase.RESUMING
        self._is_ready = False
        #: What the phases `GUARDED` and `FORKED` raise.
        self._circuit_error: Callable[[], CircuitOpen] | None = None
        self._fork_error: Callable[[], Never] | None = None
        self._next_id = itertools.count(run.first_id).__next__
        #: Guards the two fields below.
        self._unrouted_lock = Lock()
        self._unrouted_topics: set[str] = set()
        self.unrouted = 0

    def _routes_by_phase(self, nested: bool = True) -> Router[Subscription] | _Refusing:
        """Give the routes for one publish, or raise the error of the phase.

        Args:
            nested: whether it comes from inside a handler: what runs before have left is not fed
                then.
        """
        phase = self._phase
        if phase is Phase.FORKED and self._fork_error is not None:
            self._fork_error()
        if not self._is_ready:
            self._routes()
            self._get_ready()
            self._is_ready = True
            if self._phase is Phase.NEW:
                self._phase = self._when_ready
        routes = self._routes()
        if self.journal is not None and routes is not self.journal.resumed_for and not nested:
            self.resume()
            routes = self._routes()
        if phase is Phase.GUARDED and self._circuit_error is not None:
            return _Refusing(routes, self._circuit_error)
        return routes

    def guard(self, error: Callable[[], CircuitOpen] | None) -> None:
        """Have publishing for cpu handlers raise such errors from now on; None for no more."""
        if error is None:
            self._phase = self._when_ready if self._is_ready else Phase.NEW
            return
        self._circuit_error = error
        self._phase = Phase.GUARDED
        self._admission.disturb()  # those that wait for room: they look again

    def refuse(self, error: Callable[[], Never]) -> None:
        """Have publishing raise an error from now on: this is a forked child. It takes no lock."""
        self._fork_error = error
        self._phase = Phase.FORKED

    def publish(
        self, event: Any, topic: str | None, wait: bool = True, to: Addressee | None = None
    ) -> Receipt:
        """Publish one event, waiting for room on the bus if need be.

        From inside a handler of this bus it never waits, and the event has that handler's event
        for its parent. With a journal the event is in it once this returns.

        Args:
            event: the event.
            topic: what it is published to.
            wait: whether to wait until it survives a loss of power, where that was asked for.
            to: the one plain subscription that it is for, which nothing is routed to; None routes
                the event.
        """
        parent_id = None
        nested = False
        if running.get() is not None:
            parent_id, nested = self._origin()
        seen = 0
        # Attributes that hold functions are called slower where they are looked up for the call.
        routes_now, next_id, make = self._routes, self._next_id, self._sole
        while True:
            routes = routes_now() if self._phase is _OPEN else self._routes_by_phase(nested)
            if to is None:
                subscriptions = routes.match(event, topic)
                if len(subscriptions) != 1 or not (subscription := subscriptions[0]).plain:
                    chosen, broken = choose(subscriptions, event)
                    about = (event, topic, parent_id, chosen, broken)
                    try:
                        return self._publish_fan(*about, nested=nested, seen=seen, wait=wait)
                    except Disturbed:
                        seen = self._admission.disturbed
                        continue
            else:
                subscription = to[0]
                if isinstance(routes, _Refusing):
                    routes.check((subscription,))
            # By far the most common case, without the loops of `_publish_fan`.
            entered = accepted = False
            try:
                try:
                    self._admission.enter(1, nested, seen)
                    entered = True
                except Tangled:
                    pass  # it is counted in a moment later
                if to is None:
                    receipt: SoleReceipt = make(
                        next_id(),
                        event,
                        topic,
                        parent_id,
                        self._lock,
                        subscription,
                        monotonic(),
                    )
                    if self.journal is not None:
                        self.journal.accept(receipt, (receipt,), wait=wait)
                else:
                    receipt = WaitedReceipt(
                        to[1],
                        to[2],
                        next_id(),
                        event,
                        topic,
                        parent_id,
                        self._lock,
                        subscription,
                        monotonic(),
                    )
                accepted = True
                if entered:
                    subscription.put(receipt)
                else:
                    self._send_off.send_later((receipt,), (), False)
            except Disturbed:  # while it waited for room: see whether it may be published
                seen = self._admission.disturbed
                continue
            except BaseException as error:  # Ctrl-C, most likely, or the journal cannot be written
                if accepted and entered:
                    if self._send_off.rescue(error, (receipt,), ()):
                        return receipt
                elif entered:
                    self._admission.leave(1)
                raise
            return receipt

    def _publish_fan(
        self,
        event: Any,
        topic: str | None,
        parent_id: int | None,
        chosen: Sequence[Subscription],
        broken: Sequence[Broken],
        *,
        nested: bool = True,
        seen: int = 0,
        wait: bool = True,
        entered: bool = False,
        before: bytes = b"",
    ) -> Receipt:
        """Publish an event for any number of handlers, once there is room.

        Args:
            event: the event.
            topic: what it is published to.
            parent_id: the event whose handler published it.
            chosen: who takes it.
            broken: those whose predicate raised.
            nested: whether it comes from inside a handler.
            seen: see `Admission.enter`.
            wait: see `publish`.
            entered: whether its deliveries are counted in.
            before: records to be written to the journal together with it.
        """
        count = len(chosen) + len(broken)
        queued: Sequence[Delivery] = ()
        failed: Sequence[LastAttempt] = ()
        accepted = False
        try:
            if not entered:
                try:
                    self._admission.enter(count, nested, seen)
                    entered = True
                except Tangled:
                    pass  # it is counted in a moment later
            receipt = self._fan(self._next_id(), event, topic, parent_id, self._lock)
            queued, failed = address(receipt, chosen, broken)
            if self.journal is not None and count:
                self.journal.accept(receipt, receipt.held, before=before, wait=wait)
            accepted = True
            if not entered:
                self._send_off.send_later(queued, failed, False)
                return receipt
            for delivery in queued:
                delivery.subscription.put(delivery)
        except BaseException as error:  # Ctrl-C, perhaps, or there is no room
            if accepted and entered:
                if self._send_off.rescue(error, queued, failed):
                    return receipt
            else:
                give_back(chosen)
                if entered:
                    self._admission.leave(count)
            raise
        if failed:
            self._send_off.settle_unqueued(failed)
        elif not queued:
            self._note_unrouted(event, topic)
        return receipt

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
        about = (letter.event, letter.topic, parent_id, chosen, ())
        journal = self.journal
        if journal is None:
            return self._publish_fan(*about, entered=True)
        receipt = self._publish_fan(*about, entered=True, before=journal.discarding(letter))
        journal.forget(letter)
        return receipt

    def publish_once(
        self, event: Any, topic: str | None, given_id: str, wait: bool = True
    ) -> Receipt:
        """Publish an event, unless the journal has seen the id: then give the receipt of that.

        Raises:
            OptionError: the bus has no journal.
        """
        journal = self.journal
        if journal is None:
            raise OptionError(
                f"an id ({given_id!r}) is remembered by a journal, and this bus has none: make it "
                "with EventBus(journal=...), or leave out id="
            )
        journal.check_id(given_id)
        parent_id, nested = self._origin()
        if not nested:
            self.resume()
        while True:
            claims = journal.claims
            if (known := journal.known(given_id, event, topic)) is not None:
                return known
            chosen, broken = self._admit(event, topic, nested)
            count = len(chosen) + len(broken)
            try:
                receipt = self._fan(self._next_id(), event, topic, parent_id, self._lock)
                queued, failed = address(receipt, chosen, broken)
            except BaseException:  # Ctrl-C, perhaps in the user's function for the key
                give_back(chosen)
                self._admission.leave(count)
                raise
            holder = journal.claim(given_id, receipt)
            if holder is not receipt:
                give_back(chosen)
                self._admission.leave(count)
                return holder
            try:
                accepted = journal.accept_once(receipt, receipt.held, given_id, claims, wait)
            except BaseException as error:
                give_back(chosen)
                journal.give_up(given_id)
                self._send_off.cancel_unqueued(receipt.held, error)
                raise
            if accepted:
                break
            # Another came first, and is through already.
            give_back(chosen)
            journal.give_up(given_id)
            self._send_off.cancel_unqueued(receipt.held, _published_by_another())
        if count:
            self._send_off.send(queued, failed)
        else:
            self._note_unrouted(event, topic)
        return receipt

    def _admit(
        self, event: Any, topic: str | None, nested: bool
    ) -> tuple[list[Subscription], list[Broken]]:
        """Find who takes an event, and count the deliveries in; wait for room if need be."""
        seen = 0
        while True:
            chosen, broken = choose(self._routes_by_phase().match(event, topic), event)
            try:
                self._admission.enter(len(chosen) + len(broken), nested, seen)
            except Disturbed:
                give_back(chosen)
                seen = self._admission.disturbed
                continue
            except BaseException:
                give_back(chosen)
                raise
            return chosen, broken

    def streaming(
        self, events: Iterable[Any], topic: str | None, id_of: Callable[[Any], str] | None
    ) -> tuple[Iterable[Any], Callable[[Any], Receipt]]:
        """Give the source of a stream, and what publishes each of it without waiting for the disk.

        With a journal, where the events are there already, as in a list, ids are looked up many at
        a time.

        Args:
            events: what the user streams.
            topic: what each is published to.
            id_of: gives the id of each; None for none.
        """
        if id_of is None:
            return events, lambda event: self.publish(event, topic, False)
        if self.journal is None or not isinstance(events, Sequence):
            return events, lambda event: self.publish_once(event, topic, id_of(event), False)

        def publish(looked_up: tuple[Any, str, Receipt | None]) -> Receipt:
            event, given_id, known = looked_up
            return self.publish_once(event, topic, given_id, False) if known is None else known

        return self.journal.look_up(events, topic, id_of, self.resume), publish

    @property
    def resumed(self) -> bool:
        """Whether `resume` has nothing to do."""
        return self.journal is None or self._routes() is self.journal.resumed_for

    def resume(self) -> None:
        """Have the journal feed what runs before have left to the handlers that are subscribed.

        Called before each publish from outside handlers; when there is nothing new to be fed, that
        costs next to nothing. Otherwise it waits for room, as publishers do.

        Raises:
            JournalError: the journal cannot be read.
            BusClosed: the bus was closed meanwhile.
        """
        if self.resumed or self._origin()[1]:
            return
        self._routes_by_phase()  # gets the bus ready, or refuses
        if self.journal is not None:
            self.journal.resume()

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
            return self._publish_fan(event, topic, None, chosen, broken, entered=True)
        if self._admission.disturbed != seen:  # before it was there to be called
            when_room()
        return Reserved(
            self._admission,
            place,
            partial(self._publish_fan, event, topic, None, chosen, broken, entered=True),
            partial(give_back, chosen),
        )

    def publish_children(
        self, delivery: Delivery, outcome: Outcome, published: Sequence[tuple[str | None, Any]]
    ) -> BaseException | None:
        """Publish what a cpu handler published, all or none; return the error if none.

        A journal writes all of it together with the success.

        Args:
            delivery: what it published them with.
            outcome: the success of that, which is not settled yet.
            published: topic and event of each.
        """
        chosen: list[tuple[Any, str | None, list[Subscription], Any]] = []
        ready: list[tuple[FanReceipt, Sequence[Delivery], Sequence[LastAttempt]]] = []
        count = 0
        try:
            routes = self._routes_by_phase()
            for topic, event in published:
                chosen.append((event, topic, *choose(routes.match(event, topic), event)))
            needed = sum(len(c) + len(b) for _, _, c, b in chosen)
            self._admission.enter(needed, True)
            count = needed
            for event, topic, subscriptions, broken in chosen:
                id = self._next_id()
                receipt = self._fan(id, event, topic, delivery.event_id, self._lock)
                ready.append((receipt, *address(receipt, subscriptions, broken)))
            if self.journal is not None:
                receipts = [receipt for receipt, _, _ in ready if receipt.held]
                self.journal.accept_children(receipts, delivery, outcome)
        except BaseException as error:  # noqa: BLE001 - routing asks the event for its event_type
            if count:
                self._admission.leave(count)
            for _, _, subscriptions, _ in chosen:
                give_back(subscriptions)
            return error
        for receipt, queued, failed in ready:
            if receipt.held:
                self._send_off.send(queued, failed)
            else:
                self._note_unrouted(receipt.event, receipt.topic)
        return None

    def _origin(self) -> tuple[int | None, bool]:
        """The event whose handler is publishing, and whether one of this bus is."""
        if running.get() is not None:
            context = running_context()
            if context is not None and context.owner is self:
                return context.event_id, True
        return None, False

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


def _published_by_another() -> ProcbusError:
    return ProcbusError("the event was published with this id by another: publish it again")


def _kind_of(event: Any) -> str:
    """Name what an event is routed by when it was published without a topic."""
    name = f"class {type(event).__qualname__}"
    try:
        event_type = getattr(event, "event_type", None)
        return f"{name} ({event_type!r})" if isinstance(event_type, str) else name
    except BaseException:  # noqa: BLE001 - a property of the user's, and nobody takes the event anyway
        return name
