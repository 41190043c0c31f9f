"""A long delivery holds up no other, and neither does a stopped worker."""

import ctypes
import fcntl
import os
import signal
from pathlib import Path

import psutil

from procbus import DeliveryState, EventBus
from tests.integration.helpers import PATIENCE_S, Bell, Door, Job, Listener, Tally
from tests.waits import eventually


def work(job: Job) -> int:
    job.begin()
    return job.number


def in_c(job: Job) -> int:
    """Hold the GIL in one call of C while the door is shut."""
    if job.door is None:
        return work(job)
    job.tally.note(job.number)
    with open(job.door.path) as file:
        libc = ctypes.PyDLL(None)  # unlike CDLL it keeps the GIL
        assert job.bell is not None
        job.bell.ring(os.getpid())
        assert libc.flock(file.fileno(), fcntl.LOCK_SH) == 0
    return job.number


def test_deliveries_behind_a_blocked_one_run_elsewhere(tally: Tally, door: Door) -> None:
    with EventBus([], cpu_workers=2) as bus:
        bus.subscribe("job", work, kind="cpu")
        bus.start()
        # Its handler is known to be quick, so that many go in one batch.
        warm = [bus.publish("job", Job(-1, Tally(os.devnull))) for _ in range(200)]
        assert [r.result(PATIENCE_S) for r in warm] == [-1] * 200
        with door.shut():
            receipts = [
                bus.publish("job", Job(n, tally, door=None if n else door)) for n in range(300)
            ]
            assert all(r.wait(PATIENCE_S) for r in receipts[1:])
            assert receipts[0].deliveries[0].state is DeliveryState.RUNNING
        assert [r.result(PATIENCE_S) for r in receipts] == [*range(300)]
    assert tally.counts() == {str(n): 1 for n in range(300)}


def test_finished_deliveries_are_settled_while_the_next_is_blocked(
    tally: Tally, door: Door, bell: Bell, heard: Listener, tmp_path: Path
) -> None:
    first_door = Door(str(tmp_path / "first door"))
    with EventBus([], cpu_workers=1) as bus:
        bus.subscribe("job", work, kind="cpu")
        warm = [bus.publish("job", Job(-1, Tally(os.devnull))) for _ in range(200)]
        assert [r.result(PATIENCE_S) for r in warm] == [-1] * 200
        with door.shut():
            with first_door.shut():  # meanwhile the next ones gather, for one batch
                bus.publish("job", Job(-1, tally, door=first_door, bell=bell))
                heard.wait()
                receipts = [bus.publish("job", Job(n, tally)) for n in range(20)]
                receipts.append(bus.publish("job", Job(20, tally, door=door, bell=bell)))
            heard.wait()
            assert all(r.wait(PATIENCE_S) for r in receipts[:20])
        assert bus.drain(PATIENCE_S)


def test_the_others_finish_while_one_holds_the_gil_of_its_worker(
    tally: Tally, door: Door, bell: Bell, heard: Listener
) -> None:
    with EventBus([], cpu_workers=2) as bus:
        bus.subscribe("job", in_c, kind="cpu")
        bus.start()
        warm = [bus.publish("job", Job(-1, Tally(os.devnull))) for _ in range(200)]
        assert [r.result(PATIENCE_S) for r in warm] == [-1] * 200
        with door.shut():
            receipts = [
                bus.publish("job", Job(n, tally, door=door if n == 3 else None, bell=bell))
                for n in range(200)
            ]
            others = [receipt for receipt in receipts if receipt is not receipts[3]]
            assert all(receipt.wait(PATIENCE_S) for receipt in others)
            assert not receipts[3].done
        assert [receipt.result(PATIENCE_S) for receipt in receipts] == [*range(200)]
    assert tally.counts() == {str(n): 1 for n in range(200)}


def test_a_stopped_worker_loses_its_work_to_others_and_runs_nothing_twice_later(
    tally: Tally, door: Door, bell: Bell, heard: Listener
) -> None:
    with EventBus([], cpu_workers=2) as bus:
        bus.subscribe("job", work, kind="cpu")
        bus.start()
        warm = [bus.publish("job", Job(-1, Tally(os.devnull))) for _ in range(200)]
        assert [r.result(PATIENCE_S) for r in warm] == [-1] * 200
        with door.shut():
            stuck = bus.publish("job", Job(0, tally, door=door, bell=bell))
            victim = psutil.Process(int(heard.wait()[0]))
            victim.suspend()
            try:
                eventually(lambda: victim.status() == psutil.STATUS_STOPPED)
                receipts = [bus.publish("job", Job(n, tally)) for n in range(1, 400)]
                assert [r.result(PATIENCE_S) for r in receipts] == [*range(1, 400)]
                assert not stuck.done
                assert "stopped" in {h.state for h in bus.health() if h.kind == "cpu"}
            finally:
                victim.resume()
        assert stuck.result(PATIENCE_S) == 0
        more = [bus.publish("job", Job(n, tally)) for n in range(400, 500)]
        assert [r.result(PATIENCE_S) for r in more] == [*range(400, 500)]
        assert bus.stats().lanes["cpu"].restarts == 0
    assert tally.counts() == {str(n): 1 for n in range(500)}


def test_a_worker_stopped_while_idle_gets_work_that_others_take_from_it(tally: Tally) -> None:
    with EventBus([], cpu_workers=2) as bus:
        bus.subscribe("job", work, kind="cpu")
        bus.subscribe("pid", lambda _: os.getpid(), kind="cpu")
        bus.start()
        victim = psutil.Process(bus.publish("pid", 0).result(PATIENCE_S))
        victim.send_signal(signal.SIGSTOP)
        try:
            eventually(lambda: victim.status() == psutil.STATUS_STOPPED)
            receipts = [bus.publish("job", Job(n, tally)) for n in range(300)]
            assert [r.result(PATIENCE_S) for r in receipts] == [*range(300)]
        finally:
            victim.send_signal(signal.SIGCONT)
        assert bus.publish("job", Job(300, tally)).result(PATIENCE_S) == 300
    assert tally.counts() == {str(n): 1 for n in range(301)}
