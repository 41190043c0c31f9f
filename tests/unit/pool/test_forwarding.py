# SPDX-License-Identifier: MIT
"""Log records and warnings of a worker on their way, and how the parent takes them in."""

import logging
import pickle
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from procbus.core.log_origin import Origin
from procbus.pool import forwarding
from procbus.pool.forwarding import levels_here, pack_record, pack_warning, take_in
from procbus.pool.wire import Tag

ORIGIN = Origin(12, "shop.work", 7, 1, "page", "r-7-shop.work")


class Unloadable:
    """Pickles, but does not load again: as a class that only the worker can import."""

    def __reduce__(self) -> tuple[Any, ...]:
        return refuse, ()


def refuse() -> None:
    raise ModuleNotFoundError("no module named 'theirs'")


def record_of(msg: object = "text", *args: object, **fields: Any) -> logging.LogRecord:
    record = logging.LogRecord("job", logging.INFO, "job.py", 3, msg, args, None, "work")
    record.__dict__.update(fields)
    return record


def take_in_record(record: logging.LogRecord, origin: Origin = ORIGIN) -> None:
    take_in(Tag.LOG, memoryview(pack_record(record, origin)))


def take_in_warning(
    text: str = "text",
    category: type[Warning] = UserWarning,
    lineno: int = 3,
    filename: str = "job.py",
) -> None:
    take_in(Tag.WARNING, memoryview(pack_warning(text, category, filename, lineno, ORIGIN)))


@pytest.fixture(autouse=True)
def nothing_shown(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    monkeypatch.setattr(forwarding, "_shown", shown)
    return shown


@pytest.fixture(autouse=True)
def everything_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)


def test_a_record_comes_with_its_text_and_its_origin(caplog: pytest.LogCaptureFixture) -> None:
    take_in_record(record_of("%d of %s", 3, "it", unit="m", process=12))
    [record] = caplog.records
    assert record.getMessage() == "3 of it"
    about = record.__dict__
    assert [about[name] for name in ("worker_pid", "handler", "event_id", "unit", "process")] == [
        12,
        "shop.work",
        7,
        "m",
        12,
    ]
    assert (record.funcName, record.lineno, record.levelname) == ("work", 3, "INFO")


def test_an_exception_comes_with_its_text(caplog: pytest.LogCaptureFixture) -> None:
    try:
        raise ValueError(7)
    except ValueError:
        record = record_of(exc_info=sys.exc_info())
    take_in_record(record)
    assert "ValueError: 7" in (caplog.records[0].exc_text or "")
    assert "ValueError: 7" in logging.Formatter().format(caplog.records[0])
    kind, error, traceback = caplog.records[0].exc_info or (None, None, None)
    assert (kind, repr(error), traceback) == (ValueError, "ValueError(7)", None)


def test_an_exception_that_cannot_travel_comes_as_its_text_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Stays(Exception):
        def __reduce__(self) -> Any:
            raise SystemExit

    try:
        raise Stays("here")
    except Stays:
        record = record_of(exc_info=sys.exc_info())
    take_in_record(record)
    assert not caplog.records[0].exc_info
    assert "Stays: here" in logging.Formatter().format(caplog.records[0])


def test_structured_record_comes_as_its_dict_or_else_as_text(
    caplog: pytest.LogCaptureFixture,
) -> None:
    take_in_record(record_of({"event": "paid", "sum": 5}))
    take_in_record(record_of({"event": "paid", "lock": print, "made": (n for n in range(1))}))
    first, second = caplog.records
    assert first.msg == {"event": "paid", "sum": 5}
    assert second.getMessage().startswith("{'event': 'paid', 'lock': <built-in")


def test_attribute_that_does_not_pickle_stays_behind_and_the_record_arrives(
    caplog: pytest.LogCaptureFixture,
) -> None:
    take_in_record(record_of(lock=threading.Lock(), sizes=[1, 2]))
    [record] = caplog.records
    assert not hasattr(record, "lock")
    assert record.__dict__["sizes"] == [1, 2]


class Exits:
    def __init__(self, here: bool) -> None:
        self.here = here

    def __reduce__(self) -> tuple[Any, ...]:
        if self.here:
            raise SystemExit(3)
        return sys.exit, (4,)


def test_an_attribute_whose_pickling_or_loading_exits_costs_that_attribute_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    take_in_record(record_of("one", thing=Exits(here=True)))
    take_in_record(record_of("two", thing=Exits(here=False)))

    assert [r.getMessage() for r in caplog.records if r.name == "job"] == ["one", "two"]
    assert not any(hasattr(record, "thing") for record in caplog.records)
    assert "SystemExit: 4" in caplog.text


def test_attribute_that_does_not_load_is_named_and_the_record_arrives(
    caplog: pytest.LogCaptureFixture,
) -> None:
    take_in_record(record_of("paid %d", 5, thing=Unloadable()))
    complaint, record = caplog.records
    assert (complaint.name, complaint.levelno) == ("procbus.pool", logging.WARNING)
    text = complaint.getMessage()
    assert "attribute thing of a log record from shop.work with event #7, worker 12" in text
    assert "ModuleNotFoundError: no module named 'theirs'" in text
    assert (record.getMessage(), record.levelno) == ("paid 5", logging.INFO)
    assert not hasattr(record, "thing")


@pytest.mark.parametrize("tag", [Tag.LOG, Tag.WARNING])
@pytest.mark.parametrize(
    "data", [b"", b"nonsense", pickle.dumps(3), pickle.dumps(({}, {})), pickle.dumps(({}, b""))]
)
def test_unreadable_record_becomes_a_warning(
    caplog: pytest.LogCaptureFixture, tag: Tag, data: bytes
) -> None:
    take_in(tag, memoryview(data))
    [record] = caplog.records
    assert (record.name, record.levelno) == ("procbus.pool", logging.WARNING)
    assert "from a worker could not be handled" in record.getMessage()


class Broken(logging.Handler):
    """Raises for given records, without `handleError`, as many home-made handlers do."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self._names = names

    def emit(self, record: logging.LogRecord) -> None:
        if record.name in self._names:
            raise RuntimeError("broken handler")


@pytest.fixture
def broken(request: pytest.FixtureRequest) -> Iterator[None]:
    handler = Broken(*request.param)
    logging.getLogger().addHandler(handler)
    yield
    logging.getLogger().removeHandler(handler)


@pytest.mark.parametrize("broken", [("job",)], indirect=True)
@pytest.mark.usefixtures("broken")
def test_a_log_handler_that_raises_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    take_in_record(record_of())
    complaint = caplog.records[-1]
    assert complaint.getMessage() == (
        "a log record from a worker could not be handled: RuntimeError: broken handler"
    )
    assert complaint.exc_info


@pytest.mark.parametrize("broken", [("job", "procbus.pool")], indirect=True)
@pytest.mark.usefixtures("broken")
@pytest.mark.parametrize("wanted", [True, False])
def test_broken_logging_raises_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, wanted: bool
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", wanted)
    take_in_record(record_of())
    assert ("broken handler" in capsys.readouterr().err) is wanted


def test_record_below_the_level_goes_no_further(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "job")
    take_in_record(record_of())
    assert caplog.records == []


def test_a_warning_is_shown_once_by_the_usual_filter() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for text in ("one", "one", "two"):
            take_in_warning(text)
        take_in_warning("one", filename="other.py")
    assert [(str(w.message), w.filename, w.lineno) for w in caught] == [
        ("one", "job.py", 3),
        ("two", "job.py", 3),
        ("one", "other.py", 3),
    ]


def test_memory_of_shown_warnings_is_bounded(nothing_shown: dict[str, Any]) -> None:
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("default")
        for n in range(5_000):
            take_in_warning(f"number {n}")
        for n in range(5_000):
            take_in_warning(filename=f"{n}.py")
    assert len(nothing_shown) <= 1_001
    assert all(len(registry) <= 1_002 for registry in nothing_shown.values())


def test_a_warning_whose_class_does_not_load_is_a_user_warning() -> None:
    class Theirs(UserWarning):
        pass

    data = pickle.dumps((("text", "job.py", 3, "Theirs", tuple(ORIGIN)), b"not a pickle"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        take_in(Tag.WARNING, memoryview(data))
        take_in_warning(category=Theirs)
    assert [(w.category.__name__, str(w.message)) for w in caught] == [
        ("UserWarning", "Theirs: text"),
        ("Theirs", "text"),
    ]


def test_a_warning_that_is_to_be_an_error_is_a_line_that_says_whose(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        take_in_warning("old")
    [record] = caplog.records
    assert record.getMessage() == (
        "warning of shop.work with event #7, worker 12: UserWarning('old')"
    )
    assert (record.levelno, record.__dict__["event_id"]) == (logging.WARNING, 7)


def test_a_warning_that_logging_captures_says_whose(caplog: pytest.LogCaptureFixture) -> None:
    # Inside, so that the restored value at the end is pytest's.
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        try:
            take_in_warning("old")
            warnings.warn("the script's own", stacklevel=1)
        finally:
            logging.captureWarnings(False)
    theirs, own = caplog.records
    assert theirs.name == own.name == "py.warnings"
    assert "UserWarning: old" in theirs.getMessage()
    assert [theirs.__dict__[name] for name in Origin._fields] == [*ORIGIN]
    assert "worker_pid" not in own.__dict__


def test_the_origin_in_words() -> None:
    assert str(ORIGIN) == "shop.work with event #7, worker 12"
    assert str(Origin(12)) == "worker 12"


def test_levels_of_loggers_that_have_one() -> None:
    logger = logging.getLogger("test.levels")
    logger.setLevel(logging.ERROR)
    try:
        levels = levels_here()
    finally:
        logger.setLevel(logging.NOTSET)
    assert levels["test.levels"] == logging.ERROR
    assert levels[""] == logging.getLogger().level
    assert "test" not in levels
