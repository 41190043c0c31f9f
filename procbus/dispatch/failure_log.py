# SPDX-License-Identifier: MIT
"""Failures in the log: one line for each, a traceback for the first of a kind, no floods."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from time import monotonic

from procbus.core.dead_letter import DeadLetter, event_in, summary_of
from procbus.core.delivery import Delivery
from procbus.core.errors import HandlerExited, WorkerTraceback
from procbus.core.flood import ERROR_RATE, TELL_S, Allowance
from procbus.core.locks import Lock
from procbus.core.log import log
from procbus.core.log_origin import Origin, about
from procbus.core.text import shown_events
from procbus.core.user_objects import (
    cause_of,
    class_name,
    is_a,
    standard_text_of,
    text_of,
    traceback_of,
)

#: Maximum of kinds that are remembered; failures of further kinds are logged without a traceback.
MOST_KINDS = 1_000

#: Maximum number of lines at once, before `ERROR_RATE` limits them; because a failed batch should
#: still be logged event by event, in about a megabyte.
FAILURE_BURST = 10_000

#: Handler, class of the error, and the place that raised it.
_Kind = tuple[str, str, str]


class FailureLog:
    """Logs the deliveries of one bus that failed for good. Thread-safe.

    The lock `_lock` guards the fields. The lock is held for microseconds; no user code runs and no
    other lock is taken meanwhile.

    Args:
        clock: replaces `time.monotonic`.
    """

    def __init__(self, *, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._lock = Lock()
        #: For each kind the event whose failure was logged with its traceback.
        self._first: dict[_Kind, int] = {}
        self._lines = Allowance(ERROR_RATE, FAILURE_BURST)
        #: Failures without a line of their own since the last report, by handler.
        self._left_out: dict[str, int] = {}
        self._told_at = self._clock()

    def tell(self, delivery: Delivery, letter: DeadLetter, ids: Sequence[int]) -> None:
        """Log a failure, unless there are too many at the moment.

        Args:
            delivery: the delivery that failed.
            letter: its dead letter.
            ids: ids of the events that failed with this error: several if a call with a batch
                failed.
        """
        error = letter.outcome.error
        assert error is not None
        handler = letter.handler
        kind = handler, class_name(error), raised_at(error)
        now = self._clock()
        with self._lock:
            first = self._first.get(kind)
            if first is None and len(self._first) < MOST_KINDS:
                self._first[kind] = letter.event_id
                admitted, with_traceback = True, True
            else:
                admitted, with_traceback = self._lines.take(now), False
            if not admitted:
                self._left_out[handler] = self._left_out.get(handler, 0) + len(ids)
            due = self._left_out and now - self._told_at > TELL_S
        if due:
            self.tell_the_rest()
        if not admitted:
            return
        text = _text_of(delivery, letter, ids)
        origin = _origin_of(letter)
        if with_traceback:
            _log_with_traceback(text, error, origin)
        elif first is not None and first not in ids:
            log.error("%s; its traceback is as with event #%d", text, first, extra=about(origin))
        else:
            log.error("%s", text, extra=about(origin))

    def tell_the_rest(self) -> None:
        """Log in one line the number of failures that have had no line of their own so far."""
        with self._lock:
            left_out, self._left_out = self._left_out, {}
            self._told_at = self._clock()
        if left_out:
            of = ", ".join(
                f"{name} {count:,}"
                for name, count in sorted(left_out.items(), key=lambda item: -item[1])
            )
            log.error(
                "%s more failures have no line of their own, since there were more than %d a "
                "second: %s",
                f"{sum(left_out.values()):,}",
                ERROR_RATE,
                of,
            )


def raised_at(error: BaseException) -> str:
    """The line of code that raised an error: file, number and function; empty if not known."""
    cause = cause_of(error)
    if cause is not None and is_a(error, HandlerExited):
        error, cause = cause, cause_of(cause)
    if cause is not None and is_a(cause, WorkerTraceback):
        text = str(cause.args[0])
        begin = text.rfind('\n  File "') + 1
        return text[begin : text.find("\n", begin)] if begin else ""
    where = traceback_of(error)
    if where is None:
        return ""
    while where.tb_next is not None:
        where = where.tb_next
    code = where.tb_frame.f_code
    return f"{code.co_filename}:{where.tb_lineno}:{code.co_name}"


def _text_of(delivery: Delivery, letter: DeadLetter, ids: Sequence[int]) -> str:
    outcome = letter.outcome
    text = f"{letter.handler} failed with {shown_events(ids, event_in(letter))}"
    text += f": {outcome.kind.value}"
    if delivery.earlier:
        text += f", at the last of {len(letter.outcomes)} attempts"
    if letter.quarantined:
        text += "; it is not tried again, since it killed its worker each time"
    if outcome.dropped_events:
        dropped = outcome.dropped_events
        text += f" ({dropped} {'event' if dropped == 1 else 'events'} dropped)"
    return f"{text}: {summary_of(outcome.error)}"


def _origin_of(letter: DeadLetter) -> Origin:
    """The origin that the log record of a failure gets, as the log records of its handler do."""
    pid = letter.outcome.worker_pid or os.getpid()
    return Origin(pid, letter.handler, letter.event_id, letter.attempts, letter.topic)


def _log_with_traceback(text: str, error: BaseException, origin: Origin) -> None:
    where = traceback_of(error)
    if standard_text_of(error, where) is None:  # the log's formatter would fail as well
        log.error("%s\n%s", text, text_of(error, where), extra=about(origin))
    else:
        # As a tuple, because `logging` would ask the exception itself whether it is true.
        log.error("%s", text, exc_info=(type(error), error, where), extra=about(origin))
