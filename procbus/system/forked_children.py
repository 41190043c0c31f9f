# SPDX-License-Identifier: MIT
"""Children that user code forks in a thread of procbus, and that come back to procbus.

Such a child is a copy of that one thread: it would go on with the work of the thread, on queues and
pipes that are its parent's. So each thread of procbus that runs user code asks after it whether it
is such a copy, and then ends the child. A child that ends by itself never gets there.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Never

from procbus.core.log import log


class _Here(threading.local):
    """What the present thread wants to have called in a child that it forks."""

    forked: Callable[[], None] | None = None


_here = _Here()


def watch(forked: Callable[[], None]) -> None:
    """Have this called in each child that the present thread forks from now on.

    Args:
        forked: takes note of it. The child has no other thread, so it may take no lock.
    """
    _here.forked = forked


def _after_fork_in_child() -> None:
    forked, _here.forked = _here.forked, None
    if forked is not None:
        forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def end_child(error: BaseException | None, place: str = "") -> Never:
    """End this process, a child that has come back to procbus, as Python ends a script.

    Exit hooks do not run: they are those of the parent. `multiprocessing` has it so too.

    Args:
        error: with which the user's code ended; None where it returned.
        place: where that was, in words, for the log; empty where somebody else logs it.
    """
    code = 1
    try:
        if place:
            log.warning(
                "process %s, which was forked in %s, came back from there and was ended: "
                "end such a child with os._exit()",
                os.getpid(),
                place,
            )
        code = _exit_code(error)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    except BaseException:  # noqa: BLE001, S110 - streams may be closed; the child ends in any case
        pass
    finally:
        os._exit(code)


def _exit_code(error: BaseException | None) -> int:
    """Tell what a script that ends so tells, and give its exit code."""
    if error is None:
        return 0
    if isinstance(error, SystemExit):
        if error.code is None:
            return 0
        if isinstance(error.code, int):
            return error.code & 0xFF
        sys.stderr.write(f"{error.code}\n")
        return 1
    traceback.print_exception(error)
    return 1
