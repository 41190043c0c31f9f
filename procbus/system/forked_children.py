# SPDX-License-Identifier: MIT
"""Children that user code forks in a thread of procbus, and that return into procbus.

Such a child is a copy of the thread that forked. The child would go on with that thread's work, on
queues and pipes that belong to its parent. So each thread of procbus that runs user code checks
afterwards whether it is such a copy. If so, it ends the child. A child that ends by itself never
gets to the check.
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
    """The function that the present thread wants called in each child that it forks."""

    forked: Callable[[], None] | None = None


_here = _Here()


def watch(forked: Callable[[], None]) -> None:
    """Have a function called in each child that the present thread forks from now on.

    Args:
        forked: notes that this is a child. The function must take no lock: in the child no other
            thread exists that could release one.
    """
    _here.forked = forked


def _after_fork_in_child() -> None:
    forked, _here.forked = _here.forked, None
    if forked is not None:
        forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def end_child(error: BaseException | None, place: str = "") -> Never:
    """End this process, a child that returned into procbus, the way Python ends a script.

    Exit hooks do not run, because they belong to the parent. `multiprocessing` does the same.

    Args:
        error: the error that ended the user's code; None if it returned.
        place: the place of the fork in words, for the log; empty if the caller logs it.
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
    """Print the message that a script with this error would print, and return its exit code."""
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
