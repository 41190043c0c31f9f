# SPDX-License-Identifier: MIT
"""Deliveries made from the records of a journal, from this run of the script or an earlier one.

A publisher that gives a known id gets a receipt made here, instead of a second run of the event.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

from procbus.core.dead_letter import DeadLetter, summary_of
from procbus.core.delivery import Delivery
from procbus.core.errors import JournalError, NoSuchHandler, ProcbusError
from procbus.core.handler import Handler
from procbus.core.locks import Lock, Tangled, later
from procbus.core.outcome import Outcome, OutcomeKind
from procbus.core.receipt import FanReceipt, Receipt, SoleDelivery, SoleReceipt, call_all
from procbus.core.subscription import Subscription
from procbus.journal.journal import Journal
from procbus.journal.storage.queries import Recorded, SeenEvent
from procbus.journal.storage.records import SHIFT


class NoLane:
    """The lane of a handler that is not subscribed. No delivery gets into this lane."""

    def put(self, delivery: Delivery) -> None:
        """Queue a delivery: never called."""
        raise ProcbusError(f"{delivery!r} is for a handler that is not subscribed")

    put_again = put

    def release(self, delivery: Delivery) -> None:
        """Do nothing: no delivery waits behind it."""

    step_aside = release

    def stir(self) -> None:
        """Do nothing: no run is measured here."""

    def is_running(self, delivery: Delivery) -> bool:  # noqa: ARG002 - see `Lane`
        """Return False: no delivery runs here."""
        return False

    withdraw = is_running

    def progress_of(self, delivery: Delivery) -> None:
        """Return None: no delivery runs here."""

    ran_s = stop = cut_off = progress_of


# Deliveries that succeeded, but whose result the journal did not keep: not even whether the result
# was None. Such a delivery is of an earlier run, or of an event whose first receipt the bus has
# dropped.


def _no_result(delivery: Delivery, *, earlier_run: bool) -> ProcbusError:
    when = "in an earlier run" if earlier_run else "earlier in this run"
    return ProcbusError(
        f"the delivery of event #{delivery.event_id} to {delivery.handler.name} finished {when}, "
        "and the journal kept no result: make the bus with keep_results=True"
    )


class DeliveryWithoutResult(Delivery):
    """A delivery that succeeded, but whose result was not kept."""

    __slots__ = ("earlier_run",)

    #: Whether an earlier run of the script finished the delivery. Set once.
    earlier_run: bool

    def result(self) -> Any:
        """Raise an error, because there is no result."""
        raise _no_result(self, earlier_run=self.earlier_run)


class ReceiptWithoutResult(SoleReceipt):
    """A receipt without result of an event with one handler: it is the delivery as well."""

    __slots__ = ("earlier_run",)

    earlier_run: bool

    @property
    def deliveries(self) -> tuple[Delivery, ...]:
        """The one delivery of the event."""
        return (SoleDeliveryWithoutResult(self),)

    def result(self, timeout: float | None = None) -> Any:  # noqa: ARG002 - it is settled
        """Raise an error, because there is no result."""
        raise _no_result(self, earlier_run=self.earlier_run)


class SoleDeliveryWithoutResult(SoleDelivery):
    """The delivery of a `ReceiptWithoutResult` by itself."""

    __slots__ = ()

    def result(self) -> Any:
        """Raise an error, because there is no result."""
        raise _no_result(self, earlier_run=self.earlier_run)


def _part_done(joint: Receipt, _: Receipt) -> None:
    """Note that one of the two parts of a receipt is done."""
    done = False
    try:
        with joint.lock:
            joint.left -= 1
            done = not joint.left
    except Tangled:
        later(_part_done, joint, joint)
    if done:
        call_all((joint,))


def _gone(_: Any) -> None:
    raise NoSuchHandler("this handler is not subscribed")


def _lacks_result(recorded: Recorded) -> bool:
    """Whether a delivery succeeded, but its result was not kept."""
    return recorded.state == "succeeded" and not recorded.form


class RecordedDeliveries:
    """Makes deliveries from the records of a journal. Thread-safe.

    Args:
        journal: the journal of the bus.
        subscriptions: returns the present subscriptions of the bus.
        routes: returns their router, a different one after each change.
        lock: the lock of the settlement, which every receipt has.
    """

    def __init__(
        self,
        journal: Journal,
        subscriptions: Callable[[], Sequence[Subscription]],
        routes: Callable[[], object],
        lock: Lock,
    ) -> None:
        self._lock = lock
        self._journal = journal
        self._subscriptions = subscriptions
        self._routes = routes
        self._lane = NoLane()
        #: Subscriptions by handler name, and the router that they belong to. Both are replaced
        #: whole, the router last. Two threads that replace them at once write equal values.
        self._named: dict[str, Subscription] = {}
        self._named_for: object = None

    def receipt(self, given_id: str, event: Any, topic: str | None) -> Receipt | None:
        """Return the receipt of the event that was published with an id; None if there is none.

        The event's unfinished deliveries get an outcome too, because no worker will run them.
        """
        seen = self._journal.queries.seen(given_id)
        return None if seen is None else self.receipt_of(seen, event, topic)

    def receipt_of(self, seen: SeenEvent, event: Any, topic: str | None) -> Receipt:
        """Return the receipt of an event that is in the database and in no lane."""
        event_id, recorded = seen
        if len(recorded) == 1:
            subscription = self._subscription_of(recorded[0].number)
            about = (event_id, event, topic, None, self._lock, subscription, 0.0)
            sole: SoleReceipt
            if _lacks_result(recorded[0]):
                sole = lacking = ReceiptWithoutResult(*about)
                lacking.earlier_run = event_id < self._journal.first_id
            else:
                sole = SoleReceipt(*about)
            self._end(sole, recorded[0])
            sole.left = 0
            return sole
        receipt = FanReceipt(event_id, event, topic, None, self._lock)
        receipt.held = self._deliveries(receipt, recorded)
        return receipt

    def with_anew(self, old: Receipt, anew: Receipt) -> Receipt:
        """Return a receipt with the deliveries of an event, one of them replayed or cleared.

        Args:
            old: the receipt with all deliveries, as they were before.
            anew: the receipt of the replayed or cleared delivery alone.
        """
        if len(old.deliveries) < 2:
            return anew
        (changed,) = anew.deliveries
        joint = FanReceipt(old.id, old.event, old.topic, old.parent_id, self._lock)
        joint.held = tuple(
            changed if each.handler.name == changed.handler.name else each
            for each in old.deliveries
        )
        joint.left = 2
        for part in (old, anew):
            part.when_done(partial(_part_done, joint))
        return joint

    def cleared(self, letter: DeadLetter, number: int) -> Receipt:
        """Return the receipt of a delivery whose dead letter was cleared."""
        receipt = FanReceipt(letter.event_id, letter.event, letter.topic, None, self._lock)
        receipt.held = self._deliveries(receipt, [Recorded(number, "discarded", 0, 0, None)])
        return receipt

    def finished(self, receipt: Receipt) -> tuple[Delivery, ...]:
        """Return the finished deliveries of an event, each with its outcome."""
        recorded = self._journal.queries.recorded(receipt.id)
        return self._deliveries(receipt, [each for each in recorded if each.state != "pending"])

    def _deliveries(self, receipt: Receipt, found: Sequence[Recorded]) -> tuple[Delivery, ...]:
        deliveries: list[Delivery] = []
        delivery: Delivery
        for recorded in found:
            subscription = self._subscription_of(recorded.number)
            if _lacks_result(recorded):
                delivery = lacking = DeliveryWithoutResult(subscription, receipt, None, 0.0)
                lacking.earlier_run = receipt.id < self._journal.first_id
            else:
                delivery = Delivery(subscription, receipt, None, 0.0)
            self._end(delivery, recorded)
            deliveries.append(delivery)
        return tuple(deliveries)

    def _end(self, delivery: Delivery, recorded: Recorded) -> None:
        """Give a delivery the outcome that its record says."""
        outcomes = self._outcomes(recorded, delivery.subscription.handler.name)
        if len(outcomes) > 1:
            delivery.earlier = outcomes[:-1]
        delivery.end(outcomes[-1])

    def _subscription_of(self, number: int) -> Subscription:
        """Return the subscription of a handler, by its name; a stand-in if there is none."""
        routes = self._routes()
        if routes is not self._named_for:
            self._named = {each.handler.name: each for each in self._subscriptions()}
            self._named_for = routes
        name = self._journal.names.name_of(number)
        return self._named.get(name) or self._stand_in(number)

    def _stand_in(self, number: int) -> Subscription:
        names = self._journal.names
        name, kind = names.name_of(number), names.kind_of(number)
        handler = Handler(number=0, function=_gone, name=name, kind=kind)
        return Subscription(handler, self._lane)

    def _outcomes(self, recorded: Recorded, name: str) -> tuple[Outcome, ...]:
        error: BaseException | None = None
        event_id = recorded.number >> SHIFT
        if recorded.state == "succeeded":
            try:
                return (Outcome(OutcomeKind.SUCCEEDED, self._journal.result(recorded)),)
            except BaseException as cause:  # noqa: BLE001 - loading runs the user's code
                error = JournalError(
                    f"{name} succeeded with event #{event_id}, but its result cannot be loaded "
                    f"from the journal: {summary_of(cause)}"
                )
                error.__cause__ = cause
        elif recorded.state == "dead":
            assert recorded.data is not None
            return self._journal.codec.decode_outcomes(recorded.data)
        elif recorded.state == "pending":
            error = NoSuchHandler(
                f"event #{event_id} waits in the journal for the handler {name}, which is not "
                "subscribed to this bus: subscribe it under that name, and it is run"
            )
        else:
            error = ProcbusError(
                f"{name} was cancelled with event #{event_id}, or failed, and the dead letter of "
                "that was replayed or cleared"
            )
        return (Outcome(OutcomeKind.RAISED, error=error),)

    def dead_letters(
        self, most: int, numbers: Sequence[int] | None = None
    ) -> list[tuple[DeadLetter, int]]:
        """Return the newest dead letters of the database, oldest first, each with its number.

        Dead letters whose event cannot be loaded are left out, and stay in the journal.

        Args:
            most: maximum number.
            numbers: only the dead letters of these deliveries; None for all.
        """
        journal, found = self._journal, []
        for row in journal.queries.dead_letters(most, numbers):
            number, failed_at, quarantined, outcomes, topic, type_name, form, data = row
            try:
                event = journal.codec.decode(form, data, type_name)
            except BaseException:  # noqa: BLE001, S112 - the user's code; the command line shows it
                continue
            letter = DeadLetter(
                number >> SHIFT,
                event,
                topic,
                journal.names.name_of(number),
                journal.names.kind_of(number),
                journal.codec.decode_outcomes(outcomes),
                datetime.fromtimestamp(failed_at, UTC),
                bool(quarantined),
            )
            found.append((letter, number))
        return found
