"""Logs, warnings and prints of workers reach the user as if they came from the parent."""

import asyncio
import contextvars
import logging
import os
import re
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest

from procbus import EventBus, current
from procbus.core.context import THREADS_INHERIT
from procbus.testing import InlineBus
from tests.integration.conftest import Run
from tests.integration.helpers import PATIENCE_S, Bell, Door, Listener
from tests.parts import WARNINGS_BY_CONTEXT
from tests.test_docs import blocks_of, run_python


def left_out(records: Iterable[logging.LogRecord]) -> int:
    """How many records the notices of all workers say were left out."""
    texts = [r.getMessage() for r in records if r.name == "procbus.pool"]
    found = (re.search(r"^worker \d+ left out ([\d,]+) log records", text) for text in texts)
    return sum(int(match[1].replace(",", "")) for match in found if match)


def test_records_of_a_worker_reach_the_handlers_of_the_parent(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "job")

    def work(n: int) -> None:
        log = logging.getLogger("job.part")
        log.info("number %d", n, extra={"lock": threading.Lock(), "unit": "m"})
        log.debug("not wanted")
        try:
            raise ValueError(n)
        except ValueError:
            log.exception("went wrong")

    with EventBus([], cpu_workers=1) as bus:
        bus.subscribe("n", work, kind="cpu")
        bus.publish("n", 7).result(PATIENCE_S)
    records = [r for r in caplog.records if r.name == "job.part"]
    assert [(r.levelname, r.getMessage()) for r in records] == [
        ("INFO", "number 7"),
        ("ERROR", "went wrong"),
    ]
    assert records[0].unit == "m"  # type: ignore[attr-defined]
    assert records[0].funcName == "work"
    assert records[0].processName != "MainProcess"
    assert "ValueError: 7" in (records[1].exc_text or "")


def test_levels_of_the_parent_hold_in_workers(run: Run) -> None:
    ended = run(
        """
        import logging
        from procbus import EventBus
        logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s %(message)s")
        logging.getLogger("loud").setLevel(logging.DEBUG)
        logging.getLogger("off").setLevel(logging.CRITICAL)

        def work(n):
            made = []
            for name in ("loud", "off", "other"):
                log = logging.getLogger(name)
                log.debug("debug")
                log.error("error")
                made.append(log.isEnabledFor(logging.DEBUG))
            return made

        with EventBus([], cpu_workers=1) as bus:
            bus.subscribe("n", work, kind="cpu")
            print(bus.publish("n", 0).result())
        """
    )
    assert (ended.code, ended.out) == (0, "[True, False, False]\n")
    assert ended.err.splitlines() == ["DEBUG loud debug", "ERROR loud error", "ERROR other error"]


def test_a_flood_of_records_does_not_deadlock(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "flood")

    def work(n: int) -> int:
        log = logging.getLogger("flood")

        def flood() -> None:
            for _ in range(500):
                log.info("x" * 500)

        threads = [threading.Thread(target=flood) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return n

    with EventBus([], cpu_workers=2) as bus:
        bus.subscribe("n", work, kind="cpu")
        receipts = [bus.publish("n", n) for n in range(4)]
        assert [r.result(PATIENCE_S) for r in receipts] == [0, 1, 2, 3]
    came = sum(r.name == "flood" for r in caplog.records)
    assert came >= 2_000
    assert came + left_out(caplog.records) == 4 * 4 * 500


@WARNINGS_BY_CONTEXT
def test_warnings_of_a_worker_reach_the_parent() -> None:
    def work(n: int) -> None:
        warnings.warn(f"number {n}", UserWarning, stacklevel=1)

    with EventBus([], cpu_workers=1) as bus, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        bus.subscribe("n", work, kind="cpu")
        bus.publish("n", 7).result(PATIENCE_S)
    assert [(w.category, str(w.message), w.filename) for w in caught] == [
        (UserWarning, "number 7", __file__)
    ]


@pytest.mark.skipif(sys.version_info < (3, 14), reason="all contexts share the filters")
@pytest.mark.parametrize(
    ("aware", "caught"), [("0", "['io', 'cpu']"), ("1", "['io']")], ids=["shared", "by context"]
)
def test_publisher_that_catches_warnings_has_those_of_io_handlers_in_any_case(
    run: Run, aware: str, caught: str
) -> None:
    ended = run(
        """
        import warnings
        from procbus import EventBus
        def warn(place):
            warnings.warn(place, UserWarning, stacklevel=1)
        if __name__ == "__main__":
            with EventBus([], cpu_workers=1) as bus, warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                bus.subscribe("io", warn)
                bus.subscribe("cpu", warn, kind="cpu")
                bus.publish("io", "io").result()
                bus.publish("cpu", "cpu").result()
            print([str(each.message) for each in caught])
        """,
        PYTHON_CONTEXT_AWARE_WARNINGS=aware,
    )
    assert ended.out.strip() == caught
    assert ("UserWarning: cpu" in ended.err) == (aware == "1"), "the script's own filters show it"


def test_prints_of_a_worker_are_seen(run: Run) -> None:
    ended = run(
        """
        import sys
        from procbus import EventBus
        def work(n):
            print("out", n)
            print("err", n, file=sys.stderr)
        with EventBus([], cpu_workers=1) as bus:
            bus.subscribe("n", work, kind="cpu")
            for n in range(3):
                bus.publish("n", n).result()
        """,
        PYTHONUNBUFFERED="",
    )
    assert ended.out == "out 0\nout 1\nout 2\n"
    assert ended.err == "err 0\nerr 1\nerr 2\n"


def origin(record: logging.LogRecord) -> tuple[Any, ...]:
    return tuple(record.__dict__[name] for name in ("worker_pid", "handler", "event_id"))


def test_a_record_says_which_worker_handler_and_event_it_comes_from(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "job")

    def work(n: int) -> int:
        log = logging.getLogger("job")
        log.info("handler")
        context = contextvars.copy_context()
        for target in (lambda: log.info("thread"), lambda: context.run(log.info, "its context")):
            thread = threading.Thread(target=target)
            thread.start()
            thread.join()
        return os.getpid()

    with EventBus([], cpu_workers=1) as bus:
        bus.subscribe("n", work, kind="cpu", name="shop.work")
        receipts = [bus.publish("n", n) for n in range(2)]
        pid = receipts[0].result(PATIENCE_S)
    records = [r for r in caplog.records if r.name == "job"]
    assert [(r.getMessage(), origin(r)) for r in records] == [
        (text, (pid, "shop.work" if known else None, receipt.id if known else None))
        for receipt in receipts
        for text, known in (("handler", True), ("thread", THREADS_INHERIT), ("its context", True))
    ]
    assert {r.process for r in records} == {pid}


def resize(picture: str) -> dict[str, Any]:
    here = current()
    logging.getLogger("job.kinds").info("resizing %s", picture)
    if here.attempt == 1:
        raise ValueError("once more")
    names = ("handler", "event_id", "attempt", "topic", "delivery_id")
    return {name: getattr(here, name) for name in names} | {"worker_pid": os.getpid()}


async def resize_async(picture: str) -> dict[str, Any]:
    await asyncio.sleep(0)
    return resize(picture)


@pytest.mark.parametrize(
    ("kind", "handler", "make"),
    [
        ("io", resize, partial(EventBus, [])),
        ("io", resize_async, partial(EventBus, [])),
        ("cpu", resize, partial(EventBus, [], cpu_workers=1)),
        ("cpu", resize, partial(EventBus, [], cpu_workers=1, cpu="threads")),
        ("cpu", resize, partial(InlineBus, [])),
        ("cpu", resize, partial(InlineBus, [], pickling=True)),
    ],
    ids=["thread", "event loop", "process", "cpu thread", "inline", "inline pickling"],
)
@pytest.mark.filterwarnings("ignore:EventBus")
def test_record_of_a_handler_carries_its_delivery_on_whatever_it_runs(
    caplog: pytest.LogCaptureFixture,
    kind: Literal["io", "cpu"],
    handler: Callable[[str], Any],
    make: Callable[[], EventBus],
) -> None:
    caplog.set_level(logging.INFO, "job.kinds")
    with make() as bus:
        bus.subscribe("picture", handler, kind=kind, name="shop.resize", retries=1, backoff=0)
        facts = bus.publish("picture", "a.png").result(PATIENCE_S)
    first, second = (r for r in caplog.records if r.name == "job.kinds")
    assert {name: second.__dict__[name] for name in facts} == facts
    assert {name: first.__dict__[name] for name in facts} == facts | {"attempt": 1}
    assert facts["topic"] == "picture"


def test_records_of_failed_attempts_carry_their_delivery(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with EventBus([], cpu_workers=1) as bus:
        divide: Any = {"kind": "cpu", "name": "shop.divide", "retries": 1, "backoff": 0}
        bus.subscribe("n", lambda n: 1 // n, **divide)
        receipt = bus.publish("n", 0)
        receipt.wait(PATIENCE_S)
        [delivery] = receipt.deliveries
    first, last = (r for r in caplog.records if r.name == "procbus" and hasattr(r, "handler"))
    assert origin(first) == origin(last) == (delivery.worker_pid, "shop.divide", receipt.id)
    assert [(r.levelname, r.__dict__["attempt"], r.__dict__["topic"]) for r in (first, last)] == [
        ("WARNING", 1, "n"),
        ("ERROR", 2, "n"),
    ]


def test_log_records_of_the_set_up_belong_to_no_delivery(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def set_up() -> None:
        logging.getLogger("job").warning("set up")

    with EventBus([], cpu_workers=1, worker_init=set_up) as bus:
        bus.subscribe("n", lambda n: os.getpid(), kind="cpu")
        pid = bus.publish("n", 0).result(PATIENCE_S)
    [record] = [r for r in caplog.records if r.name == "job"]
    assert origin(record) == (pid, None, None)


def test_log_records_after_the_last_delivery_are_not_lost(
    caplog: pytest.LogCaptureFixture, bell: Bell, heard: Listener, door: Door
) -> None:
    def work(about: tuple[Door, Bell]) -> None:
        door, bell = about

        def later() -> None:
            door.go_through()
            logging.getLogger("late").warning("last words")
            bell.ring()

        threading.Thread(target=later).start()

    with EventBus([], cpu_workers=1) as bus:
        bus.subscribe("n", work, kind="cpu")
        with door.shut():
            bus.publish("n", (door, bell)).result(PATIENCE_S)
        heard.wait()
    assert [r.getMessage() for r in caplog.records if r.name == "late"] == ["last words"]


def test_flood_of_records_ends_and_harms_no_delivery(
    caplog: pytest.LogCaptureFixture, bell: Bell, heard: Listener, tmp_path: Path
) -> None:
    """100,000 records, and on until the other worker has done all its deliveries."""
    caplog.set_level(logging.DEBUG, "flood")
    stop = tmp_path / "stop"

    def flood(about: tuple[Bell, Path]) -> int:
        bell, stop = about
        log = logging.getLogger("flood")
        bell.ring()
        made = 0
        while made < 100_000 or not stop.exists():
            for _ in range(1_000):
                log.debug("line %d", made)
                made += 1
        log.error("the one that matters")
        return made

    with EventBus([], cpu_workers=2) as bus:
        bus.subscribe("flood", flood, kind="cpu", name="shop.flood")
        bus.subscribe("n", lambda n: n, kind="cpu")
        flooded = bus.publish("flood", (bell, stop))
        heard.wait()
        assert [bus.publish("n", n).result(PATIENCE_S) for n in range(50)] == list(range(50))
        assert not flooded.done
        stop.touch()
        made = flooded.result(PATIENCE_S)
    came = [r for r in caplog.records if r.name == "flood"]
    assert sum(r.levelno == logging.ERROR for r in came) == 1
    assert len(came) + left_out(caplog.records) == made + 1
    assert len(came) < made / 2
    notices = [r for r in caplog.records if " left out " in r.getMessage()]
    assert {(r.levelno, r.__dict__["handler"]) for r in notices} == {
        (logging.WARNING, "shop.flood")
    }


def test_floods_soon_after_one_another_are_all_accounted_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The first is reported with its delivery; later ones at the latest when the worker ends."""
    caplog.set_level(logging.INFO, "flood")

    def work(n: int) -> None:
        for _ in range(5_000):
            logging.getLogger("flood").info("x")

    with EventBus([], cpu_workers=1) as bus:
        bus.subscribe("n", work, kind="cpu")
        for n in range(3):
            bus.publish("n", n).result(PATIENCE_S)
    came = sum(r.name == "flood" for r in caplog.records)
    assert came + left_out(caplog.records) == 3 * 5_000


def test_a_thread_that_logs_for_ever_stops_neither_its_worker_nor_the_bus(
    caplog: pytest.LogCaptureFixture, bell: Bell, heard: Listener
) -> None:
    """Between two deliveries its log has no reader: the pipe is full."""
    caplog.set_level(logging.INFO, "flood")

    def work(bell: Bell | None) -> int:
        def log_for_ever(bell: Bell) -> None:
            log = logging.getLogger("flood")
            for _ in range(20_000):
                log.info("x" * 2_000)
            bell.ring()
            while True:
                log.info("x" * 2_000)

        if bell is not None:
            threading.Thread(target=log_for_ever, args=(bell,), daemon=True).start()
        return os.getpid()

    with EventBus([], cpu_workers=1) as bus:
        bus.subscribe("n", work, kind="cpu")
        pid = bus.publish("n", bell).result(PATIENCE_S)
        heard.wait()
        assert [bus.publish("n", None).result(PATIENCE_S) for _ in range(20)] == [pid] * 20
    assert left_out(caplog.records) > 0


@WARNINGS_BY_CONTEXT
def test_a_flood_of_warnings_is_cut(caplog: pytest.LogCaptureFixture) -> None:
    def work(n: int) -> None:
        warnings.simplefilter("always")
        for i in range(20_000):
            warnings.warn(f"number {i}", UserWarning, stacklevel=1)

    with EventBus([], cpu_workers=1) as bus, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        bus.subscribe("n", work, kind="cpu")
        bus.publish("n", 0).result(PATIENCE_S)
        bus.close()
    assert len(caught) + left_out(caplog.records) == 20_000
    assert 2_000 <= len(caught) < 20_000


class Handler(logging.Handler):
    """A log handler of the script that runs a function of the test, for one logger."""

    def __init__(self, name: str, run: Any) -> None:
        super().__init__()
        self._name = name
        self._run = run

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == self._name:
            self._run()


@pytest.fixture
def add_log_handler() -> Iterator[Callable[[logging.Handler], None]]:
    added: list[logging.Handler] = []

    def add(handler: logging.Handler) -> None:
        logging.getLogger().addHandler(handler)
        added.append(handler)

    yield add
    for handler in added:
        logging.getLogger().removeHandler(handler)


def test_a_log_handler_of_the_script_that_raises_costs_no_worker(
    caplog: pytest.LogCaptureFixture, add_log_handler: Callable[[logging.Handler], None]
) -> None:
    def fail() -> None:
        raise RuntimeError("broken handler")

    def work(n: int) -> int:
        logging.getLogger("job").warning("number %d", n)
        return os.getpid()

    add_log_handler(Handler("job", fail))
    with EventBus([], cpu_workers=1) as bus:
        bus.subscribe("n", work, kind="cpu")
        pids = {bus.publish("n", n).result(PATIENCE_S) for n in range(3)}
    assert len(pids) == 1
    complaints = [r.getMessage() for r in caplog.records if r.name == "procbus.pool"]
    assert len([text for text in complaints if "RuntimeError: broken handler" in text]) == 3


def test_a_log_handler_of_the_script_that_blocks_holds_up_no_other_worker(
    add_log_handler: Callable[[logging.Handler], None],
) -> None:
    blocked, go_on = threading.Event(), threading.Event()

    def block() -> None:
        blocked.set()
        go_on.wait(PATIENCE_S)

    def work(n: int) -> int:
        logging.getLogger("slow").warning("number %d", n)
        return n

    add_log_handler(Handler("slow", block))
    with EventBus([], cpu_workers=2) as bus:
        bus.subscribe("slow", work, kind="cpu")
        bus.subscribe("n", lambda n: n, kind="cpu")
        try:
            receipt = bus.publish("slow", 7)
            assert blocked.wait(PATIENCE_S)
            assert [bus.publish("n", n).result(PATIENCE_S) for n in range(20)] == list(range(20))
            assert not receipt.done
        finally:
            go_on.set()
        assert receipt.result(PATIENCE_S) == 7


@pytest.mark.parametrize(
    "end",
    ["os._exit(3)", "os.kill(os.getpid(), 9)", "time.sleep(60)"],
    ids=["exits", "killed", "times out"],
)
def test_prints_before_the_death_of_a_worker_are_seen(run: Run, end: str) -> None:
    ended = run(
        f"""
        import logging, os, sys, time
        from procbus import EventBus
        logging.disable(logging.CRITICAL)
        def work(n):
            print("out", n)
            print("err", n, file=sys.stderr)
            {end}
        with EventBus([], cpu_workers=1) as bus:
            bus.subscribe("n", work, kind="cpu", timeout=1.5)
            receipt = bus.publish("n", 0)
            receipt.wait(55)
            print(type(receipt.deliveries[0].exception()).__name__)
        """,
        PYTHONUNBUFFERED="",
    )
    assert ended.out == f"out 0\n{'HandlerTimeout' if 'sleep' in end else 'WorkerDied'}\n"
    # After a kill loky's resource tracker may complain as well, at the end of the script.
    assert ended.err.startswith("err 0\n")


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
def test_a_flood_of_prints_comes_whole_and_no_line_is_torn(run: Run, unbuffered: str) -> None:
    ended = run(
        """
        from procbus import EventBus
        def work(who):
            for n in range(10_000):
                print("worker", who, "prints", n, "x" * 50)
        with EventBus([], cpu_workers=2) as bus:
            bus.subscribe("n", work, kind="cpu")
            for receipt in [bus.publish("n", who) for who in range(2)]:
                receipt.result(55)
        """,
        PYTHONUNBUFFERED=unbuffered,
    )
    lines = Counter(ended.check().splitlines())
    assert lines == Counter(
        f"worker {who} prints {n} {'x' * 50}" for who in range(2) for n in range(10_000)
    )


PAGE = Path(__file__).parents[2] / "docs" / "logs.md"


@pytest.mark.parametrize("number", range(3), ids=["logging", "structlog", "loguru"])
def test_scripts_on_the_page_on_logs_write_these_lines(number: int, tmp_path: Path) -> None:
    for library in ("structlog", "loguru"):
        pytest.importorskip(library)
    blocks = [block for block in blocks_of(PAGE.read_text(encoding="utf-8")) if block.language]
    script, shown = blocks[2 * number : 2 * number + 2]
    assert (script.language, shown.language) == ("python", "text")
    (tmp_path / "example.py").write_text(script.text, encoding="utf-8")
    ran = run_python("example.py", cwd=tmp_path)
    assert ran.stdout == shown.text + "\n"
