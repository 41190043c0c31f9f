"""The set-up of workers: once in each process, before anything else; its failure is told."""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from procbus import DeliveryState, EventBus, WorkerDied
from procbus.assembly import Makers
from procbus.core.errors import WorkerTraceback
from procbus.lanes.cpu import FAILED_STARTS, CpuLane
from procbus.supervision.supervisor import SLOW_START_S, Supervisor
from tests.integration.conftest import Run
from tests.integration.helpers import PATIENCE_S, Bell, Listener, Tally
from tests.matrix import quick_first
from tests.parts import BusWith
from tests.waits import eventually

#: Set by the set-up, in the worker.
ready_for: list[str] = []


def make_set_up(tally: Tally) -> Callable[[], None]:
    def set_up() -> None:
        ready_for.append("work")
        tally.note(f"set up {os.getpid()}")

    return set_up


def work(event: tuple[int, Tally]) -> list[str]:
    number, tally = event
    tally.note(f"work {os.getpid()}")
    if number < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return ready_for


def test_worker_init_runs_once_in_each_process_before_its_first_event(tally: Tally) -> None:
    with EventBus(
        [], cpu_workers=2, max_events_per_worker=10, worker_init=make_set_up(tally)
    ) as bus:
        bus.subscribe("work", work, kind="cpu")
        receipts = [bus.publish("work", (-1 if n == 15 else n, tally)) for n in range(40)]
        assert bus.drain(PATIENCE_S)
        for number, receipt in enumerate(receipts):
            if number == 15:
                assert isinstance(receipt.deliveries[0].exception(), WorkerDied)
            else:
                assert receipt.result() == ["work"]
    assert ready_for == [], "not in this process"
    by_pid: dict[str, list[str]] = {}
    for line in tally.lines():
        what, pid = line.rsplit(" ", 1)
        by_pid.setdefault(pid, []).append(what)
    assert len(by_pid) >= 4
    for did in by_pid.values():
        assert did[0] == "set up"
        assert set(did[1:]) <= {"work"}


def test_worker_init_does_not_run_if_no_worker_is_needed(tally: Tally) -> None:
    with EventBus([], worker_init=make_set_up(tally)) as bus:
        bus.subscribe("io", lambda n: n)
        assert bus.publish("io", 1).result(PATIENCE_S) == 1
    assert tally.lines() == []


SCRIPT = """
import logging, os, sys
from dataclasses import dataclass
from functools import partial
from procbus import EventBus, current

model = None
settings = {}
settings["from"] = "script"
log = logging.getLogger("job")

class Model:
    def __init__(self, name):
        self.name = name

def set_up(name="large"):
    global model
    model = Model(name)
    settings["pid"] = os.getpid()

@dataclass(frozen=True)
class Text:
    words: str

def classify(text: Text):
    return model.name, len(text.words), settings["pid"] == os.getpid()

def change(text):
    global model
    model = Model("changed")
    return model.name

class Classifier:
    def __call__(self, text):
        return model.name
"""


@pytest.mark.parametrize("given", ["set_up", "partial(set_up, 'large')"])
def test_handlers_of_the_script_see_globals_set_by_worker_init(run: Run, given: str) -> None:
    ended = run(
        SCRIPT
        + f"""
with EventBus([], cpu_workers=2, worker_init={given}) as bus:
    bus.subscribe(Text, classify, kind="cpu")
    bus.subscribe("call", Classifier(), kind="cpu")
    print(*[bus.publish(Text("x" * n)).result() for n in range(3)], model)
    print(bus.publish("call", 0).result())
"""
    )
    assert ended.check() == (
        "('large', 0, True) ('large', 1, True) ('large', 2, True) None\nlarge\n"
    )


def test_globals_changed_by_a_handler_stay_in_its_process(run: Run) -> None:
    """As with globals in general: only the values present after the set-up are handed on."""
    ended = run(
        SCRIPT
        + """
with EventBus([], cpu_workers=1, worker_init=set_up) as bus:
    bus.subscribe("change", change, kind="cpu")
    bus.subscribe(Text, classify, kind="cpu")
    print(bus.publish(Text("a")).result()[0], bus.publish("change", 0).result())
"""
    )
    assert ended.check() == "large changed\n"


def test_handlers_of_a_module_see_globals_set_by_worker_init(run: Run, tmp_path: Path) -> None:
    (tmp_path / "parts.py").write_text(
        "model = None\n"
        "def set_up():\n    global model\n    model = 'large'\n"
        "def work(n):\n    return model\n"
    )
    ended = run(
        """
        import parts
        from procbus import EventBus
        with EventBus([], cpu_workers=1, worker_init=parts.set_up) as bus:
            bus.subscribe("n", parts.work, kind="cpu")
            print(bus.publish("n", 0).result(), parts.model)
        """
    )
    assert ended.check() == "large None\n"


def fail_to_set_up(tally: Tally) -> Callable[[], None]:
    def load_model() -> None:
        tally.note(os.getpid())
        raise FileNotFoundError("model.bin is not there")

    return load_model


@pytest.mark.parametrize("retries", quick_first([3, 0]))
def test_failure_of_worker_init_is_a_clear_error_and_no_loop_of_workers(
    tally: Tally, retries: int
) -> None:
    with EventBus([], cpu_workers=2, worker_init=fail_to_set_up(tally)) as bus:
        bus.subscribe("work", work, kind="cpu", retries=retries, backoff=0.0)
        receipts = [bus.publish("work", (n, tally)) for n in range(200)]
        assert all(r.wait(PATIENCE_S) for r in receipts)
        errors = [r.deliveries[0].exception() for r in receipts]
        assert {type(error) for error in errors} == {WorkerDied}
        text = str(errors[0])
        assert "worker_init failed" in text
        assert "FileNotFoundError: model.bin is not there" in text
        cause = errors[0].__cause__  # type: ignore[union-attr]
        assert cause is not None
        assert isinstance(cause.__cause__, WorkerTraceback)
        assert "in load_model" in str(cause.__cause__)
        assert len(tally.lines()) <= 4, "how many were started"
        more = [bus.publish("work", (n, tally)) for n in range(100)]
        assert all(
            isinstance(r.deliveries[0].exception(), WorkerDied) for r in more if r.wait(PATIENCE_S)
        )
        assert all(r.done for r in more)
        assert len(tally.lines()) <= 4
        assert len(bus.dead_letters) == 300
        assert {r.deliveries[0].attempts for r in receipts} == {0}


def test_worker_init_that_failed_may_work_later(tally: Tally, tmp_path: Path) -> None:
    """None is tried for a while; then the next event gets a worker."""
    model = tmp_path / "model"

    def set_up() -> None:
        model.read_text()

    make = Makers(cpu_lane=partial(CpuLane, broken_s=0.0))
    with BusWith(make, cpu_workers=1, worker_init=set_up) as bus:
        bus.subscribe("n", abs, kind="cpu")
        with pytest.raises(WorkerDied, match="No such file"):
            bus.publish("n", -1).result(PATIENCE_S)
        model.touch()
        assert bus.publish("n", -2).result(PATIENCE_S) == 2


ENDINGS: dict[str, str] = {
    "exits": "raise SystemExit(3)",
    "is interrupted": "raise KeyboardInterrupt",
    "ends the process": "os._exit(7)",
    "is killed": "os.kill(os.getpid(), 9)",
}


@pytest.mark.parametrize("how", quick_first(ENDINGS))
def test_worker_init_that_ends_its_process_is_a_clear_error(tally: Tally, how: str) -> None:
    code = ENDINGS[how]

    def set_up() -> None:
        tally.note(os.getpid())
        exec(code)

    logging.getLogger("procbus").setLevel(logging.CRITICAL)
    try:
        with EventBus([], cpu_workers=1, worker_init=set_up) as bus:
            bus.subscribe("n", abs, kind="cpu")
            receipts = [bus.publish("n", n) for n in range(20)]
            assert all(r.wait(PATIENCE_S) for r in receipts)
            errors = [r.deliveries[0].exception() for r in receipts]
    finally:
        logging.getLogger("procbus").setLevel(logging.NOTSET)
    assert {type(error) for error in errors} == {WorkerDied}
    assert len(tally.lines()) <= FAILED_STARTS + 2, "once those fail, for others that came later"


@pytest.mark.parametrize("retries", quick_first([2, 0]))
def test_workers_that_die_in_their_start_charge_no_delivery(tally: Tally, retries: int) -> None:
    deaths = 4

    def set_up() -> None:
        tally.note(os.getpid())
        if len(tally.lines()) <= deaths:
            os._exit(1)

    with EventBus([], cpu_workers=1, worker_init=set_up) as bus:
        bus.subscribe("n", abs, kind="cpu", retries=retries, backoff=0.0)
        receipts = [bus.publish("n", n) for n in range(20)]
        assert [r.result(PATIENCE_S) for r in receipts] == [*range(20)]
        assert {r.deliveries[0].attempts for r in receipts} == {1}
        stats = bus.stats()
    assert len(tally.lines()) == deaths + 1
    assert stats.lanes["cpu"].restarts == deaths
    assert sum(handler.retried for handler in stats.handlers.values()) == 0
    assert len(bus.dead_letters) == 0


@pytest.mark.parametrize("how", [{"timeout": 0.1}, {"cancel": True}])
def test_a_bus_whose_set_up_hangs_can_be_closed(
    bell: Bell, heard: Listener, how: dict[str, Any]
) -> None:
    def set_up() -> None:
        bell.ring(os.getpid())
        threading.Event().wait()

    with EventBus([], cpu_workers=1, worker_init=set_up) as bus:
        bus.subscribe("n", abs, kind="cpu")
        receipts = [bus.publish("n", n) for n in range(5)]
        (pid,) = heard.wait()
        (health,) = bus.health()
        assert (health.state, health.pid) == ("starting", int(pid))
        assert (health.handler, health.event_id) == ("worker_init", None)
        assert health.running_s is not None
        assert health.running_s > 0
        assert health.memory_bytes is not None
        bus.close(**how)
    assert {r.deliveries[0].state for r in receipts} == {DeliveryState.CANCELLED}
    assert not psutil.pid_exists(int(pid))


def load_for_ever(bell: Bell) -> None:
    bell.ring(os.getpid())
    threading.Event().wait()


def test_hanging_worker_init_is_logged_once_with_worker_and_stack(
    bell: Bell,
    heard: Listener,
    caplog: pytest.LogCaptureFixture,
) -> None:
    ahead_s = 0.0

    def said() -> list[str]:
        return [m for r in caplog.records if "is not ready after" in (m := r.getMessage())]

    set_up = partial(load_for_ever, bell)
    make = Makers(
        supervisor=partial(Supervisor, sample_s=0.05, clock=lambda: time.monotonic() + ahead_s)
    )
    with BusWith(make, cpu_workers=2, worker_init=set_up) as bus:
        bus.subscribe("n", abs, kind="cpu")
        bus.start()
        bus.publish("n", 1)
        pids = heard.wait(2)
        ahead_s = SLOW_START_S
        eventually(lambda: bool(said()))
        bus.close(timeout=0.3)  # for some looks more
    [line] = said()
    assert any(line.startswith(f"worker {pid} is not ready") for pid in pids)
    assert "it is still in worker_init" in line
    assert "in load_for_ever" in line, "where it hangs"


def test_hanging_worker_init_of_one_worker_does_not_keep_the_bus_open(
    tally: Tally, bell: Bell, heard: Listener
) -> None:
    def set_up() -> None:
        tally.note(os.getpid())
        if len(tally.lines()) > 1:
            bell.ring(os.getpid())
            threading.Event().wait()

    with EventBus([], cpu_workers=2, worker_init=set_up) as bus:
        bus.subscribe("n", abs, kind="cpu")
        assert bus.publish("n", 0).result(PATIENCE_S) == 0
        bus.start()
        (pid,) = heard.wait()
        assert [bus.publish("n", n).result(PATIENCE_S) for n in range(5)] == [*range(5)]
    assert not psutil.pid_exists(int(pid))
