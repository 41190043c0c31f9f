# SPDX-License-Identifier: MIT
"""From an event to its deliveries: whose predicate takes it, and by which key it goes."""

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

#: A subscription, and what its predicate raised.
Broken = tuple[Subscription, BaseException]

#: Types whose hash and comparison are not the user's.
_PLAIN = frozenset((str, int, bytes, float, bool, type(None)))


def choose(
    subscriptions: Sequence[Subscription], event: Any
) -> tuple[list[Subscription], list[Broken]]:
    """Ask each handler's `where`; a predicate that raises fails the delivery to its handler.

    An event goes once to a function, however often that was subscribed: by the last of those
    subscriptions that takes it.
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
        except BaseException as error:  # noqa: BLE001 - whatever the user's predicate raises
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
    """An event is not published after all: those that were to take one event take another."""
    for subscription in chosen:
        subscription.give_back()


def address(
    receipt: FanReceipt,
    chosen: Sequence[Subscription],
    broken: Sequence[Broken],
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


def _key_of(subscription: Subscription, event: Any) -> tuple[Any, BaseException | None]:
    key_of = subscription.handler.key
    if key_of is None:
        return None, None
    try:
        key = key_of(event)
        return (key if type(key) in _PLAIN else UserKey(key)), None
    except BaseException as error:  # noqa: BLE001 - whatever the user's function raises
        return None, _noted(error, "key", subscription)


def _noted(error: BaseException, option: str, subscription: Subscription) -> BaseException:
    """Say in an error which option of which handler raised it.

    Ctrl-C is no fault of the user's function: it is raised, and nothing is published.
    """
    if isinstance(error, KeyboardInterrupt) and in_main_thread():
        raise error
    with contextlib.suppress(BaseException):  # it may refuse notes
        error.add_note(f"raised by {option}= of {subscription.handler.name}")
    return error
