# SPDX-License-Identifier: MIT
"""Tracebacks that begin at the user's code: without the frames of procbus that lead there."""

from __future__ import annotations

from types import TracebackType

from procbus.core.user_objects import (
    cause_of,
    context_of,
    set_traceback,
    traceback_of,
)

#: Modules that procbus calls between its own code and the user's.
_BETWEEN = frozenset(["cloudpickle.cloudpickle", "contextlib", "copyreg", "pickle", "procbus"])
#: The demo's handlers are written as a user writes them.
_AS_A_USER = "procbus.demo."


def users_part(trace: TracebackType | None) -> TracebackType | None:
    """The part of a traceback from the user's first frame on; None if it has none."""
    while trace is not None and is_ours(trace.tb_frame.f_globals.get("__name__")):
        trace = trace.tb_next
    return trace


def begin_at_the_user(error: BaseException) -> None:
    """Cut the traceback of an exception that the user's code raised."""
    set_traceback(error, users_part(traceback_of(error)))


def useful_cause(error: BaseException) -> BaseException | None:
    """Choose the cause of an error whose message already repeats the message of another error.

    Args:
        error: the other error, in most cases of pickle.

    Returns:
        The first of `error` and its causes with a frame of the user's code, such as a frame of
        `__getstate__`. Its traceback begins at that frame. None if none of them has such a frame.
    """
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        if users_part(traceback_of(found)) is not None:
            begin_at_the_user(found)
            return found
        found = cause_of(found) or context_of(found)
    return None


def is_ours(module: object) -> bool:
    """Whether a module is one of procbus, or one that procbus calls between itself and the user."""
    if module in _BETWEEN:
        return True
    if type(module) is not str:
        return False
    return module.startswith("procbus.") and not module.startswith(_AS_A_USER)
