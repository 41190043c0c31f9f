# SPDX-License-Identifier: MIT
"""Log records of handlers in this process say which delivery they belong to."""

import logging
import os
from collections.abc import Iterator
from typing import Any

import pytest

from procbus.core.context import HandlerContext, Run, running
from procbus.core.log_origin import Origin, about, add_origins, leave_out_origins

CONTEXT = HandlerContext("shop.work", 7, None, "page", 2, lambda *_: None, None, Run("r", 1))
ORIGIN = Origin(os.getpid(), "shop.work", 7, 2, "page", "r-7-shop.work")


@pytest.fixture(autouse=True)
def factory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The factory before; it is put back."""
    monkeypatch.setattr("procbus.core.log_origin._living", set())
    before = logging.getLogRecordFactory()
    logging.setLogRecordFactory(logging.LogRecord)
    yield logging.LogRecord
    logging.setLogRecordFactory(before)


@pytest.fixture
def log(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> logging.Logger:
    """A logger that no other test has used."""
    name = f"origins.{request.node.name}"
    caplog.set_level(logging.INFO, name)
    return logging.getLogger(name)


@pytest.fixture
def in_handler() -> Iterator[None]:
    token = running.set(CONTEXT)
    yield
    running.reset(token)


def origin_of(record: logging.LogRecord) -> Origin:
    return Origin(*(record.__dict__.get(name) for name in Origin._fields))  # type: ignore[arg-type]


@pytest.mark.usefixtures("in_handler")
def test_record_of_a_handler_has_its_delivery(
    log: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    add_origins("bus")
    log.info("in the handler")

    assert origin_of(caplog.records[0]) == ORIGIN


def test_record_outside_handlers_is_as_before(
    log: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    add_origins("bus")
    token = running.set(CONTEXT)
    log.info("inside")
    running.reset(token)
    log.info("outside")

    assert not set(Origin._fields) & set(caplog.records[1].__dict__)


@pytest.mark.usefixtures("in_handler")
def test_extra_of_the_user_stays(log: logging.Logger, caplog: pytest.LogCaptureFixture) -> None:
    add_origins("bus")
    log.info("in the handler", extra={"topic": "billing", "event_id": None})

    assert origin_of(caplog.records[0]) == ORIGIN._replace(topic="billing", event_id=None)


@pytest.mark.usefixtures("in_handler")
def test_factory_of_the_user_that_calls_the_one_before_keeps_the_origin(
    log: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    add_origins("bus")
    before = logging.getLogRecordFactory()

    def factory(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = before(*args, **kwargs)
        record.unit = "m"
        return record

    logging.setLogRecordFactory(factory)
    log.info("in the handler")
    leave_out_origins("bus")

    assert (origin_of(caplog.records[0]), caplog.records[0].__dict__["unit"]) == (ORIGIN, "m")
    assert logging.getLogRecordFactory() is factory


@pytest.mark.usefixtures("in_handler")
def test_factory_of_the_user_that_was_there_before_makes_the_records(
    log: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    class Record(logging.LogRecord):
        pass

    logging.setLogRecordFactory(Record)
    add_origins("bus")
    log.info("in the handler")
    leave_out_origins("bus")

    assert (type(caplog.records[0]), origin_of(caplog.records[0])) == (Record, ORIGIN)
    assert logging.getLogRecordFactory() is Record


def test_factory_is_as_before_once_the_last_bus_is_closed(factory: Any) -> None:
    add_origins("one")
    add_origins("two")
    add_origins("two")
    leave_out_origins("two")
    assert logging.getLogRecordFactory() is not factory

    leave_out_origins("one")
    leave_out_origins("one")

    assert logging.getLogRecordFactory() is factory


@pytest.mark.usefixtures("in_handler")
def test_logger_gets_one_filter_and_the_users_stay(log: logging.Logger) -> None:
    own = logging.Filter()
    log.addFilter(own)
    add_origins("bus")
    for _ in range(3):
        log.info("in the handler")

    assert log.filters[0] is own
    assert len(log.filters) == 2


@pytest.mark.usefixtures("in_handler")
def test_record_that_user_code_makes_of_a_dict_needs_no_logger() -> None:
    add_origins("bus")

    record = logging.makeLogRecord({"name": "no logger", "msg": "text"})

    assert record.getMessage() == "text"


@pytest.mark.usefixtures("in_handler")
def test_own_record_about_another_delivery_has_that_one(caplog: pytest.LogCaptureFixture) -> None:
    other = Origin(1, "shop.other", 8, 1, None, None)
    logging.getLogger("procbus").error("failed", extra=about(other))

    [record] = caplog.records
    assert origin_of(record) == other
    assert not [name for name in record.__dict__ if name.startswith("_")]
