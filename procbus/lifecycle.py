# SPDX-License-Identifier: MIT
"""The life of a bus: waiting for pending deliveries, closing, the interpreter's end, a fork."""

from __future__ import annotations

import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Never

from procbus.core.context import running_context
from procbus.core.errors import BusClosed, JournalError, OptionError, ProcbusError
from procbus.core.log import log
from procbus.core.log_origin import leave_out_origins
from procbus.core.own_thread import run_in_thread
from procbus.core.subscription import Subscription
from procbus.core.validation import is_real, shown
from procbus.dispatch.admission import Admission
from procbus.dispatch.dispatcher import Dispatcher
from procbus.lanes.lanes import Lanes
from procbus.system import exit_hooks, sigterm
from procbus.system.sigterm import OnSigterm

if TYPE_CHECKING:
    from procbus.jobs.schedule import Schedules
    from procbus.journal.bus_journal import BusJournal
    from procbus.live.server import LiveServer

#: Maximum time for running handlers to finish after Ctrl-C, in seconds; after it they are stopped.
INTERRUPT_GRACE_S = 1.0
#: Interval at which a closing bus checks for SIGTERM, in seconds.
LIFECYCLE_LOOK_S = 0.1


class Lifecycle:
    """Ends one bus, once. Thread-safe: a second closer waits for the first.

    Args:
        admission: counts the pending deliveries.
        dispatcher: refuses events in a forked child.
        journal: the bus's journal; None for none.
        lanes: the lanes that it closes.
        subscriptions: returns the bus's subscriptions, which count deliveries that were not run.
        sum_up_failures: logs a summary of failures at the end.
        stop_advice: ends the advisor, so that no handler is moved or logged any more.
        last_advice: logs the last advice, once the closed lanes have passed on all measurements.
        on_sigterm: the bus's way to end on SIGTERM; None to ignore it.
        grace_s: maximum time for pending deliveries on SIGTERM, in seconds.
    """

    def __init__(
        self,
        admission: Admission,
        dispatcher: Dispatcher,
        journal: BusJournal | None,
        lanes: Lanes,
        subscriptions: Callable[[], Sequence[Subscription]],
        sum_up_failures: Callable[[], object],
        stop_advice: Callable[[], object],
        last_advice: Callable[[], object],
        on_sigterm: OnSigterm,
        grace_s: float,
    ) -> None:
        self._admission = admission
        self._dispatcher = dispatcher
        self._journal = journal
        self._lanes = lanes
        self._subscriptions = subscriptions
        self._sum_up_failures = sum_up_failures
        self._stop_advice = stop_advice
        self._last_advice = last_advice
        #: Guards the closing.
        self._closing = threading.RLock()
        self.closed = False
        #: Whether a thread is closing the bus.
        self.closing = False
        #: Lets the user look at the bus; set once, when the bus is made.
        self.live: LiveServer | None = None
        #: The schedules of the bus under one key: so threads that make them agree, without a lock.
        self._schedules: dict[str, Schedules] = {}
        self._pid = os.getpid()
        self.on_sigterm = on_sigterm
        self.grace_s = grace_s
        if on_sigterm is not None:
            sigterm.install(self)

    @property
    def schedules(self) -> Schedules | None:
        """The schedules of the bus, once there are any."""
        return self._schedules.get("all")

    def keep_schedules(self, made: Schedules) -> Schedules:
        """Keep the schedules of the bus; return the ones that it has, perhaps another thread's."""
        return self._schedules.setdefault("all", made)

    def check_open(self) -> None:
        """Raise BusClosed if the bus was closed, or belongs to another process."""
        self.check_process()
        if self.closed:
            raise BusClosed("the bus is closed and cannot be started again: make a new one")

    def check_process(self) -> None:
        """Raise BusClosed in a forked child."""
        if self._pid != os.getpid():
            self._refuse()

    def drain(self, timeout: float | None) -> bool:
        """Wait until nothing is pending; return whether that happened in time."""
        _check_timeout(timeout)
        self.check_process()
        self._check_outside("drain")
        self._dispatcher.resume()
        self._lanes.hurry()
        try:
            return self._admission.wait_empty(timeout)
        finally:
            self._lanes.stop_hurrying()

    def close(self, timeout: float | None = None, cancel: bool = False) -> None:
        """Refuse further events, finish or cancel pending ones, and end all workers. Idempotent."""
        _check_timeout(timeout)
        if self._pid != os.getpid():
            return  # a forked child: the parts belong to its parent
        self._check_outside("close")
        with self._closing:
            if self.closed:
                return
            if not cancel and sigterm.finish_by(self) == inf:
                self._resume()
            self._admission.refuse()
            if (schedules := self.schedules) is not None:
                schedules.stop()
            self._lanes.expect_close(cancel=cancel)
            self.closing = True
            try:
                self._end(timeout, cancel)
            except BaseException:  # most likely Ctrl-C or SIGTERM during the wait
                self._cut_short(cancel)
                raise

    def leave(self, error: BaseException | None) -> None:
        """Close at the end of a `with` block: finish, but after Ctrl-C (or SystemExit) cancel."""
        if error is None or isinstance(error, Exception) or sigterm.finish_by(self) < inf:
            self.close()
        else:
            self.close(INTERRUPT_GRACE_S, cancel=True)

    def close_at_exit(self) -> None:
        """Close as the interpreter ends: finish, but if Ctrl-C ends it cancel."""
        error = getattr(sys, "last_value", None)
        if sigterm.came():
            error = KeyboardInterrupt()
        self.leave(error if isinstance(error, KeyboardInterrupt) else None)

    def refuse(self) -> None:
        """Refuse further events, because SIGTERM came and the bus will be closed."""
        self._admission.refuse()

    def drop(self) -> None:
        """Close in another thread, because the user has dropped the bus.

        The garbage collector may call this anywhere, with any lock held, so it takes no lock.
        """
        sigterm.forget(self)
        if not self.closed and self._pid == os.getpid() and exit_hooks.watches(self):
            run_in_thread("procbus-dropped", self._close_dropped)

    def _close_dropped(self) -> None:
        try:
            self.close()
        except Exception:  # noqa: BLE001 - there is no caller to tell
            log.exception("procbus itself failed to close a bus that was dropped")

    def disown(self) -> None:
        """Refuse every event in a forked child, and touch no lock."""
        self._dispatcher.refuse(self._refuse)
        if self.live is not None:
            self.live.disown()

    def _end(self, timeout: float | None, cancel: bool) -> None:
        """Finish, or cancel deliveries that have not begun; after SIGTERM within its time limit."""
        if not cancel and self._wait_empty(timeout, sigterm.finish_by):
            self._finish()
        elif cancel:
            self._cancel(timeout)
        else:
            self._cancel(max(0.0, min(sigterm.stop_by(self) - monotonic(), INTERRUPT_GRACE_S)))

    def _cut_short(self, cancel: bool) -> None:
        """Go on after Ctrl-C or SIGTERM interrupted the closing; SIGTERM may leave some time."""
        if sigterm.stop_by(self) == inf:
            self._cancel(INTERRUPT_GRACE_S)
            return
        try:
            self._end(None, cancel)
        except BaseException:  # noqa: BLE001 - SIGTERM again; the caller raises the first exception
            self._cancel(0.0)

    def _wait_empty(self, timeout: float | None, by: Callable[[Lifecycle], float]) -> bool:
        """Wait until nothing is pending; return whether that happened in time.

        Args:
            timeout: maximum wait in seconds; None for as long as it takes.
            by: returns the time that SIGTERM leaves; SIGTERM may come in any thread during the
                wait.
        """
        end_at = inf if timeout is None else monotonic() + timeout
        while True:
            left_s = min(end_at, by(self)) - monotonic()
            if self._admission.wait_empty(max(0.0, min(left_s, LIFECYCLE_LOOK_S))):
                return True
            if left_s <= LIFECYCLE_LOOK_S:
                return False

    def _cancel(self, grace_s: float | None) -> None:
        before = self._cancelled()
        self._dispatcher.cancel_delayed()
        self._lanes.cancel()
        if not self._wait_empty(grace_s, sigterm.stop_by):
            self._lanes.kill()
        self._finish()
        self._account_for_cancelled(before)

    def _resume(self) -> None:
        """Resume the journal before closing; a bus that cannot read it closes all the same."""
        try:
            self._dispatcher.resume()
        except JournalError as error:
            log.error("%s", error)  # without a traceback: the message says everything
        except BaseException:  # most likely Ctrl-C during the wait for room
            self._admission.refuse()
            self._lanes.expect_close()
            self._cancel(INTERRUPT_GRACE_S)
            raise

    def _finish(self) -> None:
        self._stop_advice()
        if (schedules := self.schedules) is not None:
            schedules.stop()
            schedules.join()
        self._lanes.close()
        self._last_advice()
        if self.live is not None:
            self.live.close()
        if self._journal is not None:
            self._journal.close()
        self.closed = True
        exit_hooks.forget(self)
        leave_out_origins(self)
        sigterm.forget(self)
        self._sum_up_failures()

    def _cancelled(self) -> list[Counter[str]]:
        """The cancelled deliveries of each handler: not begun, and stopped.

        A call that was stopped is left out: its caller, who waits for it, is told.
        """
        counts: list[Counter[str]] = [Counter(), Counter()]
        for each in self._subscriptions():
            counts[0][each.handler.name] += each.cancelled
            if not each.answered:
                counts[1][each.handler.name] += each.stopped
        return counts

    def _account_for_cancelled(self, before: list[Counter[str]]) -> None:
        """Log the deliveries that were cancelled since then."""
        parts = []
        ways = "not run", "stopped in their handlers"
        for what, had, has in zip(ways, before, self._cancelled(), strict=True):
            if counts := has - had:
                names = ", ".join(f"{name} {count}" for name, count in counts.items())
                parts.append(f"{counts.total()} {what} ({names})")
        if parts:
            kept = ". They are in the journal, and run at the next start"
            log.warning(
                "bus closed with deliveries cancelled: %s%s",
                "; ".join(parts),
                kept if self._journal is not None else "",
            )

    def _refuse(self) -> Never:
        raise BusClosed(
            f"this bus belongs to process {self._pid}, and this is its forked child {os.getpid()}: "
            "make a new EventBus here, or publish in the parent"
        )

    def _check_outside(self, method: str) -> None:
        context = running_context()
        if context is not None and context.owner is self._dispatcher:
            raise ProcbusError(
                f"{method}() inside the handler {context.handler} would wait for that handler "
                "itself: call it outside"
            )


def _check_timeout(timeout: object) -> None:
    if timeout is not None and not is_real(timeout, -inf, inf):
        raise OptionError(
            f"timeout must be a number of seconds, or None for no limit, not {shown(timeout)}"
        )
