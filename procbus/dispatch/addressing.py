# SPDX-License-Identifier: MIT
"""From an event to its deliveries: the predicates that accept it, and the key of each delivery."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from time import monotonic
from typing import Any

from procbus.core.delivery import Delivery
from procbus.core.locks import in_main_thread
from procbus.core.outcome import Outcome, OutcomeKind
from procbus.core.receipt import FanReceipt
from procbus.core.subscription import Subscription
from procbus.core.user_key import UserKey
from procbus.core.validation import shown

#: A subscription, and the exception of its predicate.
Broken = tuple[Subscription, BaseException]

#: Types whose hash and comparison are Python's own.
_PLAIN = frozenset((str, int, bytes, float, bool, type(None)))


def choose(
    subscriptions: Sequence[Subscription], event: Any
) -> tuple[list[Subscription], list[Broken]]:
    """Ask each handler's `where`; a predicate that raises fails the delivery to its handler.

    A function gets an event once, however often it was subscribed: the last of its subscriptions
    that accepts the event counts.
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
        except BaseException as error:  # noqa: BLE001 - any exception of the user's predicate
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
    """Allow `once` handlers another event, because this one is not published after all."""
    for subscription in chosen:
        subscription.give_back()


def address(
    receipt: FanReceipt,
    chosen: Sequence[Subscription],
    broken: Sequence[Broken],
) -> tuple[list[Delivery], list[tuple[Delivery, Outcome]]]:
    """Make the deliveries of an event: the ones to queue, and the ones that failed at once."""
    event = receipt.event
    now = monotonic()
    queued: list[Delivery] = []
    failed: list[tuple[Delivery, Outcome]] = []
    for subscription in chosen:
        key, error = _key_of(subscription, event)
        delivery = Delivery(subscription, receipt, key, now)
        if error is None and subscription.handler.rate_key is not None:
            error = _note_rate_key(delivery, event)
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
    except BaseException as error:  # noqa: BLE001 - any exception of the user's function
        return None, _noted(error, "key", subscription)


def _note_rate_key(delivery: Delivery, event: Any) -> BaseException | None:
    """Give a delivery the key that its handler's rate counts it under; return an error instead."""
    rate_key_of = delivery.handler.rate_key
    assert rate_key_of is not None
    try:
        key = rate_key_of(event)
        if type(key) not in _PLAIN:
            raise TypeError(
                "rate_key= must return a str, a number or bytes, because the keys of all events "
                f"are compared, and returned {shown(key)}: use str(...)"
            )
        delivery.rate_key = key
        return None
    except BaseException as error:  # noqa: BLE001 - any exception of the user's function
        return _noted(error, "rate_key", delivery.subscription)


def _noted(error: BaseException, option: str, subscription: Subscription) -> BaseException:
    """Add to an error which option of which handler raised it.

    Ctrl-C is not the function's fault: it is raised, and nothing is published.
    """
    if isinstance(error, KeyboardInterrupt) and in_main_thread():
        raise error
    with contextlib.suppress(BaseException):  # the error may refuse notes
        error.add_note(f"raised by {option}= of {subscription.handler.name}")
    return error
