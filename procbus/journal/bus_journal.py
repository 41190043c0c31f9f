# SPDX-License-Identifier: MIT
"""The journal as its bus uses it: events are written before they run, and what is left is fed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import Context
from itertools import islice
from typing import TYPE_CHECKING, Any

from procbus.core.context import Run
from procbus.core.dead_letter import DeadLetter
from procbus.core.delivery import Delivery
from procbus.core.errors import ProcbusError, SerializationError
from procbus.core.outcome import Outcome
from procbus.core.receipt import Receipt
from procbus.core.subscription import Subscription
from procbus.dispatch.admission import Admission
from procbus.dispatch.send_off import SendOff
from procbus.dispatch.settlement import Settlement
from procbus.journal.journal import Journal
from procbus.journal.recorded import RecordedDeliveries
from procbus.journal.resume import AskedRetries, Leftovers, ResumeSummary
from procbus.journal.settlement import SettlingJournal
from procbus.journal.storage.queries import SeenEvent
from procbus.routing.router import Router

if TYPE_CHECKING:
    from procbus.dispatch.dispatcher import Dispatcher

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


class BusJournal:
    """The journal of one bus: see `JournalSide`. Thread-safe.

    `_resuming` belongs to this object; it is held while deliveries of runs before are fed to the
    lanes, and so for long: publishers wait for it, since what they publish comes behind. Handlers
    and threads of the bus never do.

    Args:
        journal: of the bus.
        settling: writes the ends of deliveries to it.
        admission: bounds what is pending.
        settlement: of the bus.
        routes: gives the router of the moment.
        subscriptions: gives the subscriptions of the moment.

    Attributes:
        run: of the bus.
        accept: `Journal.accept`, without a call between.
        resumed_for: the routes for whose handlers everything is fed.
    """

    def __init__(
        self,
        journal: Journal,
        settling: SettlingJournal,
        admission: Admission,
        settlement: Settlement,
        routes: Callable[[], Router[Subscription]],
        subscriptions: Callable[[], Sequence[Subscription]],
    ) -> None:
        self.run = Run(journal.id, journal.first_id)
        self.accept = journal.accept
        self._journal = journal
        self._settling = settling
        self._settlement = settlement
        settlement.dead_letters.removed = settling.discard
        self._routes = routes
        self._subscriptions = subscriptions
        self._recorded = RecordedDeliveries(journal, subscriptions, routes, settlement.lock)
        self._resuming = threading.RLock()
        self.resumed_for: object = None
        send_off = SendOff(admission, settlement)
        #: Used with `_resuming` held.
        self._leftovers = Leftovers(
            journal, settling, admission, settlement, self._recorded, send_off
        )

    def answer(self, dispatcher: Dispatcher) -> None:
        """Have dead letters run again that the command line asks for, from now on."""
        self._journal.retry = AskedRetries(
            dispatcher, self._settling, self._settlement, self._recorded
        ).retry

    # Publishing.

    def accept_children(
        self, receipts: Sequence[Receipt], delivery: Delivery, outcome: Outcome
    ) -> None:
        """Write events together with the success of the delivery that published them."""
        journal = self._journal
        parts = [journal.published(receipt, receipt.deliveries) for receipt in receipts]
        if not delivery.subscription.answered:
            parts.append(journal.succeeded(delivery, outcome.value))
        journal.write(b"".join(parts))
        self._settling.written.add(delivery)

    def discarding(self, letter: DeadLetter) -> bytes:
        """Lay out the record that a dead letter is one no more; nothing if the journal lacks it."""
        number = self._settling.numbers.get(letter)
        return b"" if number is None else self._journal.discarded(number)

    def forget(self, letter: DeadLetter) -> None:
        """A dead letter was published again."""
        self._settling.numbers.pop(letter, None)

    # Events with ids.

    @property
    def claims(self) -> int:
        """How many ids were claimed so far."""
        return self._journal.ids.claimed

    def check_id(self, given_id: object) -> None:
        """Raise an error for what cannot be an id."""
        check_id(given_id)

    def known(self, given_id: str, event: Any, topic: str | None) -> Receipt | None:
        """Give the receipt of an event that was published with an id before."""
        found = self._journal.ids.get(given_id)
        return self._recorded.receipt(given_id, event, topic) if found is None else found

    def claim(self, given_id: str, receipt: Receipt) -> Receipt:
        """Have an id belong to a receipt; return the one that it belongs to."""
        return self._journal.ids.claim(given_id, receipt)

    def give_up(self, given_id: str) -> None:
        """The event was not accepted after all."""
        self._journal.ids.give_up(given_id)

    def accept_once(
        self,
        receipt: Receipt,
        deliveries: Sequence[Delivery],
        given_id: str,
        claims: int,
        wait: bool,
    ) -> bool:
        """Write an event with the id that was claimed for it; False if another had that before."""
        journal = self._journal
        # Another may have come first, and be through already.
        if journal.ids.claimed != claims + 1 and journal.queries.event_of(given_id) is not None:
            return False
        journal.accept(receipt, deliveries, given_id, wait=wait)
        return True

    def look_up(
        self,
        events: Sequence[Any],
        topic: str | None,
        id_of: Callable[[Any], str],
        resume: Callable[[], object],
    ) -> Iterator[tuple[Any, str, Receipt | None]]:
        """Give each event with its id, and with its receipt where the journal knows its end."""

        def find(ids: Sequence[str]) -> dict[str, SeenEvent]:
            resume()
            return self._journal.queries.seen_and_finished(ids)

        for event, given_id, seen in look_up(events, id_of, find):
            known = None if seen is None else self._recorded.receipt_of(seen, event, topic)
            yield event, given_id, known

    # Resuming.

    def resume(self) -> None:
        """Feed what runs before have left unfinished to the handlers that are subscribed.

        Raises:
            JournalError: the journal cannot be read.
            BusClosed: the bus was closed meanwhile.
        """
        if self._journal.closed:
            return
        with self._resuming:
            routes = self._routes()
            if routes is not self.resumed_for:
                self._journal.start()
                # Not in the context of whoever happens to publish first.
                Context().run(self._leftovers.feed, routes, self._subscriptions())
                self.resumed_for = routes

    def summary(self) -> ResumeSummary:
        """What the journal had, and what became of that so far."""
        return self._leftovers.summary(self._subscriptions())

    # The files.

    @property
    def may_wait(self) -> bool:
        """Whether publishing may wait for a disk."""
        return self._journal.may_wait

    def make_safe(self) -> None:
        """Wait until all that was published survives what it has to."""
        self._journal.make_safe()

    def back_up(self, dest: str) -> None:
        """Copy the journal to a file."""
        self._journal.back_up(dest)

    def close(self) -> None:
        """Move everything into the database, and let another bus have the journal."""
        self._journal.close()
