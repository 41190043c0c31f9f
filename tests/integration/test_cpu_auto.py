"""A bus that chooses between threads and processes for each cpu handler, by the GIL."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from procbus import EventBus, SerializationError
from procbus.advice.advisor import Advisor
from procbus.advice.judge import Judgement
from procbus.assembly import Makers
from tests.parts import BOUND_S, BusWith, Held, close_with_only
from tests.waits import becomes


class Gil:
    """The GIL of this process, as procbus sees it: the test turns it on and off."""

    on = False


@pytest.fixture(autouse=True)
def gil(monkeypatch: pytest.MonkeyPatch) -> Gil:
    made = Gil()
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: made.on, raising=False)
    return made


def where(_: object) -> int:
    return os.getpid()


def where_after_a_while(_: object) -> int:
    time.sleep(0.02)  # so that the advisor soon has enough of it
    return os.getpid()


#: For the running test: the handler that it holds in its hand, which cannot travel.
held: list[Held] = []


@pytest.fixture(autouse=True)
def fresh_held() -> None:
    held[:] = [Held()]


def hold(event: object) -> object:
    return held[0](event)


def place_of(bus: EventBus, name: str) -> tuple[str, str]:
    handler = bus.stats().handlers[name]
    return handler.place, handler.decided


def test_without_a_gil_handlers_run_on_threads_and_get_the_object_itself() -> None:
    def look(event: object) -> tuple[object, str]:
        return event, threading.current_thread().name

    event = [threading.Lock()]
    with EventBus([], cpu="auto", cpu_workers=1) as bus:
        bus.subscribe("t", look, kind="cpu", name="look")

        found, thread = bus.publish("t", event).result(BOUND_S)

        assert found is event
        assert thread == "procbus-cpu-1"
        place, why = place_of(bus, "look")
        [worker] = bus.health()
    assert place == "threads"
    assert "has no GIL" in why
    assert (worker.kind, worker.name, worker.pid) == ("cpu", "procbus-cpu-1", os.getpid())


@pytest.mark.parametrize(
    ("name", "value"),
    [("timeout", 30), ("max_memory", "8 GiB"), ("max_crashes", 3), ("writable", True)],
)
def test_handler_that_asks_for_a_process_is_for_processes(name: str, value: Any) -> None:
    with EventBus([], cpu="auto") as bus:
        bus.subscribe("t", where, kind="cpu", name="h", **{name: value})

        assert place_of(bus, "h") == ("processes", f"processes: {name}= needs them")


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_events_per_worker", 5), ("worker_max_memory", "8 GiB"), ("worker_nice", 3)],
)
def test_bus_that_asks_for_processes_has_them_for_all_handlers(name: str, value: Any) -> None:
    with EventBus([], cpu="auto", **{name: value}) as bus:
        bus.subscribe("t", where, kind="cpu", name="h")

        assert place_of(bus, "h") == ("processes", f"processes: {name}= needs them")


def test_one_event_goes_to_a_thread_and_to_a_process() -> None:
    with EventBus([], cpu="auto", cpu_workers=1) as bus:
        bus.subscribe("t", where, kind="cpu", name="light")
        bus.subscribe("t", where_after_a_while, kind="cpu", name="guarded", timeout=BOUND_S)

        receipt = bus.publish("t", 1)
        light, guarded = receipt.results(BOUND_S)

        assert light == os.getpid() != guarded
        assert bus.drain(BOUND_S)
        stats = bus.stats()
        assert {name: each.place for name, each in stats.handlers.items()} == {
            "light": "threads",
            "guarded": "processes",
        }
        assert (stats.lanes["cpu"].workers, stats.lanes["cpu"].depth) == (2, 0)
        assert sorted(each.pid or 0 for each in bus.health()) == sorted([light, guarded])
        assert "runs in" in str(stats)
    assert not [each for each in threading.enumerate() if each.name.startswith("procbus-cpu")]


def test_handlers_go_on_in_processes_once_the_gil_is_on(
    gil: Gil, caplog: pytest.LogCaptureFixture
) -> None:
    with EventBus([], cpu="auto", cpu_workers=1) as bus:
        bus.subscribe("t", where_after_a_while, kind="cpu", name="one")
        bus.subscribe("t", where_after_a_while, kind="cpu", name="other", key=lambda _: "same")
        assert set(bus.publish("t", 1).results(BOUND_S)) == {os.getpid()}
        gil.on = True

        def moved() -> bool:
            return os.getpid() not in bus.publish("t", 1).results(BOUND_S)

        assert becomes(moved, BOUND_S), f"it never came to that: {bus.stats()}"
        assert {place_of(bus, name)[0] for name in ("one", "other")} == {"processes"}
        assert "an import has turned the GIL on" in place_of(bus, "one")[1]
        assert bus.stats().handlers["one"].failed == 0
    said = [each.getMessage() for each in caplog.records if "GIL" in each.getMessage()]
    assert len(said) == 1, said
    assert said[0].endswith("for later events of one, other")


def test_handler_subscribed_after_the_gil_came_on_starts_in_processes(gil: Gil) -> None:
    with EventBus([], cpu="auto", cpu_workers=1) as bus:
        bus.subscribe("t", where, kind="cpu", name="early")
        assert bus.publish("t", 1).result(BOUND_S) == os.getpid()
        gil.on = True
        bus.subscribe("u", where, kind="cpu", name="late")

        assert place_of(bus, "late") == ("processes", "processes: this Python has a GIL")


def test_event_of_a_once_handler_is_taken_once_whatever_the_gil_does(gil: Gil) -> None:
    with EventBus([], cpu="auto", cpu_workers=1) as bus:
        bus.subscribe("t", where_after_a_while, kind="cpu", name="h", once=True)
        receipts = [bus.publish("t", n) for n in range(3)]
        gil.on = True
        receipts += [bus.publish("t", n) for n in range(3)]

        assert [len(receipt.deliveries) for receipt in receipts] == [1, 0, 0, 0, 0, 0]
        assert receipts[0].result(BOUND_S) == os.getpid()


def test_calls_of_an_executor_run_in_processes_since_their_arguments_are_copies() -> None:
    with EventBus([], cpu="auto", cpu_workers=1) as bus:
        assert bus.executor().submit(where, 1).result(BOUND_S) != os.getpid()


def test_handler_that_cannot_travel_is_refused_with_and_without_a_gil(gil: Gil) -> None:
    lock = threading.Lock()
    with EventBus([], cpu="auto") as bus:
        for gil.on in (False, True):
            with pytest.raises(SerializationError, match="lock"):
                bus.subscribe("t", lambda _: lock.locked(), kind="cpu")


@pytest.mark.parametrize("on", [False, True], ids=["without a GIL", "with one"])
def test_handler_of_kind_auto_leaves_the_io_lane_for_processes_alone(gil: Gil, on: bool) -> None:
    gil.on = on
    judged = threading.Semaphore(0)

    def judge(*_: object) -> Judgement:
        judged.release()
        return Judgement("cpu" if gil.on else "threads", 2.0)

    advisor = lambda *about: Advisor(*about, judge=judge)  # noqa: E731 - a maker of parts
    with BusWith(Makers(advisor=advisor), cpu="auto", cpu_workers=1) as bus:
        bus.subscribe("t", where_after_a_while, kind="auto", name="h")

        def moved() -> bool:
            return bool(bus.publish("t", 1).result(BOUND_S) != os.getpid())

        if on:
            assert becomes(moved, BOUND_S)
        else:
            while not judged.acquire(blocking=False):
                assert not moved()
        assert place_of(bus, "h")[0] == ("processes" if on else "threads")
        assert bus.stats().handlers["h"].kind == ("cpu" if on else "io")


def test_journal_left_by_threads_is_resumed_in_processes(gil: Gil, tmp_path: Path) -> None:
    options: dict[str, Any] = {"cpu": "auto", "cpu_workers": 1, "journal": tmp_path / "run.db"}
    bus = EventBus([], **options)
    bus.subscribe("hold", hold, kind="cpu", name="hold")
    bus.subscribe("t", where, kind="cpu", name="h")
    bus.publish("hold", 1)
    held[0].wait_begun()
    for n in range(3):
        bus.publish("t", n)
    closing = close_with_only(1, bus)
    held[0].go.set()
    closing.join(BOUND_S)
    assert not closing.is_alive()

    gil.on = True
    with EventBus([], **options) as again:
        again.subscribe("t", where, kind="cpu", name="h")
        assert again.publish("t", 3).result(BOUND_S) != os.getpid()
    summary = again.resume_summary
    assert summary is not None
    assert dict(summary.resumed) == {"h": 3}
    assert again.stats().handlers["h"].succeeded == 4


def test_with_a_gil_no_module_for_threads_is_imported(tmp_path: Path) -> None:
    script = tmp_path / "job.py"
    script.write_text(
        """
import os, sys
sys._is_gil_enabled = lambda: True
from procbus import EventBus

if __name__ == "__main__":
    with EventBus([], cpu="auto", cpu_workers=1) as bus:
        bus.subscribe("t", lambda _: os.getpid(), kind="cpu")
        print(bus.publish("t", 1).result() != os.getpid(), "procbus.pool.threads" in sys.modules)
"""
    )
    ran = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=150, check=True
    )
    assert ran.stdout.split() == ["True", "False"], ran.stderr
