"""What workers log, warn and print reaches the user as if it had happened in the parent."""

import logging
import threading
import warnings

import pytest

from procbus import EventBus
from tests.integration.conftest import Run
from tests.integration.helpers import PATIENCE_S


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
    assert sum(r.name == "flood" for r in caplog.records) == 4 * 4 * 500


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


def test_what_a_worker_prints_is_not_swallowed(run: Run) -> None:
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
