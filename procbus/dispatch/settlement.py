# SPDX-License-Identifier: MIT
"""Settling: the one place that writes the end of a delivery.

However a delivery ends (success, failure, a dead worker, cancellation), it ends here, exactly once.
Its consequences follow from here: counters, dead letter, log line, receipt, gate, and room on the
bus. An attempt that is followed by a retry ends here too, and leaves the delivery pending.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import groupby, zip_longest
from typing import Any, TypeVar

from procbus.core.cancelling import CancelRequest
from procbus.core.dead_letter import DeadLetter, summary_of
from procbus.core.delivery import Delivery, LastAttempt, as_asked, asked_of, cancelled
from procbus.core.gil import gil_is_on
from procbus.core.listeners import Listeners
from procbus.core.locks import Lock, Tangled, acquire, in_main_thread, later
from procbus.core.log import log
from procbus.core.log_origin import about_delivery
from procbus.core.moments import Retried, Settled
from procbus.core.outcome import Outcome, OutcomeKind
from procbus.core.receipt import Receipt, SharedBlock, call_all
from procbus.core.retry import may_retry, quarantined, wait_of
from procbus.core.subscription import (
    FEW,
    GROWTH,
    GROWTH_S,
    NEWEST,
    SAMPLE,
    SAMPLED_BELOW_FREE_S,
    SAMPLED_BELOW_S,
    SMALL,
    Subscription,
)
from procbus.core.text import shown_events
from procbus.dispatch.admission import Admission
from procbus.dispatch.dead_letters import DeadLetterBox, letter_of
from procbus.dispatch.delays import Delays
from procbus.dispatch.failure_log import FailureLog
from procbus.dispatch.journal_side import SettlingSide
from procbus.dispatch.retry_queue import RetryQueue
from procbus.dispatch.unretrieved import Unseen

_SUCCEEDED = OutcomeKind.SUCCEEDED


class Settlement:
    """Settles the deliveries of one bus. Thread-safe.

    The lock `lock` guards the outcome and attempts of every delivery, the number of open deliveries
    of every receipt, the counters of the subscriptions, and the dead letters.

    Args:
        admission: gets the room back.
        retries: takes deliveries that are retried.
        journal: told of each end before any waiter; None without a journal.
        short_s: threshold of the run time below which runs are sampled, in seconds; None for the
            default.

    Attributes:
        delays: keeps deliveries until their delay is over.
        listeners: the listeners of the bus. Without listeners this costs nothing.
        on_failed: functions that are called with the end of each delivery that failed for good,
            before the listeners.
    """

    def __init__(
        self,
        admission: Admission,
        retries: RetryQueue,
        journal: SettlingSide | None = None,
        *,
        short_s: float | None = None,
    ) -> None:
        self.lock = Lock()
        self._try_lock = self.lock.acquire
        self._unlock = self.lock.release
        self._short_s = short_s or (SAMPLED_BELOW_S if gil_is_on() else SAMPLED_BELOW_FREE_S)
        self._admission = admission
        self._retries = retries
        self._journal = journal
        self.unseen = Unseen(self.lock)
        self._failures = FailureLog()
        self.dead_letters = DeadLetterBox(self.lock)
        self.listeners = Listeners()
        self.delays = Delays(retries, self.lock, self.listeners, self.settle)
        #: Whether a delivery was ever to be cancelled.
        self._asked = False
        self.on_failed: tuple[Callable[[Settled], object], ...] = ()
        if journal is not None:
            self.on_failed = (journal.failed,)

    def count_in(self, count: int) -> None:
        """Count deliveries in that the bus itself makes; settling them counts them out."""
        self._admission.leave(-count)

    def ask(self, delivery: Delivery, request: CancelRequest) -> bool:
        """Note the request to cancel a delivery: from now on it succeeds, or is cancelled.

        Returns:
            False if it is settled, or if another request came before.
        """
        if not self._try_lock(False):
            acquire(self.lock)
        try:
            if delivery.receipt is None or asked_of(delivery) is not None:
                return False
            self._asked = True
            delivery.asked = request
            return True
        finally:
            self._unlock()

    def settle(self, settled: Sequence[LastAttempt], *, queued: bool = True) -> None:
        """Settle deliveries. A delivery that is settled already is left as it is.

        Args:
            settled: each delivery with the outcome of its last attempt.
            queued: False for deliveries that never got into their lane.
        """
        if self._journal is not None:
            self._journal.settled(settled)
        heard = self.listeners.settled
        after = _After([])
        count = 0
        if not self._try_lock(False):
            acquire(self.lock)
        try:
            for delivery, outcome in settled:
                receipt = delivery.receipt
                if receipt is None:
                    continue
                letter = None
                try:
                    if self._asked and outcome.kind is not _SUCCEEDED:
                        outcome = as_asked(delivery, outcome)
                    self._note_attempt(delivery, outcome)
                    subscription = delivery.subscription
                    if outcome.kind is _SUCCEEDED:
                        subscription.succeeded_sum += 1
                    else:
                        policy = subscription.handler.retry
                        if queued and may_retry(policy, delivery.earlier, outcome):
                            subscription.retried += 1
                            delivery.earlier += (outcome,)
                            if after.again is None:
                                after.again = []
                            after.again.append((delivery, outcome))
                            continue
                        letter = self._note_unsuccessful(delivery, receipt, outcome)
                except BaseException as error:  # noqa: BLE001 - the delivery is settled all the same
                    if after.raised is None:
                        after.raised = []
                    after.raised.append(error)
                delivery.end(outcome)
                count += 1
                after.note(delivery, receipt)
                if letter is not None or heard or (self._asked and self._dropped(delivery)):
                    after.tell(Settled(delivery, receipt, outcome, letter))
        finally:  # settled deliveries have their consequences even if a later one fails
            self._unlock()
            if after.told is None and after.again is None and after.raised is None:
                self._follow(after, count, queued)
            else:
                self._follow_up(after, count, queued)

    def _follow_up(self, after: _After, count: int, queued: bool) -> None:
        """Carry out all consequences of settled deliveries, even if one consequence raises."""
        interrupts: list[BaseException] = []
        for error in after.raised or ():
            _note_raised(interrupts, error)
        for together in _of_one_error(after.told, lambda each: (each.delivery, each.outcome)):
            _guarded(interrupts, self._log_failures, together)
        for settled in after.told or ():
            if settled.outcome.kind is OutcomeKind.CANCELLED and self._dropped(settled.delivery):
                assert self._journal is not None
                _guarded(interrupts, self._journal.cancelled, settled.delivery)
            for function in () if settled.letter is None else self.on_failed:
                _guarded(interrupts, function, settled)
            if ears := self.listeners.settled:
                about = settled.delivery, settled.receipt
                _guarded(interrupts, self.listeners.tell_of, ears, settled, *about)
        for pairs in _of_one_error(after.again, lambda each: each):
            waits: list[float] = []
            _guarded(interrupts, _log_retries, pairs, waits)
            for (delivery, outcome), wait_s in zip_longest(pairs, waits):
                _guarded(interrupts, self._try_again, delivery, outcome, wait_s)
        _guarded(interrupts, self._follow, after, count, queued)
        if interrupts:
            raise interrupts[0]

    def settle_successes(
        self,
        deliveries: Sequence[Delivery],
        times: Sequence[tuple[float, float, int]],
        values: Sequence[Any],
        pid: int | None,
    ) -> None:
        """Settle deliveries that succeeded, like `settle` but without an outcome for each.

        Args:
            deliveries: deliveries of one worker.
            times: start and end of each handler; the third number is unused.
            values: return value of each handler.
            pid: process id of the worker.
        """
        if self._journal is not None:
            self._journal.settled_successes(deliveries, values)
        after: _After | None = None
        told: list[tuple[Delivery, Receipt]] | None = None
        done: list[Receipt] = []
        count, short_s = 0, self._short_s
        if not self._try_lock(False):
            acquire(self.lock)
        try:
            try:
                if self.listeners.settled:
                    told = [(each, each.receipt) for each in deliveries if each.receipt is not None]
                # Without calls in the usual case, because this runs for nearly every event.
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
                    count += 1
                    subscription = delivery.subscription
                    if (
                        receipt is delivery  # type: ignore[comparison-overlap] # a SoleReceipt
                        and receipt.block is None
                        and not subscription.gated
                    ):
                        receipt.left = 0
                        if receipt.callbacks is not None:
                            done.append(receipt)
                    else:
                        if after is None:
                            after = _After(done)
                        after.note(delivery, receipt)
                    since = subscription.succeeded_since + 1
                    if since > SMALL:
                        subscription.succeeded_sum += since
                        since = 0
                    subscription.succeeded_since = since
                    run_s = ended_at - started_at
                    average_s = subscription.average_s
                    if average_s is None:
                        subscription.note_run(run_s)
                        subscription.note_times(delivery, started_at, ended_at)
                        continue
                    weight = 1
                    if (
                        run_s < short_s
                        and average_s < short_s
                        and subscription.succeeded_sum >= FEW
                    ):
                        weight = subscription.untimed + 1
                        if weight < SAMPLE:
                            subscription.untimed = weight
                            continue
                        subscription.untimed = 0
                    new_s = average_s + NEWEST * (run_s - average_s)  # as note_run does
                    most_s = GROWTH * average_s + GROWTH_S
                    subscription.average_s = new_s if new_s < most_s else most_s
                    subscription.note_times(delivery, started_at, ended_at, weight)
            finally:
                self._unlock()
        finally:  # even if it was stopped half-way: waiters wait for the settled ones
            if told is not None:
                after = after or _After(done)
                for delivery, receipt in told:
                    if delivery.outcome is not None:
                        after.tell(Settled(delivery, receipt, delivery.outcome))
                self._follow_up(after, count, queued=True)
            elif after is not None:
                self._follow(after, count, queued=True)
            else:
                self._leave(count, done)

    def _follow(self, after: _After, count: int, queued: bool) -> None:
        try:
            if after.blocks is not None:
                for block in after.blocks:
                    block.release()
            if queued and after.gated is not None:
                for delivery in after.gated:
                    _release(delivery)
        finally:
            self._leave(count, after.done)

    def _leave(self, count: int, done: list[Receipt]) -> None:
        """Give room back, and call the callbacks of receipts that are done."""
        try:
            # Before the callbacks: a callback that sees the receipt done may publish the next
            # event.
            self._admission.leave(count)
        finally:
            if done:
                call_all(done)

    def _dropped(self, delivery: Delivery) -> bool:
        """Whether the journal has to drop a delivery that was cancelled."""
        request = asked_of(delivery)
        return self._journal is not None and request is not None and request.for_good

    # Called under the lock.

    def _note_attempt(self, delivery: Delivery, outcome: Outcome) -> None:
        """Note the times of an attempt, and count its failure."""
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
        given_up = quarantined(subscription.handler.retry, delivery.earlier, outcome)
        letter = letter_of(delivery, receipt, (*delivery.earlier, outcome), given_up)
        if self._journal is not None:
            self._journal.expect(letter, delivery)
        self.dead_letters.add(letter, delivery)
        self.unseen.note_failed(delivery, outcome)
        return letter

    def note_untimed(self, subscriptions: Iterable[Subscription]) -> None:
        """Complete the statistics: short runs are sampled, and the last ones await a sample."""
        # A signal handler that may not wait for the lock gets the statistics as they are.
        with suppress(Tangled), self.lock:
            for subscription in subscriptions:
                subscription.note_untimed(self._short_s)

    # Called without the lock, because these run the user's code.

    def _log_failures(self, together: Sequence[Settled]) -> None:
        """Log failures with one error. There are several only if a call with a batch failed."""
        ids = [each.delivery.event_id for each in together if each.letter is not None]
        if (letter := together[0].letter) is not None:
            self._failures.tell(together[0].delivery, letter, ids)
            self.dead_letters.tell_dropped()

    def sum_up_failures(self) -> None:
        """Log at the end of the bus how many failures were not logged or not looked at."""
        self._failures.tell_the_rest()
        if summary := self.unseen.summary():
            log.warning("bus closed with %s", summary)

    def _try_again(self, delivery: Delivery, outcome: Outcome, wait_s: float | None) -> None:
        """Queue a retry; `wait_s` is None if Ctrl-C came before the backoff had answered."""
        if wait_s is None:
            wait_s = _wait_of(delivery, outcome)
        if self._journal is not None:
            self._journal.retried(delivery, wait_s)
        if (ears := self.listeners.retried) and (receipt := delivery.receipt) is not None:
            retried = Retried(delivery, receipt, len(delivery.earlier), outcome, wait_s)
            self.listeners.tell_of(ears, retried, delivery, receipt)
        delivery.subscription.lane.step_aside(delivery)
        self.wait(delivery, wait_s)

    def wait(self, delivery: Delivery, wait_s: float) -> None:
        """Have a delivery wait `wait_s` seconds for its next attempt."""
        if not self._retries.add(delivery, wait_s):
            self.settle([(delivery, cancelled(delivery))])


_Ended = TypeVar("_Ended")


def _of_one_error(
    ended: Sequence[_Ended] | None, parts: Callable[[_Ended], tuple[Delivery, Outcome]]
) -> Iterator[list[_Ended]]:
    """Divide ends of attempts into those that are next to each other and have the same error.

    Several ends are together if a batch handler's call failed as a whole. That is one fault, and
    one line in the log.
    """

    def of(each: _Ended) -> tuple[int, int, int]:
        delivery, outcome = parts(each)
        return id(delivery.subscription), len(delivery.earlier), id(outcome.error)

    for _, group in groupby(ended or (), of):
        yield list(group)


def _wait_of(delivery: Delivery, outcome: Outcome) -> float:
    handler = delivery.subscription.handler
    return wait_of(handler.name, handler.retry.backoff, len(delivery.earlier), outcome)


def _log_retries(pairs: Sequence[tuple[Delivery, Outcome]], waits: list[float]) -> None:
    """Ask for the wait before each next attempt, and log them in one line."""
    waits += [_wait_of(*each) for each in pairs]
    delivery, outcome = pairs[0]
    handler = delivery.subscription.handler
    attempt = len(delivery.earlier)
    soonest, latest = f"{min(waits):.2g}", f"{max(waits):.2g}"
    log.warning(
        "%s with %s: attempt %d of %d %s (%s); the next one in %s s",
        handler.name,
        shown_events([each.event_id for each, _ in pairs]),
        attempt,
        handler.retry.retries + 1,
        outcome.kind.value,
        summary_of(outcome.error),
        soonest if soonest == latest else f"{soonest} to {latest}",
        extra=about_delivery(delivery, attempt, outcome.worker_pid),
    )


def _guarded(interrupts: list[BaseException], function: Callable[..., object], *args: Any) -> None:
    """Call one of several functions. All of them must be called, even if another one raises."""
    try:
        function(*args)
    except Tangled:
        later(function, *args)
    except BaseException as error:  # noqa: BLE001 - the functions that follow must be called too
        _note_raised(interrupts, error)


def _note_raised(interrupts: list[BaseException], error: BaseException) -> None:
    if not (isinstance(error, KeyboardInterrupt) and in_main_thread()):
        try:
            log.error("procbus itself failed as it settled a delivery", exc_info=error)
        except BaseException as raised:  # noqa: BLE001 - the user's log handler, or Ctrl-C in it
            error = raised
    if isinstance(error, KeyboardInterrupt) and in_main_thread():
        interrupts.append(error)


def _release(delivery: Delivery) -> None:
    try:
        delivery.subscription.lane.release(delivery)
    except Tangled:
        later(_release, delivery)


class _After:
    """Consequences of deliveries settled together, to be carried out without the lock."""

    __slots__ = ("again", "blocks", "done", "gated", "raised", "receipts", "told")

    def __init__(self, done: list[Receipt]) -> None:
        #: Receipts that are done and have callbacks.
        self.done = done
        # Each other list is made when needed, which is rare.
        #: Deliveries that return their place at a gate.
        self.gated: list[Delivery] | None = None
        #: Shared memory of events that no longer need it.
        self.blocks: list[SharedBlock] | None = None
        #: Kept until the lock is free: releasing the last reference to an event runs its `__del__`.
        self.receipts: list[Receipt] | None = None
        #: Failures to report, deliveries to retry, and exceptions raised on the way.
        self.told: list[Settled] | None = None
        self.again: list[LastAttempt] | None = None
        self.raised: list[BaseException] | None = None

    def tell(self, settled: Settled) -> None:
        """Have the listeners called with the end of a delivery."""
        if self.told is None:
            self.told = []
        self.told.append(settled)

    def note(self, delivery: Delivery, receipt: Receipt) -> None:
        """Note that a delivery has ended; its receipt is done with the last one. Under the lock."""
        if receipt is not delivery:  # type: ignore[comparison-overlap] # a SoleReceipt is both
            if self.receipts is None:
                self.receipts = []
            self.receipts.append(receipt)
        if delivery.subscription.gated:
            if self.gated is None:
                self.gated = []
            self.gated.append(delivery)
        if receipt.block is not None:
            self._leave_block(receipt, delivery)
        receipt.left -= 1
        if receipt.callbacks is not None and not receipt.left:
            self.done.append(receipt)

    def _leave_block(self, receipt: Receipt, delivery: Delivery) -> None:
        """Note that a delivery no longer needs the event's shared memory."""
        block = receipt.block
        if block is not None and delivery.subscription.handler.kind == "cpu":
            block.users -= 1
            if not block.users:
                receipt.block = None
                if self.blocks is None:
                    self.blocks = []
                self.blocks.append(block)
