# SPDX-License-Identifier: MIT
"""The worker's side of its logging, without a process."""

import io
import logging
import os
import pickle
import socket
import sys
import threading
import warnings
from collections.abc import Iterator
from contextvars import copy_context
from typing import Any

import pytest

from procbus.core.context import THREADS_INHERIT, HandlerContext, running
from procbus.core.flood import BURST
from procbus.core.log_origin import Origin
from procbus.pool.child.logging import Forward, forward_logging, print_by_line
from procbus.pool.child.outbox import Outlet
from procbus.pool.wire import Tag
from tests.parts import BOUND_S


class Line(Outlet):
    """An outlet that keeps its messages; a `full` one has a parent that does not read."""

    def __init__(self) -> None:
        self.sent: list[tuple[Any, ...]] = []
        self.full = False

    def send(self, *parts: Any) -> None:
        self.sent.append(parts)

    def post(self, *parts: Any) -> bool:
        if not self.full:
            self.sent.append(parts)
        return not self.full

    def records(self) -> list[dict[str, Any]]:
        return [pickle.loads(data)[0] for tag, data in self.sent if tag == Tag.LOG.value]


@pytest.fixture
def line() -> Line:
    return Line()


@pytest.fixture
def log(line: Line) -> Iterator[logging.Logger]:
    """A logger of its own, which leaves the tests' loggers alone."""
    logger = logging.Logger("job", logging.DEBUG)
    logger.addHandler(Forward(line))
    yield logger
    running.set(None)


def deliver(event_id: int = 7) -> None:
    running.set(HandlerContext("shop.work", event_id, None, None, 1, lambda *_: None))


def about(record: dict[str, Any]) -> tuple[Any, ...]:
    return record["worker_pid"], record["handler"], record["event_id"]


def test_a_record_says_which_delivery_it_comes_from(line: Line, log: logging.Logger) -> None:
    log.info("before")
    deliver()
    log.info("in %s", "it", extra={"unit": "m"})
    running.set(None)
    log.info("after")
    nowhere = (os.getpid(), None, None)
    assert [about(r) for r in line.records()] == [nowhere, (os.getpid(), "shop.work", 7), nowhere]
    assert [r["msg"] for r in line.records()] == ["before", "in it", "after"]
    _, record, _ = line.records()
    more = ("attempt", "topic", "delivery_id", "unit")
    assert [record[name] for name in more] == [1, None, "0-7-shop.work", "m"]


def test_values_of_the_user_stay_under_the_names_of_the_origin(
    line: Line, log: logging.Logger
) -> None:
    deliver()
    log.info("x", extra={"topic": "billing", "attempt": threading.Lock()})

    [record] = line.records()
    assert (record["topic"], record["attempt"], record["event_id"]) == ("billing", 1, 7)


def test_a_thread_belongs_to_the_delivery_only_with_its_context(
    line: Line, log: logging.Logger
) -> None:
    deliver()
    context = copy_context()
    for target in (lambda: log.info("bare"), lambda: context.run(log.info, "with context")):
        thread = threading.Thread(target=target)
        thread.start()
        thread.join(BOUND_S)
    running.set(None)
    assert {r["msg"]: r["event_id"] for r in line.records()} == {
        "bare": 7 if THREADS_INHERIT else None,
        "with context": 7,
    }


def test_a_flood_is_cut_and_reported_ahead_of_the_next_report(
    line: Line, log: logging.Logger
) -> None:
    [forward] = log.handlers
    assert isinstance(forward, Forward)
    deliver()
    for n in range(20_000):
        log.debug("line %d", n)
    log.error("the one that matters")
    forward.report(b"R", b"results")
    *_, notice = line.records()
    assert line.sent[-1] == (b"R", b"results")
    assert (notice["name"], notice["levelno"], notice["handler"]) == (
        "procbus.pool",
        logging.WARNING,
        "shop.work",
    )
    texts = [r["msg"] for r in line.records()]
    assert "the one that matters" in texts
    lines = sum(text.startswith("line ") for text in texts)
    assert lines >= BURST
    told = sum(left_out(r["msg"]) for r in line.records() if r["name"] == "procbus.pool")
    assert lines + told == 20_000


def left_out(text: str) -> int:
    return int(text.split(" left out ")[1].split()[0].replace(",", ""))


def test_record_that_is_left_out_is_not_formatted(line: Line, log: logging.Logger) -> None:
    class Argument:
        formatted = 0

        def __str__(self) -> str:
            Argument.formatted += 1
            return "x"

    for _ in range(20_000):
        log.info("%s", Argument())
    assert Argument.formatted == sum(r["name"] == "job" for r in line.records())


def test_record_without_room_is_counted_and_reported_once_there_is_some(
    line: Line, log: logging.Logger
) -> None:
    [forward] = log.handlers
    assert isinstance(forward, Forward)
    deliver()
    line.full = True
    log.info("1")
    log.info("2")
    forward.tell_the_rest()
    line.full = False
    forward.tell_the_rest()
    [notice] = line.records()
    assert left_out(notice["msg"]) == 2
    assert "shop.work 2" in notice["msg"]


def test_a_thread_that_waits_for_room_holds_up_no_other(log: logging.Logger) -> None:
    waiting, go_on = threading.Event(), threading.Event()

    class Slow(Line):
        def post(self, *parts: Any) -> bool:
            if b"slow" in parts[1]:
                waiting.set()
                go_on.wait(BOUND_S)
            return super().post(*parts)

    line = Slow()
    log.handlers[:] = [Forward(line)]
    thread = threading.Thread(target=log.info, args=("slow",))
    thread.start()
    try:
        assert waiting.wait(BOUND_S)
        log.info("quick")
        assert [r["msg"] for r in line.records()] == ["quick"]
    finally:
        go_on.set()
        thread.join(BOUND_S)


def test_a_filter_on_the_handler_holds(line: Line, log: logging.Logger) -> None:
    log.handlers[0].addFilter(lambda record: record.getMessage() != "secret")
    log.info("secret")
    log.info("open")
    assert [r["msg"] for r in line.records()] == ["open"]


@pytest.fixture
def root_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, show = root.handlers[:], warnings.showwarning
    yield
    root.handlers[:], warnings.showwarning = handlers, show
    logging.getLogger("job.quiet").setLevel(logging.NOTSET)


@pytest.mark.usefixtures("root_as_it_was")
def test_the_root_logger_and_warnings_lead_to_the_parent(line: Line) -> None:
    level = logging.getLogger().level
    forward = forward_logging(line, {"": level, "job.quiet": logging.ERROR})
    assert logging.getLogger().handlers == [forward]
    logging.getLogger("job.quiet").warning("not wanted")
    logging.getLogger("job.quiet").error("wanted")
    assert [r["msg"] for r in line.records()] == ["wanted"]
    warnings.showwarning("text", UserWarning, "file.py", 3)
    [(tag, data)] = line.sent[1:]
    plain, _ = pickle.loads(data)
    assert (tag, plain) == (
        Tag.WARNING.value,
        ("text", "file.py", 3, "UserWarning", tuple(Origin(os.getpid()))),
    )


def test_warnings_are_limited_with_the_records(line: Line) -> None:
    forward = Forward(line)
    for n in range(20_000):
        forward.show_warning(f"number {n}", UserWarning, "file.py", n)
    assert BURST <= sum(tag == Tag.WARNING.value for tag, _ in line.sent) < 20_000


def stdout() -> Any:
    return sys.stdout


@pytest.mark.parametrize("unbuffered", [False, True], ids=["buffered", "unbuffered"])
def test_a_printed_line_is_one_write(monkeypatch: pytest.MonkeyPatch, unbuffered: bool) -> None:
    ours, theirs = socket.socketpair(type=socket.SOCK_DGRAM)  # which keeps writes apart
    ours.setblocking(False)
    # As Python makes it with PYTHONUNBUFFERED, and without.
    raw: Any = io.FileIO(theirs.fileno(), "wb", closefd=False)
    file = raw if unbuffered else io.BufferedWriter(raw)
    with ours, theirs:
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(file, write_through=unbuffered))
        print_by_line()
        print("one", 2, [3], file=stdout())
        print("part", end=" ", file=stdout())
        assert ours.recv(100) == b"one 2 [3]\n"
        with pytest.raises(BlockingIOError):
            ours.recv(100)
        print("whole", file=stdout())
        assert ours.recv(100) == b"part whole\n"


def test_prints_without_a_reader_are_dropped_with_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    with open(writes, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        print_by_line()
        for n in range(3):
            print("line", n, file=stdout())
        sys.stdout.write("x" * 100_000)
        sys.stdout.flush()
    [record] = caplog.records
    assert record.getMessage().startswith("prints of handlers are lost")


def test_streams_that_are_closed_or_replaced_are_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    print_by_line()
    assert sys.stdout is None
