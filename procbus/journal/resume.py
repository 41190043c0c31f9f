# SPDX-License-Identifier: MIT
"""Resuming: the unfinished deliveries of earlier runs are fed to the handlers of this run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from time import monotonic, time
from typing import TYPE_CHECKING

from procbus.core.context import HandlerContext, running
from procbus.core.dead_letter import DeadLetter, summary_of
from procbus.core.delivery import Delivery
from procbus.core.errors import JournalError, NoSuchHandler, ProcbusError
from procbus.core.log import journal_log as log
from procbus.core.receipt import FanReceipt
from procbus.core.retry import wait_of
from procbus.core.subscription import Subscription
from procbus.dispatch.addressing import address
from procbus.dispatch.admission import Admission, Disturbed
from procbus.dispatch.dead_letters import MOST_KEPT
from procbus.dispatch.retry_queue import Due
from procbus.dispatch.send_off import SendOff
from procbus.dispatch.settlement import Settlement
from procbus.journal.ends import DeliveryEnds
from procbus.journal.job_records import JobRecords
from procbus.journal.journal import Journal
from procbus.journal.recorded import RecordedDeliveries
from procbus.journal.storage.queries import Unfinished
from procbus.routing.router import Router

if TYPE_CHECKING:
    from procbus.dispatch.dispatcher import Dispatcher


_Named = dict[str, list[Subscription]]


@dataclass(frozen=True, slots=True)
class ResumeSummary:
    """The contents of a journal when its bus was made, and what was resumed so far. Immutable.

    Example:
        ```python
        from procbus import EventBus

        with EventBus(handlers=[], journal="run.db") as bus:
            print(bus.resume_summary)
        ```

    Attributes:
        unfinished: number of unfinished deliveries of earlier runs.
        resumed: number of unfinished deliveries that were fed to each handler so far, by its name.
        missing: number of unfinished deliveries that are kept because their handler is not
            subscribed, by its name.
        unreadable: number of events that could not be loaded; the journal keeps them.
        dead_letters: number of dead letters of earlier runs.
        lost: losses of the journal, in a sentence each: its files are damaged, were removed, or do
            not belong together. Empty if there are no losses.
    """

    unfinished: int
    resumed: Mapping[str, int]
    missing: Mapping[str, int]
    unreadable: int
    dead_letters: int
    lost: tuple[str, ...] = ()

    def __str__(self) -> str:
        """The summary in one line."""
        text = f"{sum(self.resumed.values())} of {self.unfinished} unfinished deliveries resumed"
        if self.missing:
            names = ", ".join(f"{name} {count}" for name, count in self.missing.items())
            text += f"; kept for handlers that are not subscribed: {names}"
        if self.unreadable:
            text += f"; {self.unreadable} events could not be loaded"
        if self.dead_letters:
            text += f"; {self.dead_letters} dead letters"
        for each in self.lost:
            text += f"; LOST: {each}"
        return text


class Leftovers:
    """Feeds unfinished deliveries to their handlers. Not thread-safe: one thread feeds at a time.

    Args:
        journal: the journal of the bus.
        ends: writes the ends of deliveries to it.
        admission: bounds the pending deliveries.
        settlement: the settlement of the bus.
        recorded: makes deliveries from records.
        send_off: queues deliveries in their lanes.
        jobs: gets the jobs of each delivery.
    """

    def __init__(
        self,
        journal: Journal,
        ends: DeliveryEnds,
        admission: Admission,
        settlement: Settlement,
        recorded: RecordedDeliveries,
        send_off: SendOff,
        jobs: JobRecords,
    ) -> None:
        self._journal = journal
        self._admission = admission
        self._ends = ends
        self._settlement = settlement
        self._recorded = recorded
        self._send_off = send_off
        self._jobs = jobs
        self._letters_loaded = False
        #: Number of the last delivery fed to each handler, by name; and how many were fed.
        self._fed: dict[str, int] = {}
        self._resumed: dict[str, int] = {}
        self._unreadable: set[int] = set()
        #: Reasons why some records could not be read.
        self._unread: tuple[str, ...] = ()
        self._named_missing: set[str] = set()
        #: Time since when the user's code may be running, in seconds of `monotonic()`; None while
        #: no such code runs.
        self.in_user_code_since: float | None = None

    def feed(self, routes: Router[Subscription], subscriptions: Sequence[Subscription]) -> None:
        """Feed further deliveries to subscribed handlers; wait for room as publishers do.

        Raises:
            JournalError: the journal cannot be read.
            BusClosed: the bus was closed meanwhile.
        """
        if not self._letters_loaded:
            self._load_letters()
        named: _Named = {}
        for each in subscriptions:
            name = each.handler.name
            if self._resumed.get(name, 0) < self._journal.found.pending.get(name, 0):
                named.setdefault(name, []).append(each)
        if named:
            try:
                self._feed_all(routes, named)
            except JournalError as error:
                self._unread = (str(error),)
                raise
            self._unread = ()
        self._name_missing(subscriptions)

    def _feed_all(self, routes: Router[Subscription], named: _Named) -> None:
        found = self._journal.unfinished(list(named))
        for _, group in groupby(found, key=lambda each: each.event_id):
            unfinished = [each for each in group if not self._is_fed(each)]
            if unfinished:
                self.in_user_code_since = monotonic()
                try:
                    self._feed_event(routes, named, unfinished)
                finally:
                    self.in_user_code_since = None

    def _load_letters(self) -> None:
        self._letters_loaded = True
        letters = self._recorded.dead_letters(MOST_KEPT)
        for letter, number in letters:
            self._ends.remember(letter, number)
        self._settlement.dead_letters.put_back([letter for letter, _ in letters])

    def _name_of(self, unfinished: Unfinished) -> str:
        return self._journal.names.name_of(unfinished.number)

    def _is_fed(self, unfinished: Unfinished) -> bool:
        return (
            unfinished.number <= self._fed.get(self._name_of(unfinished), 0)
            or unfinished.number in self._ends.replayed
        )

    def _feed_event(
        self, routes: Router[Subscription], named: _Named, unfinished: Sequence[Unfinished]
    ) -> None:
        """Queue the unfinished deliveries of one event."""
        about = unfinished[0]
        journal = self._journal
        try:
            event = journal.codec.decode(about.form, about.data, about.type_name)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            self._cannot_load(about, error)
            return
        receipt = FanReceipt(
            about.event_id, event, about.topic, about.parent_id, self._settlement.lock
        )
        try:
            matched = routes.match(event, about.topic)
        except Exception:  # noqa: BLE001 - asks the event for its event_type; the names are enough
            matched = ()
        rows: dict[Subscription, Unfinished] = {}
        for each in unfinished:
            candidates = named[self._name_of(each)]
            # Several handlers may have one name: lambdas, or one function that takes several
            # topics.
            rows[next((c for c in candidates if c in matched), candidates[0])] = each
        earlier = {
            each.number: journal.codec.decode_outcomes(each.outcomes)
            for each in unfinished
            if each.outcomes
        }
        # Each step that may fail comes before the room is taken.
        known = () if about.given_id is None else self._recorded.finished(receipt)
        self._enter(len(rows))
        queued, failed = address(receipt, list(rows), [])
        for delivery in receipt.deliveries:
            row = rows[delivery.subscription]
            delivery.earlier = earlier.get(row.number, ())
            self._jobs.resumed[delivery] = tuple(map(int, (row.jobs or "").split()))
        if about.given_id is not None:
            receipt.held = (*known, *receipt.held)
            journal.ids.claim(about.given_id, receipt)
        now = time()
        waits: set[Delivery] = set()
        for delivery in queued:
            due_at = rows[delivery.subscription].due_at
            if due_at > now and (
                self._delay(delivery, due_at) or self._wait(delivery, due_at - now)
            ):
                waits.add(delivery)
        self._send_off.send([delivery for delivery in queued if delivery not in waits], failed)
        self._jobs.resumed.clear()
        for each in unfinished:
            name = self._name_of(each)
            self._fed[name] = each.number
            self._resumed[name] = self._resumed.get(name, 0) + 1

    def _enter(self, count: int) -> None:
        """Wait for room, even if the bus is set to refuse publishers instead."""
        seen = 0
        self.in_user_code_since = None
        while True:
            try:
                self._admission.enter(count, False, seen, patient=True)
            except Disturbed:
                seen = self._admission.disturbed
            else:
                break
        self.in_user_code_since = monotonic()

    def _delay(self, delivery: Delivery, due_at: float) -> bool:
        """Keep a delayed delivery until it is due; False for a delivery without a delay."""
        delays = self._settlement.delays
        if delivery.earlier or not delays.keep_time():
            return False
        delays.hold(delivery, Due(None, due_at))
        return True

    def _wait(self, delivery: Delivery, wait_s: float) -> bool:
        """Have a delivery wait for its next attempt if that is not due; return whether it waits.

        A delivery with a gate does not wait here, since the gate has to see it first.
        """
        subscription = delivery.subscription
        handler = subscription.handler
        if subscription.gated or not handler.retry.retries:
            return False
        if delivery.earlier:  # the clock may have been set back meanwhile
            attempts = len(delivery.earlier)
            asked_s = wait_of(handler.name, handler.retry.backoff, attempts, delivery.earlier[-1])
            wait_s = min(wait_s, asked_s)
        with self._settlement.lock:
            subscription.unqueued += 1
        self._send_off.announce(delivery)
        self._settlement.wait(delivery, wait_s)
        return True

    def _cannot_load(self, about: Unfinished, error: BaseException) -> None:
        if about.event_id in self._unreadable:
            return
        self._unreadable.add(about.event_id)
        log.error(
            "event #%d (%s) for %s cannot be loaded from the journal: %s. It stays there: make "
            "sure that its classes can be imported, and start again",
            about.event_id,
            about.type_name,
            self._name_of(about),
            summary_of(error),
        )

    def _name_missing(self, subscriptions: Sequence[Subscription]) -> None:
        """Log the names of handlers that are not subscribed, once each."""
        for name, count in self._missing(subscriptions).items():
            if name not in self._named_missing:
                self._named_missing.add(name)
                log.warning(
                    "%s: the journal has %d deliveries for %s, which is not subscribed to this "
                    "bus: they are kept, and run once a handler of that name is",
                    NoSuchHandler.__name__,
                    count,
                    name,
                )

    def _missing(self, subscriptions: Sequence[Subscription]) -> dict[str, int]:
        there = {each.handler.name for each in subscriptions}
        found = self._journal.found.pending
        return {name: count for name, count in found.items() if name not in there}

    def summary(self, subscriptions: Sequence[Subscription]) -> ResumeSummary:
        """Return the contents of the journal at the start, and the resumed deliveries so far."""
        found = self._journal.found
        return ResumeSummary(
            unfinished=sum(found.pending.values()),
            resumed=dict(self._resumed),
            missing=self._missing(subscriptions),
            unreadable=len(self._unreadable),
            dead_letters=sum(found.dead.values()),
            lost=(*self._journal.lost, *self._unread),
        )


# Running dead letters again, as the command line asks a running bus to do.


class AskedRetries:
    """Runs dead letters again by their numbers in the journal, in a thread of the journal.

    Args:
        dispatcher: the dispatcher of the bus.
        ends: knows the dead letters that the journal has.
        settlement: has the dead letters of this run.
        recorded: has the dead letters of earlier runs.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        ends: DeliveryEnds,
        settlement: Settlement,
        recorded: RecordedDeliveries,
    ) -> None:
        self._dispatcher = dispatcher
        self._ends = ends
        self._settlement = settlement
        self._recorded = recorded

    def retry(self, numbers: Sequence[int]) -> None:
        """Run these dead letters again; letters that no longer exist are skipped."""
        dispatcher = self._dispatcher
        at_hand = {number: letter for letter, number in self._ends.numbers.copy().items()}
        others = [number for number in numbers if number not in at_hand]
        for letter, number in self._recorded.dead_letters(len(others), others) if others else ():
            self._ends.remember(letter, number)
            at_hand[number] = letter
        # Published as by a handler: this does not wait for room, so the bus can close meanwhile.
        name = "procbus journal retry"
        context = HandlerContext(
            name, 0, None, None, 1, dispatcher.publish, dispatcher, dispatcher.run
        )
        before = running.set(context)
        try:
            for number in numbers:
                if number in at_hand:
                    self._retry_one(at_hand[number])
        finally:
            running.reset(before)

    def _retry_one(self, letter: DeadLetter) -> None:
        try:
            self._settlement.dead_letters.replay((letter,))
        except ProcbusError as error:
            log.warning("a dead letter was not run again, as the command line asked: %s", error)
