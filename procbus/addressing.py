# SPDX-License-Identifier: MIT
"""From an event to its deliveries: whose predicate takes it, and by which key it goes."""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic
from typing import Any

from procbus.delivery import Delivery
from procbus.outcome import Outcome, OutcomeKind
from procbus.receipt import FanReceipt
from procbus.subscription import Subscription


def choose(
    subscriptions: Sequence[Subscription], event: Any
) -> tuple[list[Subscription], list[tuple[Subscription, Exception]]]:
    """Ask each handler's `where`; a predicate that raises fails the delivery to its handler."""
    chosen: list[Subscription] = []
    broken: list[tuple[Subscription, Exception]] = []
    for subscription in subscriptions:
        where = subscription.handler.where
        try:
            if where is None or where(event):
                chosen.append(subscription)
        except Exception as error:  # noqa: BLE001 - whatever the user's predicate raises
            error.add_note(f"raised by where= of {subscription.handler.name}")
            broken.append((subscription, error))
    return chosen, broken


def address(
    receipt: FanReceipt,
    chosen: Sequence[Subscription],
    broken: Sequence[tuple[Subscription, Exception]],
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


def _key_of(subscription: Subscription, event: Any) -> tuple[Any, Exception | None]:
    key_of = subscription.handler.key
    if key_of is None:
        return None, None
    try:
        key = key_of(event)
        hash(key)
    except Exception as error:  # noqa: BLE001 - whatever the user's function raises
        error.add_note(f"raised by key= of {subscription.handler.name}")
        return None, error
    return key, None
