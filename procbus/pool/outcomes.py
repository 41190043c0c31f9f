# SPDX-License-Identifier: MIT
"""Turns a worker's reports into outcomes, with errors that name the delivery and the cause."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from typing import Any

from procbus.codec import fault_path
from procbus.codec.encoder import decode, encode_alone
from procbus.core.delivery import Delivery, error_to_tell
from procbus.core.errors import SerializationError, WorkerDied, WorkerTraceback
from procbus.core.frames import begin_at_the_user, useful_cause
from procbus.core.outcome import Outcome, OutcomeKind
from procbus.core.receipt import Receipt
from procbus.core.together import Together
from procbus.core.user_objects import is_a, named, set_cause
from procbus.core.validation import format_size
from procbus.pool.interface import Ended, WorkerGone
from procbus.pool.memory.shared_file import Form, Place, load
from procbus.pool.wire import End, Ending

_SUCCEEDED = OutcomeKind.SUCCEEDED
#: Beginnings of errors that say that a worker lacks a module, class or function.
_NOT_THERE = ("ModuleNotFoundError", "ImportError", "AttributeError")
#: Makes an `Outcome` without a check of its arguments: in half the time, for every delivery.
_new = tuple.__new__


def outcome_of(
    end: End,
    views: Callable[[Place], Sequence[memoryview]],
    delivery: Delivery,
    pid: int | None,
) -> Ended:
    """Make the outcome of a delivery that ended in a worker.

    Args:
        end: the report.
        views: returns the part of the result that is in shared memory.
        delivery: the delivery that ended.
        pid: process id of the worker.
    """
    started_at, ended_at, frame, alone, place, _ = end
    try:
        loaded = decode(frame) if place is None else load(Form(place.form), frame, views(place))
        # A block may also hold the content of a plain value, without pickle.
        plain = place is not None and place.form not in (Form.BUFFERS, Form.PICKLED)
        ending, value, extra = (Ending.SUCCEEDED, loaded, None) if alone or plain else tuple(loaded)
    except BaseException as error:  # noqa: BLE001 - decoding runs the user's code, and takes memory
        wrong = _result_fault(delivery, error)
        return Outcome(OutcomeKind.RAISED, None, wrong, started_at, ended_at, pid), None
    if ending == Ending.SUCCEEDED:
        return _new(Outcome, (_SUCCEEDED, value, None, started_at, ended_at, pid, 0)), extra
    failure = _error_of(Ending(ending), value, delivery)
    if ending == Ending.NO_EVENT:
        started_at = 0.0  # the handler never began
    return Outcome(OutcomeKind.RAISED, None, failure, started_at, ended_at, pid, extra), None


def _error_of(
    ending: Ending,
    value: tuple[bytes | None, str, str, str, str | None, tuple[str, ...]],
    delivery: Delivery,
) -> BaseException:
    travelling, summary, traceback, path, missing, kinds = value
    name, event_id = delivery.handler.name, delivery.event_id
    error: BaseException
    if ending is Ending.RAISED:
        raised = _exception_of(travelling)
        if raised is not None:
            set_cause(raised, WorkerTraceback(traceback))
            return error_to_tell(raised, delivery)
        error = SerializationError(
            f"{name} raised an exception with event #{event_id} that cannot travel back from its "
            f"worker: {summary}",
            raised=kinds,
        )
    elif ending is Ending.NO_HANDLER:
        error = SerializationError(
            f"cpu handler {name} could not be loaded in a worker process: {summary}. "
            + (
                "The worker imports handlers that are not defined in the main script: make sure "
                "that it can"
                if summary.startswith(_NOT_THERE)
                else "The error came while the worker imported the handler's module, or unpickled "
                "its variables"
            )
        )
    elif ending is Ending.NO_EVENT:
        path = _path_of_missing(delivery, missing)
        error = SerializationError(
            f"event #{event_id} could not be loaded in a worker process for {name}"
            f"{f' because of {path}' if path else ''}: {summary}. "
            + (
                "Its classes must be importable there, or defined in the main script"
                if summary.startswith(_NOT_THERE)
                else "The error came from code that unpickling runs, such as __setstate__"
            ),
            path,
        )
    else:
        error = SerializationError(
            f"the result of {name} for event #{event_id} cannot travel back from its worker"
            f"{f' because of {path}' if path else ''}: {summary}. Return and publish plain data, "
            'or use kind="io"',
            path,
        )
    if traceback:
        error.__cause__ = WorkerTraceback(traceback)
    return error


def _exception_of(data: bytes | None) -> BaseException | None:
    """The exception of a handler; None if it cannot be loaded in this process."""
    if data is None:
        return None
    try:
        error = decode(data)
    except BaseException:  # noqa: BLE001 - decoding runs the user's code
        return None
    return error if is_a(error, BaseException) else None


def _path_of_missing(delivery: Delivery, missing: str | None) -> str:
    """The path in the event to the object that the worker could not find, if its name is known."""
    if not missing or delivery.receipt is None:
        return ""
    name = missing.encode()

    def mentions(part: Any) -> bool:
        try:
            return name in encode_alone(part)
        except BaseException:  # noqa: BLE001 - another fault than the wanted one
            return False

    return fault_path.path_of_fault(delivery.receipt.event, "event", mentions)


def _result_fault(delivery: Delivery, error: BaseException) -> SerializationError:
    wrong = SerializationError(
        f"the result of {delivery.handler.name} for event #{delivery.event_id} could not be loaded "
        f"in this process: {named(error)}"
    )
    wrong.__cause__ = useful_cause(error)
    return wrong


def _only_one(event: object) -> object:
    """The only event of a call of a batch handler, or of a chunk of `bus.map`; else the event."""
    # The type, because a class pattern would run code of the user's object.
    events: object = event
    if type(event) is Together:
        events = event.events
    if type(events) is list and len(events) == 1:
        return events[0]
    return event


def cannot_travel(delivery: Delivery, receipt: Receipt, error: BaseException) -> Outcome:
    """Make the outcome of a delivery whose event or handler cannot be sent to a worker."""
    if not is_a(error, SerializationError):
        name, event = delivery.handler.name, receipt.event
        answered = delivery.subscription.answered
        match event:
            case (tuple() as args, dict() as kwargs) if answered:
                fault = fault_path.call_fault(name, args, kwargs, error)
            case _:
                blamed = _only_one(event) if answered else event
                fault = fault_path.event_fault(name, delivery.event_id, blamed, error)
        fault.__cause__ = useful_cause(error)
        error = fault
    begin_at_the_user(error)
    return Outcome(OutcomeKind.RAISED, error=error)


def died(
    delivery: Delivery, gone: WorkerGone, ran_s: float, rss: int = 0, out_of_memory: bool = False
) -> Outcome:
    """Make the outcome of the delivery that a worker was running when it died.

    Args:
        delivery: the delivery that the worker was running.
        gone: the facts of the worker's death.
        ran_s: time for which the delivery had been running, in seconds.
        rss: last reading of the worker's memory, in bytes; 0 if there was none.
        out_of_memory: whether the signs say that the kernel killed it for lack of memory.
    """
    how, progress = describe_exit(gone.exit_code), gone.last_words.progress
    at = "" if progress is None else f" at {progress}"
    if out_of_memory:
        how += ", most likely by the kernel's out-of-memory killer"
    if rss:
        how += f"; it had {format_size(rss)} when it was last measured"
    error = WorkerDied(
        f"worker {gone.pid} died{at} ({how}) while it ran {delivery.handler.name} with event "
        f"#{delivery.event_id}, after {ran_s:.3g} s in the handler",
        handler=delivery.handler.name,
        event_id=delivery.event_id,
        pid=gone.pid,
        exit_code=gone.exit_code,
        ran_s=ran_s,
        out_of_memory=out_of_memory,
        progress=progress,
    )
    ended_at = gone.noticed_at
    return Outcome(OutcomeKind.WORKER_DIED, None, error, ended_at - ran_s, ended_at, gone.pid)


def describe_exit(exit_code: int | None) -> str:
    """Describe the end of a process: by the name of the signal, or the exit code."""
    if exit_code is None:
        return "exit code unknown"
    if exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        return f"killed by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"killed by signal {-exit_code}"
