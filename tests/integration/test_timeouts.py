"""A cpu handler that runs out of time fails alone, whatever it is at; its worker is replaced."""

import itertools
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

from procbus import DeliveryState, EventBus, HandlerTimeout, OutcomeKind, Receipt
from procbus.assembly import Makers
from procbus.supervision.supervisor import Supervisor
from tests.integration.conftest import Run
from tests.integration.helpers import PATIENCE_S, Bell, Door, Job, Listener, Tally, wait_gone
from tests.matrix import quick_first
from tests.parts import BusWith, ClockAhead
from tests.processes import is_alive

LIMIT_S = 0.3
#: Limit of a handler that is to keep it on a busy machine, in seconds.
QUICK_S = 2.0
#: Limit of a handler that hangs until the test sets the clock ahead, in seconds.
LONG_S = 600.0
NOWHERE = Tally(os.devnull)
numbers = itertools.count()


def loop_for_ever(job: Job) -> None:
    while True:
        pass


def sleep_for_ever(job: Job) -> None:
    time.sleep(1000)


def hold_the_gil(job: Job) -> None:
    re.match(r"(a+)+$", "a" * 60 + "b")


def wait_for_a_thread(job: Job) -> None:
    thread = threading.Thread(target=loop_for_ever, args=(job,), daemon=True)
    thread.start()
    thread.join()


HANGS: dict[str, Callable[[Job], None]] = {
    hang.__name__: hang for hang in (loop_for_ever, sleep_for_ever, hold_the_gil, wait_for_a_thread)
}


def hang(job: Job) -> None:
    HANGS[job.how](job)


def work(job: Job) -> int:
    job.begin()
    if job.how:
        hang(job)
    return job.number


def timed_out(receipt: Receipt) -> HandlerTimeout:
    with pytest.raises(HandlerTimeout) as caught:
        receipt.result(PATIENCE_S)
    return caught.value


def bus_with(clock: Callable[[], float]) -> EventBus:
    return BusWith(Makers(supervisor=partial(Supervisor, clock=clock)), cpu_workers=1)


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[EventBus]:
    """A bus with two workers that have imported the modules of the handlers already."""
    with EventBus([], cpu_workers=2) as bus:
        bus.subscribe("job", work, kind="cpu")
        warm_up(bus, tmp_path)
        yield bus


def warm_up(bus: EventBus, tmp_path: Path) -> set[int]:
    """Have both workers run something at the same time, and say who they are."""
    bell, door = Bell.make(tmp_path / f"bell-{next(numbers)}"), Door(str(tmp_path / "warm door"))
    with bell.heard() as heard, door.shut():
        met = [bus.publish("job", Job(-1, NOWHERE, door=door, bell=bell)) for _ in range(2)]
        pids = {int(word) for word in heard.wait(2)}
    assert all(receipt.wait(PATIENCE_S) for receipt in met)
    assert len(pids) == 2
    return pids


def test_hanging_workers_alone_are_all_ended(tally: Tally) -> None:
    hanging, hows = len(HANGS), itertools.cycle(HANGS)
    with EventBus([], cpu_workers=hanging) as bus:
        bus.subscribe("job", work, kind="cpu")
        bus.subscribe("hang", work, kind="cpu", timeout=LIMIT_S, name="hang")
        receipts = [bus.publish("hang", Job(n, tally, next(hows))) for n in range(hanging)]
        after = [bus.publish("job", Job(n, tally)) for n in range(hanging, 50)]
        errors = [timed_out(receipt) for receipt in receipts]
        assert [r.result(PATIENCE_S) for r in after] == [*range(hanging, 50)]
        pids = {receipt.deliveries[0].worker_pid for receipt in receipts}
        assert len(pids) == hanging
        assert not any(pid is not None and is_alive(pid) for pid in pids)
        assert bus.stats().lanes["cpu"].restarts == hanging
    assert tally.counts() == {str(n): 1 for n in range(50)}
    for error in errors:
        assert error.stack == "" or "in hang" in error.stack


@pytest.mark.parametrize("how", quick_first(HANGS))
def test_only_the_delivery_that_hangs_fails(
    bus: EventBus, tally: Tally, tmp_path: Path, how: str
) -> None:
    bus.subscribe("hang", hang, kind="cpu", timeout=LIMIT_S, name="hang")
    before = warm_up(bus, tmp_path)
    hung = bus.publish("hang", Job(0, tally, how))
    neighbours = [bus.publish("job", Job(n, tally)) for n in range(1, 50)]
    error = timed_out(hung)
    assert [r.result(PATIENCE_S) for r in neighbours] == [*range(1, 50)]
    after = warm_up(bus, tmp_path)

    assert tally.counts() == {str(n): 1 for n in range(1, 50)}
    assert (error.handler, error.event_id, error.limit_s) == ("hang", hung.id, LIMIT_S)
    assert f"in {how}\n" in error.stack
    assert "in work" not in error.stack
    assert any(how in note for note in error.__notes__), "it shows in a traceback"
    (delivery,) = hung.deliveries
    assert delivery.state is DeliveryState.FAILED
    assert delivery.outcome is not None
    assert delivery.outcome.kind is OutcomeKind.TIMED_OUT
    assert delivery.run_s is not None
    assert delivery.run_s >= LIMIT_S
    assert delivery.worker_pid in before
    assert delivery.worker_pid is not None
    assert not is_alive(delivery.worker_pid)
    assert before - {delivery.worker_pid} == before & after, "the neighbour is the one it was"

    stats = bus.stats()
    assert stats.lanes["cpu"].restarts == 1
    assert stats.handlers["hang"].timed_out == 1
    (letter,) = bus.dead_letters
    assert letter.event_id == hung.id
    assert sorted(h.restarts for h in bus.health() if h.kind == "cpu") == [0, 1]
    assert any("timeout" in h.last_exit for h in bus.health()), bus.health()


@pytest.mark.parametrize("workers", quick_first([2, 1]))
def test_rest_of_a_batch_with_a_hanging_delivery_runs_elsewhere_once(
    tally: Tally, workers: int
) -> None:
    with EventBus([], cpu_workers=workers) as bus:
        bus.subscribe("job", work, kind="cpu", timeout=QUICK_S)
        # Its handler is known to be quick, so that many go in one batch.
        warm = [bus.publish("job", Job(-1, Tally(os.devnull))) for _ in range(200)]
        assert [r.result(PATIENCE_S) for r in warm] == [-1] * 200
        receipts = [
            bus.publish("job", Job(n, tally, "loop_for_ever" if n == 100 else ""))
            for n in range(300)
        ]
        assert "in loop_for_ever" in timed_out(receipts[100]).stack
        others = [r for n, r in enumerate(receipts) if n != 100]
        assert [r.result(PATIENCE_S) for r in others] == [n for n in range(300) if n != 100]
        pids = [r.deliveries[0].worker_pid for r in receipts]
    assert tally.counts() == {str(n): 1 for n in range(300)}
    if workers == 1:
        assert pids[100] not in pids[101:]


def test_handlers_that_hang_one_after_the_other_each_fail_alone(tally: Tally) -> None:
    with EventBus([], cpu_workers=2) as bus:
        bus.subscribe("job", work, kind="cpu", timeout=QUICK_S)
        receipts = [
            bus.publish("job", Job(n, tally, "sleep_for_ever" if n % 50 == 25 else ""))
            for n in range(200)
        ]
        assert bus.drain(PATIENCE_S)
        failed = [n for n, r in enumerate(receipts) if r.deliveries[0].exception()]
        assert failed == [25, 75, 125, 175]
        assert all(
            isinstance(receipts[n].deliveries[0].exception(), HandlerTimeout) for n in failed
        )
        assert bus.stats().lanes["cpu"].restarts == 4
    assert tally.counts() == {str(n): 1 for n in range(200)}


def test_processes_of_a_handler_die_at_its_time_limit_too(bell: Bell, heard: Listener) -> None:
    def start_and_hang(bell: Bell) -> None:
        sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
        bell.ring(sleeper.pid)
        if (forked := os.fork()) == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            bell.ring(subprocess.Popen(["sleep", "1000"]).pid)
            while True:
                signal.pause()
        bell.ring(forked)
        while True:
            pass

    clock = ClockAhead()
    with bus_with(clock) as bus:
        bus.subscribe("hang", start_and_hang, kind="cpu", timeout=LONG_S)
        receipt = bus.publish("hang", bell)
        family = [psutil.Process(int(word)) for word in heard.wait(3)]
        clock.ahead_s = LONG_S
        assert "start_and_hang" in timed_out(receipt).stack
        wait_gone(family)


def test_stopped_worker_runs_out_of_time_too(
    tally: Tally, door: Door, bell: Bell, heard: Listener
) -> None:
    clock = ClockAhead()
    with bus_with(clock) as bus:
        bus.subscribe("stopped", work, kind="cpu", timeout=LONG_S, name="stopped")
        with door.shut():
            receipt = bus.publish("stopped", Job(0, tally, door=door, bell=bell))
            (pid,) = map(int, heard.wait())
            os.kill(pid, signal.SIGSTOP)
            clock.ahead_s = LONG_S
            error = timed_out(receipt)
        assert error.stack == "", "it could not say"
        assert "could not be read" in error.__notes__[0]
        assert receipt.deliveries[0].worker_pid == pid
        assert not is_alive(pid)
        bus.subscribe("job", work, kind="cpu")
        assert bus.publish("job", Job(1, tally)).result(PATIENCE_S) == 1
    assert tally.counts() == {"0": 1, "1": 1}


def test_handler_within_its_time_limit_is_left_alone(bus: EventBus, tally: Tally) -> None:
    bus.subscribe("limited", work, kind="cpu", timeout=60)
    receipts = [bus.publish("limited", Job(n, tally)) for n in range(200)]
    assert [r.result(PATIENCE_S) for r in receipts] == [*range(200)]
    assert bus.stats().lanes["cpu"].restarts == 0


def test_time_limit_of_a_handler_subscribed_later_holds(
    bus: EventBus, tally: Tally, door: Door, bell: Bell, heard: Listener
) -> None:
    with door.shut():
        bus.publish("job", Job(0, tally, door=door, bell=bell))
        heard.wait()
        bus.subscribe("late", work, kind="cpu", timeout=LIMIT_S)
        assert (
            "loop_for_ever" in timed_out(bus.publish("late", Job(1, tally, "loop_for_ever"))).stack
        )
    assert bus.drain(PATIENCE_S)


def test_import_of_a_handlers_module_does_not_count_as_its_time(run: Run) -> None:
    """Else no handler with a short limit would ever run: each new worker imports again."""
    ended = run(
        """
        import sys
        from pathlib import Path
        Path("slow.py").write_text(
            "import os, time\\ntime.sleep(1.2)\\n"
            "def work(n):\\n    time.sleep(1000 * (n == 1))\\n    return os.getpid()\\n"
        )
        import logging, os
        logging.getLogger("procbus").setLevel(logging.CRITICAL)
        os.environ["PYTHONPATH"] = os.getcwd() + os.pathsep + os.environ["PYTHONPATH"]
        import slow
        from procbus import EventBus, HandlerTimeout
        with EventBus([], cpu_workers=1) as bus:
            bus.subscribe("n", slow.work, kind="cpu", timeout=0.9)
            first, hung, second = [bus.publish("n", n) for n in range(3)]
        print(first.result() != second.result(), type(hung.deliveries[0].exception()).__name__)
        print(first.deliveries[0].run_s < 0.9, 0.9 < hung.deliveries[0].run_s)
        """
    )
    assert ended.check() == "True HandlerTimeout\nTrue True\n"
