# SPDX-License-Identifier: MIT
"""The error of a run that went over a limit: it names the limit, and the place in the code."""

import traceback
from functools import partial
from typing import Any

import pytest

from procbus.core.delivery import Delivery
from procbus.core.errors import HandlerTimeout
from procbus.core.handler import make_handler
from procbus.core.outcome import OutcomeKind
from procbus.core.progress import Progress
from procbus.core.subscription import Subscription
from procbus.lanes.attempt import NO_STACK, Verdict, memory_error, timeout_error
from procbus.pool.interface import At, LastWords, WorkerGone
from procbus.system.footprint import Footprint
from tests.parts import FakeLane, delivery_to, handle

MIB = 1 << 20
STACK = 'Stack (most recent call last):\n  File "a.py", line 3, in resize'


def delivery(**options: Any) -> Delivery:
    handler = make_handler(handle, "t", kind="cpu", name="resize", **options)
    return delivery_to(Subscription(handler, FakeLane()), event_id=7)


def test_timeout_names_handler_event_limit_and_reaction() -> None:
    error = timeout_error(delivery(timeout=1.5), 1.61803, STACK, "its worker was killed")

    assert str(error) == (
        "resize with event #7 ran longer than its timeout of 1.5 s and its worker was killed after "
        "1.62 s"
    )
    assert (error.handler, error.event_id, error.limit_s) == ("resize", 7, 1.5)
    assert error.stack == STACK
    assert error.__notes__ == [STACK]


def test_a_limit_of_memory_tells_the_peak_too() -> None:
    error = memory_error(delivery(max_memory="100 MiB"), 2.0, Footprint(150 * MIB), STACK)

    assert str(error) == (
        "resize with event #7 had 150 MiB, above its max_memory of 100 MiB, and its worker was "
        "killed after 2 s"
    )
    assert (error.limit_bytes, error.peak_bytes) == (100 * MIB, 150 * MIB)
    assert error.stack == STACK
    assert "in resize" in "".join(traceback.format_exception(error))


def test_error_says_if_no_stack_could_be_read() -> None:
    errors = (
        timeout_error(delivery(timeout=1), 1.0, "", "was cancelled"),
        memory_error(delivery(max_memory="100 MiB"), 1.0, Footprint(150 * MIB), ""),
    )
    for error in errors:
        assert error.stack == ""
        assert error.__notes__ == [NO_STACK]


# The verdict.


def verdict(at: At = (3, 4, 100.0), ended_at: float = 105.0) -> Verdict:
    error_of = partial(timeout_error, delivery(timeout=1), 1.0, STACK, "its worker was killed")
    return Verdict(at, OutcomeKind.TIMED_OUT, error_of, ended_at)


def gone(progress: Progress | None = None) -> WorkerGone:
    return WorkerGone(4711, -9, LastWords(3, [], 1.0, progress))


@pytest.mark.parametrize(
    ("batch", "index", "expected"), [(3, 4, True), (3, 5, False), (3, 3, False), (4, 4, False)]
)
def test_a_verdict_is_for_one_delivery(batch: int, index: int, expected: bool) -> None:
    assert verdict().is_for(batch, index) is expected


def test_the_outcome_has_the_times_of_the_run() -> None:
    outcome = verdict().outcome(gone())

    assert outcome.kind is OutcomeKind.TIMED_OUT
    assert outcome.error is not None
    assert (outcome.started_at, outcome.ended_at, outcome.worker_pid) == (100.0, 105.0, 4711)


def test_a_run_that_has_not_even_begun_took_no_time() -> None:
    outcome = verdict(at=(3, 4, 110.0), ended_at=105.0).outcome(gone())

    assert outcome.started_at == outcome.ended_at == 105.0


def test_the_error_says_how_far_the_handler_was() -> None:
    progress = Progress(4211, 5000, "parsing", 104.0)

    error = verdict().outcome(gone(progress)).error

    assert isinstance(error, HandlerTimeout)
    assert str(error).endswith("after 1 s, at 4,211 of 5,000: parsing")
    assert error.progress == progress
