# SPDX-License-Identifier: MIT
"""The last step of publishing: deliveries get into their lanes, even if a thread is interrupted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextvars import copy_context

from procbus.core.delivery import Delivery, LastAttempt, asked_of, cancelled
from procbus.core.errors import ProcbusError
from procbus.core.locks import Tangled, later
from procbus.core.outcome import Outcome, OutcomeKind
from procbus.dispatch.admission import Admission
from procbus.dispatch.retry_queue import Due
from procbus.dispatch.settlement import Settlement


class SendOff:
    """Sends deliveries into their lanes. Thread-safe; it has no state.

    Args:
        admission: counts in deliveries that could not be counted in before.
        settlement: settles deliveries that never get into their lanes.
    """

    def __init__(self, admission: Admission, settlement: Settlement) -> None:
        self._admission = admission
        self._settlement = settlement
        self._listeners = settlement.listeners
        self._delays = settlement.delays

    def put_each(self, queued: Sequence[Delivery], due: Due | None = None) -> None:
        """Queue deliveries, or keep them until they are due."""
        if due is not None:
            for delivery in queued:
                self._delays.hold(delivery, due)
            return
        heard = self._listeners.publishing
        for delivery in queued:
            if heard:
                self.put(delivery)
            else:
                delivery.subscription.put(delivery)

    def put(self, delivery: Delivery) -> None:
        """Tell listeners of a delivery, and queue it.

        This happens in a copy of the publisher's context: a context variable that a listener sets
        reaches the handler, and nothing else.
        """
        copy_context().run(self._tell_and_put, delivery)

    def _tell_and_put(self, delivery: Delivery) -> None:
        self._listeners.tell_accepted(delivery)
        if asked_of(delivery) is not None:  # a listener cancelled it: its job is cancelled
            self.settle_unqueued([(delivery, cancelled(delivery))])
            return
        try:
            delivery.subscription.put(delivery)
        except Tangled:  # not raised, so that listeners are told once
            later(copy_context().run, self._put_later, delivery)

    def _put_later(self, delivery: Delivery) -> None:
        if not getattr(delivery, "queued", False):
            delivery.subscription.put(delivery)

    def announce(self, delivery: Delivery) -> None:
        """Tell listeners of a delivery that does not enter its lane now."""
        if self._listeners.publishing:
            copy_context().run(self._listeners.tell_accepted, delivery)

    def send(
        self, queued: Sequence[Delivery], failed: Sequence[LastAttempt], due: Due | None = None
    ) -> None:
        """Queue the deliveries of an event, and settle the ones that failed at once.

        Args:
            queued: deliveries for lanes.
            failed: deliveries that failed at once.
            due: when the former are due; None for now.
        """
        try:
            self.put_each(queued, due)
        except BaseException as error:
            if not self.rescue(error, queued, failed, due):
                raise
            return
        if failed:
            self.settle_unqueued(failed)

    def rescue(
        self,
        error: BaseException,
        queued: Sequence[Delivery],
        failed: Sequence[LastAttempt],
        due: Due | None = None,
    ) -> bool:
        """Rescue deliveries that were counted in before their publishing was interrupted.

        Deliveries that are in their lanes run.

        Returns:
            Whether the other deliveries get into their lanes in a moment. If not, they are
            cancelled.
        """
        if isinstance(error, Tangled):
            self.send_later(queued, failed, True, due)
            return True
        self.cancel_unqueued(queued)
        self.settle_unqueued(failed)
        return False

    def send_later(
        self,
        queued: Sequence[Delivery],
        failed: Sequence[LastAttempt],
        entered: bool,
        due: Due | None = None,
    ) -> None:
        """Have another thread finish the sending, because this thread is tangled up with another.

        Args:
            queued: deliveries for lanes; some may be in their lanes already.
            failed: deliveries that failed at once.
            entered: whether all are counted in.
            due: when they are due; None for now.
        """
        later(self._send_rest, queued, failed, entered, due)

    def _send_rest(
        self,
        queued: Sequence[Delivery],
        failed: Sequence[LastAttempt],
        entered: bool,
        due: Due | None,
    ) -> None:
        if not entered:
            count = len(queued) + len(failed)
            try:
                self._admission.enter(count, True)
            except ProcbusError as error:
                self._admission.leave(-count)  # settling them will count them out
                self.cancel_unqueued([*queued, *(delivery for delivery, _ in failed)], error)
                return
        self.send([each for each in queued if not self._is_sent(each)], failed, due)

    def _is_sent(self, delivery: Delivery) -> bool:
        """Whether a delivery is or was in its lane, or is kept until it is due."""
        return getattr(delivery, "queued", False) or self._delays.holds(delivery)

    def cancel_unqueued(
        self, deliveries: Iterable[Delivery], error: BaseException | None = None
    ) -> None:
        """Settle the given deliveries that never got into their lanes."""
        left = [each for each in deliveries if not self._is_sent(each)]
        self.settle_unqueued(
            [
                (
                    each,
                    Outcome(
                        OutcomeKind.CANCELLED,
                        error=error
                        or ProcbusError(f"publishing event #{each.event_id} was interrupted"),
                    ),
                )
                for each in left
            ]
        )

    def settle_unqueued(self, settled: Sequence[LastAttempt]) -> None:
        """Settle deliveries that are in no lane."""
        if settled:
            try:
                with self._settlement.lock:
                    for delivery, _ in settled:
                        delivery.subscription.unqueued += 1
            except Tangled:
                later(self.settle_unqueued, settled)
                return
            self._settlement.settle(settled, queued=False)
