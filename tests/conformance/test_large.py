"""Large events: every pool reads them in place, once copied, and never lets a view change."""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from procbus.core.delivery import Delivery
from procbus.core.errors import SerializationError
from procbus.pool.inline import InlinePool
from procbus.pool.interface import Message, Pool, Worker
from procbus.pool.loky import LokyPool
from procbus.pool.memory.event_writer import OWN_BLOCK, OWN_BUFFERS
from procbus.pool.memory.events import EventMemory
from procbus.pool.memory.shared_file import CannotMap
from procbus.pool.parent_end import BATCH_BYTES
from tests.conformance import drive, handlers
from tests.conformance.drive import deliveries, give, run, subscription_of, take_reports, values
from tests.matrix import quick_first

MIB = 1 << 20
LIMIT = 4 * MIB

POOLS: dict[str, Callable[[EventMemory], Pool]] = {
    "loky": lambda memory: LokyPool(1, memory=memory),
    "inline": lambda memory: InlinePool(1, memory),
}


@pytest.fixture
def memory(request: pytest.FixtureRequest) -> Iterator[EventMemory]:
    """Shared memory; a test may give `on_oversize` as its parameter."""
    memory = EventMemory(LIMIT, on_oversize=getattr(request, "param", "pipe"))
    yield memory
    gc.collect()
    memory.close()


@pytest.fixture(params=POOLS)
def start(request: pytest.FixtureRequest, memory: EventMemory) -> Iterator[Callable[[], Worker]]:
    """Start a worker; all of a test share memory."""
    pool = POOLS[request.param](memory)
    started: list[Worker] = []

    def start() -> Worker:
        started.append(pool.start(lambda _: None))
        return weakref.proxy(started[-1])  # type: ignore[no-any-return] # it is one, to all who use it

    yield start
    handlers.kept.clear()
    for worker in started:
        worker.kill()
        worker.stop()
    started.clear()


@pytest.fixture
def worker(start: Callable[[], Worker]) -> Worker:
    return start()


def array(mib: float, value: float = 1.0) -> Any:
    return np.full(int(mib * MIB) // 8, value)


def settle(batch: list[Delivery]) -> None:
    """Release shared memory the way the settlement does once deliveries are settled."""
    for delivery in batch:
        receipt = delivery.receipt
        assert receipt is not None
        if receipt.block is not None:
            receipt.block.release()
        delivery.receipt = None


def ran(worker: Worker, function: Callable[[Any], Any], event: object, **options: Any) -> Any:
    """The result of a handler, with the delivery settled."""
    batch = drive.deliveries_to(subscription_of(function, **options), [event])
    [value] = values(run(worker, batch))
    settle(batch)
    return value


def test_an_array_goes_there_and_back(worker: Worker, memory: EventMemory) -> None:
    sent = np.arange(MIB / 8).reshape(128, -1)
    assert np.array_equal(ran(worker, handlers.echo, sent), sent)
    stats = memory.stats()
    assert stats.sent >= sent.nbytes
    assert stats.received >= sent.nbytes
    assert stats.in_flight == 0


# Events of a megabyte that hold no buffers.
LARGE = [b"ab" * MIB, "äö" * MIB, bytearray(MIB), list(range(MIB // 4))]


@pytest.mark.parametrize("event", quick_first(LARGE, 2))
def test_large_object_without_buffers_goes_there_and_back(
    worker: Worker, memory: EventMemory, event: Any
) -> None:
    result = ran(worker, handlers.echo, event)
    assert type(result) is type(event)
    assert result == event
    assert memory.stats().sent > MIB // 2


@pytest.mark.parametrize(("short", "shared"), [(0, True), (512, False)])
def test_buffers_are_read_only_and_results_shared_from_the_threshold_on(
    worker: Worker, memory: EventMemory, short: int, shared: bool
) -> None:
    event = np.arange(int(memory.large) - short, dtype=np.uint8)
    assert ran(worker, handlers.is_writable, event) is not shared
    assert ran(worker, handlers.is_writable, event, writable=True) is True
    assert (ran(worker, handlers.echo, event) == event).all()
    assert (memory.stats().received > 0) == shared


@pytest.mark.parametrize("short", [0, 512])
def test_buffers_arrive_in_their_batch_or_in_a_block(
    worker: Worker, memory: EventMemory, short: int
) -> None:
    event = np.arange(OWN_BUFFERS - short, dtype=np.uint8)
    assert (ran(worker, handlers.echo, event) == event).all()
    if not short:
        assert memory.stats().sent > 0


@pytest.mark.parametrize("size", [OWN_BLOCK - 64, OWN_BLOCK])
@pytest.mark.parametrize("kind", ["bytes", "str", "bytearray", "list"])
def test_event_without_buffers_arrives_in_its_batch_or_in_a_block(
    worker: Worker, size: int, kind: str
) -> None:
    text = "a" * (size - 64)
    of_kind = {"bytes": text.encode(), "str": "ä" + text, "list": [text]}
    event = of_kind.get(kind, bytearray(text.encode()))
    result = ran(worker, handlers.echo, event)
    assert (type(result), result) == (type(event), event)


def test_an_event_is_read_only_unless_it_is_to_be_writable(worker: Worker) -> None:
    assert ran(worker, handlers.is_writable, array(1)) is False
    assert ran(worker, handlers.is_writable, array(1), writable=True) is True


def test_an_event_for_several_workers_is_copied_once(
    start: Callable[[], Worker], memory: EventMemory
) -> None:
    batch = deliveries(handlers.first_item, array(1))
    for worker in (start(), start()):
        assert values(run(worker, batch)) == [1.0]
    assert memory.stats().sent < 1.1 * MIB


def test_kept_event_never_changes(worker: Worker, memory: EventMemory) -> None:
    assert ran(worker, handlers.keep, array(1, 1.0)) is None
    assert memory.stats().kept >= MIB
    for value in (2.0, 3.0, 4.0):
        assert ran(worker, handlers.first_item, array(1, value)) == value
    kept = ran(worker, handlers.what_is_kept, None)
    assert (kept == 1.0).all()
    ran(worker, handlers.forget_what_is_kept, None)
    assert memory.stats().kept == 0


def test_result_in_use_is_not_overwritten(worker: Worker) -> None:
    results = [ran(worker, handlers.echo, array(0.25, float(n))) for n in range(20)]
    assert [set(result) for result in results] == [{float(n)} for n in range(20)]


def test_a_worker_that_is_gone_keeps_nothing_and_its_results_stay(
    start: Callable[[], Worker], memory: EventMemory
) -> None:
    worker = start()
    ran(worker, handlers.keep, array(1))
    result = ran(worker, handlers.double, array(1))
    drive.kill(worker)
    drive.Receiver(worker).expect_gone()
    worker.stop()
    assert memory.stats().kept == 0
    assert (result == 2.0).all()
    result[:] = 3.0


def bytes_of_results() -> int:
    """Memory that the results of all workers take."""
    files = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    stats = [
        os.stat(file)
        for file in files
        if os.path.exists(file) and "memfd:procbus-results" in os.readlink(file)
    ]
    return 512 * sum({stat.st_ino: stat.st_blocks for stat in stats}.values())


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="looks into Linux's /proc")
def test_memory_of_dropped_results_is_reused_after_an_unsent_message(
    worker: Worker,
) -> None:
    for n in range(8):
        assert ran(worker, handlers.double, array(1, float(n)))[0] == 2 * n
        prepared(worker, n)  # and never sent: what it tells the worker is in the next one
    assert 0 < bytes_of_results() <= 3 * MIB


def prepared(worker: Worker, *events: object) -> Message:
    return worker.prepare(1000, deliveries(handlers.first_item, *events))


def test_event_without_room_waits_until_there_is_some(
    worker: Worker, memory: EventMemory, gate: drive.Gate
) -> None:
    large = drive.deliveries_to(subscription_of(handlers.first_item), [array(3)])
    message = give(worker, large)
    waiting = deliveries(handlers.first_item, array(2))

    refused = worker.prepare(1000, waiting)

    assert refused.no_room
    assert (refused.deliveries, refused.rest) == ([], waiting)
    assert values(take_reports(worker, message)) == [1.0]
    settle(large)
    worker.wait_for_room(30)
    assert values(run(worker, waiting)) == [1.0]
    assert memory.stats().in_flight + memory.stats().idle <= LIMIT


def test_events_before_one_without_room_are_sent_all_the_same(worker: Worker) -> None:
    batch = deliveries(handlers.echo, 1, array(3), array(3), 2)
    message = worker.prepare(1000, batch)
    assert not message.no_room
    assert (message.deliveries, message.rest) == (batch[:2], batch[2:])


def test_event_that_no_worker_uses_makes_room_and_is_copied_again(
    worker: Worker, memory: EventMemory
) -> None:
    for_retry = deliveries(handlers.first_item, array(3, 5.0))
    assert values(run(worker, for_retry)) == [5.0]
    assert values(run(worker, deliveries(handlers.first_item, array(3, 6.0)))) == [6.0]
    assert values(run(worker, for_retry)) == [5.0]
    assert memory.stats().sent >= 9 * MIB


def test_message_that_is_never_sent_makes_room_for_the_next(worker: Worker) -> None:
    prepared(worker, array(3))
    assert not prepared(worker, array(3)).no_room


def test_event_of_a_dead_worker_makes_room(start: Callable[[], Worker]) -> None:
    first, second = start(), start()
    give(first, deliveries(handlers.first_item, array(3)))
    assert prepared(second, array(3)).no_room
    first.kill()
    first.stop()
    assert not prepared(second, array(3)).no_room


@pytest.mark.parametrize("pool", POOLS)
def test_without_shared_memory_an_event_larger_than_a_message_goes_alone(pool: str) -> None:
    memory = EventMemory(0)
    worker = POOLS[pool](memory).start(lambda _: None)
    batch = deliveries(handlers.echo, bytes(2 * BATCH_BYTES), b"small")

    message = give(worker, batch)

    assert (message.deliveries, message.rest) == (batch[:1], batch[1:])
    assert [len(v) for v in values(take_reports(worker, message))] == [2 * BATCH_BYTES]
    worker.kill()
    worker.stop()
    memory.close()


@pytest.mark.parametrize(
    ("memory", "on_oversize"), [("pipe", "pipe"), ("fail", "fail")], indirect=["memory"]
)
def test_event_larger_than_the_limit_takes_the_pipe_or_fails(
    start: Callable[[], Worker],
    memory: EventMemory,
    on_oversize: str,
) -> None:
    worker = start()
    if on_oversize == "pipe":
        assert ran(worker, handlers.is_writable, array(5)) is True
        assert memory.stats().sent == 0
        return
    [(_, outcome)] = prepared(worker, array(5)).failed
    assert isinstance(outcome.error, SerializationError)


def test_event_that_cannot_be_mapped_takes_the_pipe(
    worker: Worker, memory: EventMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: int) -> Any:
        raise CannotMap("no file descriptors")

    monkeypatch.setattr(memory.room, "map", refuse)
    assert ran(worker, handlers.first_item, array(1)) == 1.0
    assert memory.stats().sent == 0
