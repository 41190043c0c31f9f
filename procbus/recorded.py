# SPDX-License-Identifier: MIT
"""Deliveries as a journal has them: how they ended, in this run of the script or in one before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from procbus.delivery import Delivery
from procbus.errors import JournalError, NoSuchHandler, ProcbusError
from procbus.handler import Handler
from procbus.journal.journal import Journal
from procbus.journal.queries import Recorded
from procbus.letter import DeadLetter
from procbus.outcome import Outcome, OutcomeKind
from procbus.receipt import Receipt
from procbus.subscription import Subscription


class NoLane:
    """The lane of a handler that is not there: nothing gets into it."""

    def put(self, delivery: Delivery) -> None:
        """Queue a delivery: never called."""
        raise ProcbusError(f"{delivery!r} is for a handler that is not subscribed")

    put_again = put

    def release(self, delivery: Delivery) -> None:
        """Nothing waits behind it."""

    step_aside = release

    def is_running(self, delivery: Delivery) -> bool:  # noqa: ARG002 - see `Lane`
        """Nothing runs."""
        return False

    withdraw = is_running


def _gone(_: Any) -> None:
    raise NoSuchHandler("this handler is not subscribed")


class RecordedDeliveries:
    """Makes deliveries of what a journal has. Thread-safe.

    Args:
        journal: of the bus.
        subscriptions: those of the bus, just now.
    """

    def __init__(
        self, journal: Journal, subscriptions: Callable[[], Sequence[Subscription]]
    ) -> None:
        self._journal = journal
        self._subscriptions = subscriptions
        self._lane = NoLane()

    def of_event(self, receipt: Receipt, event_id: int, *, pending: bool) -> list[Delivery]:
        """The deliveries of an event, each with its outcome.

        Args:
            receipt: the receipt that they are for.
            event_id: of the event.
            pending: also those that are not finished, though nobody will run them.
        """
        named = {each.handler.name: each for each in self._subscriptions()}
        found: list[Delivery] = []
        for recorded in self._journal.queries.recorded(event_id):
            if recorded.state == "pending" and not pending:
                continue
            name = self._journal.names.name_of(recorded.number)
            subscription = named.get(name) or self._stand_in(recorded.number)
            delivery = Delivery(subscription, receipt, None, 0.0)
            outcomes = self._outcomes(recorded, name, event_id)
            delivery.earlier = outcomes[:-1]
            delivery.end(outcomes[-1])
            found.append(delivery)
        return found

    def _stand_in(self, number: int) -> Subscription:
        names = self._journal.names
        handler = Handler(0, _gone, names.name_of(number), names.kind_of(number), ())
        return Subscription(handler, self._lane)

    def _outcomes(self, recorded: Recorded, name: str, event_id: int) -> tuple[Outcome, ...]:
        error: BaseException | None = None
        if recorded.state == "succeeded":
            try:
                return (Outcome(OutcomeKind.SUCCEEDED, self._journal.result(recorded)),)
            except Exception as cause:  # noqa: BLE001 - loading runs the user's code
                error = JournalError(
                    f"{name} succeeded with event {event_id}, but its result cannot be loaded from "
                    f"the journal: {type(cause).__name__}: {cause}"
                )
                error.__cause__ = cause
        elif recorded.state == "dead":
            assert recorded.data is not None
            return self._journal.codec.decode_outcomes(recorded.data)
        elif recorded.state == "pending":
            error = NoSuchHandler(
                f"event {event_id} waits in the journal for the handler {name}, which is not "
                "subscribed to this bus: subscribe it under that name, and it is run"
            )
        else:
            error = ProcbusError(
                f"{name} failed with event {event_id}, and the dead letter of that was replayed or "
                "cleared"
            )
        return (Outcome(OutcomeKind.RAISED, error=error),)

    def dead_letters(self, most: int) -> list[tuple[DeadLetter, int]]:
        """The newest dead letters of runs before, oldest first, each with its number.

        Those whose event cannot be loaded are left in the journal.
        """
        journal, found = self._journal, []
        for row in journal.queries.dead_letters(most):
            number, failed_at, quarantined, outcomes, topic, type_name, form, data = row
            try:
                event = journal.codec.decode(form, data, type_name)
            except Exception:  # noqa: BLE001, S112 - the user's code; the command line shows them
                continue
            letter = DeadLetter(
                number >> 16,
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
