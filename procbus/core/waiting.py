# SPDX-License-Identifier: MIT
"""Waiting for the bus inside a handler: the thread or the slot of that handler is lent meanwhile.

Handlers that wait for what other handlers do would else take all places where those could run, and
all would wait for ever.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

ReceiptT = TypeVar("ReceiptT", contravariant=True)
"""The receipt of an event, which knows this module."""


class HandlerRunner(Protocol[ReceiptT]):
    """A thread of the io lane, or the event loop: it runs handlers of this process."""

    def pause(
        self, receipt: ReceiptT | None, instead: str, *, blocks: bool
    ) -> Callable[[], object]:
        """Lend the place of the calling handler to others; give what takes it back.

        Args:
            receipt: what the handler waits for, where that is one receipt.
            instead: what to do where the thread must not block.
            blocks: whether the thread blocks; else it runs an event loop meanwhile.

        Raises:
            ProcbusError: the wait would never end.
        """


class _RunnerHere(threading.local):
    runner: HandlerRunner[Any] | None = None


#: For whom the calling thread runs handlers; None where it runs none.
here = _RunnerHere()


def occupy(runner: HandlerRunner[Any]) -> None:
    """From now on the calling thread runs handlers for this runner."""
    here.runner = runner


def pause(receipt: object, instead: str, *, blocks: bool = True) -> Callable[[], object]:
    """As `HandlerRunner.pause`, of the calling thread; elsewhere it does nothing."""
    runner = here.runner
    return _nothing if runner is None else runner.pause(receipt, instead, blocks=blocks)


def _leave() -> None:
    """In a forked child: the runner is of the parent, and so is all that waits for its place."""
    here.runner = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave)


def _nothing() -> None:
    """The calling thread runs no handlers."""
