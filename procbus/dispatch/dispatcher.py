# SPDX-License-Identifier: MIT
"""The dispatcher: turns each event into deliveries and puts them into their handlers' lanes.

`publish` does every step: look at the phase, ask the router, make the receipt, count the deliveries
in, write to the journal if there is one, queue the deliveries. An event with one plain handler
takes a shorter way.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from time import monotonic
from typing import Any, Never

from procbus.core.context import (
    ONLY_RUN,
    HandlerContext,
    Run,
    running,
    running_context,
    running_now,
)
from procbus.core.dead_letter import DeadLetter
from procbus.core.delivery import Delivery, LastAttempt
from procbus.core.errors import OptionError, ProcbusError
from procbus.core.flow import Circuit
from procbus.core.locks import Lock, Tangled
from procbus.core.outcome import Outcome
from procbus.core.receipt import (
    Callbacks,
    FanReceipt,
    Owner,
    Receipt,
    SoleReceipt,
    WaitedReceipt,
    Waiter,
    call_all,
)
from procbus.core.reporting import RunOf
from procbus.core.subscription import PutAll, Subscription
from procbus.core.ticket import Ticket
from procbus.core.when import Delayed, When
from procbus.dispatch.addressing import Broken, address, choose, give_back
from procbus.dispatch.admission import Admission, Disturbed, Reserved, holds_room
from procbus.dispatch.dead_letters import handler_for
from procbus.dispatch.journal_side import JournalSide
from procbus.dispatch.refusing import Refusing
from procbus.dispatch.retry_queue import Due
from procbus.dispatch.send_off import SendOff
from procbus.dispatch.settlement import Settlement
from procbus.dispatch.unrouted import Unrouted
from procbus.routing.router import Router

#: Publishes an event of a stream, as `Dispatcher.publish` does; and publishes the first of several
#: events, one at least, as `Dispatcher.publish_run` does.
PublishOne = Callable[[Any, str | None, Callbacks | None, bool], Receipt]
PublishRun = Callable[[Sequence[Any], str | None, Callbacks | None], Sequence[Receipt]]

#: A subscription, the object that had the delivery made, and the object that waits for it.
Addressee = tuple[Subscription, Owner, Waiter]


class Dispatcher:
    """Turns events into deliveries. Thread-safe.

    Each publish begins with a look at `_open`. If `_open` is false, the publish goes through
    `_routes_by_phase`: see `_set_phase`.

    Args:
        admission: bounds the pending deliveries.
        settlement: settles deliveries that fail before they get into a lane.
        routes: returns the present router.
        first_publish: called before the first event is published, once the routes are made.
        subscriptions: returns the present subscriptions.
        run: the run of the bus, which distinguishes its deliveries from the deliveries of all other
            runs.
        journal: records events and outcomes that must survive; None for no journal.
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
        self._delays = settlement.delays
        self._lock = settlement.lock
        self._routes = routes
        self._get_ready = first_publish
        #: Guards the change of `_open`, which follows from the fields below it.
        self._phase_lock = Lock()
        self._open = False
        self._is_ready = False
        #: These functions make the errors of the phases `GUARDED` and `FORKED`.
        self._circuit: Circuit | None = None
        self._fork_error: Callable[[], Never] | None = None
        self._next_id = itertools.count(run.first_id).__next__
        self._listeners = settlement.listeners
        self.unrouted = Unrouted()

    def _routes_by_phase(self, nested: bool = True) -> Router[Subscription] | Refusing:
        """Return the routes for one publish, or raise the error of the phase.

        Args:
            nested: whether a handler publishes: then deliveries of earlier runs are not fed first.
        """
        error = None if self._circuit is None else self._circuit.refusal  # once: it may change
        if self._fork_error is not None:
            self._fork_error()
        if not self._is_ready:
            self._routes()
            self._get_ready()
            self._is_ready = True
            self._set_phase()
        routes = self._routes()
        if self.journal is not None and routes is not self.journal.resumed_for and not nested:
            self.resume()
            routes = self._routes()
        return routes if error is None else Refusing(routes, error)

    def guard(self, circuit: Circuit) -> None:
        """Have publishing for cpu handlers raise the error of this circuit, while it has one."""
        self._circuit = circuit
        self._set_phase()
        self._admission.disturb()  # waiting publishers check again

    def _set_phase(self) -> None:
        """Note whether a publish needs only the routes. Another thread may change a field.

        A publish needs further steps in a forked child; while cpu workers keep dying; if a journal
        may have deliveries for new handlers; and for the first event, before which the bus gets
        ready.
        """
        with self._phase_lock:  # no call in it, after which code that interrupts might run
            guarded = self._circuit is not None and self._circuit.refusal is not None
            held_up = guarded or self.journal is not None or self._fork_error is not None
            self._open = self._is_ready and not held_up

    def refuse(self, error: Callable[[], Never]) -> None:
        """Have publishing raise an error from now on: this is a forked child. Takes no lock."""
        self._fork_error = error
        self._open = False

    @holds_room
    def publish(
        self,
        event: Any,
        topic: str | None,
        tell: Callbacks | None = None,
        wait: bool = True,
        to: Addressee | None = None,
        when: When | None = None,
    ) -> Receipt:
        """Publish one event, after waiting for room on the bus if necessary.

        Inside a handler of this bus it never waits, and the handler's event becomes the parent.
        With a journal, the event is in the journal when this method returns.

        Args:
            event: the event.
            topic: the topic that it is published to.
            tell: called like a callback of `Receipt.when_done`; many events may share one.
            wait: whether to wait until the event survives a loss of power, if the journal promises
                that.
            to: the one plain subscription that gets the event, without routing; None routes the
                event.
            when: when its handlers run. Only a publish from a handler passes it; others call
                `publish_delayed`.
        """
        parent_id = None
        nested = False
        if running_now() is not None:
            if when is not None:
                return self.publish_delayed(event, topic, when)
            parent_id, nested = self._origin()
        seen = 0
        while True:
            # In local variables, because calling a function that is an attribute takes longer.
            make, routes_now, next_id = self._sole, self._routes, self._next_id
            routes = routes_now() if self._open else self._routes_by_phase(nested)
            if to is None:
                subscriptions = routes.match(event, topic)
                if len(subscriptions) != 1 or not (subscription := subscriptions[0]).plain:
                    chosen, broken = choose(subscriptions, event)
                    about = (event, topic, parent_id, chosen, broken, tell)
                    try:
                        return self._publish_fan(*about, nested=nested, seen=seen, wait=wait)
                    except Disturbed:
                        seen = self._admission.disturbed
                        continue
            else:
                subscription, make = to[0], WaitedReceipt
                if isinstance(routes, Refusing):
                    routes.check((subscription,))
            # By far the most frequent case, without the loops of `_publish_fan`.
            entered = accepted = False
            try:
                try:
                    self._admission.enter(1, nested, seen)
                    entered = True
                except Tangled:
                    pass  # it is counted in a moment later
                receipt = make(
                    next_id(), event, topic, parent_id, self._lock, subscription, monotonic()
                )
                if tell is not None:
                    receipt.callbacks = tell
                if to is not None:
                    assert isinstance(receipt, WaitedReceipt)
                    receipt.answer(to[1], to[2])
                elif self.journal is not None:
                    self.journal.accept(receipt, (receipt,), wait=wait)
                accepted = True
                if entered:
                    put = self._send_off.put if self._listeners.publishing else subscription.put
                    put(receipt)
                else:
                    self._send_off.send_later((receipt,), (), False)
                return receipt
            except Disturbed:  # while this waited for room: check again whether it may publish
                seen = self._admission.disturbed
                continue
            except BaseException as error:  # most likely Ctrl-C, or the journal cannot be written
                if accepted and entered:
                    if self._send_off.rescue(error, (receipt,), ()):
                        return receipt
                elif entered:
                    self._admission.leave(1)
                raise

    @holds_room
    def _publish_fan(
        self,
        event: Any,
        topic: str | None,
        parent_id: int | None,
        chosen: Sequence[Subscription],
        broken: Sequence[Broken],
        tell: Callbacks | None = None,
        *,
        nested: bool = True,
        seen: int = 0,
        wait: bool = True,
        entered: bool = False,
        due: Due | None = None,
        beside: bytes = b"",
    ) -> Receipt:
        """Publish an event for any number of handlers, once there is room.

        Args:
            event: the event.
            topic: the topic that it is published to.
            parent_id: the event whose handler published it.
            chosen: the subscriptions that take it.
            broken: the subscriptions whose predicate raised.
            tell: see `publish`.
            nested: whether a handler publishes it.
            seen: see `Admission.enter`.
            wait: see `publish`.
            entered: whether its deliveries are counted in already.
            due: when its deliveries are due; None for now.
            beside: a record that the journal gets together with the event.
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
            receipt.callbacks = tell
            if self.journal is not None and (count or beside):
                due_at = 0.0 if due is None else due.wall_at
                self.journal.accept(receipt, receipt.held, wait=wait, due_at=due_at, beside=beside)
            accepted = True
            if not entered:
                self._send_off.send_later(queued, failed, False, due)
                return receipt
            self._send_off.put_each(queued, due)
        except BaseException as error:  # perhaps Ctrl-C, or there is no room
            if accepted and entered:
                if self._send_off.rescue(error, queued, failed, due):
                    return receipt
            else:
                give_back(chosen)
                if entered:
                    self._admission.leave(count)
            raise
        if failed:
            self._send_off.settle_unqueued(failed)
        elif not queued:
            self.unrouted.note(event, topic)
            call_all((receipt,))
        return receipt

    def publish_delayed(
        self, event: Any, topic: str | None, when: When, given_id: str | None = None
    ) -> Receipt:
        """Publish one event whose handlers run later. The event is routed, and in the journal, now.

        Args:
            event: the event.
            topic: the topic that it is published to.
            when: when its handlers run.
            given_id: see `publish_once`.

        Raises:
            BusClosed: the bus was closed, or the script is ending.
        """
        due = self._delays.due_of(when)
        if given_id is not None:
            return self.publish_once(event, topic, given_id, due=due)
        if due is None:
            return self.publish(event, topic)
        return self._publish_routed(event, topic, due=due)

    def cancel_delayed(self) -> None:
        """Settle all events whose delay is not over as cancelled: the bus runs nothing more."""
        self._delays.cancel()

    def publish_tick(self, event: Any, topic: str | None, record: bytes) -> Receipt:
        """Publish an event of a schedule. A journal gets the event together with its tick.

        Args:
            event: the event.
            topic: the topic that it is published to.
            record: the record of the tick; empty without a journal.
        """
        return self._publish_routed(event, topic, beside=record)

    def _publish_routed(
        self, event: Any, topic: str | None, *, due: Due | None = None, beside: bytes = b""
    ) -> Receipt:
        parent_id, nested = self._origin()
        seen = 0
        while True:
            routes = self._routes_by_phase(nested)
            chosen, broken = choose(routes.match(event, topic), event)
            about = (event, topic, parent_id, chosen, broken)
            try:
                return self._publish_fan(*about, nested=nested, seen=seen, due=due, beside=beside)
            except Disturbed:
                seen = self._admission.disturbed

    @holds_room
    def publish_run(
        self, events: Sequence[Any], topic: str | None, tell: Callbacks | None
    ) -> Sequence[Receipt]:
        """Publish the first of several events, and the events after it for the same plain handler.

        One wait for room, one lock and one wake-up serve all of them.

        Args:
            events: the events, one at least.
            topic: the topic that they are published to.
            tell: see `publish`.

        Returns:
            The receipts of the published events.
        """
        seen = self._admission.disturbed
        run = None
        if self._open and not self._listeners.publishing:
            run = self._run_of(events, topic)
        if run is None:
            return (self.publish(events[0], topic, tell, False),)
        subscription, put_all, count = run
        entered = accepted = False
        receipts: list[SoleReceipt] = []
        try:
            parent_id, nested = self._origin()
            self._admission.enter(count, nested, seen)
            entered = True
            make, next_id, lock, now = self._sole, self._next_id, self._lock, monotonic()
            for event in events[:count]:
                receipt = make(next_id(), event, topic, parent_id, lock, subscription, now)
                receipt.callbacks = tell
                receipts.append(receipt)
            accepted = True
            put_all(receipts)
        except BaseException as error:  # most likely Ctrl-C
            if accepted:
                if not self._send_off.rescue(error, receipts, ()):
                    raise
            elif entered:
                self._admission.leave(count)
                raise
            elif isinstance(error, Disturbed | Tangled):
                return (self.publish(events[0], topic, tell, False),)
            else:
                raise
        return receipts

    def _run_of(
        self, events: Sequence[Any], topic: str | None
    ) -> tuple[Subscription, PutAll, int] | None:
        """Find the handler of the first event, and count the events in a row that only it gets.

        Returns:
            Its subscription, the function that queues for it, and the number of events; None if
            the first event has to be published alone.
        """
        match = self._routes().match
        found = match(events[0], topic)
        if len(found) != 1 or (put_all := found[0].put_all) is None:
            return None
        most = min(len(events), self._admission.room)
        if topic is not None:
            return found[0], put_all, most
        count = 1
        with contextlib.suppress(Exception):  # routing raises it again, in the turn of its event
            while count < most and match(events[count]) == found:
                count += 1
        return found[0], put_all, count

    def call(self, event: Any, subscription: Subscription) -> Receipt:
        """Publish an event for one handler, without routing; `where` is not asked."""
        parent_id, nested = self._origin()
        while True:
            seen = self._admission.disturbed
            routes = self._routes_by_phase(nested)
            if isinstance(routes, Refusing):
                routes.check((subscription,))
            about = (event, None, parent_id, (subscription,), ())
            with contextlib.suppress(Disturbed):
                return self._publish_fan(*about, nested=nested, seen=seen)

    def redeliver(self, letter: DeadLetter) -> Receipt:
        """Publish the event of a dead letter again, for its handler alone.

        It waits for room like `publish`. `where` is not asked, because the handler took the event.
        A delivery that the journal has keeps its number there.
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
            if isinstance(routes, Refusing):
                routes.check(chosen)
            try:
                self._admission.enter(1, context is not None, seen)
            except Disturbed:
                continue
            return self._deliver_again(letter, parent_id, chosen)

    def _deliver_again(
        self, letter: DeadLetter, parent_id: int | None, chosen: Sequence[Subscription]
    ) -> Receipt:
        journal = self.journal
        number = None if journal is None else journal.take(letter)
        try:
            event_id = self._next_id() if number is None else letter.event_id
            receipt = self._fan(event_id, letter.event, letter.topic, parent_id, self._lock)
            queued, failed = address(receipt, chosen, ())
            if journal is not None:
                if number is None:
                    journal.accept(receipt, receipt.held)
                else:
                    journal.revive(letter, number, receipt)
        except BaseException:  # perhaps Ctrl-C, or the journal cannot be written
            if journal is not None and number is not None:
                journal.return_letter(letter, number)
            give_back(chosen)
            self._admission.leave(1)
            raise
        self._send_off.send(queued, failed)
        return receipt

    def publish_once(
        self,
        event: Any,
        topic: str | None,
        given_id: str,
        wait: bool = True,
        due: Due | None = None,
    ) -> Receipt:
        """Publish an event. If the journal has seen its id, return that event's receipt instead.

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
            except BaseException:  # perhaps Ctrl-C in the user's function for the key
                give_back(chosen)
                self._admission.leave(count)
                raise
            holder = journal.claim(given_id, receipt)
            if holder is not receipt:
                give_back(chosen)
                self._admission.leave(count)
                return holder
            try:
                due_at = 0.0 if due is None else due.wall_at
                held = receipt.held
                accepted = journal.accept_once(receipt, held, given_id, claims, wait, due_at)
            except BaseException as error:
                give_back(chosen)
                journal.give_up(given_id)
                self._send_off.cancel_unqueued(receipt.held, error)
                raise
            if accepted:
                break
            # Another publisher came first, and its event is finished already.
            give_back(chosen)
            journal.give_up(given_id)
            self._send_off.cancel_unqueued(receipt.held, _published_by_another())
        if count:
            self._send_off.send(queued, failed, due)
        else:
            self.unrouted.note(event, topic)
        return receipt

    def _admit(
        self, event: Any, topic: str | None, nested: bool
    ) -> tuple[list[Subscription], list[Broken]]:
        """Find the handlers of an event, and count the deliveries in, after a wait for room."""
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
    ) -> tuple[Iterable[Any], PublishOne, PublishRun | None]:
        """Return a stream's source, and functions that publish its events.

        With a journal, and if all events exist already, as in a list, ids are looked up many at a
        time.

        Args:
            events: the events that the user streams.
            topic: the topic that each is published to.
            id_of: returns the id of each; None for no ids.
        """
        if id_of is None:
            return events, self.publish, self.publish_run

        def publish_once(
            event: Any, topic: str | None, tell: Callbacks | None, wait: bool
        ) -> Receipt:
            return _telling(self.publish_once(event, topic, id_of(event), wait), tell)

        if self.journal is None or not isinstance(events, Sequence):
            return events, publish_once, None

        def publish(
            looked_up: tuple[Any, str, Receipt | None],
            topic: str | None,
            tell: Callbacks | None,
            wait: bool,
        ) -> Receipt:
            event, given_id, known = looked_up
            if known is None:
                known = self.publish_once(event, topic, given_id, wait)
            return _telling(known, tell)

        return self.journal.look_up(events, topic, id_of, self.resume), publish, None

    @property
    def resumed(self) -> bool:
        """Whether `resume` has nothing to do."""
        return self.journal is None or self._routes() is self.journal.resumed_for

    def resume(self) -> None:
        """Have the journal feed unfinished deliveries of earlier runs to the subscribed handlers.

        It is called before each publish from outside handlers, and costs next to nothing if there
        are no such deliveries. Otherwise it waits for room, as publishers do.

        Raises:
            JournalError: the journal cannot be read.
            BusClosed: the bus was closed meanwhile.
        """
        if self.resumed or self._origin()[1]:
            return
        self._routes_by_phase()  # this gets the bus ready, or raises
        if self.journal is not None:
            self.journal.resume()

    def try_publish(
        self, event: Any, topic: str | None, when_room: Callable[[], object]
    ) -> Receipt | Reserved:
        """Publish one event if there is room; otherwise wait in line for it.

        Args:
            event: the event.
            topic: the topic that it is published to.
            when_room: called once there is room for the event, or once it has to be tried again.
        """
        context = running_context()
        if context is not None and context.owner is self:
            return self.publish(event, topic)
        seen = self._admission.disturbed
        chosen, broken = choose(self._routes_by_phase().match(event, topic), event)
        place = self._admission.ask(len(chosen) + len(broken), when_room)
        if place is None:
            return self._publish_fan(event, topic, None, chosen, broken, entered=True)
        if self._admission.disturbed != seen:  # a disturbance before the place was in line
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
        """Publish the events of a cpu handler, all or none; return the error if none.

        A journal writes all of them together with the success.

        The caller runs it in a context of its own.

        Args:
            delivery: the delivery whose handler published them.
            outcome: the success of that delivery, which is not settled yet.
            published: topic and event of each published event.
        """
        chosen: list[tuple[Any, str | None, Due | None, list[Subscription], Any]] = []
        ready: list[tuple[FanReceipt, Sequence[Delivery], Sequence[LastAttempt], Due | None]] = []
        count = 0
        try:
            routes = self._routes_by_phase()
            for topic, event in published:
                due = None
                if type(event) is Delayed:
                    event, due = event.event, self._delays.due_of(event.when)
                chosen.append((event, topic, due, *choose(routes.match(event, topic), event)))
            needed = sum(len(each[3]) + len(each[4]) for each in chosen)
            self._admission.enter(needed, True)
            count = needed
            for event, topic, due, subscriptions, broken in chosen:
                id = self._next_id()
                receipt = self._fan(id, event, topic, delivery.event_id, self._lock)
                ready.append((receipt, *address(receipt, subscriptions, broken), due))
            if self._listeners.publishing:  # which are told the publisher, as jobs are
                running.set(self.seat_of(delivery, delivery.receipt))
            if self.journal is not None:
                receipts = [
                    (receipt, 0.0 if due is None else due.wall_at)
                    for receipt, _, _, due in ready
                    if receipt.held
                ]
                self.journal.accept_children(receipts, delivery, outcome)
        except BaseException as error:  # noqa: BLE001 - routing asks the event for its event_type
            if count:
                self._admission.leave(count)
            for _, _, _, subscriptions, _ in chosen:
                give_back(subscriptions)
            return error
        for receipt, queued, failed, due in ready:
            if receipt.held:
                self._send_off.send(queued, failed, due)
            else:
                self.unrouted.note(receipt.event, receipt.topic)
        return None

    def _origin(self) -> tuple[int | None, bool]:
        """The event whose handler is publishing, and whether a handler of this bus is."""
        if running_now() is not None:
            context = running_context()
            if context is not None and context.owner is self:
                return context.event_id or None, True
        return None, False

    def context_of(self, delivery: Delivery, receipt: Receipt) -> HandlerContext:
        """Make the return value of `current()` in a handler of this process, or in its hook."""
        name, attempt = delivery.subscription.handler.name, len(delivery.earlier) + 1
        about = name, receipt.id, receipt.parent_id, receipt.topic, attempt
        context = HandlerContext(*about, self.publish, self, self.run, RunOf(delivery))
        if isinstance(delivery, Ticket) and delivery.together is not None:
            context.event_ids = tuple(delivery.together.ids)
        return context

    def seat_of(self, delivery: Delivery | None, receipt: Receipt | None) -> Any:
        """Make a value of `running` for code that is called about a delivery, or about a worker.

        Events that this code publishes never wait for room.
        """
        if delivery is not None:
            return [self.context_of, delivery, receipt]
        return HandlerContext("a listener", 0, None, None, 1, self.publish, self, self.run)


def _telling(receipt: Receipt, tell: Callbacks | None) -> Receipt:
    for callback in tell or ():
        receipt.when_done(callback)
    return receipt


def _published_by_another() -> ProcbusError:
    return ProcbusError("another publisher was using this id, and failed: publish the event again")
