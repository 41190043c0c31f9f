# SPDX-License-Identifier: MIT
"""Settling: the one place that writes the end of a delivery.

Whatever happened to it (success, failure, a dead worker, cancellation), a delivery ends here,
exactly once: counters, dead letter, log line, receipt, gate and room on the bus follow. An attempt
that failed and is followed by another ends here too, and leaves the delivery pending.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from procbus.admission import Admission
from procbus.backoff import wait_of
from procbus.context import HandlerContext, running
from procbus.dead_letters import DeadLetter, DeadLetterBox, call_hook, letter_of
from procbus.delivery import Delivery, cancelled
from procbus.failure_log import FailureLog
from procbus.letter import summary_of
from procbus.locks import acquire
from procbus.log import log
from procbus.outcome import Outcome, OutcomeKind
from procbus.receipt import Receipt
from procbus.retry import may_retry, quarantined
from procbus.retry_queue import RetryQueue
from procbus.subscription import FEW, NEWEST, SAMPLE, SAMPLED_BELOW_S
from procbus.unseen import Unseen

Settled = tuple[Delivery, Outcome]

_SUCCEEDED = OutcomeKind.SUCCEEDED


class Settlement:
    """Settles the deliveries of one bus. Thread-safe.

    `lock` belongs to this object. It guards the outcome and attempts of every delivery, the open
    ends of every receipt, the counters of the subscriptions, and the dead letters.

    Args:
        admission: gets the room back.
        retries: takes what is to be tried again.
        redeliver: publishes the event of a dead letter again.
        on_failure: the user's hook for what failed for good.
        make_context: makes what `current()` returns in that hook, as in the handler.
    """

    def __init__(
        self,
        admission: Admission,
        retries: RetryQueue,
        redeliver: Callable[[DeadLetter], Receipt],
        on_failure: Callable[[DeadLetter], object] | None,
        make_context: Callable[[Delivery, Receipt], HandlerContext],
    ) -> None:
        self.lock = threading.Lock()
        self._try_lock = self.lock.acquire
        self._unlock = self.lock.release
        self._admission = admission
        self._retries = retries
        self._on_failure = on_failure
        self._make_context = make_context
        self.unseen = Unseen()
        self._failures = FailureLog()
        self.dead_letters = DeadLetterBox(self.lock, redeliver)

    def settle(self, settled: Sequence[Settled], *, queued: bool = True) -> None:
        """Settle deliveries. One that is settled already is left as it is.

        Args:
            settled: each delivery with the outcome of its last attempt.
            queued: False for deliveries that never got into their lane.
        """
        again: list[Settled] = []
        failed: list[tuple[Delivery, Receipt, DeadLetter]] = []
        after = _After()
        if not self._try_lock(False):
            acquire(self.lock)
        try:
            for delivery, outcome in settled:
                receipt = delivery.receipt
                if receipt is None:
                    continue
                if outcome.kind is _SUCCEEDED:
                    _note_success(delivery, outcome.started_at, outcome.ended_at)
                else:
                    self._note_attempt(delivery, outcome)
                    if queued and may_retry(delivery, outcome):
                        delivery.subscription.retried += 1
                        delivery.earlier += (outcome,)
                        again.append((delivery, outcome))
                        continue
                    letter = self._note_unsuccessful(delivery, receipt, outcome)
                    if letter is not None:
                        failed.append((delivery, receipt, letter))
                delivery.end(outcome)
                after.note(delivery, receipt)
        finally:  # what was settled is followed up also where something fails half-way
            self._unlock()
            try:
                for delivery, receipt, letter in failed:
                    self._tell(delivery, receipt, letter)
            finally:  # also after Ctrl-C in the user's hook
                for delivery, outcome in again:
                    self._try_again(delivery, outcome)
                self._follow(after, queued)

    def settle_successes(
        self,
        deliveries: Sequence[Delivery],
        times: Sequence[tuple[float, float, int]],
        values: Sequence[Any],
        pid: int | None,
    ) -> None:
        """Settle deliveries that succeeded, most of a batch: as `settle`, with no outcome for each.

        Args:
            deliveries: those of one worker.
            times: when the handler of each began and ended; the third number means nothing.
            values: what it returned.
            pid: of the worker.
        """
        after = _After()
        if not self._try_lock(False):
            acquire(self.lock)
        try:
            for delivery, (started_at, ended_at, _), value in zip(
                deliveries, times, values, strict=True
            ):
                receipt = delivery.receipt
                if receipt is None:
                    continue
                delivery.value = value
                delivery.started_at = started_at
                delivery.ended_at = ended_at
                delivery.pid = pid
                delivery.receipt = None
                _note_success(delivery, started_at, ended_at)
                after.note(delivery, receipt)
        finally:  # as above
            self._unlock()
            self._follow(after, queued=True)

    def _follow(self, after: _After, queued: bool) -> None:
        if queued:
            for delivery in after.gated:
                delivery.subscription.lane.release(delivery)
        # Before the callbacks: whoever hears that a receipt is done may publish the next event.
        self._admission.leave(after.count)
        for callback, receipt in after.done:
            callback(receipt)

    # Under the lock.

    def _note_attempt(self, delivery: Delivery, outcome: Outcome) -> None:
        """Count an attempt that did not succeed."""
        subscription = delivery.subscription
        if outcome.started_at:
            subscription.note_run(outcome.ended_at - outcome.started_at)
            subscription.note_times(delivery, outcome.started_at, outcome.ended_at)
        if outcome.kind is OutcomeKind.TIMED_OUT:
            subscription.timed_out += 1
        elif outcome.kind is OutcomeKind.WORKER_DIED:
            subscription.crashed += 1
        elif outcome.kind is OutcomeKind.OVER_MEMORY:
            subscription.over_memory += 1

    def _note_unsuccessful(
        self, delivery: Delivery, receipt: Receipt, outcome: Outcome
    ) -> DeadLetter | None:
        """Count a failure or a cancellation; make a dead letter of a failure."""
        subscription = delivery.subscription
        if outcome.kind is OutcomeKind.CANCELLED:
            if outcome.started_at:
                subscription.stopped += 1
            else:
                subscription.cancelled += 1
            return None
        subscription.failed += 1
        if subscription.answered:
            return None
        letter = letter_of(
            delivery, receipt, (*delivery.earlier, outcome), quarantined(delivery, outcome)
        )
        self.dead_letters.add(letter, delivery)
        self.unseen.note_failed(delivery, outcome)
        return letter

    # Outside of it, since these run the user's code.

    def _tell(self, delivery: Delivery, receipt: Receipt, letter: DeadLetter) -> None:
        """Tell of a failure: in the log, and to the user's hook."""
        self._failures.tell(delivery, letter)
        self.dead_letters.tell_dropped()
        if self._on_failure is None:
            return
        # As inside the handler: what the hook publishes must not wait for room.
        before = running.set([self._make_context, delivery, receipt])
        try:
            call_hook(self._on_failure, letter)
        finally:
            running.reset(before)
        self.unseen.note_seen(delivery)

    def sum_up_failures(self) -> None:
        """Say in the log, as the bus ends, how many failures were not told or looked at."""
        self._failures.tell_the_rest()
        if summary := self.unseen.summary():
            log.warning("bus closed with %s", summary)

    def _try_again(self, delivery: Delivery, outcome: Outcome) -> None:
        handler = delivery.subscription.handler
        attempt = len(delivery.earlier)
        wait_s = wait_of(handler.name, handler.backoff, attempt, outcome)
        log.warning(
            "%s with event %d: attempt %d of %d %s (%s); the next one in %.2g s",
            handler.name,
            delivery.event_id,
            attempt,
            handler.retries + 1,
            outcome.kind.value,
            summary_of(outcome.error),
            wait_s,
        )
        self._note_wait(delivery, wait_s)
        delivery.subscription.lane.step_aside(delivery)
        self.wait(delivery, wait_s)

    def wait(self, delivery: Delivery, wait_s: float) -> None:
        """Have a delivery wait so many seconds for its next attempt."""
        if not self._retries.add(delivery, wait_s):
            self.settle([(delivery, cancelled(delivery))])

    def _note_wait(self, delivery: Delivery, wait_s: float) -> None:
        """A delivery waits for its next attempt: for a journal."""


class _After:
    """What follows, without the lock, from the deliveries that were settled together."""

    __slots__ = ("count", "done", "gated", "receipts")

    def __init__(self) -> None:
        self.count = 0
        self.gated: list[Delivery] = []
        self.done: list[tuple[Callable[[Receipt], object], Receipt]] = []
        #: Kept until the lock is free: with its last reference an event goes, and runs `__del__`.
        self.receipts: list[Receipt] = []

    def note(self, delivery: Delivery, receipt: Receipt) -> None:
        """A delivery has ended; its receipt is done with the last one. Under the lock."""
        self.count += 1
        if receipt is not delivery:  # type: ignore[comparison-overlap] # a SoleReceipt is both
            self.receipts.append(receipt)
        if delivery.subscription.gate is not None:
            self.gated.append(delivery)
        if receipt.block is not None:
            _leave_block(receipt, delivery)
        receipt.left -= 1
        if receipt.callbacks is not None and not receipt.left:
            self.done.extend((callback, receipt) for callback in receipt.callbacks)
            receipt.callbacks = None


def _note_success(delivery: Delivery, started_at: float, ended_at: float) -> None:
    """Count a success, and take its times into average and statistics."""
    subscription = delivery.subscription
    subscription.succeeded = succeeded = subscription.succeeded + 1
    run_s = ended_at - started_at
    average_s = subscription.average_s
    if average_s is None or run_s > average_s:
        subscription.note_run(run_s)
    else:  # note_run without the call, for it is most of them
        subscription.average_s = average_s + NEWEST * (run_s - average_s)
    if succeeded < FEW or run_s > SAMPLED_BELOW_S:
        subscription.note_times(delivery, started_at, ended_at)
    elif not succeeded % SAMPLE:
        subscription.note_times(delivery, started_at, ended_at, SAMPLE)


def _leave_block(receipt: Receipt, delivery: Delivery) -> None:
    """A delivery needs the event's shared memory no more."""
    block = receipt.block
    if block is not None and delivery.subscription.handler.kind == "cpu":
        block.users -= 1
        if not block.users:
            receipt.block = None
            block.release()
