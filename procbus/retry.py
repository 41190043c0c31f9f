# SPDX-License-Identifier: MIT
"""Whether a delivery that failed is tried again: a pure function of its handler and outcomes."""

from __future__ import annotations

from procbus.delivery import Delivery
from procbus.errors import CircuitOpen, HandlerExited, SerializationError
from procbus.outcome import Outcome, OutcomeKind
from procbus.user_objects import cause_of, full_name, is_a, is_any

_CRASHES = (OutcomeKind.WORKER_DIED, OutcomeKind.OVER_MEMORY)


def may_retry(delivery: Delivery, outcome: Outcome) -> bool:
    """Whether another attempt follows this one, which failed."""
    handler = delivery.subscription.handler
    if len(delivery.earlier) >= handler.retries or outcome.kind is OutcomeKind.CANCELLED:
        return False
    error = outcome.error
    if error is None or not _is_one_of(error, handler.retry_on):
        return False
    # Given up by a bus that closes, which another attempt would only keep from that.
    if outcome.kind is OutcomeKind.WORKER_DIED and is_a(error, CircuitOpen):
        return False
    return not quarantined(delivery, outcome)


def _is_one_of(error: BaseException, kinds: tuple[type[BaseException], ...]) -> bool:
    """Whether what went wrong is of these classes, as `except` has it in the handler's own place.

    It runs under the settlement's lock: no code of the user's may run here.
    """
    if is_a(error, SerializationError):
        # What cannot travel to a worker will not the next time either; an exception that cannot
        # travel back was raised all the same.
        return any(full_name(kind) in error.raised for kind in kinds)
    if is_a(error, HandlerExited):
        raised = cause_of(error)
        return raised is not None and is_any(raised, kinds)
    return is_any(error, kinds)


def quarantined(delivery: Delivery, outcome: Outcome) -> bool:
    """Whether it killed its workers more often than its handler's `max_crashes` lets it."""
    if not _crashed(outcome):
        return False
    crashes = 1 + sum(_crashed(each) for each in delivery.earlier)
    return crashes > delivery.subscription.handler.max_crashes


def _crashed(outcome: Outcome) -> bool:
    """Whether the attempt killed its worker: not if there was none to be had."""
    return outcome.kind in _CRASHES and outcome.started_at > 0
