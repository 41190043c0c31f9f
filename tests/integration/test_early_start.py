"""A worker's process starts before the first event, where a handler for processes is known.

It never outlives its bus, and has the settings that a worker started for the event would have.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator

import psutil
import pytest

from procbus import EventBus
from procbus.core.errors import WorkerDied
from procbus.testing import InlineBus
from tests.integration.conftest import Start
from tests.integration.helpers import WAKING, wait_gone
from tests.matrix import quick_first
from tests.processes import is_alive
from tests.waits import eventually


def worker_pid(_: int) -> int:
    return os.getpid()


def variable(name: str) -> str | None:
    return os.environ.get(name)


def directory(_: float) -> str:
    return os.getcwd()


def ahead() -> list[psutil.Process]:
    """This process's children that are, or were started to become, workers."""
    return [each for each in psutil.Process().children() if is_alive(each) and is_worker(each)]


def first_ahead() -> psutil.Process:
    """The first of them, once it is there. It forks another, which forks further workers."""
    eventually(ahead)
    return min(ahead(), key=lambda process: process.create_time())


def is_worker(process: psutil.Process) -> bool:
    try:
        return "procbus-worker" in process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return False


@pytest.fixture(autouse=True)
def none_before_and_after() -> Iterator[None]:
    eventually(lambda: not ahead())  # a test before this one may have killed some
    yield
    eventually(lambda: not ahead())


@pytest.fixture
def bus() -> Iterator[EventBus]:
    bus = EventBus([], cpu_workers=2)
    yield bus
    bus.close()


def test_the_process_of_the_first_worker_starts_with_the_block(bus: EventBus) -> None:
    bus.subscribe(int, worker_pid, kind="cpu")
    with bus:
        process = first_ahead()
        assert bus.publish(1).result() == process.pid


def test_the_process_starts_when_a_handler_is_subscribed_in_the_block(bus: EventBus) -> None:
    with bus:
        assert not ahead()
        bus.subscribe(int, worker_pid, kind="cpu")
        process = first_ahead()
        assert bus.publish(1).result() == process.pid


def test_the_process_starts_while_a_stream_reads_its_first_event(bus: EventBus) -> None:
    bus.subscribe(int, worker_pid, kind="cpu")
    seen: list[int] = []

    def source() -> Iterator[int]:
        seen.append(first_ahead().pid)
        yield 1

    [receipt] = bus.stream(source())
    assert [receipt.result()] == seen


def test_a_process_that_is_not_needed_ends_with_the_block(bus: EventBus) -> None:
    bus.subscribe(int, worker_pid, kind="cpu")
    with bus:
        process = first_ahead()
    eventually(lambda: not is_alive(process))


def test_a_block_that_is_left_at_once_leaves_no_process(bus: EventBus) -> None:
    bus.subscribe(int, worker_pid, kind="cpu")
    with bus:
        pass
    eventually(lambda: not ahead())


def test_the_process_starts_before_the_script_imports_the_modules_of_the_lane(start: Start) -> None:
    program = start(
        """
        import sys
        from procbus import EventBus

        def tell(event, _):
            if event == "subprocess.Popen":
                print("procbus.lanes.cpu" in sys.modules, "loky" in sys.modules, flush=True)

        with EventBus([], cpu_workers=1) as bus:
            sys.addaudithook(tell)
            bus.subscribe(int, abs, kind="cpu")
        """
    )
    assert program.read_line() == "False False"
    assert program.finish().code == 0


def test_a_block_starts_python_once_for_all_its_workers(start: Start) -> None:
    program = start(
        """
        import os, signal, sys
        from procbus import EventBus

        starts = []
        sys.addaudithook(lambda event, _: event == "subprocess.Popen" and starts.append(event))

        def meet(end):
            os.kill(os.getpid(), signal.SIGKILL) if end else None
            return os.getppid()

        with EventBus([], cpu_workers=2) as bus:
            bus.subscribe(bool, meet, kind="cpu", max_crashes=1)
            bus.start()
            print(bus.publish(False).result() == os.getpid())
            bus.publish(True).wait()
            print(bus.publish(False).result() == os.getpid(), len(starts))
        """
    )
    assert program.read_line() == "True"
    assert program.read_line() == "True 1"
    assert program.finish().code == 0


def test_no_process_starts_early_in_a_thread_that_may_end_before_the_bus(bus: EventBus) -> None:
    bus.subscribe(int, worker_pid, kind="cpu")

    def enter() -> None:
        bus.__enter__()

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert not ahead()
    assert bus.publish(1).result() != os.getpid()


def test_a_process_that_waits_counts_as_no_worker(bus: EventBus) -> None:
    bus.subscribe(int, worker_pid, kind="cpu")
    with bus:
        eventually(ahead)
        assert bus.stats().lanes["cpu"].workers == 0
        assert not [health for health in bus.health() if health.kind == "cpu"]


def test_without_a_handler_for_processes_none_starts(bus: EventBus) -> None:
    bus.subscribe(int, worker_pid)
    with bus:
        assert bus.publish(1).result() == os.getpid()
        assert not ahead()


def test_an_inline_bus_starts_none() -> None:
    with InlineBus([]) as bus:
        bus.subscribe(int, worker_pid, kind="cpu")
        assert bus.publish(1).result() == os.getpid()
        assert not ahead()


def test_a_process_of_multiprocessing_starts_none_for_a_block_that_it_imports(
    bus: EventBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus.subscribe(int, worker_pid, kind="cpu")
    monkeypatch.setattr("multiprocessing.current_process", lambda: _Spawned())
    with bus:
        assert not ahead()


class _Spawned:
    name = "SpawnProcess-1"


def test_a_process_that_was_killed_meanwhile_is_replaced(bus: EventBus) -> None:
    bus.subscribe(int, worker_pid, kind="cpu")
    with bus:
        process = first_ahead()
        process.kill()
        eventually(lambda: not is_alive(process))
        assert bus.publish(1).result() not in (process.pid, os.getpid())


def test_a_worker_has_the_variables_that_were_set_in_the_block(
    bus: EventBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus.subscribe(str, variable, kind="cpu")
    with bus:
        eventually(ahead)
        monkeypatch.setenv("SET_IN_THE_BLOCK", "yes")
        monkeypatch.setenv("OMP_NUM_THREADS", "17")
        assert bus.publish("SET_IN_THE_BLOCK").result() == "yes"
        assert bus.publish("OMP_NUM_THREADS").result() == "17"


def test_a_worker_has_the_directory_that_was_chosen_in_the_block(
    bus: EventBus, monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    bus.subscribe(float, directory, kind="cpu")
    with bus:
        eventually(ahead)
        monkeypatch.chdir(tmp_path)
        assert bus.publish(1.0).result() == str(tmp_path.resolve())


def test_the_successor_of_a_dead_worker_runs_the_waiting_events() -> None:
    with EventBus([], cpu_workers=1) as bus:
        bus.subscribe(int, die_at_zero, kind="cpu", max_crashes=1)
        receipts = [bus.publish(number) for number in range(20)]
        assert [receipt.result() for receipt in receipts[1:]] == list(range(1, 20))
        assert isinstance(receipts[0].deliveries[0].exception(), WorkerDied)


def die_at_zero(number: int) -> int:
    if not number:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


SCRIPT = (
    WAKING
    + """
import os, sys, time
import psutil
from procbus import EventBus

def work(n): pass

bus = EventBus([], cpu_workers=2 {options})
bus.subscribe(int, work, kind="cpu")
bus.__enter__()
if {waits}:
    while not [c for c in psutil.Process().children() if "procbus-worker" in c.cmdline()]:
        time.sleep(0.001)
"""
)

ENDS: dict[str, tuple[str, int]] = {
    "its last line": ("", 0),
    "an exception": ("raise ValueError", 1),
    "sys.exit": ("sys.exit(3)", 3),
    "the end of the bus": ("del bus", 0),
    "a fork": ("if not (pid := os.fork()): sys.exit(0)\nos.waitpid(pid, 0)", 0),
}


def script(body: str, *, waits: bool, options: str = "") -> str:
    return SCRIPT.replace("{waits}", str(waits)).replace("{options}", options) + body


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("end", quick_first(ENDS, 2))
def test_a_script_that_has_published_nothing_ends_and_leaves_nothing(
    start: Start, end: str, waits: bool
) -> None:
    body, code = ENDS[end]
    program = start(script(f"print('there', flush=True)\n{body}", waits=waits))
    assert program.read_line() == "there"
    processes = program.descendants()
    ended = program.finish()
    assert ended.code == code, ended.err
    assert ("Traceback" in ended.err) == (end == "an exception"), ended.err
    wait_gone(processes)


SIGNALS: dict[str, tuple[Callable[[int], None], str, int]] = {
    "Ctrl-C": (lambda pid: os.killpg(pid, signal.SIGINT), "", -signal.SIGINT),
    "SIGTERM": (lambda pid: os.kill(pid, signal.SIGTERM), "", -signal.SIGTERM),
    "SIGTERM to all": (lambda pid: os.killpg(pid, signal.SIGTERM), "", -signal.SIGTERM),
    "SIGTERM that finishes": (
        lambda pid: os.killpg(pid, signal.SIGTERM),
        ", on_sigterm='finish'",
        128 + signal.SIGTERM,
    ),
    "SIGKILL": (lambda pid: os.kill(pid, signal.SIGKILL), "", -signal.SIGKILL),
}


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("name", quick_first(SIGNALS, 2))
def test_a_signal_before_the_first_event_leaves_nothing(
    start: Start, name: str, waits: bool
) -> None:
    send, options, code = SIGNALS[name]
    body = "print('there', flush=True)\ntime.sleep(1000)"
    program = start(script(body, waits=waits, options=options))
    assert program.read_line() == "there"
    processes = program.descendants()
    send(program.pid)
    ended = program.finish()
    assert ended.code == code, ended.err
    wait_gone(processes)
