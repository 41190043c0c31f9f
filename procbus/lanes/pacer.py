# SPDX-License-Identifier: MIT
"""Holds the deliveries of a handler with a rate, in front of the handler's lane, until they may go.

To the bus a pacer is the lane of the handler's deliveries. A delivery that it holds is in no queue
of a lane: it holds no worker, and no place of ``concurrency=``.

The algorithm is the sliding window log: a run may begin if fewer than `count` runs began in the
period that ends now. A token bucket that is full at the beginning lets up to twice as many runs
pass in one period: the tokens in the bucket, and the tokens that flow in meanwhile. A log of the
beginnings never lets too many runs pass, in any window. See "An alternative approach to rate
limiting" (Figma, 2017) for both.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Hashable
from contextvars import Context, copy_context
from math import inf
from time import monotonic

from procbus.core.delivery import Delivery, cancelled
from procbus.core.flow import Flow
from procbus.core.handler import Handler
from procbus.core.locks import Lock, Tangled, later
from procbus.core.progress import Progress
from procbus.core.subscription import Lane

#: Margin by which a window is longer than the rate's period, as a share of the period, and its
#: maximum in seconds; because a handler looks at the clock somewhat later than its worker, which
#: notes the beginning.
_MARGIN, _MOST_MARGIN_S = 0.01, 0.05
#: Maximum interval between two looks at deliveries that have passed and may not have begun, in
#: seconds; because a worker does not tell when it begins.
_LOOK_S = 0.02
#: Minimum number of windows before unneeded windows are dropped; because each key has a window, and
#: a scraper meets any number of hosts.
_FEW_WINDOWS = 100


class _Window:
    """The runs of one key that began in the last period, and the held deliveries of that key."""

    __slots__ = ("again", "began", "held", "look_at", "passed", "span_s")

    def __init__(self, span_s: float) -> None:
        self.span_s = span_s
        #: A heap of the times at which runs began.
        self.began: list[float] = []
        #: Deliveries that have passed and have not ended, each with the time when it passed.
        self.passed: dict[Delivery, float] = {}
        #: Deliveries that are held, in order. A delivery that waits for its first attempt has its
        #: publisher's context with it.
        self.held: deque[tuple[Delivery, Context | None]] = deque()
        #: Number of held deliveries that wait for their next attempt. They are the first ones.
        self.again = 0
        #: The time of the next look at this window; infinite if none is planned.
        self.look_at = inf

    def runs(self, now: float) -> int:
        """Number of runs that count now: they began in the last period, or may begin now."""
        began = self.began
        while began and began[0] + self.span_s <= now:
            heapq.heappop(began)
        return len(began) + len(self.passed)

    def next_look(self, now: float) -> float:
        """The time at which a held delivery may pass, or at which more may be known."""
        begun = self.began[0] + self.span_s if self.began else inf
        first = next(iter(self.passed.values()), inf)  # the one that passed first
        return min(begun, max(first + self.span_s, now + _LOOK_S))


class Pacer:
    """The deliveries of one handler with a rate. Thread-safe.

    The lock `_lock` guards the windows and the count of held deliveries. It is held for
    microseconds, and never while the lane, the settlement or the user's code is called.

    Args:
        handler: the handler; it has a rate.
        lane: the lane that its deliveries run in.
        flow: settles deliveries.
        clock: the clock that the rate goes by.
        wake: makes sure that `let_pass` is called soon, because a delivery is due before the next
            planned look.
        at_once: whether the lane runs a delivery before its `put` returns. Then the run begins at
            the `put`; otherwise the worker notes the time.
        exact: whether handlers look at the same clock at the same time, so that no margin is
            needed: a test turns the clock.
    """

    def __init__(
        self,
        handler: Handler,
        lane: Lane,
        flow: Flow,
        *,
        clock: Callable[[], float] = monotonic,
        wake: Callable[[], object],
        at_once: bool = False,
        exact: bool = False,
    ) -> None:
        assert handler.rate is not None
        self._rate = rate = handler.rate
        margin_s = 0.0 if exact else min(_MARGIN * rate.period_s, _MOST_MARGIN_S)
        self._span_s = rate.period_s + margin_s
        self._lane = lane
        self._flow = flow
        self._now = clock
        self._wake = wake
        self._at_once = at_once
        self._lock = Lock()
        self._windows: dict[Hashable, _Window] = {}
        #: Number of windows from which on unneeded windows are dropped.
        self._tidy_at = _FEW_WINDOWS
        #: A heap of the windows with held deliveries, by the time of the next look at each: a look
        #: takes as long with 10,000 keys as with ten. An entry counts only if its window has the
        #: same time. The second number tells entries of one time apart.
        self._looks: list[tuple[float, int, _Window]] = []
        self._numbers = itertools.count()
        #: The time of the next look.
        self._look_at = inf
        self._cancelled = False

    # Methods of a lane, for the bus.

    def put(self, delivery: Delivery) -> None:
        """Let a delivery pass, or hold it."""
        if self._lets_pass(delivery, first=True):
            self._lane.put(delivery)

    def put_again(self, delivery: Delivery) -> None:
        """Let a delivery pass for its next attempt, which counts as a run too; or hold it."""
        if self._lets_pass(delivery, first=False):
            self._lane.put_again(delivery)

    def release(self, delivery: Delivery) -> None:
        """Note when the run of a settled delivery began."""
        failure = delivery.failure
        self._note_began(delivery, failure.started_at if failure else delivery.started_at)
        self._lane.release(delivery)

    def step_aside(self, delivery: Delivery) -> None:
        """Note when the last attempt of a delivery began, which now waits for its next attempt."""
        self._note_began(delivery, delivery.earlier[-1].started_at if delivery.earlier else 0.0)
        self._lane.step_aside(delivery)

    def stir(self) -> None:
        """Have the advisor evaluate the measurements."""
        self._lane.stir()

    def is_running(self, delivery: Delivery) -> bool:
        """Whether a worker is running this delivery now."""
        return self._lane.is_running(delivery)

    def progress_of(self, delivery: Delivery) -> Progress | None:
        """The last report of a delivery's handler."""
        return self._lane.progress_of(delivery)

    def ran_s(self, delivery: Delivery) -> float | None:
        """Time that its handler has been running, in seconds; None if it is not running."""
        return self._lane.ran_s(delivery)

    def withdraw(self, delivery: Delivery) -> bool:
        """Take a delivery back for good; False if a worker has begun it."""
        with self._lock:
            window = self._windows.get(_key_of(delivery))
            if window is not None:
                for entry in window.held:
                    if entry[0] is delivery:
                        window.held.remove(entry)
                        window.again -= entry[1] is None
                        delivery.subscription.held -= 1
                        return True
        return self._lane.withdraw(delivery)

    def stop(self, delivery: Delivery) -> None:
        """Ask the running handler of a cancelled delivery to stop."""
        self._lane.stop(delivery)

    def cut_off(self, delivery: Delivery) -> None:
        """Settle a cancelled delivery whose handler goes on, unless its worker has to be killed."""
        self._lane.cut_off(delivery)

    # Methods for the lanes.

    def let_pass(self, now: float) -> float:
        """Let all held deliveries pass that the rate allows now.

        Args:
            now: the time of the clock.

        Returns:
            The time of the next look that is needed.
        """
        if self._look_at > now:
            return self._look_at
        with self._lock:
            due = self._locked_take_due(now)
        going: list[tuple[Delivery, Context | None]] = []
        try:
            self._learn_beginnings(due, now)
        finally:
            with self._lock:
                for window in due:
                    while window.held and window.runs(now) < self._rate.count:
                        entry = window.held.popleft()
                        window.again -= entry[1] is None
                        window.passed[entry[0]] = now
                        going.append(entry)
                    if window.held:
                        self._locked_plan(window, window.next_look(now))
            for delivery, context in going:
                self._send(delivery, context)
        return self._look_at

    def _locked_take_due(self, now: float) -> list[_Window]:
        """Take off the heap the windows whose look is due."""
        due: list[_Window] = []
        looks = self._looks
        while looks and (looks[0][0] <= now or looks[0][0] != looks[0][2].look_at):
            look_at, _, window = heapq.heappop(looks)
            if look_at == window.look_at:
                window.look_at = inf
                due.append(window)
        self._look_at = looks[0][0] if looks else inf
        return due

    def _locked_plan(self, window: _Window, at: float) -> bool:
        """Plan a look at a window; return whether this look is the next of all looks."""
        if at >= window.look_at:
            return False
        window.look_at = at
        heapq.heappush(self._looks, (at, next(self._numbers), window))
        is_next = at < self._look_at
        if is_next:
            self._look_at = at
        return is_next

    def _learn_beginnings(self, windows: list[_Window], now: float) -> None:
        """Ask the lane when runs began that passed a whole window ago and still go on."""
        with self._lock:
            unknown = [
                (window, delivery)
                for window in windows
                if window.held
                for delivery, passed_at in list(window.passed.items())
                if passed_at + window.span_s <= now
            ]
        for window, delivery in unknown:
            ran_s = self._lane.ran_s(delivery)
            if ran_s:  # 0 while the worker loads the handler, which may take long
                began_at = self._now() - ran_s
                with self._lock:
                    if window.passed.pop(delivery, None) is not None:
                        heapq.heappush(window.began, began_at)

    def due_at(self) -> float:
        """The time of the next look; infinite if nothing is held."""
        return self._look_at

    @property
    def keys(self) -> int:
        """Number of keys whose runs are remembered."""
        return len(self._windows)

    def open_deliveries(self) -> list[Delivery]:
        """The deliveries that are held."""
        with self._lock:
            return [
                entry[0] for window in list(self._windows.values()) for entry in list(window.held)
            ]

    def cancel(self) -> None:
        """Settle all held deliveries as cancelled, and hold none from now on."""
        with self._lock:
            self._cancelled = True
            held = [
                entry[0] for window in list(self._windows.values()) for entry in list(window.held)
            ]
            for delivery in held:
                delivery.subscription.held -= 1
            self._windows.clear()
            self._looks.clear()
            self._look_at = inf
        self._flow.settle([(delivery, cancelled(delivery)) for delivery in held])

    # Private methods.

    def _lets_pass(self, delivery: Delivery, *, first: bool) -> bool:
        """Whether a delivery may go now; if not, it is held, and a look at it is planned."""
        with self._lock:
            if self._cancelled:
                return True
            now = self._now()
            window = self._windows.get(_key_of(delivery)) or self._locked_add(delivery, now)
            window.passed.pop(delivery, None)  # its publisher was interrupted, and calls again
            if not window.held and window.runs(now) < self._rate.count:
                window.passed[delivery] = now
                return True
            self._locked_hold(delivery, window, first=first)
            wakes = self._locked_plan(window, window.next_look(now))
        if wakes:
            self._wake()
        return False

    def _locked_add(self, delivery: Delivery, now: float) -> _Window:
        """Make the window of a delivery's key, and drop windows that are not needed any more."""
        if len(self._windows) >= self._tidy_at:
            for key, window in list(self._windows.items()):
                window.runs(now)  # this drops the runs that no longer count
                # No call, after which others might use this window.
                if not (window.began or window.passed or window.held):
                    del self._windows[key]
            self._tidy_at = max(_FEW_WINDOWS, 2 * len(self._windows))
        return self._windows.setdefault(_key_of(delivery), _Window(self._span_s))

    def _locked_hold(self, delivery: Delivery, window: _Window, *, first: bool) -> None:
        subscription = delivery.subscription
        if first:
            window.held.append((delivery, copy_context()))
            subscription.apart += 1
            delivery.queued = True
        else:  # it is older than all deliveries that wait for their first attempt
            window.held.insert(window.again, (delivery, None))
            window.again += 1
        subscription.held += 1

    def _note_began(self, delivery: Delivery, started_at: float) -> None:
        with self._lock:
            window = self._windows.get(_key_of(delivery))
            passed_at = None if window is None else window.passed.pop(delivery, None)
            if window is None or passed_at is None:
                return
            if started_at:
                heapq.heappush(window.began, passed_at if self._at_once else started_at)
            due_at = window.began[0] + window.span_s if window.began else self._now()
            wakes = bool(window.held) and self._locked_plan(window, due_at)
        if wakes:
            self._wake()

    def _send(self, delivery: Delivery, context: Context | None) -> None:
        subscription = delivery.subscription
        try:
            if context is None:
                self._lane.put_again(delivery)
            else:
                context.run(self._lane.put, delivery)
        except Tangled:
            later(self._send, delivery, context)
            return
        with self._lock:
            subscription.held -= 1
            if context is not None:
                subscription.apart -= 1


def _key_of(delivery: Delivery) -> Hashable:
    """The key that the rate counts a delivery under; None without `rate_key=`."""
    return getattr(delivery, "rate_key", None)
