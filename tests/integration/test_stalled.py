"""A handler that gets nowhere is shown and told of, once; one that takes long is not."""

import logging
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from procbus import EventBus, WorkerStalled
from procbus.assembly import Makers
from procbus.supervision.health import WorkerHealth
from procbus.supervision.supervisor import Supervisor
from tests.integration.helpers import PATIENCE_S, Bell, Door, Listener
from tests.matrix import quick_first
from tests.parts import BusWith
from tests.waits import eventually


@dataclass(frozen=True)
class Job:
    door: Door
    #: The file in which the handler finds the test's order to open the door.
    pipe: str
    bell: Bell


def wait_for_a_file_lock(job: Job) -> None:
    job.bell.ring()
    job.door.go_through()


def wait_for_a_lock(job: Job) -> None:
    lock = threading.Lock()
    lock.acquire()

    def release() -> None:
        job.door.go_through()
        lock.release()

    threading.Thread(target=release).start()
    job.bell.ring()
    lock.acquire()


def wait_for_a_pipe(job: Job) -> None:
    with open(job.pipe, "rb", buffering=0) as file:  # waits until it is opened to write
        job.bell.ring()
        file.read(1)


def compute(job: Job) -> None:
    opened = job.door.opened()
    job.bell.ring()
    while not opened.is_set():
        sum(range(10_000))


WAITS: dict[str, Callable[[Job], None]] = {
    wait.__name__: wait for wait in (wait_for_a_file_lock, wait_for_a_lock, wait_for_a_pipe)
}


def make_bus(workers: int) -> EventBus:
    """A bus with a short window, whose workers are sampled often.

    In the window a worker that computes gets a core even beside many other programs.
    """
    make = Makers(supervisor=partial(Supervisor, sample_s=0.1, stall_window_s=2.0))
    return BusWith(make, cpu_workers=workers)


@pytest.mark.parametrize("how", quick_first(WAITS))
def test_waiting_worker_is_stalled_and_computing_worker_is_busy(
    door: Door,
    bell: Bell,
    heard: Listener,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    how: str,
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    job = Job(door, str(pipe), bell)
    with make_bus(3) as bus:
        bus.subscribe("wait", WAITS[how], kind="cpu", name="waits")
        bus.subscribe("compute", compute, kind="cpu", name="computes")
        told: list[WorkerStalled] = []
        bus.listen(SimpleNamespace(worker_stalled=told.append))

        def of(event_id: int) -> WorkerHealth:
            (worker,) = (h for h in bus.health() if h.event_id == event_id)
            return worker

        with door.shut(), open(os.open(pipe, os.O_RDWR), "wb", buffering=0) as end:
            receipts = [bus.publish(topic, job) for topic in ("wait", "compute", "wait")]
            heard.wait(3)
            eventually(lambda: {of(receipts[n].id).state for n in (0, 2)} == {"stalled"})
            busy, stalled = of(receipts[1].id), of(receipts[0].id)
            assert (busy.state, busy.handler) == ("busy", "computes")
            assert stalled.handler == "waits"
            assert stalled.running_s is not None
            assert stalled.running_s >= 2.0
            eventually(lambda: len(told) >= 2)
            end.write(b"xx")
        assert all(r.wait(PATIENCE_S) for r in receipts)
        assert [r.result() for r in receipts] == [None] * 3, "nobody was harmed"
        eventually(lambda: {h.state for h in bus.health()} == {"idle"})
    assert sorted(each.delivery.event_id for each in told) == [receipts[0].id, receipts[2].id]
    for moment in told:
        assert moment.pid == moment.delivery.worker_pid
        assert moment.at - moment.since >= 2.0
    assert (stalled.name, stalled.pid) in {(each.worker, each.pid) for each in told}
    warned = [r for r in caplog.records if "is stalled" in r.getMessage()]
    assert len(warned) == 1, "once for the handler, and for that one alone"
    assert warned[0].levelno >= logging.WARNING
    text = warned[0].getMessage()
    assert "is stalled: waits with event" in text
    assert str(stalled.pid) in text or str(receipts[2].deliveries[0].worker_pid) in text


def test_stopped_worker_is_not_called_stalled(door: Door, bell: Bell, heard: Listener) -> None:
    with make_bus(1) as bus:
        bus.subscribe("job", wait_for_a_file_lock, kind="cpu")
        with door.shut():
            receipt = bus.publish("job", Job(door, "", bell))
            heard.wait()
            (worker,) = bus.health()
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGSTOP)
            eventually(lambda: bus.health()[0].state == "stopped")
            os.kill(worker.pid, signal.SIGCONT)
            eventually(lambda: bus.health()[0].state in ("busy", "stalled"))
        assert receipt.result(PATIENCE_S) is None
