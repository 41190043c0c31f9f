# SPDX-License-Identifier: MIT
"""Publishing and settling with a journal: written before it runs, and once it has ended.

The bus has these in place of `Dispatcher` and `Settlement` when it was made with a journal, so that
a bus without one has nothing more to do for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import Context
from itertools import islice
from time import monotonic
from typing import Any

from procbus.core.context import Run, running, running_context
from procbus.core.dead_letter import DeadLetter, summary_of
from procbus.core.delivery import Delivery
from procbus.core.errors import ProcbusError, SerializationError
from procbus.core.locks import Tangled, later
from procbus.core.outcome import Outcome, OutcomeKind
from procbus.core.receipt import FanReceipt, Receipt, SoleReceipt
from procbus.core.subscription import Subscription
from procbus.dispatch.admission import Admission, Disturbed
from procbus.dispatch.dispatcher import Broken, Dispatcher, address, choose, give_back
from procbus.journal.journal import Journal
from procbus.journal.recorded import RecordedDeliveries
from procbus.journal.resume import AskedRetries, Leftovers, ResumeSummary
from procbus.journal.settlement import JournaledSettlement
from procbus.journal.storage.queries import SeenEvent
from procbus.routing.router import Router

# Ids that the user gives to events: checked, and those of a stream looked up many at a time.

#: Ids of a stream that are looked up at a time.
_LOOKED_UP = 256


def check_id(given_id: object) -> None:
    """Raise an error for what cannot be an id.

    Raises:
        ProcbusError: it is no string.
        SerializationError: it cannot be written.
    """
    if not isinstance(given_id, str):
        raise ProcbusError(f"id must be a string, not {given_id!r}: write str(...)")
    try:
        given_id.encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair: no database would take it
        raise SerializationError(f"id {given_id!r} cannot be written: {error}") from error


def look_up(
    events: Iterable[Any],
    id_of: Callable[[Any], str],
    find: Callable[[Sequence[str]], Mapping[str, SeenEvent]],
) -> Iterator[tuple[Any, str, SeenEvent | None]]:
    """Each event with its id, and with how it ended where the journal knows that.

    Args:
        events: what is published.
        id_of: gives the id of each.
        find: gives how those of some ids ended that have.

    Raises:
        ProcbusError: an id is none; SerializationError if it cannot be written.
    """
    source = iter(events)
    while some := [(event, id_of(event)) for event in islice(source, _LOOKED_UP)]:
        for _, given_id in some:
            check_id(given_id)
        known = find([given_id for _, given_id in some])
        for event, given_id in some:
            yield event, given_id, known.get(given_id)


class _Seen(ProcbusError):
    """The id was seen after all."""

    def __init__(self) -> None:
        super().__init__("the event was published with this id by another: publish it again")


class JournaledDispatcher(Dispatcher):
    """Turns events into deliveries that are in the journal before they are queued. Thread-safe.

    `_resuming` belongs to this object; it is held while deliveries of runs before are fed to the
    lanes, and so for long: publishers wait for it, since what they publish comes behind. Handlers
    and threads of the bus never do.

    Args:
        journal: of the bus; the other arguments are those of `Dispatcher`.
    """

    _settlement: JournaledSettlement

    def __init__(
        self,
        journal: Journal,
        admission: Admission,
        settlement: JournaledSettlement,
        routes: Callable[[], Router[Subscription]],
        first_publish: Callable[[], None],
        subscriptions: Callable[[], Sequence[Subscription]],
    ) -> None:
        run = Run(journal.id, journal.first_id)
        super().__init__(admission, settlement, routes, first_publish, subscriptions, run)
        self._journal = journal
        settlement.use(journal)
        self._recorded = RecordedDeliveries(journal, self._subscriptions, self._routes, self._lock)
        journal.retry = AskedRetries(self, settlement, self._recorded).retry
        self._resuming = threading.RLock()
        #: The routes for whose handlers everything is fed.
        self._resumed_for: Router[Subscription] | None = None
        #: Used with `_resuming` held.
        self._leftovers = Leftovers(journal, admission, settlement, self._recorded, self._send_off)

    # Publishing.

    def publish(self, event: Any, topic: str | None, wait: bool = True) -> Receipt:
        """Publish one event: it is in the journal once this returns.

        Args:
            event: the event.
            topic: what it is published to.
            wait: whether to wait until it survives a loss of power, where that was asked for.
        """
        parent_id, nested = None, False
        if running.get() is not None:
            parent_id, nested = self._origin()
        seen = self._admission.disturbed  # before the routes, which may refuse after that
        routes = self._routes_by_phase()
        if routes is not self._resumed_for and not nested:
            self.resume()
            routes = self._routes_by_phase()
        subscriptions = routes.match(event, topic)
        if len(subscriptions) == 1 and subscriptions[0].plain:  # nearly always: as in Dispatcher
            accepted: SoleReceipt | None = None
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
                    subscriptions[0],
                    monotonic(),
                )
                self._journal.accept(receipt, (receipt,), wait=wait)
                accepted = receipt
                subscriptions[0].put(receipt)
            except Disturbed:  # while it waited for room: see whether it may still be published
                return self.publish(event, topic, wait)
            except Tangled:
                if accepted is None:
                    if entered:
                        self._admission.leave(1)
                    raise
                later(self._send_later, [receipt], [], True)
            except BaseException:  # Ctrl-C, or the journal cannot be written
                self._take_back(accepted, entered)
                raise
            return receipt
        chosen, broken = self._admit(event, topic, nested)
        return self._deliver(event, topic, parent_id, chosen, broken, wait=wait)

    def streaming(
        self, events: Iterable[Any], topic: str | None, id_of: Callable[[Any], str] | None
    ) -> tuple[Iterable[Any], Callable[[Any], Receipt]]:
        """Give the source of a stream, and what publishes each of it without waiting for the disk.

        Where the events are there already, as in a list, ids are looked up many at a time.
        """
        if id_of is None:
            return events, lambda event: self.publish(event, topic, wait=False)
        if not isinstance(events, Sequence):
            return events, lambda event: self.publish_once(event, topic, id_of(event), wait=False)

        def publish(looked_up: tuple[Any, str, SeenEvent | None]) -> Receipt:
            event, given_id, seen = looked_up
            if seen is None:
                return self.publish_once(event, topic, given_id, wait=False)
            return self._recorded.receipt_of(seen, event, topic)

        return look_up(events, id_of, self._find), publish

    def _find(self, ids: Sequence[str]) -> dict[str, SeenEvent]:
        self.resume()
        return self._journal.queries.seen_and_finished(ids)

    def make_safe(self) -> None:
        """Wait until all that was published survives what it has to."""
        self._journal.make_safe()

    def publish_once(
        self, event: Any, topic: str | None, given_id: str, wait: bool = True
    ) -> Receipt:
        """Publish an event, unless the journal has seen the id: then give the receipt of that."""
        check_id(given_id)
        parent_id, nested = self._origin()
        if not nested:
            self.resume()
        journal, ids = self._journal, self._journal.ids
        claimed = ids.claimed
        if (known := self._known(event, topic, given_id)) is not None:
            return known
        chosen, broken = self._admit(event, topic, nested)
        count = len(chosen) + len(broken)
        try:
            receipt = FanReceipt(self._next_id(), event, topic, parent_id, self._lock)
            queued, failed = address(receipt, chosen, broken)
        except BaseException:  # Ctrl-C, perhaps in the user's function for the key
            give_back(chosen)
            self._admission.leave(count)
            raise
        holder = ids.claim(given_id, receipt)
        if holder is not receipt:
            give_back(chosen)
            self._admission.leave(count)
            return holder
        try:
            # Another may have come first, and be through already.
            if ids.claimed != claimed + 1 and journal.queries.event_of(given_id) is not None:
                raise _Seen
            journal.accept(receipt, receipt.deliveries, given_id, wait=wait)
        except BaseException as error:
            give_back(chosen)
            ids.give_up(given_id)
            self._withdraw(receipt, error)
            if isinstance(error, _Seen):
                return self.publish_once(event, topic, given_id, wait)
            raise
        if count:
            self._send_off(queued, failed)
        else:
            self._note_unrouted(event, topic)
        return receipt

    def _withdraw(self, receipt: FanReceipt, error: BaseException) -> None:
        """An event was not accepted. Another publisher of its id may wait on the receipt."""
        with self._lock:
            for delivery in receipt.held:
                delivery.subscription.unqueued += 1
        outcome = Outcome(OutcomeKind.CANCELLED, error=error)
        self._settlement.settle([(each, outcome) for each in receipt.held], queued=False)

    def _origin(self) -> tuple[int | None, bool]:
        """The event whose handler is publishing, and whether one of this bus is."""
        if running.get() is not None:
            context = running_context()
            if context is not None and context.owner is self:
                return context.event_id, True
        return None, False

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

    def _known(self, event: Any, topic: str | None, given_id: str) -> Receipt | None:
        """The receipt of an event that was published with an id before."""
        found = self._journal.ids.get(given_id)
        if found is not None:
            return found
        return self._recorded.receipt(given_id, event, topic)

    def _deliver(
        self,
        event: Any,
        topic: str | None,
        parent_id: int | None,
        chosen: Sequence[Subscription],
        broken: Sequence[Broken],
        before: bytes = b"",
        wait: bool = True,
        *,
        entered: bool = True,  # noqa: ARG002 - without a journal it may be done later
    ) -> Receipt:
        try:
            receipt = FanReceipt(self._next_id(), event, topic, parent_id, self._lock)
            if not chosen and not broken:
                self._note_unrouted(event, topic)
                return receipt
            queued, failed = address(receipt, chosen, broken)
            self._journal.accept(receipt, receipt.deliveries, before=before, wait=wait)
        except BaseException:
            give_back(chosen)
            self._admission.leave(len(chosen) + len(broken))
            raise
        self._send_off(queued, failed)
        return receipt

    def _deliver_again(
        self, letter: DeadLetter, parent_id: int | None, chosen: Sequence[Subscription]
    ) -> Receipt:
        number = self._settlement.numbers.get(letter)
        before = b"" if number is None else self._journal.discarded(number)
        receipt = self._deliver(letter.event, letter.topic, parent_id, chosen, [], before)
        self._settlement.numbers.pop(letter, None)
        return receipt

    def publish_children(
        self, delivery: Delivery, outcome: Outcome, published: Sequence[tuple[str | None, Any]]
    ) -> BaseException | None:
        """Publish what a cpu handler published; all of it is written together with its success."""
        count = 0
        chosen: list[tuple[Any, str | None, list[Subscription], Any]] = []
        try:
            routes = self._routes_by_phase()
            for topic, event in published:
                chosen.append((event, topic, *choose(routes.match(event, topic), event)))
            self._admission.enter(sum(len(c) + len(b) for _, _, c, b in chosen), True)
            count = sum(len(c) + len(b) for _, _, c, b in chosen)
            parts: list[bytes] = []
            ready: list[tuple[list[Delivery], list[tuple[Delivery, Outcome]]]] = []
            for event, topic, subscriptions, broken in chosen:
                if not subscriptions and not broken:
                    self._note_unrouted(event, topic)
                    continue
                receipt = FanReceipt(self._next_id(), event, topic, delivery.event_id, self._lock)
                ready.append(address(receipt, subscriptions, broken))
                parts.append(self._journal.published(receipt, receipt.deliveries))
            if not delivery.subscription.answered:
                parts.append(self._journal.succeeded(delivery, outcome.value))
            self._journal.write(b"".join(parts))
        except BaseException as error:  # noqa: BLE001 - routing asks the event for its event_type
            self._admission.leave(count)
            for _, _, subscriptions, _ in chosen:
                give_back(subscriptions)
            if isinstance(error, Exception):
                return error
            return ProcbusError(f"publishing it raised {summary_of(error)}")
        self._settlement.written.add(delivery)
        for queued, failed in ready:
            self._send_off(queued, failed)
        return None

    @property
    def may_wait(self) -> bool:  # type: ignore[override] # a bus without a journal never does
        """Whether publishing may wait for a disk."""
        return self._journal.may_wait

    keeps = True

    # Resuming.

    @property
    def resumed(self) -> bool:  # type: ignore[override] # a bus without a journal always has
        """Whether everything is fed for the handlers of the moment."""
        return self._routes() is self._resumed_for

    def resume(self) -> None:
        """Feed what runs before have left unfinished to the handlers that are subscribed.

        Called before each publish from outside handlers; when there is nothing new to be fed, that
        costs next to nothing. Otherwise it waits for room, as publishers do.

        Raises:
            JournalError: the journal cannot be read.
            BusClosed: the bus was closed meanwhile.
        """
        if self._routes() is self._resumed_for or self._journal.closed or self._origin()[1]:
            return
        self._routes_by_phase()  # gets the bus ready, or refuses
        with self._resuming:
            routes = self._routes()
            if routes is not self._resumed_for:
                self._journal.start()
                # Not in the context of whoever happens to publish first.
                Context().run(self._leftovers.feed, routes, self._subscriptions())
                self._resumed_for = routes

    def summary(self) -> ResumeSummary:
        """What the journal had, and what became of that so far."""
        return self._leftovers.summary(self._subscriptions())

    def back_up(self, dest: str) -> None:
        """Copy the journal to a file."""
        self._journal.back_up(dest)

    def close(self) -> None:
        """Move everything into the database, and let another bus have the journal."""
        self._journal.close()
