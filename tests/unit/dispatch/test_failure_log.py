# SPDX-License-Identifier: MIT
"""One line for each failure, the traceback with the first of a kind, and no flood."""

import logging
from typing import Any

import pytest

from procbus.core.dead_letter import letter_of
from procbus.core.errors import WorkerTraceback
from procbus.core.flood import TELL_S
from procbus.dispatch.failure_log import FAILURE_BURST, MOST_KINDS, FailureLog
from tests.parts import delivery_to, raised, subscription_of


def fail(words: str) -> BaseException:
    try:
        raise KeyError(words)
    except KeyError as error:
        return error


AS_BEFORE = "; its traceback is as with event #1"


def fail_elsewhere(words: str) -> BaseException:
    try:
        raise KeyError(words)
    except KeyError as error:
        return error


def tell(log: FailureLog, error: BaseException, event_id: int, handler: str = "store") -> None:
    delivery = delivery_to(subscription_of(name=handler), event_id=event_id)
    assert delivery.receipt is not None
    log.tell(delivery, letter_of(delivery, delivery.receipt, (raised(error),), False), [event_id])


def test_the_traceback_is_with_the_first_of_a_kind(caplog: pytest.LogCaptureFixture) -> None:
    log = FailureLog()
    for number in (1, 2, 3):
        tell(log, fail(f"k{number}"), number)

    messages = [record.getMessage() for record in caplog.records]
    assert messages == [
        "store failed with event #1 (str): raised: KeyError: 'k1'",
        f"store failed with event #2 (str): raised: KeyError: 'k2'{AS_BEFORE}",
        f"store failed with event #3 (str): raised: KeyError: 'k3'{AS_BEFORE}",
    ]
    assert [record.exc_info is not None for record in caplog.records] == [True, False, False]
    assert all(record.levelno == logging.ERROR for record in caplog.records)


@pytest.mark.parametrize(
    ("other", "handler"),
    [(fail_elsewhere("k"), "store"), (fail("k"), "other"), (ValueError("k"), "store")],
    ids=["another place", "another handler", "another class"],
)
def test_another_kind_has_a_traceback_of_its_own(
    other: BaseException, handler: str, caplog: pytest.LogCaptureFixture
) -> None:
    log = FailureLog()
    tell(log, fail("k"), 1)
    tell(log, other, 2, handler)

    assert [record.exc_info is not None for record in caplog.records] == [True, True]


def test_of_a_worker_the_place_is_in_the_text_of_its_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = FailureLog()
    for number, line in enumerate((7, 7, 8)):
        error = ValueError("there")
        error.__cause__ = WorkerTraceback(
            f'Traceback (most recent call last):\n  File "job.py", line {line}, in work\n    x\n'
        )
        tell(log, error, number)

    assert [record.exc_info is not None for record in caplog.records] == [True, False, True]


def test_a_flood_is_bounded_and_reported_at_the_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = FailureLog(clock=lambda: 100.0)
    for number in range(FAILURE_BURST + 51):
        tell(log, fail("k"), number)
    log.tell_the_rest()
    log.tell_the_rest()

    assert len(caplog.records) == 1 + FAILURE_BURST + 1
    assert caplog.records[-1].getMessage() == (
        "50 more failures have no line of their own, since there were more than 100 a second: "
        "store 50"
    )


def test_during_a_flood_it_is_reported_now_and_then(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = 100.0
    log = FailureLog(clock=lambda: now)
    for number in range(FAILURE_BURST + 11):
        tell(log, fail("k"), number)
    now += TELL_S + 1
    tell(log, fail("k"), 9999)

    assert "10 more failures have no line" in caplog.records[-2].getMessage()
    assert "event #9999" in caplog.records[-1].getMessage()


def test_kinds_without_end_are_not_all_remembered(caplog: pytest.LogCaptureFixture) -> None:
    log = FailureLog()
    for number in range(MOST_KINDS + 2):
        tell(log, ValueError(), number, f"h{number}")

    assert caplog.records[MOST_KINDS - 1].exc_info is not None
    assert [record.exc_info for record in caplog.records[MOST_KINDS:]] == [None, None]


def test_several_events_with_one_error_are_one_line(caplog: pytest.LogCaptureFixture) -> None:
    log = FailureLog(clock=lambda: 100.0)
    delivery = delivery_to(subscription_of(name="store"), event_id=1)
    assert delivery.receipt is not None
    letter = letter_of(delivery, delivery.receipt, (raised(fail("k")),), False)
    log.tell(delivery, letter, range(1, 41))
    (record,) = caplog.records
    assert record.getMessage().startswith("store failed with 40 events (#1 to #40; ")
    for _ in range(FAILURE_BURST + 1):
        log.tell(delivery, letter, range(1, 41))
    log.tell_the_rest()
    assert caplog.records[-1].getMessage().startswith("40 more failures have no line of their own")


class Untrue(Exception):
    def __bool__(self) -> bool:
        raise SystemExit("neither")


class Noteless(Exception):
    @property
    def __notes__(self) -> Any:  # type: ignore[override]
        raise SystemExit("no notes")


@pytest.mark.parametrize("kind", [Untrue, Noteless])
def test_an_exception_that_logging_cannot_bear_is_logged(
    kind: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    tell(FailureLog(), kind("words"), 1)

    assert f"{kind.__name__}: words" in caplog.text
    caplog.clear()
