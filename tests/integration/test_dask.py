"""A bus on a Dask cluster works as on one machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from procbus import DaskPool, EventBus, HandlerTimeout, WorkerDied, current
from procbus.core.context import ONLY_RUN, Run
from procbus.core.errors import WorkerTraceback
from tests.clusters import HAS_DASK, NO_DASK, Machines, cluster, parent_of, warm_up
from tests.integration.helpers import Tally
from tests.waits import eventually

if TYPE_CHECKING:
    from procbus.pool.dask.pool import ClusterPool

pytestmark = [
    pytest.mark.skipif(not HAS_DASK, reason=NO_DASK),
    pytest.mark.timeout(240),  # processes of Dask take seconds to start on a busy machine
]
BOUND_S = 60.0


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with cluster(workers=2) as address:
        warm_up(address)
        yield address


@pytest.fixture
def bus(address: str) -> Iterator[EventBus]:
    with EventBus(handlers=[], cpu=DaskPool(address)) as bus:
        yield bus


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dask")


@pytest.fixture
def tally(tmp_path: Path) -> Tally:
    return Tally(str(tmp_path / "tally"))


# The work and the surroundings of a handler.


def test_results_come_back_and_both_dask_workers_work(bus: EventBus) -> None:
    bus.subscribe("number", lambda n: (n * n, os.getppid()), kind="cpu", name="square")

    receipts = list(bus.stream(range(2_000), topic="number", ordered=True))

    assert [receipt.result()[0] for receipt in receipts] == [n * n for n in range(2_000)]
    bus.drain()
    assert {receipt.result()[1] for receipt in receipts} <= {
        parent_of(worker.pid).pid for worker in bus.health() if worker.pid
    }


def pool_with(address: str, connect: Callable[..., Any]) -> DaskPool:
    """A pool whose workers have connections of the test's making."""
    from procbus.pool.dask.pool import ClusterPool
    from procbus.pool.dask.worker import DaskWorker

    class Connected(DaskPool):
        def open(
            self,
            workers: int | None,
            init: bytes,
            run: Run = ONLY_RUN,
            eager: Callable[[], bytes] = bytes,
        ) -> ClusterPool:
            make = partial(DaskWorker, connect=connect)
            return ClusterPool(address, workers, init, run, eager=eager, make_worker=make)

    return Connected(address)


def test_a_large_event_goes_to_a_worker_once_for_all_its_handlers_and_attempts(
    address: str,
) -> None:
    from procbus.pool.dask.engine import Connection

    sent: list[int] = []

    class Counted(Connection):
        def say(self, **message: Any) -> None:
            parts = [message.get("data", b""), message.get("event", b"")]
            sent.extend(len(getattr(part, "data", part)) for part in parts)
            super().say(**message)

    def pick(event: bytes) -> int:
        attempt = current().attempt
        if attempt < 3:
            raise LookupError(f"attempt {attempt}")
        return len(event)

    size = 4 << 20
    with EventBus(handlers=[], cpu=pool_with(address, Counted), cpu_workers=1) as bus:
        for name in ("first", "second"):
            bus.subscribe("page", len, kind="cpu", name=name)
        bus.subscribe("page", pick, kind="cpu", retries=2, backoff=0)
        for number in range(3):
            receipt = bus.publish("page", bytes([number]) * size)
            assert receipt.results(BOUND_S) == [size] * 3

    assert 3 * size < sum(sent) < 3.5 * size


def test_an_error_comes_back_as_itself_with_the_remote_traceback(bus: EventBus) -> None:
    def explode(event: object) -> None:
        raise LookupError(f"no {event}")

    bus.subscribe("word", explode, kind="cpu")

    receipt = bus.publish("word", "match")
    assert receipt.wait(BOUND_S)
    error = receipt.deliveries[0].exception()

    assert isinstance(error, LookupError)
    assert isinstance(error.__cause__, WorkerTraceback)
    assert "in explode" in str(error.__cause__)
    assert len(bus.dead_letters) == 1


def test_events_of_handlers_are_published_by_the_script(bus: EventBus) -> None:
    found: list[int] = []

    def halve(number: int) -> None:
        if number > 1:
            current().publish("number", number // 2)
        else:
            current().publish("done", number)

    bus.subscribe("number", halve, kind="cpu")
    bus.subscribe("done", found.append, kind="io", name="append")

    for _ in range(20):
        bus.publish("number", 64)
    bus.drain(BOUND_S)

    assert found == [1] * 20


def test_deliveries_with_one_key_keep_their_order(bus: EventBus, tally: Tally) -> None:
    def note(event: tuple[int, int]) -> None:
        tally.note(f"{event[0]} {event[1]}")

    bus.subscribe("step", note, kind="cpu", key=lambda event: event[0], concurrency=2)

    for step in range(200):
        bus.publish("step", (step % 3, step))
    bus.drain(BOUND_S)

    lines = [tuple(map(int, line.split())) for line in tally.lines()]
    assert len(lines) == 200
    for key in range(3):
        steps = [step for k, step in lines if k == key]
        assert steps == sorted(steps)


def test_a_handler_that_hangs_is_ended_with_its_stack_and_its_batch_is_not(bus: EventBus) -> None:
    def maybe_hang(number: int) -> int:
        if number == 5:
            import time

            time.sleep(600)
        return number

    bus.subscribe("number", maybe_hang, kind="cpu", timeout=2.0)

    receipts = [bus.publish("number", number) for number in range(50)]
    assert receipts[5].wait(BOUND_S)
    error = receipts[5].deliveries[0].exception()

    assert isinstance(error, HandlerTimeout)
    while not error.stack:  # a worker has 0.1 s to write it, which is short on a busy machine
        again = bus.publish("number", 5)
        assert again.wait(BOUND_S)
        error = again.deliveries[0].exception()
        assert isinstance(error, HandlerTimeout)
    assert "in maybe_hang" in error.stack
    rest = [r.result(BOUND_S) for number, r in enumerate(receipts) if number != 5]
    assert rest == [number for number in range(50) if number != 5]


def test_progress_of_a_handler_is_seen_while_it_runs(bus: EventBus, tmp_path: Path) -> None:
    """Each report comes to the script by itself, also when the handler makes no other for long."""

    def count(steps: Path) -> None:
        import time

        for done in range(1, 4):
            current().progress(done, 3, "counting")
            while not (steps / str(done)).exists():
                time.sleep(0.005)

    bus.subscribe("steps", count, kind="cpu")
    receipt = bus.publish("steps", tmp_path)
    [delivery] = receipt.deliveries

    for done in range(1, 4):
        eventually(lambda: delivery.progress is not None and delivery.progress.done == done)  # noqa: B023 - called at once
        assert str(delivery.progress) == f"{done} of 3: counting"
        assert [w.progress for w in bus.health() if w.progress] == [delivery.progress]
        (tmp_path / str(done)).touch()
    assert receipt.wait(BOUND_S)
    assert delivery.progress is None, "it is settled"


def test_processes_on_dask_are_in_health_and_stats(bus: EventBus) -> None:
    bus.subscribe("number", lambda n: n, kind="cpu", name="same")
    bus.publish("number", 1).result(BOUND_S)

    [worker, *_] = bus.health()

    assert (worker.kind, worker.state) == ("cpu", "idle")
    assert worker.pid is not None
    eventually(lambda: bus.health()[0].memory_bytes is not None)
    [worker, *_] = bus.health()
    assert worker.memory_bytes is not None
    assert worker.memory_bytes > 1 << 20
    assert worker.cpu_s is not None
    assert bus.stats().lanes["cpu"].workers >= 1
    assert bus.stats().lanes["cpu"].paused == ""


def test_all_processes_are_gone_with_the_bus(address: str) -> None:
    with EventBus(handlers=[], cpu=DaskPool(address)) as bus:
        bus.subscribe("number", lambda n: os.getpid(), kind="cpu", name="pid")
        process = psutil.Process(bus.publish("number", 1).result(BOUND_S))
        assert process.is_running()
    eventually(lambda: not process.is_running())


def test_pool_on_a_client_works_and_leaves_it_open(address: str) -> None:
    from distributed import Client

    with Client(address, set_as_default=False) as client:
        with EventBus(handlers=[], cpu=DaskPool(client), cpu_workers=1) as bus:
            bus.subscribe("number", lambda n: n + 1, kind="cpu", name="next")
            assert bus.publish("number", 1).result(BOUND_S) == 2
        assert client.status == "running"


def test_deliveries_behind_a_long_handler_are_given_back_and_run_elsewhere(
    bus: EventBus, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"

    def maybe_hold(event: object) -> object:
        import time

        while event == "hold" and not gate.exists():
            time.sleep(0.005)
        return event

    bus.subscribe("event", maybe_hold, kind="cpu")
    for receipt in [bus.publish("event", number) for number in range(500)]:
        receipt.result(BOUND_S)  # from now on it is known as short, and goes in batches

    receipts = [bus.publish("event", each) for each in [*range(50), "hold", *range(200)]]
    held = receipts.pop(50)
    results = [receipt.result(BOUND_S) for receipt in receipts]
    was_held = not held.done
    gate.touch()

    assert results == [*range(50), *range(200)]
    assert was_held
    assert held.result(BOUND_S) == "hold"


# Death.


def test_only_the_delivery_that_kills_its_process_is_charged(bus: EventBus, tally: Tally) -> None:
    def maybe_die(number: int) -> int:
        if number % 100 == 50:
            os.kill(os.getpid(), signal.SIGKILL)
        tally.note(number)
        return number

    bus.subscribe("number", maybe_die, kind="cpu")

    receipts = [bus.publish("number", number) for number in range(300)]
    bus.drain(BOUND_S)

    errors = [receipt.deliveries[0].exception() for receipt in receipts]
    assert [n for n, error in enumerate(errors) if error is not None] == [50, 150, 250]
    assert all(isinstance(error, WorkerDied) for error in errors if error is not None)
    assert set(tally.counts().values()) == {1}, "nothing is done twice"
    assert len(tally.lines()) == 297


@pytest.fixture
def machines(directory: Path, tmp_path: Path, address: str) -> Iterator[Machines]:
    machines = Machines(tmp_path)
    yield machines
    machines.close()


def on(machines: Machines, **options: Any) -> EventBus:
    return EventBus(handlers=[], cpu=DaskPool(machines.address), **options)


@pytest.mark.parametrize(
    ("end", "kind"),
    [("hangs", HandlerTimeout), ("kills its process", WorkerDied), ("kills Dask's", WorkerDied)],
)
def test_error_of_a_handler_that_was_ended_says_how_far_it_was(
    machines: Machines, end: str, kind: type[HandlerTimeout | WorkerDied]
) -> None:
    machines.start_worker()

    def work(end: str) -> None:
        import time

        current().progress(4_211, 5_000, "parsing")
        if end != "hangs":
            os.kill(os.getpid() if end == "kills its process" else os.getppid(), signal.SIGKILL)
        time.sleep(600)

    with on(machines) as bus:
        bus.subscribe("job", work, kind="cpu", timeout=2.0 if end == "hangs" else None)
        receipt = bus.publish("job", end)
        assert receipt.wait(BOUND_S)
    error = receipt.deliveries[0].exception()

    assert isinstance(error, kind)
    assert error.progress is not None
    assert error.progress[:3] == (4_211, 5_000, "parsing")
    assert "at 4,211 of 5,000: parsing" in str(error)


@pytest.mark.parametrize("after", [0, 40])
def test_killed_dask_worker_costs_only_its_running_delivery(
    machines: Machines, tally: Tally, after: int
) -> None:
    """The logbook of the dead process is read by the nanny, so it is exact."""
    machines.start_worker()

    def kill_host(number: int) -> int:
        tally.note(number)
        if number == after:
            os.kill(os.getppid(), signal.SIGKILL)
            signal.pause()  # it dies with its host
        return number

    with on(machines) as bus:
        bus.subscribe("number", kill_host, kind="cpu")
        receipts = [bus.publish("number", number) for number in range(200)]
        bus.drain(BOUND_S)

    errors = [receipt.deliveries[0].exception() for receipt in receipts]
    assert [n for n, error in enumerate(errors) if error is not None] == [after]
    assert isinstance(errors[after], WorkerDied)
    assert set(tally.counts().values()) == {1}, "nothing is done twice"
    assert len(tally.lines()) == 200


def test_a_worker_that_joins_gets_work_and_one_that_leaves_loses_none(
    machines: Machines, tmp_path: Path
) -> None:
    first = machines.start_worker()

    def where(number: int) -> int:
        import time

        time.sleep(0.02)
        return os.getppid()

    with on(machines) as bus:
        bus.subscribe("number", where, kind="cpu", retries=0)
        hosts = {bus.publish("number", 0).result(BOUND_S)}
        machines.start_worker()
        while len(hosts) < 2:
            receipts = [bus.publish("number", number) for number in range(20)]
            hosts |= {receipt.result(BOUND_S) for receipt in receipts}
        receipts = [bus.publish("number", number) for number in range(100)]
        first.send_signal(signal.SIGTERM)  # the nanny ends its worker as it should
        results = {receipt.result(BOUND_S) for receipt in receipts}
    assert results <= hosts
    assert len(bus.dead_letters) == 0


def test_events_wait_for_a_scheduler_that_is_away_and_the_bus_says_so(
    machines: Machines, caplog: pytest.LogCaptureFixture
) -> None:
    machines.start_worker()
    with on(machines) as bus:

        def slowly(number: int) -> int:
            import time

            time.sleep(0.5)
            return number + 1

        bus.subscribe("number", slowly, kind="cpu")
        assert bus.publish("number", 1).result(BOUND_S) == 2
        under_way = bus.publish("number", 2)
        eventually(lambda: bus.stats().lanes["cpu"].busy == 1)
        port = int(machines.address.rpartition(":")[2])
        machines.scheduler.kill()
        machines.scheduler.wait(BOUND_S)
        eventually(lambda: "scheduler" in bus.stats().lanes["cpu"].paused)
        receipts = [bus.publish("number", number) for number in range(10)]

        machines.start_scheduler(port)
        machines.start_worker()

        assert under_way.result(BOUND_S) == 3
        assert [receipt.result(BOUND_S) for receipt in receipts] == [n + 1 for n in range(10)]
        eventually(lambda: bus.stats().lanes["cpu"].paused == "")
    assert "the cpu lane waits for the Dask scheduler at tcp://" in caplog.text


def test_unreachable_dask_worker_is_logged_and_tried_again(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    from procbus.pool.dask.engine import Connection

    there = threading.Event()

    def connect(*about: Any, **order: Any) -> Connection:
        if not there.is_set():
            raise OSError("no route to host")
        return Connection(*about, **order)

    with EventBus(handlers=[], cpu=pool_with(address, connect)) as bus:
        bus.subscribe("number", lambda n: n + 1, kind="cpu", name="next")
        receipt = bus.publish("number", 1)
        eventually(lambda: "no route to host" in bus.stats().lanes["cpu"].paused)
        there.set()
        assert receipt.result(BOUND_S) == 2
        eventually(lambda: bus.stats().lanes["cpu"].paused == "")
    assert caplog.text.count("the cpu lane waits for a Dask worker that can be used") == 1


def test_without_dask_the_error_names_the_extra() -> None:
    code = (
        "import sys; sys.modules['distributed'] = None\n"
        "from procbus import DaskPool, ProcbusError\n"
        "try: DaskPool('tcp://localhost:8786')\n"
        "except ProcbusError as error: print(error)\n"
    )
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=BOUND_S)
    assert "pip install 'procbus[dask]'" in run.stdout
