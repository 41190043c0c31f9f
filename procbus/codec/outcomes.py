# SPDX-License-Identifier: MIT
"""Turns outcomes into plain data that outlives the process, and back.

Objects are pickled by value, so that you can read them without the script that defined their
classes. Objects of a class of the main script are pickled by name too, so that the same script gets
objects of its own class back.
"""

from __future__ import annotations

import contextlib
import pickle
from typing import Any

from procbus.codec.encoder import encode_alone, encode_by_name
from procbus.core.dead_letter import stack_of, summary_of
from procbus.core.errors import ProcbusError, WorkerTraceback
from procbus.core.outcome import Outcome, OutcomeKind
from procbus.core.user_objects import is_a, set_cause

#: An object pickled by name and by value. The first is None if it fails, or if no name is needed.
Pickles = tuple[bytes | None, bytes]


def plain_outcome(outcome: Outcome) -> dict[str, Any]:
    """Turn an outcome into plain data, without its value: a failed attempt has none."""
    error = outcome.error
    return {
        "kind": outcome.kind.value,
        "error": _pickles_of_error(error),
        "text": None if error is None else summary_of(error),
        "stack": stack_of(error),
        "started_at": outcome.started_at,
        "ended_at": outcome.ended_at,
        "worker_pid": outcome.worker_pid,
        "dropped_events": outcome.dropped_events,
    }


def _pickles_of_error(error: BaseException | None) -> Pickles | None:
    """Pickle an error; None if the error does not pickle or does not unpickle."""
    try:
        pickles = pickles_of(error)
        return pickles if is_a(unpickle(pickles), BaseException) else None
    except BaseException:  # noqa: BLE001 - the user's code; its text is saved all the same
        return None


def pickles_of(obj: Any) -> Pickles:
    """Pickle an object in both ways. Raises the errors of pickling."""
    by_value = encode_alone(obj)
    try:
        by_name = encode_by_name(obj)
    except BaseException:  # noqa: BLE001 - only the other way is left
        return None, by_value
    return by_name if b"__main__" in by_name else None, by_value


def unpickle(pickles: Pickles) -> Any:
    """Make the object again, with the class by name if this process has that name."""
    by_name, by_value = pickles
    if by_name is not None:
        # The main script may be another one now.
        with contextlib.suppress(BaseException):
            return pickle.loads(by_name)  # noqa: S301 - checked: the reader of the file checks its owner
    return pickle.loads(by_value)  # noqa: S301 - as above


def outcome_from(plain: dict[str, Any]) -> Outcome:
    """Make the outcome again. An error with a missing class becomes an error that says so."""
    return Outcome(
        OutcomeKind(plain["kind"]),
        None,
        _error(plain),
        plain["started_at"],
        plain["ended_at"],
        plain["worker_pid"],
        plain["dropped_events"],
    )


def _error(plain: dict[str, Any]) -> BaseException | None:
    """The error of an attempt, or an error that says that it is missing; with its stack."""
    if plain["text"] is None:
        return None
    error: BaseException = ProcbusError(plain["text"])
    if plain["error"] is not None:
        # Its class may be missing in this process.
        with contextlib.suppress(BaseException):
            error = unpickle(plain["error"])
    if plain["stack"] and not stack_of(error):
        set_cause(error, WorkerTraceback(plain["stack"]))
    return error
