# SPDX-License-Identifier: MIT
"""Large events and results through shared memory, with real workers."""

import gc
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from textwrap import dedent
from typing import Any

import numpy as np
import pytest

from procbus import EventBus, SerializationError, WorkerDied
from tests.integration.conftest import Run, Start
from tests.integration.helpers import PATIENCE_S, WAKING
from tests.matrix import quick_first
from tests.waits import eventually

MIB = 1 << 20
kept: list[Any] = []


@dataclass
class Table:
    name: str
    columns: dict[str, Any]


@pytest.fixture
def bus() -> Iterator[EventBus]:
    with EventBus([], cpu_workers=2, shared_memory_limit="64 MiB") as bus:
        yield bus


def array(mib: float, value: float = 1.0) -> Any:
    return np.full(int(mib * MIB) // 8, value)


def double(a: Any) -> Any:
    return 2 * a


def is_writable(a: Any) -> bool:
    writable: bool = a.flags.writeable
    return writable


def overwrite(a: Any) -> float:
    a[:] = 7
    return float(a.sum())


def keep(a: Any) -> int:
    kept.append(a)
    return os.getpid()


def keep_and_tell(a: Any) -> list[float]:
    """Keep every event, and return the sum of the kept ones."""
    kept.append(a)
    return [float(a[0]) for a in kept]


def test_arrays_go_there_and_back(bus: EventBus) -> None:
    bus.subscribe("a", double, kind="cpu")
    sent = np.arange(MIB, dtype=float).reshape(1024, -1)
    result = bus.publish("a", sent).result(PATIENCE_S)
    assert np.array_equal(result, 2 * sent)
    assert bus.drain(PATIENCE_S)
    stats = bus.stats().shared_memory
    assert stats.sent >= sent.nbytes
    assert stats.received >= sent.nbytes
    assert stats.in_flight == 0


def test_shared_buffers_may_be_parts_of_larger_objects(bus: EventBus) -> None:
    def add(table: Table) -> Table:
        return Table(table.name, {"sum": table.columns["a"] + table.columns["b"], "n": 1})

    bus.subscribe(Table, add, kind="cpu")
    table = bus.publish(Table("t", {"a": array(1, 1.0), "b": array(2, 2.0)[: MIB // 8]}))
    result = table.result(PATIENCE_S)
    assert result.name == "t"
    assert (result.columns["sum"] == 3.0).all()


@pytest.mark.parametrize(
    "event", [b"\x00\xff" * MIB, "äöü\udcff" * MIB, bytearray(3 * MIB), list(range(MIB))]
)
def test_large_object_without_buffers_arrives_unchanged(bus: EventBus, event: Any) -> None:
    bus.subscribe("x", lambda x: x, kind="cpu")
    result = bus.publish("x", event).result(PATIENCE_S)
    assert type(result) is type(event)
    assert result == event


def test_a_handler_reads_only_unless_it_asks_for_a_copy(bus: EventBus) -> None:
    bus.subscribe("r", is_writable, kind="cpu")
    bus.subscribe("w", overwrite, kind="cpu", writable=True)
    sent = array(1)
    assert bus.publish("r", sent).result(PATIENCE_S) is False
    assert bus.publish("w", sent).result(PATIENCE_S) == 7 * sent.size
    assert (sent == 1.0).all()


def test_event_for_several_handlers_is_copied_once(bus: EventBus) -> None:
    for name in "abc":
        bus.subscribe("t", double, kind="cpu", name=name)
    sent = array(4)
    results = bus.publish("t", sent).results(PATIENCE_S)
    assert [float(r[0]) for r in results] == [2.0, 2.0, 2.0]
    assert bus.stats().shared_memory.sent < 1.1 * sent.nbytes


def test_a_retry_copies_nothing(bus: EventBus) -> None:
    from procbus import current

    def second_time(a: Any) -> int:
        if current().attempt < 3:
            raise ValueError("not yet")
        return int(a.nbytes)

    bus.subscribe("t", second_time, kind="cpu", retries=2, backoff=0)
    sent = array(4)
    assert bus.publish("t", sent).result(PATIENCE_S) == sent.nbytes
    assert bus.stats().shared_memory.sent < 1.1 * sent.nbytes


def test_kept_event_never_changes() -> None:
    with EventBus([], cpu_workers=1, shared_memory_limit="16 MiB") as bus:
        bus.subscribe("keep", keep_and_tell, kind="cpu")
        bus.subscribe("other", double, kind="cpu")
        told: list[float] = []
        for n in range(5):
            told = bus.publish("keep", array(1, float(n))).result(PATIENCE_S)
            for _ in range(5):
                bus.publish("other", array(1, -1.0)).result(PATIENCE_S)
        assert told == [0.0, 1.0, 2.0, 3.0, 4.0]
        assert bus.drain(PATIENCE_S)
        stats = bus.stats().shared_memory
        assert stats.kept >= 5 * MIB
        assert stats.in_flight == 0


def test_kept_blocks_that_fill_the_memory_stop_nothing() -> None:
    with EventBus([], cpu_workers=1, shared_memory_limit="4 MiB") as bus:
        bus.subscribe("keep", keep_and_tell, kind="cpu")
        told = [bus.publish("keep", array(1, float(n))).result(PATIENCE_S) for n in range(9)]
        assert told[-1] == [float(n) for n in range(9)]
        assert bus.stats().shared_memory.kept <= 4 * MIB


def test_a_dead_worker_keeps_nothing(bus: EventBus) -> None:
    bus.subscribe("keep", keep, kind="cpu")
    bus.subscribe("n", abs, kind="cpu")
    pid = bus.publish("keep", array(2)).result(PATIENCE_S)
    assert bus.stats().shared_memory.kept >= 2 * MIB
    os.kill(pid, signal.SIGKILL)
    while bus.stats().lanes["cpu"].restarts == 0:
        bus.publish("n", -1).result(PATIENCE_S)
    bus.drain(PATIENCE_S)
    eventually(lambda: bus.stats().shared_memory.kept == 0)


def test_a_worker_that_dies_with_a_large_event_gives_it_back(bus: EventBus) -> None:
    bus.subscribe("die", lambda a: os._exit(3), kind="cpu")
    receipt = bus.publish("die", array(2))
    receipt.wait(PATIENCE_S)
    assert isinstance(receipt.deliveries[0].exception(), WorkerDied)
    assert bus.drain(PATIENCE_S)
    assert bus.stats().shared_memory.in_flight == 0


def test_a_result_is_the_callers_own_and_outlives_the_bus() -> None:
    with EventBus([], cpu_workers=1) as bus:
        bus.subscribe("a", double, kind="cpu")
        results = [bus.publish("a", array(1, float(n))).result(PATIENCE_S) for n in range(20)]
        results[0][:] = -1
    gc.collect()
    assert [float(r[-1]) for r in results] == [-1.0, *(2.0 * n for n in range(1, 20))]


@pytest.mark.parametrize("workers", [1, 2])
def test_event_that_does_not_fit_waits_for_room(workers: int) -> None:
    most = 0
    done = threading.Event()
    with EventBus([], cpu_workers=workers, shared_memory_limit="4 MiB") as bus:

        def watch() -> None:
            nonlocal most
            while not done.wait(0.001):
                stats = bus.stats().shared_memory
                most = max(most, stats.in_flight + stats.idle + stats.kept)

        watcher = threading.Thread(target=watch)
        watcher.start()
        bus.subscribe("a", lambda a: float(a[0]), kind="cpu")
        try:
            receipts = [bus.publish("a", array(1, float(n))) for n in range(60)]
            assert [r.result(PATIENCE_S) for r in receipts] == [float(n) for n in range(60)]
        finally:
            done.set()
            watcher.join()
        assert bus.stats().shared_memory.sent >= 60 * MIB
    assert most <= 4 * MIB


def test_events_that_wait_for_a_retry_do_not_block_others_for_ever() -> None:
    from procbus import current

    def once_more(a: Any) -> float:
        if current().attempt == 1:
            raise ValueError("not yet")
        return float(a[0])

    with EventBus([], cpu_workers=1, shared_memory_limit="4 MiB") as bus:
        bus.subscribe("a", once_more, kind="cpu", retries=1, backoff=0.05)
        receipts = [bus.publish("a", array(1, float(n))) for n in range(12)]
        assert [r.result(PATIENCE_S) for r in receipts] == [float(n) for n in range(12)]


def test_an_event_larger_than_the_limit_takes_the_pipe_or_fails() -> None:
    sent = array(3)
    with EventBus([], cpu_workers=1, shared_memory_limit="1 MiB") as bus:
        bus.subscribe("a", lambda a: int(a.nbytes), kind="cpu")
        assert bus.publish("a", sent).result(PATIENCE_S) == sent.nbytes
        assert bus.stats().shared_memory.sent == 0
    with EventBus([], cpu_workers=1, shared_memory_limit="1 MiB", on_oversize="fail") as bus:
        bus.subscribe("a", lambda a: int(a.nbytes), kind="cpu", name="size")
        with pytest.raises(SerializationError, match=r"for size .*shared_memory_limit of 1 MiB"):
            bus.publish("a", sent).result(PATIENCE_S)


def as_it_is(table: Table) -> Table:
    return table


def its_columns(table: Table) -> dict[str, Any]:
    return table.columns


def with_a_lock(table: Table) -> Any:
    return table, threading.Lock()


def kept_after_each(handler: Callable[[Any], Any], cls: type[Table]) -> list[int]:
    """Bytes that are kept after each of three events, of which but one fits at a time."""
    kept_bytes = []
    with EventBus([], cpu_workers=1, shared_memory_limit="3 MiB") as bus:
        bus.subscribe(Table, handler, kind="cpu")
        for n in range(3):
            assert bus.publish(cls(str(n), {"a": array(2)})).wait(PATIENCE_S)
            kept_bytes.append(bus.stats().shared_memory.kept)
    return kept_bytes


@pytest.mark.parametrize("handler", quick_first([with_a_lock, as_it_is, its_columns]))
def test_a_handler_that_returns_its_event_does_not_keep_it(handler: Callable[[Any], Any]) -> None:
    assert kept_after_each(handler, Table) == [0, 0, 0]


def test_a_handler_does_not_keep_an_event_whose_class_travels_by_value() -> None:
    class Local(Table):
        pass

    assert kept_after_each(as_it_is, Local) == [0, 0, 0]


def test_returned_event_does_not_block_the_next() -> None:
    with EventBus([], cpu_workers=1, shared_memory_limit="3 MiB", on_oversize="fail") as bus:
        bus.subscribe(Table, as_it_is, kind="cpu")
        for n in range(3):
            table = bus.publish(Table(str(n), {"a": array(2)})).result(PATIENCE_S)
            assert table.name == str(n)


def test_without_shared_memory_all_goes_through_the_pipe() -> None:
    with EventBus([], cpu_workers=1, shared_memory_limit=0) as bus:
        bus.subscribe("a", double, kind="cpu")
        assert (bus.publish("a", array(1)).result(PATIENCE_S) == 2.0).all()
        assert bus.stats().shared_memory.sent == bus.stats().shared_memory.received == 0


def test_blocks_are_used_again() -> None:
    with EventBus([], cpu_workers=1, shared_memory_limit="64 MiB") as bus:
        bus.subscribe("a", lambda a: float(a[0]), kind="cpu")
        for n in range(50):
            assert bus.publish("a", array(1, float(n))).result(PATIENCE_S) == float(n)
        assert bus.stats().shared_memory.idle < 4 * MIB


SCRIPT = """
    import os, sys
    import numpy as np
    from procbus import EventBus

    def hold(a):
        import time
        print("holding", os.getpid(), flush=True)
        time.sleep(600)

    with EventBus([], cpu_workers=1) as bus:
        bus.subscribe("a", hold, kind="cpu")
        bus.publish("a", np.zeros(1 << 20))
        bus.drain()
    """


def names_in_shared_memory(pid: int) -> list[str]:
    """Names of procbus there, without the semaphores of processes that run beside the test's."""
    names = [name for name in os.listdir("/dev/shm") if "procbus" in name]
    return [name for name in names if not name.startswith("sem.") or f"-{pid}-" in name]


@pytest.mark.parametrize("how", ["interrupt", "kill"])
def test_ended_script_leaves_no_shared_memory(start: Start, how: str) -> None:
    program = start(WAKING + dedent(SCRIPT))
    assert program.read_line().startswith("holding")
    assert not names_in_shared_memory(program.pid)
    if how == "interrupt":
        program.interrupt_group()
    else:
        os.kill(program.pid, signal.SIGKILL)
    program.finish()
    assert not names_in_shared_memory(program.pid)


def test_script_may_use_its_own_definitions_and_end(run: Run) -> None:
    ended = run(
        """
        from dataclasses import dataclass
        import numpy as np
        from procbus import EventBus, subscribe

        @dataclass
        class Image:
            name: str
            pixels: np.ndarray

        @subscribe(kind="cpu")
        def invert(image: Image) -> Image:
            return Image(image.name, 255 - image.pixels)

        bus = EventBus()
        shape = (1000, 1000)
        receipts = [bus.publish(Image(str(n), np.full(shape, n, np.uint8))) for n in range(9)]
        for receipt in receipts:
            image = receipt.result()
            assert (image.pixels == 255 - int(image.name)).all()
        print("inverted")
        """
    )
    assert ended.check() == "inverted\n"
