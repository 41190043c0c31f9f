"""Workers die: exactly the delivery that was running fails, everything else goes on."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import psutil
import pytest

from procbus import DeliveryState, EventBus, OutcomeKind, Receipt, WorkerDied
from procbus.core.errors import HandlerExited
from tests.integration.conftest import Run
from tests.integration.helpers import PATIENCE_S, Bell, Job, Tally
from tests.matrix import quick_first
from tests.processes import alive_after, is_alive


def segfault() -> None:
    ctypes.string_at(0)


WAYS: dict[str, tuple[Callable[[], object], int]] = {
    "SIGKILL": (lambda: os.kill(os.getpid(), signal.SIGKILL), -signal.SIGKILL),
    "SIGSEGV by signal": (lambda: os.kill(os.getpid(), signal.SIGSEGV), -signal.SIGSEGV),
    "SIGSEGV in C": (segfault, -signal.SIGSEGV),
    "SIGTERM": (lambda: os.kill(os.getpid(), signal.SIGTERM), -signal.SIGTERM),
    "_exit(0)": (lambda: os._exit(0), 0),
    "_exit(3)": (lambda: os._exit(3), 3),
}


def work(job: Job) -> int:
    job.begin()
    if job.how:
        WAYS[job.how][0]()
    return job.number


@pytest.fixture
def bus() -> Iterator[EventBus]:
    with EventBus([], cpu_workers=2) as bus:
        bus.subscribe("job", work, kind="cpu")
        yield bus


def died(receipt: Receipt) -> WorkerDied:
    with pytest.raises(WorkerDied) as caught:
        receipt.result(PATIENCE_S)
    return caught.value


@pytest.mark.parametrize("how", quick_first(WAYS, 2))
def test_only_the_delivery_that_ran_fails(bus: EventBus, tally: Tally, how: str) -> None:
    before = [bus.publish("job", Job(n, tally)) for n in range(50)]
    fatal = bus.publish("job", Job(50, tally, how))
    after = [bus.publish("job", Job(n, tally)) for n in range(51, 101)]

    error = died(fatal)
    assert [r.result(PATIENCE_S) for r in before + after] == [*range(50), *range(51, 101)]
    assert tally.counts() == {str(n): 1 for n in range(101)}
    assert error.handler.endswith(".work")
    assert error.event_id == fatal.id
    assert error.exit_code == WAYS[how][1]
    assert error.ran_s >= 0.0
    outcome = fatal.deliveries[0].outcome
    assert outcome is not None
    assert (outcome.kind, outcome.worker_pid) == (OutcomeKind.WORKER_DIED, error.pid)
    assert fatal.deliveries[0].state is DeliveryState.FAILED
    assert error.pid is not None
    assert not is_alive(error.pid)
    assert bus.stats().lanes["cpu"].restarts == 1
    assert sorted(h.restarts for h in bus.health() if h.kind == "cpu") in ([0, 1], [1])
    assert [letter.event_id for letter in bus.dead_letters] == [fatal.id]


def test_sys_exit_in_a_handler_is_an_error_like_any_other(bus: EventBus) -> None:
    def leave(code: int) -> None:
        sys.exit(code)

    bus.subscribe("leave", leave, kind="cpu")
    receipt = bus.publish("leave", 4)
    with pytest.raises(HandlerExited, match=r"raised SystemExit\(4\) with event") as caught:
        receipt.result(PATIENCE_S)
    assert isinstance(caught.value.__cause__, SystemExit)
    assert caught.value.__cause__.code == 4
    assert bus.stats().lanes["cpu"].restarts == 0


def test_kill_of_an_idle_worker_is_charged_to_no_delivery(tally: Tally) -> None:
    with EventBus([], cpu_workers=1) as bus:
        bus.subscribe("job", work, kind="cpu")
        first = bus.publish("job", Job(0, tally))
        assert first.result(PATIENCE_S) == 0
        pid = first.deliveries[0].worker_pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):  # it is dead, and was waited for already
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert [bus.publish("job", Job(n, tally)).result(PATIENCE_S) for n in range(1, 20)] == [
            *range(1, 20)
        ]
        assert bus.dead_letters == ()
        assert bus.stats().lanes["cpu"].restarts == 1
    assert tally.counts() == {str(n): 1 for n in range(20)}


@pytest.mark.parametrize("victim", quick_first([17, 299, 0, 1, 150], 2))
def test_kill_in_a_batch_of_small_events_is_charged_to_one(tally: Tally, victim: int) -> None:
    """Deliveries that the worker finished and had not reported yet are not run again."""
    with EventBus([], cpu_workers=1) as bus:
        bus.subscribe("job", work, kind="cpu")
        bus.publish("job", Job(-1, Tally(os.devnull))).result(PATIENCE_S)
        receipts = [
            bus.publish("job", Job(n, tally, "SIGKILL" if n == victim else "")) for n in range(300)
        ]
        assert bus.drain(PATIENCE_S)
        failed = [n for n, r in enumerate(receipts) if r.deliveries[0].exception()]
        assert failed == [victim]
        assert tally.counts() == {str(n): 1 for n in range(300)}
        assert all(r.result() == n for n, r in enumerate(receipts) if n != victim)


@pytest.mark.slow
def test_several_fatal_events_among_many_are_each_charged_alone(
    bus: EventBus, tally: Tally
) -> None:
    receipts = [
        bus.publish("job", Job(n, tally, "SIGKILL" if n % 100 == 50 else "")) for n in range(500)
    ]
    assert bus.drain(PATIENCE_S)
    failed = [n for n, r in enumerate(receipts) if r.deliveries[0].exception()]
    assert failed == [50, 150, 250, 350, 450]
    assert tally.counts() == {str(n): 1 for n in range(500)}
    assert bus.stats().lanes["cpu"].restarts == 5


def large(size: int) -> bytes:
    return bytes(size)


def test_a_kill_while_a_large_result_is_written(bus: EventBus, tally: Tally) -> None:
    class Result:
        """Its pickling is the writing of a result: there the process dies, in the middle."""

        def __init__(self, parts: int) -> None:
            self.parts = parts

        def __reduce__(self):
            threading.Timer(0.0, os.kill, (os.getpid(), signal.SIGKILL)).start()
            return large, (self.parts,), {"blob": bytes(50_000_000)}

    def produce(n: int) -> Result:
        return Result(n)

    bus.subscribe("large", produce, kind="cpu")
    neighbours = [bus.publish("job", Job(n, tally)) for n in range(20)]
    error = died(bus.publish("large", 1))
    assert error.exit_code == -signal.SIGKILL
    assert [r.result(PATIENCE_S) for r in neighbours] == [*range(20)]
    assert bus.publish("job", Job(20, tally)).result(PATIENCE_S) == 20
    assert tally.counts() == {str(n): 1 for n in range(21)}


def test_a_kill_at_any_moment_around_the_writing_of_a_large_result(bus: EventBus) -> None:
    def produce(delay_s: float) -> bytes:
        blob = bytes(50_000_000)
        signal.setitimer(signal.ITIMER_REAL, delay_s)  # SIGALRM ends the process
        return blob

    bus.subscribe("large", produce, kind="cpu")
    for step in range(1, 6):
        receipt = bus.publish("large", step * 0.004)
        assert receipt.wait(PATIENCE_S)
        error = receipt.deliveries[0].exception()
        if error is None:
            assert receipt.result() == bytes(50_000_000)
        else:
            assert isinstance(error, WorkerDied)
            assert error.exit_code == -signal.SIGALRM


def test_kill_while_a_large_event_travels_is_charged_to_no_delivery() -> None:
    """The worker was not in a handler: the event runs in the next one."""
    with EventBus([], cpu_workers=1) as bus:
        bus.subscribe("pid", lambda _: os.getpid(), kind="cpu")
        bus.subscribe("size", len, kind="cpu")
        pid = bus.publish("pid", 0).result(PATIENCE_S)
        os.kill(pid, signal.SIGSTOP)
        receipt = bus.publish("size", bytes(30_000_000))
        process = psutil.Process(pid)
        process.kill()
        assert receipt.result(PATIENCE_S) == 30_000_000
        assert receipt.deliveries[0].worker_pid != pid
        assert bus.stats().lanes["cpu"].restarts == 1


def test_a_child_of_a_handler_that_keeps_the_pipe_open_delays_nothing(
    bus: EventBus, tally: Tally
) -> None:
    def fork_and_die(bell: Bell) -> None:
        if os.fork() == 0:
            os.close(1)
            os.close(2)
            bell.ring(os.getpid())
            signal.pause()
        bell.ring("parent")
        os.kill(os.getpid(), signal.SIGKILL)

    path = f"{tally.path}-bell"
    os.mkfifo(path)
    own = Bell(path)
    bus.subscribe("fork", fork_and_die, kind="cpu")
    with own.heard() as heard:
        receipt = bus.publish("fork", own)
        words = heard.wait(2)
        orphan = psutil.Process(int(next(word for word in words if word != "parent")))
        try:
            assert receipt.wait(PATIENCE_S)
            assert died(receipt).exit_code == -signal.SIGKILL
            assert bus.publish("job", Job(1, tally)).result(PATIENCE_S) == 1
        finally:
            orphan.kill()
            alive_after([orphan], PATIENCE_S)


def test_handler_that_always_dies_does_not_starve_the_others(bus: EventBus, tally: Tally) -> None:
    fatal = [bus.publish("job", Job(n, tally, "_exit(3)")) for n in range(4)]
    fine = [bus.publish("job", Job(n, tally)) for n in range(4, 12)]
    assert [r.result(PATIENCE_S) for r in fine] == [*range(4, 12)]
    assert {died(r).exit_code for r in fatal} == {3}
    assert tally.counts() == {str(n): 1 for n in range(12)}


def test_worker_ignores_ctrl_c_but_its_subprocesses_do_not(bus: EventBus) -> None:
    def start_one(_: int) -> str:
        code = "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
        os.kill(os.getpid(), signal.SIGINT)
        return subprocess.check_output([sys.executable, "-c", code], text=True)

    bus.subscribe("start", start_one, kind="cpu")
    assert bus.publish("start", 0).result(PATIENCE_S) == "True\n"


CRASHING_START = """
import logging, os, sys
from procbus import EventBus, WorkerDied
logging.getLogger("procbus").setLevel(logging.CRITICAL)
os.environ["PYTHONPATH"] = os.getcwd() + os.pathsep + os.environ["PYTHONPATH"]
with open("sitecustomize.py", "w") as file:
    file.write("import os, sys\\nif os.environ.get('DIE'): " + sys.argv[1])
os.environ["DIE"] = "1"
with EventBus([], cpu_workers=2) as bus:
    bus.subscribe("n", abs, kind="cpu")
    receipts = [bus.publish("n", n) for n in range(3)]
    for receipt in receipts:
        try:
            receipt.result(55)
        except WorkerDied as error:
            print(error.exit_code, "no worker process can be started" in str(error))
    del os.environ["DIE"]
    for _ in range(10):  # a start that began before may fail only now
        try:
            print(bus.publish("n", -7).result(55))
            break
        except WorkerDied:
            pass
"""


@pytest.mark.parametrize(
    ("line", "code"),
    quick_first([("os._exit(9)", 9), ("os.kill(os.getpid(), 9)", -9), ("os._exit(0)", 0)]),
)
def test_workers_that_die_at_their_start_fail_waiting_deliveries_and_the_bus_recovers(
    run: Run, line: str, code: int
) -> None:
    ended = run(CRASHING_START, line)
    assert ended.code == 0, ended.err
    assert ended.out == f"{code} True\n" * 3 + "7\n"


def test_no_file_descriptors_left_is_an_error_and_no_hang(run: Run) -> None:
    ended = run(
        """
        import logging, os, resource
        from procbus import EventBus, WorkerDied
        logging.getLogger("procbus").setLevel(logging.CRITICAL)
        with EventBus([], cpu_workers=1) as bus, EventBus([], cpu_workers=1) as full:
            bus.subscribe("n", abs, kind="cpu")
            full.subscribe("n", abs, kind="cpu")
            assert bus.publish("n", -1).result(55) == 1
            used = len(os.listdir("/proc/self/fd"))
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            for room in range(1, 25, 3):
                resource.setrlimit(resource.RLIMIT_NOFILE, (used + room, hard))
                try:
                    assert full.publish("n", -2).result(55) == 2
                    break
                except WorkerDied as error:
                    assert "Too many open files" in str(error), error
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            print(room > 1, full.publish("n", -3).result(55))
        """
    )
    assert ended.code == 0, ended.err
    assert ended.out == "True 3\n"


@pytest.mark.skipif(sys.platform != "linux", reason="the number of open files differs elsewhere")
def test_script_without_free_descriptors_is_told_the_limit_to_raise(run: Run) -> None:
    ended = run(
        """
        import logging, os, resource
        from procbus import EventBus, WorkerDied

        logging.getLogger("procbus").setLevel(logging.CRITICAL + 1)
        with EventBus(handlers=[], cpu_workers=1) as bus:
            bus.subscribe("n", abs, kind="cpu")
            resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 2, 4096))
            try:
                bus.publish("n", -1).result(55)
            except WorkerDied as error:
                print("ulimit -n" in str(error))
            resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 4096))
            print(bus.publish("n", -1).result(55))
        """
    )

    assert (ended.out, ended.code) == ("True\n1\n", 0), ended.err
