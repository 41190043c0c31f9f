# SPDX-License-Identifier: MIT
"""The journal, as its bus uses it: writes events before they run, and feeds unfinished ones."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import Context
from itertools import islice
from time import monotonic
from typing import TYPE_CHECKING, Any

from procbus.core.context import Run
from procbus.core.dead_letter import DeadLetter
from procbus.core.delivery import Delivery
from procbus.core.errors import ProcbusError, SerializationError
from procbus.core.locks import LOOK_UP_S, holding
from procbus.core.log import journal_log as log
from procbus.core.outcome import Outcome
from procbus.core.receipt import Receipt
from procbus.core.subscription import Subscription
from procbus.dispatch.admission import Admission
from procbus.dispatch.send_off import SendOff
from procbus.dispatch.settlement import Settlement
from procbus.journal.ends import DeliveryEnds
from procbus.journal.job_records import JobRecords
from procbus.journal.journal import Journal
from procbus.journal.recorded import RecordedDeliveries
from procbus.journal.resume import AskedRetries, Leftovers, ResumeSummary
from procbus.journal.storage import records
from procbus.journal.storage.queries import SeenEvent
from procbus.routing.router import Router

if TYPE_CHECKING:
    from procbus.dispatch.dispatcher import Dispatcher

#: Maximum time that publishers wait while code of the user's holds up the resuming, in seconds.
RESUME_PATIENCE_S = 10.0

# Ids that the user gives to events are checked. For a stream, many are looked up at a time.

#: Number of a stream's ids that are looked up at a time.
_LOOKED_UP = 256


def check_id(given_id: object) -> None:
    """Raise an error for an object that cannot be an id.

    Raises:
        ProcbusError: the object is no string.
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
    """Yield each event with its id, and with its end if the journal knows the end.

    Args:
        events: the events.
        id_of: returns the id of each.
        find: returns the known ends of some ids.

    Raises:
        ProcbusError: an object is no id; SerializationError if the id cannot be written.
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

    The lock `_resuming` is held while deliveries of earlier runs are fed to the lanes, which may
    take long. Publishers wait for it, because their events come after those deliveries. Handlers
    and threads of the bus never wait for it. Feeding runs code of the user's: listeners, `where`,
    `key`, the loading of events. Should that code wait for a publisher, the publisher goes on after
    `patience_s`.

    Args:
        journal: the journal of the bus.
        ends: writes the ends of deliveries to it.
        admission: bounds the pending deliveries.
        settlement: the settlement of the bus.
        routes: returns the present router.
        subscriptions: returns the present subscriptions.

    Attributes:
        run: the run of the bus.
        accept: the method `Journal.accept` itself, which saves a call.
        resumed_for: the routes whose handlers have been fed everything.
        patience_s: maximum time that publishers wait for code of the user's, in seconds.
        jobs: the jobs of the journal.
    """

    def __init__(
        self,
        journal: Journal,
        ends: DeliveryEnds,
        admission: Admission,
        settlement: Settlement,
        routes: Callable[[], Router[Subscription]],
        subscriptions: Callable[[], Sequence[Subscription]],
    ) -> None:
        self.run = Run(journal.id, journal.first_id)
        self.accept = journal.accept
        self._journal = journal
        self._ends = ends
        self._settlement = settlement
        settlement.dead_letters.removed = self._discard
        self._routes = routes
        self._subscriptions = subscriptions
        self._recorded = RecordedDeliveries(journal, subscriptions, routes, settlement.lock)
        self._resuming = threading.RLock()
        self._feeder: int | None = None
        self._overtaken = False
        self.resumed_for: object = None
        #: The last tick of each schedule, once it was read.
        self._ticks: dict[str, float] | None = None
        self.patience_s = RESUME_PATIENCE_S
        self.jobs = JobRecords(journal)
        send_off = SendOff(admission, settlement)
        #: Used only while `_resuming` is held.
        self._leftovers = Leftovers(
            journal, ends, admission, settlement, self._recorded, send_off, self.jobs
        )

    def answer(self, dispatcher: Dispatcher) -> None:
        """Answer requests of the command line to run dead letters again, from now on."""
        self._journal.retry = AskedRetries(
            dispatcher, self._ends, self._settlement, self._recorded
        ).retry

    # Writing events.

    def accept_children(
        self, receipts: Sequence[tuple[Receipt, float]], delivery: Delivery, outcome: Outcome
    ) -> None:
        """Write events together with the success of the delivery that published them."""
        journal = self._journal
        parts = [
            journal.published(receipt, receipt.deliveries, due_at=due_at)
            for receipt, due_at in receipts
        ]
        if not delivery.subscription.answered:
            parts.append(self._ends.success(delivery, outcome.value))
        journal.write(b"".join(parts))
        self._ends.written.add(delivery)

    # Dead letters.

    def take(self, letter: DeadLetter) -> int | None:
        """Take over a dead letter that is about to be replayed; None if the journal lacks it."""
        return self._ends.take(letter)

    def revive(self, letter: DeadLetter, number: int, receipt: Receipt) -> None:
        """Write that a letter's delivery is unfinished again, and let the receipt have its id."""
        known = self._with_id(letter)
        self._ends.revive(number, receipt.parent_id)
        self._let_have(known, receipt)

    def return_letter(self, letter: DeadLetter, number: int) -> None:
        """Take back a letter that could not be replayed."""
        self._ends.remember(letter, number)

    def _discard(self, letters: Sequence[DeadLetter]) -> None:
        """Note that dead letters were cleared."""
        for letter, number in self._ends.discard(letters):
            self._let_have(self._with_id(letter), self._recorded.cleared(letter, number))

    def _with_id(self, letter: DeadLetter) -> tuple[str, Receipt] | None:
        """Return the id that a letter's event was published with, and the receipt of that id."""
        ids = self._journal.ids
        given_id = ids.id_of(letter.event_id)
        if given_id is None:
            given_id = self._journal.queries.given_id_of(letter.event_id)
        if given_id is None:
            return None
        receipt = self.known(given_id, letter.event, letter.topic)
        return None if receipt is None else (given_id, receipt)

    def _let_have(self, known: tuple[str, Receipt] | None, receipt: Receipt) -> None:
        if known is not None:
            given_id, old = known
            self._journal.ids.exchange(given_id, self._recorded.with_anew(old, receipt))

    # Schedules.

    def last_tick(self, schedule: str) -> float | None:
        """The last tick of a schedule, or its beginning; None if the journal does not know it."""
        if self._ticks is None:
            self._ticks = {name: at for name, _, at in self._journal.queries.schedules()}
        return self._ticks.get(schedule) or None

    def tick(self, schedule: str, spec: str, at: float) -> bytes:
        """Make the record of a schedule's tick. Time 0 records that the schedule was cancelled."""
        self.last_tick(schedule)
        assert self._ticks is not None
        self._ticks[schedule] = at
        return records.pack_tick(schedule, spec, at)

    def note_tick(self, record: bytes) -> None:
        """Write a record of `tick` without an event."""
        self._journal.write(record)

    # Events with ids.

    @property
    def claims(self) -> int:
        """Number of ids claimed so far."""
        return self._journal.ids.claimed

    def check_id(self, given_id: object) -> None:
        """Raise an error for an object that cannot be an id."""
        check_id(given_id)

    def known(self, given_id: str, event: Any, topic: str | None) -> Receipt | None:
        """Return the receipt of an event that was published with an id before."""
        found = self._journal.ids.get(given_id)
        return self._recorded.receipt(given_id, event, topic) if found is None else found

    def claim(self, given_id: str, receipt: Receipt) -> Receipt:
        """Let a receipt have an id; return the receipt that has it, which may be an earlier one."""
        return self._journal.ids.claim(given_id, receipt)

    def give_up(self, given_id: str) -> None:
        """Free an id, because its event was not accepted."""
        self._journal.ids.give_up(given_id)

    def accept_once(
        self,
        receipt: Receipt,
        deliveries: Sequence[Delivery],
        given_id: str,
        claims: int,
        wait: bool,
        due_at: float,
    ) -> bool:
        """Write an event with the id claimed for it; False if another event had that id before."""
        journal = self._journal
        # Another publisher may have come first, and its event may be finished already.
        if journal.ids.claimed != claims + 1 and journal.queries.event_of(given_id) is not None:
            return False
        journal.accept(receipt, deliveries, given_id, wait, due_at)
        return True

    def look_up(
        self,
        events: Sequence[Any],
        topic: str | None,
        id_of: Callable[[Any], str],
        resume: Callable[[], object],
    ) -> Iterator[tuple[Any, str, Receipt | None]]:
        """Yield each event with its id, and with its receipt if the journal knows its end."""

        def find(ids: Sequence[str]) -> dict[str, SeenEvent]:
            resume()
            return self._journal.queries.seen_and_finished(ids)

        for event, given_id, seen in look_up(events, id_of, find):
            known = None if seen is None else self._recorded.receipt_of(seen, event, topic)
            yield event, given_id, known

    # Resuming.

    def resume(self) -> None:
        """Feed unfinished deliveries of earlier runs to the subscribed handlers.

        Raises:
            JournalError: the journal cannot be read.
            BusClosed: the bus was closed meanwhile.
        """
        here = threading.get_ident()
        # Code that interrupts procbus does not wait, and never feeds in the middle of feeding.
        if self._journal.closed or self._feeder == here or holding():
            return
        if not self._wait_for_feeder():
            return
        fed = False
        try:
            routes = self._routes()
            if routes is not self.resumed_for:
                self._feeder = here
                try:
                    self._journal.start()
                    # Fed in an empty context, not in the context of the thread that happens to
                    # publish first.
                    Context().run(self._leftovers.feed, routes, self._subscriptions())
                finally:
                    self._feeder = None
                self.resumed_for = routes
                fed = True
        finally:
            self._resuming.release()
        if fed:
            self.jobs.fed()

    def _wait_for_feeder(self) -> bool:
        """Take `_resuming`; return whether this thread has it.

        This thread gives up if code of the user's holds up the feeding, because that code may wait
        for this thread.
        """
        look_up_s = min(LOOK_UP_S, self.patience_s)
        while not self._resuming.acquire(timeout=look_up_s):
            since = self._leftovers.in_user_code_since
            if since is not None and monotonic() - since > self.patience_s:
                if not self._overtaken:
                    self._overtaken = True
                    log.warning(
                        "a listener, or a function given to a subscription, has held up the "
                        "resuming of the journal for %.2g s. Events of other threads now go ahead "
                        "of the unfinished ones, because it may be waiting for such a thread",
                        monotonic() - since,
                    )
                return False
        return True

    def summary(self) -> ResumeSummary:
        """The contents of the journal at the start, and the deliveries that were resumed so far."""
        return self._leftovers.summary(self._subscriptions())

    # The files.

    @property
    def may_wait(self) -> bool:
        """Whether publishing may wait for a disk."""
        return self._journal.may_wait

    def make_safe(self) -> None:
        """Wait until all published events are as safe as the journal promises."""
        self._journal.make_safe()

    def back_up(self, dest: str) -> None:
        """Copy the journal to a file."""
        self._journal.back_up(dest)

    def close(self) -> None:
        """Move everything into the database, and release the journal for another bus."""
        self._journal.close()
