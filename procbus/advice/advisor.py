# SPDX-License-Identifier: MIT
"""The advisor: looks at io handlers while they run, and logs when a handler has the wrong kind.

Its thread starts once a handler has run for some time, sleeps while none runs long, and ends with
the bus. Deliveries never depend on the advisor: if no thread can be started, the bus works without.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING, Protocol

from procbus.advice.advice import Advice, AdviceList, make_advice
from procbus.advice.judge import Judgement, SwitchPolicy, judge
from procbus.core.handler import DeclaredKind, need_of_process
from procbus.core.log import advice_log as log
from procbus.core.meter import SETTLED, Evidence, Machine
from procbus.core.own_thread import OwnThread
from procbus.core.subscription import Subscription
from procbus.routing.lane_switch import LaneSwitch
from procbus.system import exit_hooks
from procbus.system.no_fork import no_fork

if TYPE_CHECKING:
    from procbus.advice.gil_probe import GilProbe, ProbedThread

#: Interval between two looks while a handler is not known well, and once it is, in seconds.
ADVISOR_LOOK_S = 0.02
_SELDOM_S = 0.25
#: Maximum of threads in one look; because each costs some 15 us in which no other thread has the
#: GIL. If there are more threads, they take turns.
_AT_ONCE = 32
#: Interval between two judgements, in seconds.
_JUDGE_S = 0.25
#: Time without a long run after which the thread sleeps until it is stirred, in seconds.
_QUIET_S = 1.0
#: Number of events of a handler whose transport is estimated before it is advised to use "cpu".
_WEIGHED = 3
#: Maximum wait for the end of the thread, in seconds.
ADVISOR_JOIN_S = 5.0

#: Called with the last advice of each bus that is closed.
last_words: list[Callable[[AdviceList], object]] = []

#: The reason for which handlers leave threads, in words.
GIL_CAME_ON = "processes: an import has turned the GIL on, so threads would take turns at computing"

_LEVELS = {"warning": logging.WARNING, "info": logging.INFO}


class Advised(Protocol):
    """The lanes of a bus, as far as the advisor uses them."""

    def io_threads(self) -> Sequence[ProbedThread[Subscription]]:
        """The threads of the io lane."""

    def machine(self) -> Machine:
        """Resources of the machine that a handler could use."""


class Subscribed(Protocol):
    """The subscriptions of a bus, as far as the advisor uses them."""

    def all(self) -> Sequence[Subscription]:
        """The present subscriptions."""

    def switches(self) -> Sequence[LaneSwitch]:
        """The handlers that may move."""

    def reroute(self) -> None:
        """Have the bus use the new lane of a handler that moved."""


def _make_probe() -> GilProbe | None:
    with no_fork:
        from procbus.advice.gil_probe import GilProbe, is_available  # only now: it imports ctypes

    return GilProbe() if is_available() else None


class Advisor:
    """Advises on the handlers of one bus. All methods may be called from any thread.

    Args:
        subscriptions: the subscriptions of the bus.
        lanes: returns the lanes on which they run.
        look_s: interval between two looks at handlers that are not settled yet, in seconds.
        make_probe: makes the probe of the GIL; it returns None if there can be none.
        is_ending: whether the interpreter is ending.
        judge: judges which kind suits a handler.
    """

    def __init__(
        self,
        subscriptions: Subscribed,
        lanes: Callable[[], Advised],
        *,
        look_s: float = ADVISOR_LOOK_S,
        make_probe: Callable[[], GilProbe | None] = _make_probe,
        is_ending: Callable[[], bool] = lambda: exit_hooks.ending,
        judge: Callable[[Evidence, Machine], Judgement] = judge,
    ) -> None:
        self._judged = judge
        self._look_s = look_s
        self._make_probe = make_probe
        self._is_ending = is_ending
        self._subscriptions = subscriptions
        self._lanes = lanes
        self._policies: dict[LaneSwitch, SwitchPolicy] = {}
        #: Guards the start of the thread.
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()
        #: Set while there may be something to look at. It ends a long sleep, but never hastens the
        #: next look: when many handlers end at once, each of them sets it.
        self._stirred = threading.Event()
        #: Number of threads looked at so far.
        self._turn = 0
        self._probe: GilProbe | None = None
        self._can_look = True
        #: Numbers of the handlers that were logged; because one message for each is enough.
        self._logged: set[int] = set()

    def stir(self) -> None:
        """Wake the advisor, because handlers ran for long."""
        if self._thread is None:
            self._start()
        if not self._stirred.is_set():
            self._stirred.set()

    def advice(self) -> AdviceList:
        """The present advice on each handler."""
        machine = self._lanes().machine()
        return AdviceList(self._advice(each, machine) for each in self._subscriptions.all())

    def stop(self) -> None:
        """End the thread. Idempotent."""
        with self._lock:
            self._stopped.set()
            thread = self._thread
        self._stirred.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join(ADVISOR_JOIN_S)

    def sum_up(self) -> None:
        """Log the last advice, after all measurements. Call it after `stop`."""
        try:
            self._judge()
            for tell in last_words:
                tell(self.advice())
        except Exception:  # noqa: BLE001 - a bus that closes depends on no advice
            log.exception("procbus itself failed in its advisor: the last advice is not logged")

    def _start(self) -> None:
        with self._lock:
            if self._thread is not None or self._stopped.is_set():
                return
            thread = OwnThread("procbus-advisor", self._run)
            try:
                thread.start()
            except RuntimeError:  # the interpreter is ending
                self._stopped.set()
                return
            self._thread = thread

    # Methods of the advisor's own thread.

    def _run(self) -> None:
        judge_at = monotonic() + _JUDGE_S
        busy_at = monotonic()
        while not self._stopped.is_set():
            self._stirred.clear()
            try:
                wait_s = self._look()
                now = monotonic()
                if wait_s is not None:
                    busy_at = now
                if now >= judge_at:
                    judge_at = now + _JUDGE_S
                    self._judge()
            except Exception:  # noqa: BLE001 - nothing depends on it
                log.exception("procbus itself failed in its advisor: there is no further advice")
                return
            if now - busy_at > _QUIET_S:
                self._stirred.wait()
                busy_at = monotonic()
            else:
                self._stopped.wait(wait_s or _SELDOM_S)

    def _look(self) -> float | None:
        """Look at the long runs in progress; return the seconds until the next look.

        None if there was no long run.
        """
        # Runs that ended a moment ago count too: most likely this thread got the GIL because such a
        # run ended.
        since = monotonic() - _SELDOM_S
        at_work = [
            (thread, subject)
            for thread in self._lanes().io_threads()
            if (subject := thread.subject() or thread.finished(since)) is not None
        ]
        # Without a GIL there is nothing to look for: see `Meter.evidence`.
        if not at_work or not self._can_look or not self._lanes().machine().gil:
            return None
        if self._probe is None:
            self._probe = self._make_probe()
            if self._probe is None:
                self._can_look = False
                return None
        for subscription, found in self._probe.look(self._next_of([each for each, _ in at_work])):
            subscription.meter.note_look(found)
        looks = min(subscription.meter.looks for _, subscription in at_work)
        return self._look_s if looks < SETTLED else _SELDOM_S

    def _next_of(
        self, threads: Sequence[ProbedThread[Subscription]]
    ) -> Sequence[ProbedThread[Subscription]]:
        """Choose the threads to look at in this turn."""
        if len(threads) <= _AT_ONCE:
            return threads
        first, self._turn = self._turn, self._turn + _AT_ONCE
        return [threads[(first + index) % len(threads)] for index in range(_AT_ONCE)]

    def _judge(self) -> None:
        machine = self._lanes().machine()
        for subscription in self._subscriptions.all():
            advice = self._advice(subscription, machine)
            (subscription.calls or subscription).meter.fresh_s = 0.0
            number = subscription.handler.number
            if advice.level and number not in self._logged:
                self._logged.add(number)
                log.log(_LEVELS[advice.level], "%s (logged once)", advice.text)
        # While the interpreter ends, no worker may start any more.
        if not self._stopped.is_set() and not self._is_ending():
            self._move(machine)

    def _move(self, machine: Machine) -> None:
        """Move handlers of kind "auto" to the lane that suits them.

        Cpu handlers on threads of a bus with ``cpu="auto"`` move to processes once the GIL is on.
        """
        moved: list[str] = []
        for switch in self._subscriptions.switches():
            current = switch.current
            if current.handler.on_threads and machine.gil:
                switch.move(GIL_CAME_ON)
                moved.append(current.handler.name)
            if not switch.current.handler.auto:
                continue
            advice = self._advice(current, machine)
            judgement = Judgement(advice.kind, advice.gain)
            policy = self._policies.setdefault(switch, SwitchPolicy())
            if policy.moves(current.handler.kind, judgement, monotonic()):
                switch.move(advice.text)
                self._subscriptions.reroute()
                log.info("moved to the %s lane: %s", switch.current.handler.kind, advice.text)
        if moved:
            self._subscriptions.reroute()
            log.warning("%s, for later events of %s", GIL_CAME_ON, ", ".join(moved))

    def _advice(self, subscription: Subscription, machine: Machine) -> Advice:
        handler = subscription.handler
        runs = subscription.calls or subscription
        meter = runs.meter
        machine = replace(machine, cpu_on_threads=machine.cpu_on_threads or handler.on_threads)
        in_processes = handler.kind == "cpu" and not machine.cpu_on_threads
        queued = subscription.queued
        count = queued.count
        attempts = runs.succeeded + runs.failed + runs.retried
        evidence = replace(
            meter.evidence(
                handler.kind,
                handler.is_async,
                queued.total / count if count else 0.0,
                attempts,
                gil=machine.gil,
            ),
            ran=runs.ran.count,
            ran_s=runs.ran.total,
            needs_process=(in_processes and machine.cpu_auto)
            or (need_of_process(handler) not in ("", "timeout")),
        )
        judgement = self._judged(evidence, machine)
        if judgement.unweighed and meter.to_weigh <= 0:
            meter.to_weigh = _WEIGHED
        declared: DeclaredKind = "auto" if handler.auto else handler.kind
        return make_advice(handler.name, declared, evidence, judgement, machine, handler.batch)
