# SPDX-License-Identifier: MIT
"""Waiting for the bus inside a handler: meanwhile the handler lends its thread or slot to others.

Without that, handlers that wait for other handlers would take every thread, and all would wait for
ever.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeVar

#: Maximum of threads of a lane that wait for the bus in a handler while other threads have their
#: places.
MOST_LENT = 1_000

ReceiptT = TypeVar("ReceiptT", contravariant=True)
"""The receipt of an event, which knows this module."""


class HandlerRunner(Protocol[ReceiptT]):
    """A thread of the io lane, or the event loop: it runs handlers of this process."""

    def pause(
        self, receipt: ReceiptT | None, instead: str, *, blocks: bool
    ) -> Callable[[], object]:
        """Lend the place of the calling handler to others; return the function that takes it back.

        Args:
            receipt: the receipt that the handler waits for, if it waits for one.
            instead: advice for a thread that must not block.
            blocks: whether the thread blocks; else it runs an event loop meanwhile.

        Raises:
            ProcbusError: the wait would never end.
        """

    def check(self, receipt: ReceiptT) -> None:
        """Refuse a wait of the calling handler for this receipt, if it would never end.

        Raises:
            ProcbusError: the wait would never end.
        """


class _RunnerHere(threading.local):
    runner: HandlerRunner[Any] | None = None


#: The runner for which the calling thread runs handlers; None if it runs none.
here = _RunnerHere()


def occupy(runner: HandlerRunner[Any]) -> None:
    """Mark the calling thread as one that runs handlers for this runner, from now on."""
    here.runner = runner


def pause(receipt: object, instead: str, *, blocks: bool = True) -> Callable[[], object]:
    """Lend the place of the handler of the calling thread; elsewhere do nothing."""
    runner = here.runner
    return _nothing if runner is None else runner.pause(receipt, instead, blocks=blocks)


def refuse_endless(receipts: Callable[[], Iterable[object]]) -> None:
    """Refuse a wait of the calling handler for all of these, if it would never end.

    Raises:
        ProcbusError: the wait would never end.
    """
    runner = here.runner
    if runner is not None:
        for receipt in receipts():
            runner.check(receipt)


def _leave() -> None:
    """Forget the runner in a forked child: it and its waiters belong to the parent."""
    here.runner = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave)


def _nothing() -> None:
    """The calling thread runs no handlers, so there is no place to take back."""
