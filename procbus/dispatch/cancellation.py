# SPDX-License-Identifier: MIT
"""Cancelling: takes back a delivery that waits, or asks its running handler to stop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from math import inf
from time import monotonic, sleep

from procbus.core.cancelling import CALLED, ON_THE_WAY_S, STREAM_LEFT, CancelRequest
from procbus.core.delivery import Delivery, asked_of, cancelled
from procbus.core.errors import NoSuchHandler
from procbus.core.locks import Tangled, later
from procbus.core.outcome import Outcome
from procbus.core.receipt import Receipt
from procbus.dispatch.choosing import Choice
from procbus.dispatch.retry_queue import RetryQueue
from procbus.dispatch.settlement import Settlement
from procbus.routing.subscriptions import Subscriptions

#: Interval between two looks at deliveries that could not be taken back, in seconds; because a
#: delivery that is on its way to a worker arrives soon.
CANCEL_LOOK_S = 0.1


class Cancellation:
    """Cancels the deliveries of one bus. Thread-safe: each step on its dicts is one step.

    A delivery that no worker has begun is taken back, and settled in the thread that cancels. Any
    other delivery is asked to stop. The supervisor looks at these deliveries until they are
    settled, because a delivery may be on its way to a worker, or between two attempts. The
    supervisor ends handlers whose grace is over.

    Args:
        settlement: notes requests, and settles deliveries.
        retries: deliveries that wait for their next attempt.
        watch: has the supervisor look now; it returns False if there is none.
    """

    def __init__(
        self, settlement: Settlement, retries: RetryQueue, watch: Callable[[], bool]
    ) -> None:
        self._settlement = settlement
        self._retries = retries
        self._watch = watch
        #: Deliveries that were asked to stop, in the order of the requests.
        self._unsettled: dict[Delivery, None] = {}
        #: Deliveries that are to be cancelled if no worker has begun them.
        self._if_waiting: dict[Delivery, CancelRequest] = {}

    def cancel(self, delivery: Delivery, request: CancelRequest) -> None:
        """Cancel a delivery for a reason. The call returns at once. From any thread."""
        try:
            if not self._settlement.ask(delivery, request) or self.take_back(delivery):
                return
            delivery.subscription.lane.stop(delivery)
        except Tangled:
            later(self.cancel, delivery, request)
            return
        self._unsettled[delivery] = None
        if delivery.receipt is None or not self._watch():
            self._unsettled.pop(delivery, None)

    def cancel_waiting(self, deliveries: Iterable[Delivery], request: CancelRequest) -> None:
        """Cancel the deliveries that no worker has begun; the others go on. From any thread.

        The call is quick if the deliveries come in the order of their lanes.
        """
        waiting = list(deliveries)
        try:
            rest = self._cancel_waiting(waiting, request)
        except Tangled:
            later(self.cancel_waiting, waiting, request)
            return
        self._if_waiting.update(dict.fromkeys(rest, request))
        if rest and not self._watch():
            self._if_waiting.clear()

    def _cancel_waiting(
        self, deliveries: Iterable[Delivery], request: CancelRequest
    ) -> list[Delivery]:
        """Cancel deliveries that wait; return the ones that are on their way to a worker."""
        back: list[Delivery] = []
        early: list[Delivery] = []
        rest: list[Delivery] = []
        try:
            for each in deliveries:
                if self._retries.withdraw_first(each):
                    early.append(each)
                elif self._withdraw(each):
                    back.append(each)
                elif each.receipt is not None and not each.subscription.is_running(each):
                    rest.append(each)
        finally:
            for each in (*back, *early):
                self._settlement.ask(each, request)
            self._settlement.settle([(each, cancelled(each)) for each in back])
            if early:
                self._settlement.settle([(each, cancelled(each)) for each in early], queued=False)
        return rest

    def look(self, now: float) -> float:
        """Look at deliveries that were asked to stop. For the supervisor.

        Args:
            now: the time, in seconds of `time.monotonic()`.

        Returns:
            The time of the next look.
        """
        next_look = inf
        for delivery, request in list(self._if_waiting.items()):
            if self._cancel_waiting((delivery,), request):
                next_look = now + CANCEL_LOOK_S
            else:
                self._if_waiting.pop(delivery, None)
        for delivery in list(self._unsettled):
            if delivery.receipt is None or self.take_back(delivery):
                self._unsettled.pop(delivery, None)
                continue
            lane = delivery.subscription.lane
            lane.stop(delivery)
            ends_at = end_of_grace(delivery)
            if now >= ends_at:
                lane.cut_off(delivery)
            next_look = min(next_look, now + CANCEL_LOOK_S, ends_at if ends_at > now else inf)
        return next_look

    def take_back(
        self, delivery: Delivery, outcome_of: Callable[[Delivery], Outcome] = cancelled
    ) -> bool:
        """Cancel a delivery; False if a worker has begun it, or may have. From any thread.

        Args:
            delivery: the delivery.
            outcome_of: makes its outcome.
        """
        if self._retries.withdraw_first(delivery):
            self._settlement.settle([(delivery, outcome_of(delivery))], queued=False)
            return True
        found = self._withdraw(delivery)
        if found:
            self._settlement.settle([(delivery, outcome_of(delivery))])
        return found

    def _withdraw(self, delivery: Delivery) -> bool:
        lane = delivery.subscription.lane
        return self._retries.withdraw(delivery) or lane.withdraw(delivery)


class ChosenDeliveries:
    """Cancels the open deliveries of one bus that are chosen. Thread-safe: it keeps nothing.

    Args:
        cancellation: cancels each chosen delivery.
        subscriptions: of the bus.
        in_lanes: returns the open deliveries of all lanes; one on its way may be missing.
    """

    def __init__(
        self,
        cancellation: Cancellation,
        subscriptions: Subscriptions,
        in_lanes: Callable[[], list[Delivery]],
    ) -> None:
        self._cancellation = cancellation
        self._subscriptions = subscriptions
        self._in_lanes = in_lanes

    def cancel(self, choice: Choice) -> int:
        """Cancel the chosen deliveries; return the number that are cancelled, or will be.

        Raises:
            NoSuchHandler: the choice names one handler, which is not subscribed and has no
                deliveries.
        """
        request = CancelRequest(monotonic(), CALLED, for_good=True)
        known = any(choice.is_for(each.handler) for each in self._subscriptions.all())
        seen: set[Delivery] = set()
        count = 0
        while True:
            found = self._open()
            counts = Counter(each.subscription for each in found)
            missing = any(each.left > counts[each] for each in self._subscriptions.counted())
            chosen = [each for each in found if each not in seen and choice.takes(each)]
            seen.update(found)
            known = known or any(choice.is_for(each.handler) for each in found)
            count += sum([each.ask_to_cancel(request) for each in chosen])
            if not missing or monotonic() > request.at + ON_THE_WAY_S:
                break
            sleep(ON_THE_WAY_S / 50)
        if not known:
            raise NoSuchHandler(f"{choice.handler_name} is not subscribed to this bus")
        return count

    def cancel_waiting(self, wanted: Callable[[Receipt], bool]) -> None:
        """Cancel the deliveries of a stream that was left, as far as no worker has begun them.

        Args:
            wanted: whether the stream has published the event of a receipt.
        """
        found = [
            each
            for each in self._open()
            if (receipt := each.receipt) is not None and wanted(receipt)
        ]
        if found:
            request = CancelRequest(monotonic(), STREAM_LEFT, for_good=False)
            self._cancellation.cancel_waiting(found, request)

    def _open(self) -> list[Delivery]:
        """The open deliveries, each once and without the calls of executors."""
        held = [each for switch in self._subscriptions.switches() for each in switch.held()]
        found = dict.fromkeys([*self._in_lanes(), *held])
        return [each for each in found if each.subscription.cancel is not None]


def end_of_grace(delivery: Delivery) -> float:
    """Time by which a delivery's handler must end; infinite if no one asked to cancel it."""
    request = asked_of(delivery)
    return inf if request is None else request.at + delivery.handler.limits.grace
