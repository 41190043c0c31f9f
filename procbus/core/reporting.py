# SPDX-License-Identifier: MIT
"""The reports of handlers that run in this process: on a thread, on the event loop."""

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
