# SPDX-License-Identifier: MIT
"""The runs of handlers in this process, on a thread or the event loop, and their reports."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from procbus.core.progress import MOST, Amount, Progress, bytes_of, checked

if TYPE_CHECKING:
    from procbus.core.delivery import Delivery


#: Makes a `Progress` without checking arguments: half of the time.
_new = tuple.__new__


class RunHere:
    """The last report of one run of a handler in this process.

    Args:
        attempt: number of the attempt.
    """

    __slots__ = ("__weakref__", "attempt", "last")

    def __init__(self, attempt: int) -> None:
        self.attempt = attempt
        #: Replaced as a whole, because other threads read it.
        self.last: Progress | None = None

    def __call__(self, done: Amount, total: Amount | None, note: str) -> None:
        """Check and note a report."""
        if not (type(done) is type(total) is int and 0 <= done <= MOST and 0 <= total <= MOST):
            done, total = checked(done, total)
        if note != "":
            note = bytes_of(note).decode()
        self.last = _new(Progress, (done, total, note, monotonic()))


class RunOf:
    """The present run of a delivery in this process, as its handler's `current()` sees it.

    Args:
        delivery: the delivery.
    """

    __slots__ = ("_delivery",)

    def __init__(self, delivery: Delivery) -> None:
        self._delivery = delivery

    def begin_reports(self) -> RunHere:
        """Make the function that notes reports of the run."""
        return reporting_here(self._delivery, len(self._delivery.earlier) + 1)

    def cancelled(self) -> bool:
        """Whether the delivery is to be cancelled."""
        return getattr(self._delivery, "asked", None) is not None

    def remaining_s(self) -> float | None:
        """Seconds until the run's time limit; None without a limit."""
        delivery = self._delivery
        limit_s = delivery.handler.limits.timeout
        if limit_s is None:
            return None
        ran_s = delivery.subscription.lane.ran_s(delivery)
        return max(0.0, limit_s - (ran_s or 0.0))


#: The runs that have reported, by delivery. The context of the run keeps its entry alive.
_here: WeakValueDictionary[Delivery, RunHere] = WeakValueDictionary()


def reporting_here(delivery: Delivery, attempt: int) -> RunHere:
    """Begin the reports of a run in this process; keep the return value as long as it runs."""
    run = RunHere(attempt)
    _here[delivery] = run
    return run


def reported_here(delivery: Delivery) -> Progress | None:
    """The last report of the present attempt, if that runs in this process. From any thread."""
    run = _here.get(delivery)
    if run is None or run.attempt != len(delivery.earlier) + 1:
        return None
    return run.last
