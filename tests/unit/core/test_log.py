# SPDX-License-Identifier: MIT
"""The log of procbus: like any other, but harmless to its threads."""

import io
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from procbus.core.log import LOGS, log, pool_log
from tests.parts import BOUND_S, in_thread


class Broken(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        raise RuntimeError("a filter that fails")


@pytest.fixture
def broken() -> Iterator[None]:
    """The user's logging fails."""
    broken = Broken()
    logging.getLogger("procbus").addFilter(broken)
    yield
    logging.getLogger("procbus").removeFilter(broken)


def test_record_has_the_logger_and_the_callers_place(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log.warning("%d of %s", 2, "three")

    [record] = caplog.records
    assert (record.name, record.levelno) == ("procbus", logging.WARNING)
    assert record.getMessage() == "2 of three"
    assert record.funcName == "test_record_has_the_logger_and_the_callers_place"
    assert Path(record.pathname) == Path(__file__)


def test_an_exception_comes_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    try:
        raise KeyError("id")
    except KeyError:
        log.exception("it failed")

    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert 'raise KeyError("id")' in caplog.text


def test_levels_come_from_the_logger(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "procbus")

    log.warning("not said")

    assert caplog.records == []


@pytest.mark.usefixtures("broken")
def test_failing_logging_is_reported_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    log.error("it failed", exc_info=KeyError("id"))

    assert "a filter that fails" in capsys.readouterr().err


@pytest.mark.usefixtures("broken")
def test_log_without_stderr_raises_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stderr", None)

    log.warning("not said")


def test_ctrl_c_is_not_swallowed() -> None:
    class Interrupted(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            raise KeyboardInterrupt

    interrupted = Interrupted()
    logging.getLogger("procbus").addFilter(interrupted)
    try:
        with pytest.raises(KeyboardInterrupt):
            log.warning("not said")
    finally:
        logging.getLogger("procbus").removeFilter(interrupted)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()], ids=type)
def test_logging_in_a_thread_of_the_bus_never_raises(
    error: BaseException, capsys: pytest.CaptureFixture[str]
) -> None:
    class Ends(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            raise error

    ends = Ends()
    logging.getLogger("procbus").addFilter(ends)
    reached: list[bool] = []

    def say() -> None:
        log.warning("not said")
        reached.append(True)

    try:
        in_thread(say).join(BOUND_S)
    finally:
        logging.getLogger("procbus").removeFilter(ends)
    assert reached == [True]
    assert type(error).__name__ in capsys.readouterr().err


def test_logging_that_fails_while_stderr_is_closed_never_raises(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[logging.LogRecord] = []

    def broken(record: logging.LogRecord) -> bool:
        asked.append(record)
        raise ValueError("a filter that fails")

    closed = io.StringIO()
    closed.close()
    logging.getLogger("procbus").addFilter(broken)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", closed)
            log.warning("not said")
    finally:
        logging.getLogger("procbus").removeFilter(broken)
    assert len(asked) == 1


def test_a_configuration_that_disables_all_other_loggers_hides_no_failure(
    caplog: pytest.LogCaptureFixture,
) -> None:
    logging.getLogger("procbus").disabled = True  # as dictConfig does

    log.error("a failure")

    assert [record.getMessage() for record in caplog.records] == ["a failure"]


def test_loggers_form_a_tree(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "procbus")

    pool_log.warning("not said")
    pool_log.error("said")

    assert [(record.name, record.getMessage()) for record in caplog.records] == [
        ("procbus.pool", "said")
    ]


def test_page_on_logs_has_a_row_for_each_logger() -> None:
    page = (Path(__file__).parents[3] / "docs" / "logs.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(procbus[\w.]*)` \|", page, flags=re.MULTILINE)
    names = [each.logger.name for each in LOGS]

    assert sorted(rows) == sorted(names)
