# SPDX-License-Identifier: MIT
"""The queue of one lane: by priority, then first in, first out, behind each handler's gate.

Its size is bounded by the admission of the bus: only admitted deliveries get here.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Sequence
from math import inf
from typing import Protocol

from procbus.core.delivery import Delivery
from procbus.core.locks import Lock, acquire
from procbus.core.subscription import SMALL, Subscription
from procbus.core.user_key import UserKey
from procbus.lanes.gate import Gate

#: Threshold of the average run time below which a handler is short, in seconds; because waking
#: another thread takes longer than such a run.
SHORT_S = 100e-6
#: The same where takers compute abreast, while fewer are awake than may do so, in seconds.
TINY_S = 4e-6
#: Maximum time that a lookout waits for a delivery to be taken, in seconds.
LOOKOUT_S = 0.005
_NO_LOOKOUT, _LOOKOUT_CALLED, _LOOKOUT_STANDS = range(3)


class Taker(Protocol):
    """A thread that takes deliveries, as far as the queue uses it."""

    #: Whether it is in a handler that computes. Only the queue writes it, under its lock.
    computes: bool


class _Gates(dict[Subscription, Gate]):
    """The gates of subscriptions that have one, from their first delivery on."""

    def __missing__(self, subscription: Subscription) -> Gate:
        # In one step, because otherwise a signal handler that publishes meanwhile would make
        # another gate.
        return self.setdefault(subscription, Gate(subscription.handler))


class _Buckets(dict[int, deque[Delivery]]):
    """The ready deliveries of each priority, from its first delivery on.

    Deliveries that are tried again have buckets of their own: they go before all others of their
    priority, in the order in which their next attempts came due.
    """

    def __init__(self) -> None:
        super().__init__({0: deque()})
        #: The deliveries of each priority that are tried again.
        self._again: dict[int, deque[Delivery]] = {}
        #: Whether the deliveries are hidden from takers, because the lane is paused.
        self.held = False
        #: All buckets, those to be taken from first in front.
        self.all = [self[0]]
        #: The same; empty while the deliveries are hidden.
        self.in_order = self.all

    def __missing__(self, priority: int) -> deque[Delivery]:
        bucket = self.setdefault(priority, deque())
        self._sort()
        return bucket

    def again(self, priority: int) -> deque[Delivery]:
        """The deliveries of a priority that are tried again."""
        bucket = self._again.get(priority)
        if bucket is None:
            bucket = self._again.setdefault(priority, deque())
            self._sort()
        return bucket

    def of(self, delivery: Delivery) -> deque[Delivery]:
        """The bucket for a delivery that was taken, and that goes back in front."""
        priority = delivery.subscription.priority
        return self.again(priority) if delivery.earlier else self[priority]

    def _sort(self) -> None:
        count = -1
        while count != len(self) + len(self._again):  # a signal handler has added one meanwhile
            count = len(self) + len(self._again)
            buckets: list[deque[Delivery]] = []
            for priority in sorted({*self, *self._again}, reverse=True):
                for each in (self._again, self):
                    if priority in each:
                        buckets.append(each[priority])
            self.all = buckets
            self.hold(self.held)

    def hold(self, held: bool) -> None:
        """Show the deliveries to takers, or hide them."""
        self.held = held
        self.in_order = [] if held else self.all


class LaneQueue:
    """Deliveries that wait for a worker of one lane.

    The lock `lock` belongs to the lane. It guards the queue, the gates of the lane's subscriptions,
    and whatever else the lane keeps beside them. It is held for microseconds, and never while
    blocking. Methods whose names start with `locked_` are called with the lock held; the others
    take it.

    Waking a thread costs more than running a short handler, so no thread is woken in vain. `put`
    wakes one taker if the queue was empty. A taker wakes the next one if it leaves deliveries
    behind, unless its own handler is short and it will be back before the other is awake. Then one
    idle taker stands lookout, in case that handler is not short this time.

    If takers compute abreast, handlers that compute all the time get as many takers as there are
    cores. A taker that comes back from its handler goes to sleep if each core has such a handler,
    and the next delivery is for such a handler too. If no computing taker comes back for a while,
    the lookout takes that delivery.

    Args:
        abreast: maximum number of takers that compute at the same time: 1 with the GIL, and one for
            each core without it. As many takers are woken for short handlers, unless those take
            hardly any time.
    """

    def __init__(self, abreast: int = 1) -> None:
        self.abreast = abreast
        self._short_s = SHORT_S if abreast == 1 else TINY_S
        #: Number of takers. Each came with `fresh`, and the lane counts it out at its end.
        self.takers = 0
        self.lock = Lock()
        self._try_lock = self.lock.acquire
        self._unlock = self.lock.release
        self.closed = False
        self.cancelled = False
        #: Number of waiting takers; a locked lock for each taker that was not woken yet, the latest
        #: last; and whether a taker was woken and has not arrived yet.
        self.waiting = 0
        self._sleepers: list[threading.Lock] = []
        self._waking = False
        #: Whether a delivery waits and no taker is idle, so that more workers are needed. The lane
        #: resets it.
        self.starved = False
        #: Whether a wake-up found no sleeper since a taker last looked.
        self.missed = False
        #: Whether an idle taker stands lookout, or was woken to stand lookout; and the number of
        #: deliveries taken.
        self._lookout = _NO_LOOKOUT
        self._taken = 0
        #: Number of takers that are in a handler that computes.
        self._computing = 0
        self._ready = _Buckets()
        self._gates = _Gates()

    def put(self, delivery: Delivery) -> bool:
        """Queue a delivery behind its gate, and make sure that a taker takes it.

        Returns:
            False, without queueing it, if the queue was cleared for good.
        """
        subscription = delivery.subscription
        gated = subscription.gated
        if gated and type(delivery.key) is UserKey:
            self._accept(delivery)
        try:
            if not self._try_lock(False):
                acquire(self.lock)
            since = subscription.published_since + 1
            if since > SMALL:
                subscription.published_sum += since
                since = 0
            subscription.published_since = since
            delivery.queued = True
            bucket = self._ready[subscription.priority]
            cancelled = self.cancelled
            if cancelled:
                if gated:
                    self._gates[subscription].abandon()  # a new gate, which clear() has missed
            elif not gated or self._gates[subscription].admit(delivery):
                # Checked before the delivery is queued: code that interrupts this may queue another
                # delivery behind this one, and wakes no taker for that other delivery.
                if bucket:
                    bucket.append(delivery)
                else:
                    bucket.append(delivery)
                    self.locked_wake()
        except BaseException:  # Ctrl-C, or the thread is tangled up
            if self.lock.owned():
                self._locked_interrupted((delivery,))
            raise
        self._unlock()
        return not cancelled

    def put_all(self, deliveries: Sequence[Delivery]) -> bool:
        """Queue deliveries of one subscription without a gate, as `put` does."""
        subscription, count = deliveries[0].subscription, len(deliveries)
        try:
            if not self._try_lock(False):
                acquire(self.lock)
            subscription.published_sum += count
            for delivery in deliveries:
                delivery.queued = True
            bucket = self._ready[subscription.priority]
            cancelled = self.cancelled
            if not cancelled:
                if bucket:
                    bucket.extend(deliveries)
                else:
                    bucket.extend(deliveries)
                    self.locked_wake()
        except BaseException:  # as in `put`
            if self.lock.owned():
                self._locked_interrupted(deliveries)
            raise
        self._unlock()
        return not cancelled

    def _accept(self, delivery: Delivery) -> None:
        """Find deliveries with an equal key, without a lock: comparing keys is user code."""
        gate = self._gates[delivery.subscription]
        while True:
            token = gate.token_for(delivery.key)
            with self.lock:
                accepted = gate.accept(delivery, token)
            if accepted:
                # All share one object, so that none is freed under the lock, where its `__del__`
                # would run.
                delivery.key = token.key
                return

    def _locked_interrupted(self, deliveries: Sequence[Delivery]) -> None:
        """Tidy up after Ctrl-C in queueing: all deliveries are in the queue, or none ever was."""
        first = deliveries[0]
        subscription = first.subscription
        gate, bucket = self._gates.get(subscription), self._ready[subscription.priority]
        begun = getattr(first, "queued", False)
        if self.cancelled:
            for delivery in deliveries:
                delivery.queued = False
        elif first not in bucket and (gate is None or first not in gate.waiting()):
            for delivery in deliveries:
                delivery.queued = False
                if gate is not None:
                    gate.refuse(delivery)
            if begun:
                count = len(deliveries)
                subscription.published_sum -= count
        self.locked_wake()
        self._unlock()

    def release(self, delivery: Delivery) -> int:
        """Open the gate of a settled delivery for deliveries behind it; return how many may go."""
        subscription = delivery.subscription
        if not subscription.gated:
            return 0
        with self.lock:
            go = self._gates[subscription].release(delivery)
            self._ready[subscription.priority].extend(go)
            if go:
                self.locked_wake()
        return len(go)

    def step_aside(self, delivery: Delivery) -> int:
        """Let other deliveries run while one waits for its next attempt; return how many may go."""
        subscription = delivery.subscription
        if not subscription.gated:
            return 0
        with self.lock:
            go = self._gates[subscription].step_aside(delivery)
            self._ready[subscription.priority].extend(go)
            if go:
                self.locked_wake()
        return len(go)

    def put_again(self, delivery: Delivery) -> bool:
        """Queue a delivery for its next attempt.

        It is older than all deliveries of its priority that wait for their first attempt, and goes
        before them; but behind the ones that were queued for their next attempt before it.

        Returns:
            False, without queueing it, if the queue was cleared for good.
        """
        subscription = delivery.subscription
        with self.lock:
            if self.cancelled:
                return False
            if not subscription.gated or self._gates[subscription].step_back(delivery):
                self._ready.again(subscription.priority).append(delivery)
                self.locked_wake()
        return True

    def take(
        self, *, fresh: bool = False, wait: bool = True, taker: Taker | None = None
    ) -> Delivery | None:
        """Take the next delivery, after waiting for one; None once the queue is closed and empty.

        Args:
            fresh: whether the taker was just started, because the queue was starved.
            wait: whether to wait for a delivery; otherwise None if none is ready.
            taker: the thread that takes, where takers compute abreast.
        """
        sleeps = False
        if not self._try_lock(False):
            acquire(self.lock)
        try:
            if taker is not None:
                self.locked_returned(taker)
                sleeps = not fresh and self._cores_are_taken()
            if fresh:
                self.takers += 1
                self._arrived()
            while sleeps or (delivery := self.locked_take()) is None:
                if self.closed or not wait:
                    return None
                self.missed = False
                if not sleeps:
                    if self._lookout == _LOOKOUT_CALLED:
                        self._lookout = _NO_LOOKOUT
                    if self.seems_ready():
                        continue
                self.locked_wait(None)
                self._arrived()
                sleeps = False
            self._taken = self._taken + 1 & 0xFF
            computes = False
            if taker is not None and delivery.subscription.meter.computes:
                computes = taker.computes = True
                self._computing += 1
            if any(self._ready.in_order):
                average_s = delivery.subscription.average_s
                if average_s is None or (
                    average_s > self._short_s
                    and (
                        self._computing < self.abreast
                        if computes
                        else average_s > SHORT_S or self.takers - self.waiting < self.abreast
                    )
                ):
                    if self._lookout == _LOOKOUT_CALLED:  # it is to take a delivery instead
                        self._lookout = _NO_LOOKOUT
                    self.locked_wake()
                elif self._lookout == _NO_LOOKOUT:
                    self._lookout = _LOOKOUT_CALLED
                    self.locked_wake()
            return delivery
        finally:
            self._unlock()

    def locked_returned(self, taker: Taker) -> None:
        """Note that a taker's handler has ended or waits, so that the taker does not compute."""
        if taker.computes:
            taker.computes = False
            self._computing -= 1

    def _cores_are_taken(self) -> bool:
        """Whether the next delivery is for a handler that computes, and no core is free for it."""
        if self._computing < self.abreast or self.closed:
            return False
        first = next((bucket[0] for bucket in self._ready.in_order if bucket), None)
        return first is not None and first.subscription.meter.computes

    def take_ready(self, most: int) -> list[Delivery]:
        """Take up to `most` ready deliveries, for the only taker of this queue."""
        taken: list[Delivery] = []
        if not self._try_lock(False):
            acquire(self.lock)
        try:
            for bucket in self._ready.in_order:
                while bucket and len(taken) < most:
                    taken.append(bucket.popleft())
            return taken
        finally:
            self._unlock()

    def _arrived(self) -> None:
        """Note that a taker was woken. If it has to stand lookout, it waits until it is needed."""
        self._waking = False
        if self._lookout != _LOOKOUT_CALLED:
            return
        self._lookout = _LOOKOUT_STANDS
        taken = -1
        while taken != self._taken and any(self._ready.in_order) and not self.closed:
            taken = self._taken
            if self.locked_wait(LOOKOUT_S):
                break  # the lookout is needed now
        self._lookout = _NO_LOOKOUT

    def locked_wait(self, timeout: float | None) -> bool:
        """Wait to be woken, at most `timeout` seconds; return whether it was.

        Set `missed` to False before you check whether to wait: this returns at once if a wake-up
        came since.

        A condition variable would wake the thread that has waited longest. This method wakes the
        latest thread, which is still in the caches of the processor together with its worker. That
        saves 20 us of the 100 us to a result.
        """
        sleeper = threading.Lock()
        sleeper.acquire()
        self._sleepers.append(sleeper)
        if self.missed:  # code that interrupted this thread wanted to wake a taker
            self._sleepers.remove(sleeper)
            self.missed = False
            return True
        self.waiting += 1
        self._unlock()
        try:
            sleeper.acquire(timeout=-1 if timeout is None else timeout)
        finally:
            if not self._try_lock(False):
                acquire(self.lock)
            self.waiting -= 1
            self._waking = False
            woken = sleeper not in self._sleepers
            if not woken:
                self._sleepers.remove(sleeper)
        return woken

    def locked_wake(self) -> None:
        """Wake one taker, unless one is on its way. If no taker waits, the queue is starved."""
        if self._waking:
            return
        if self._sleepers:
            self._waking = True
            sleeper = self._sleepers[-1]
            del self._sleepers[-1]  # no call here, because Ctrl-C might come after one
            sleeper.release()
        else:
            self.starved = self.missed = True

    def locked_started(self) -> None:
        """Note that the lane starts a taker because the queue was starved."""
        self.starved = False
        self._waking = True

    def locked_not_started(self) -> None:
        """Note that the taker could not be started after all."""
        self.starved = True
        self._waking = False

    def locked_take(self) -> Delivery | None:
        """Take the next delivery if one is ready."""
        for bucket in self._ready.in_order:
            if bucket:
                return bucket.popleft()
        return None

    def locked_take_batch(
        self, budget_s: float, most: int, encoding_s: float = inf
    ) -> list[Delivery]:
        """Take as many deliveries as should run for about `budget_s` seconds together.

        Each delivery counts with its handler's average run time, and with the time for encoding its
        event and for its result. A delivery whose handler has never run, or takes longer than the
        budget, goes alone.

        Args:
            budget_s: work in the batch, in seconds.
            most: maximum number of deliveries.
            encoding_s: maximum time for encoding the events, in seconds, unless a single one takes
                longer.
        """
        batch: list[Delivery] = []
        subscription: Subscription | None = None
        cost_s = inf
        for bucket in self._ready.in_order:
            while bucket and most > 0:
                if bucket[0].subscription is not subscription:
                    subscription = bucket[0].subscription
                    cost_s = inf
                    if subscription.average_s is not None:
                        cost_s = subscription.before_s + subscription.expected_s()
                if batch and (cost_s > budget_s or subscription.before_s > encoding_s):
                    return batch
                budget_s -= cost_s
                encoding_s -= subscription.before_s
                most -= 1
                batch.append(bucket.popleft())
        return batch

    def locked_put_back(self, deliveries: Iterable[Delivery]) -> None:
        """Put deliveries that were taken but not begun back to the front, in their order."""
        for delivery in reversed(list(deliveries)):
            self._ready.of(delivery).appendleft(delivery)
        self.locked_wake()

    def locked_withdraw(self, delivery: Delivery) -> bool:
        """Take one delivery out, if it is ready or waits at its gate, and was not taken yet."""
        for bucket in self._ready.all:
            if delivery in bucket:  # checked first: the error of remove() would contain its repr
                bucket.remove(delivery)
                return True
        gate = self._gates.get(delivery.subscription)
        # A delivery that is not queued yet may have a key that only user code can look up.
        was_queued = getattr(delivery, "queued", False)
        return gate is not None and was_queued and gate.withdraw(delivery)

    def withdraw(self, delivery: Delivery) -> bool:
        """Take one delivery out, see `locked_withdraw`."""
        with self.lock:
            return self.locked_withdraw(delivery)

    def seems_ready(self) -> bool:
        """Whether a delivery is ready for a worker: a quick check without the lock."""
        return any(self._ready.in_order)

    def locked_ready(self) -> int:
        """Number of deliveries that are ready for a worker."""
        return sum(map(len, self._ready.in_order))

    @property
    def held(self) -> bool:
        """Whether the queue gives nothing out, because its lane is paused."""
        return self._ready.held

    def locked_hold(self) -> None:
        """Give nothing out until `locked_go_on`. Deliveries are accepted, and wait. Idempotent."""
        self._ready.hold(True)

    def locked_go_on(self) -> None:
        """Give out deliveries again. Idempotent."""
        self._ready.hold(False)
        if any(self._ready.in_order):
            self.locked_wake()

    def hold(self) -> None:
        """Give nothing out until `go_on`, see `locked_hold`."""
        with self.lock:
            self.locked_hold()

    def go_on(self) -> None:
        """Give out deliveries again, see `locked_go_on`."""
        with self.lock:
            self.locked_go_on()

    def depth(self) -> int:
        """Number of waiting deliveries, ready ones and ones behind a gate."""
        with self.lock:
            ready = sum(map(len, self._ready.all))
            return ready + sum(gate.behind for gate in list(self._gates.values()))

    def waiting_deliveries(self) -> list[Delivery]:
        """The waiting deliveries: ready ones in order, then ones behind a gate."""
        with self.lock:
            ready = [each for bucket in self._ready.all for each in bucket]
            return ready + [each for gate in list(self._gates.values()) for each in gate.waiting()]

    def clear_ready(self) -> list[Delivery]:
        """Take out all ready deliveries; deliveries at a gate move up later."""
        with self.lock:
            out: list[Delivery] = []
            while (delivery := self.locked_take()) is not None:
                out.append(delivery)
            return out

    def clear(self) -> list[Delivery]:
        """Take out all deliveries for good, ready or not, because a cancelled bus runs nothing."""
        with self.lock:
            self.cancelled = True
            out: list[Delivery] = []
            for bucket in self._ready.all:
                out.extend(bucket)
                bucket.clear()
            for gate in list(self._gates.values()):
                out.extend(gate.abandon())
            return out

    def close(self) -> None:
        """Release takers once no delivery is ready. Idempotent."""
        with self.lock:
            self.closed = True
            while self._sleepers:
                self._sleepers.pop().release()
