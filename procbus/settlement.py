# SPDX-License-Identifier: MIT
"""Settling: the one place that writes the end of a delivery.

Whatever happened to it (success, failure, a dead worker, cancellation), a delivery ends here,
exactly once: counters, dead letter, log line, receipt, gate and room on the bus follow.
"""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Callable, Sequence

from procbus.admission import Admission
from procbus.dead_letters import DeadLetter, DeadLetters
from procbus.delivery import Delivery
from procbus.locks import acquire
from procbus.outcome import Outcome, OutcomeKind
from procbus.receipt import Receipt
from procbus.subscription import NEWEST

log = logging.getLogger("procbus")

Settled = tuple[Delivery, Outcome]

_SUCCEEDED = OutcomeKind.SUCCEEDED


class Settlement:
    """Settles the deliveries of one bus. Thread-safe.

    `lock` belongs to this object. It guards the outcome of every delivery, the open ends of
    every receipt, the counters of the subscriptions, and the dead letters.
    """

    def __init__(self, admission: Admission) -> None:
        self.lock = threading.Lock()
        self._try_lock = self.lock.acquire
        self._unlock = self.lock.release
        self._admission = admission
        self._dead_letters = DeadLetters()

    def settle(self, settled: Sequence[Settled], *, queued: bool = True) -> None:
        """Settle deliveries. One that is settled already is left as it is.

        Args:
            settled: each delivery with the outcome of its last attempt.
            queued: False for deliveries that never got into their lane.
        """
        count = 0
        failed: list[Settled] = []
        gated: list[Delivery] = []
        done: list[tuple[Callable[[Receipt], object], Receipt]] = []
        if not self._try_lock(False):
            acquire(self.lock)
        try:
            for delivery, outcome in settled:
                receipt = delivery.receipt
                if receipt is None:
                    continue
                count += 1
                delivery.outcome = outcome
                delivery.receipt = None
                subscription = delivery.subscription
                if outcome.kind is _SUCCEEDED:
                    subscription.succeeded += 1
                    delivery.attempts += 1
                    run_s = outcome.ended_at - outcome.started_at
                    average_s = subscription.average_s
                    if average_s is None or run_s > average_s:
                        subscription.note_run(run_s)
                    else:  # note_run without the call, for it is most of them
                        subscription.average_s = average_s + NEWEST * (run_s - average_s)
                elif self._note_unsuccessful(delivery, receipt, outcome):
                    failed.append((delivery, outcome))
                if subscription.gate is not None:
                    gated.append(delivery)
                receipt.left -= 1
                if receipt.callbacks is not None and not receipt.left:
                    done.extend((callback, receipt) for callback in receipt.callbacks)
                    receipt.callbacks = None
        finally:
            self._unlock()
        for delivery, outcome in failed:
            _log_failure(delivery, outcome)
        if queued:
            for delivery in gated:
                delivery.subscription.lane.release(delivery)
        # Before the callbacks: whoever hears that a receipt is done may publish the next event.
        self._admission.leave(count)
        for callback, receipt in done:
            callback(receipt)

    def _note_unsuccessful(self, delivery: Delivery, receipt: Receipt, outcome: Outcome) -> bool:
        """Count a failure or a cancellation; say whether it is a failure."""
        subscription = delivery.subscription
        if outcome.started_at:
            delivery.attempts += 1
            subscription.note_run(outcome.ended_at - outcome.started_at)
        if outcome.kind is OutcomeKind.CANCELLED:
            if outcome.started_at:
                subscription.stopped += 1
            else:
                subscription.cancelled += 1
            return False
        subscription.failed += 1
        name = subscription.handler.name
        self._dead_letters.add(DeadLetter(receipt.id, receipt.event, receipt.topic, name, outcome))
        return True

    def dead_letters(self) -> tuple[DeadLetter, ...]:
        """The dead letters kept, oldest first."""
        with self.lock:
            return self._dead_letters.snapshot()


def _log_failure(delivery: Delivery, outcome: Outcome) -> None:
    """Log a failure once, with the handler's own traceback where there is one."""
    error = outcome.error
    assert error is not None
    dropped = f" ({outcome.dropped_events} events dropped)" if outcome.dropped_events else ""
    try:
        log.error(
            "%s failed with event %d: %s%s",
            delivery.handler.name,
            delivery.event_id,
            outcome.kind.value,
            dropped,
            exc_info=(type(error), error, error.__traceback__),
        )
    except Exception:  # noqa: BLE001 - the user's logging: it must not keep the delivery open
        traceback.print_exc()
