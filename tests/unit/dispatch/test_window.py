"""The number of events that a stream may have open at once."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from threading import Barrier, Event

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procbus import EventBus, current
from procbus.core.receipt import Receipt
from procbus.core.stats import NOTHING_SHARED, SharedMemoryStats
from procbus.dispatch.window import WINDOW_BYTES, Window
from tests.parts import BOUND_S, receipt_for, subscription_of

MIB = 1 << 20


@dataclass
class Memory:
    """Shared memory with given statistics."""

    stats: SharedMemoryStats = NOTHING_SHARED

    def __call__(self) -> SharedMemoryStats:
        return self.stats

    def send(self, size: int, limit: int = 256 * MIB) -> None:
        self.stats = replace(self.stats, sent=self.stats.sent + size, limit=limit)


#: Makes windows that look at the statistics whenever they are asked.
make_window = partial(Window, look_s=0.0)


def test_small_events_have_the_whole_window():
    assert make_window(10_000, lambda _: 2, Memory()).size(5) == 10_000


def test_bytes_copied_before_the_stream_do_not_count():
    memory = Memory()
    memory.send(100 * MIB)
    assert make_window(10_000, lambda _: 2, memory).size(0) == 10_000


def test_large_events_have_half_the_limit_of_shared_memory():
    memory = Memory()
    window = make_window(10_000, lambda _: 2, memory)
    memory.send(40 * MIB)
    assert window.size(4) == 12


def test_every_worker_may_have_one_event_running_and_one_on_its_way():
    memory = Memory()
    window = make_window(10_000, lambda _: 16, memory)
    memory.send(200 * MIB)
    window.weigh_event(receipt_with("small"))
    assert window.size(0) == 16


@given(
    most=st.integers(1, 10_000),
    workers=st.integers(1, 64),
    sent=st.integers(0, 1 << 40),
    limit=st.integers(0, 1 << 40),
    settled=st.integers(0, 1 << 20),
)
def test_window_is_at_least_one_and_never_above_its_maximum(most, workers, sent, limit, settled):
    memory = Memory()
    window = make_window(most, lambda _: workers, memory)
    memory.send(sent, limit)
    assert 1 <= window.size(settled) <= most


@pytest.mark.parametrize("ordered", [False, True])
def test_a_stream_of_large_events_runs_ahead_of_its_workers_by_half_the_limit(ordered):
    taken = 0
    ahead = []
    settled = Event()
    with EventBus([], cpu_workers=2, shared_memory_limit="16 MiB") as bus:

        def source() -> Iterator[bytes]:
            nonlocal taken
            while taken < 400:
                taken += 1
                if taken == 2:  # from here on it is known how large they are
                    assert settled.wait(BOUND_S)
                yield bytes(MIB)

        def size_of(content: bytes) -> int:
            current().publish("settled", None)
            return len(content)

        bus.subscribe(bytes, size_of, kind="cpu")
        bus.subscribe("settled", lambda _: settled.set())
        for number, receipt in enumerate(bus.stream(source(), ordered=ordered)):
            assert receipt.result() == MIB
            ahead.append(taken - number)
    assert len(ahead) == 400
    assert max(ahead) <= 9


def receipt_with(event: object, result: object = None) -> Receipt:
    """A settled receipt of one handler."""
    receipt = receipt_for(subscription_of(), event=event)
    delivery = receipt.deliveries[0]
    delivery.value = result
    return receipt


LINES = [f"line {number} of the log, with some more words in it" for number in range(10_000)]


def test_large_events_have_a_number_of_bytes():
    window = make_window(10_000, lambda _: 4, Memory())
    assert window.size(0) == 10_000
    window.weigh_event(receipt_with(LINES))
    assert WINDOW_BYTES / 1_200_000 < window.size(0) < WINDOW_BYTES / 800_000


def test_large_results_have_a_number_of_bytes():
    window = make_window(10_000, lambda _: 4, Memory())
    window.weigh_event(receipt_with("small"))
    window.weigh_result(receipt_with("small", bytes(MIB)))
    assert window.size(1) == pytest.approx(WINDOW_BYTES / MIB, abs=1)


def test_events_that_keep_the_handlers_busy_are_allowed_whatever_their_size():
    window = make_window(10_000, lambda _: 40, Memory())
    window.weigh_event(receipt_with(bytes(10 * MIB)))
    assert window.size(0) == 40


def test_the_window_is_whole_again_once_the_events_are_small():
    window = make_window(10_000, lambda _: 4, Memory())
    window.weigh_event(receipt_with(bytes(MIB)))
    assert window.size(0) < 100
    sizes = []
    for _ in range(200):
        window.weigh_event(receipt_with("small"))
        sizes.append(window.size(0))
    assert sizes == sorted(sizes)
    assert sizes[-1] == 10_000


def test_few_events_are_open_until_the_first_results_are_known():
    begin = partial(
        make_window, needs=lambda _: 4, shared_memory=Memory(), begins_small=lambda: True
    )
    window = begin(10_000)
    window.weigh_event(receipt_with("small"))
    assert [window.size(settled) for settled in (0, 1, 100)] == [256, 272, 1856]
    assert window.size(10_000) == 10_000
    few = begin(8)
    few.weigh_event(receipt_with("small"))
    assert few.size(0) == 8


def test_a_thousand_coroutines_begin_at_once():
    waiting: list[asyncio.Future[None]] = []

    async def wait_for_all(_: int) -> None:
        waiting.append(asyncio.get_running_loop().create_future())
        if len(waiting) == 1000:
            for each in waiting:
                each.set_result(None)
        await asyncio.wait_for(waiting[-1], BOUND_S)

    with EventBus([]) as bus:
        bus.subscribe(int, wait_for_all)
        assert not any(receipt.has_failure for receipt in bus.stream(range(1000)))


def test_sizes_are_looked_at_rarely_where_looking_takes_long():
    now = 0.0

    class Slow:
        def __sizeof__(self) -> int:
            nonlocal now
            now += 0.5
            return 1

    window = Window(10_000, lambda _: 4, Memory(), clock=lambda: now)
    window.size(0)
    window.weigh_event(receipt_with(Slow()))
    assert not window.wants_event
    for later in (10.0, 40.0, 49.0):
        now = later
        window.size(0)
        assert not window.wants_event
    now = 51.0
    window.size(0)
    assert window.wants_event


@pytest.mark.parametrize("ordered", [False, True])
def test_a_stream_of_batches_of_lines_takes_few_of_them_from_its_source(ordered):
    taken = 0
    ahead = []
    with EventBus([], cpu_workers=2) as bus:

        def source() -> Iterator[list[str]]:
            nonlocal taken
            while taken < 300:
                taken += 1
                yield [f"{line} {taken}" for line in LINES]

        bus.subscribe(list, len, kind="cpu")
        for number, receipt in enumerate(bus.stream(source(), ordered=ordered)):
            assert receipt.result() == len(LINES)
            ahead.append(taken - number)
    assert len(ahead) == 300
    assert max(ahead) < 100


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("kind", ["io", "cpu"])
def test_large_results_do_not_pile_up_behind_a_slow_consumer(kind, ordered):
    taken = 0
    ahead = []

    def source() -> Iterator[int]:
        nonlocal taken
        while taken < 600:
            taken += 1
            yield MIB

    with EventBus([], cpu_workers=2) as bus:
        bus.subscribe(int, lambda size: bytes(size), kind=kind)
        for number, receipt in enumerate(bus.stream(source(), ordered=ordered)):
            assert len(receipt.result()) == MIB
            assert bus.drain(timeout=BOUND_S)  # the consumer takes longer than the handlers
            ahead.append(taken - number)
    assert len(ahead) == 600
    assert max(ahead) <= 300
    assert max(ahead[300:]) < 100


def test_a_batch_handler_of_large_events_gets_whole_batches():
    sizes = []
    with EventBus([], io_workers=1) as bus:

        def insert(rows: list[bytes]) -> None:
            sizes.append(len(rows))

        bus.subscribe(bytes, insert, batch=100, batch_wait=60.0)
        count = sum(1 for _ in bus.stream(bytes(MIB) for _ in range(400)))
    assert count == 400
    assert sizes == [100] * 4


def test_all_threads_are_busy_with_large_events():
    everybody = Barrier(8)
    with EventBus([], io_workers=8) as bus:
        bus.subscribe(bytes, lambda _: everybody.wait(BOUND_S))
        assert sum(1 for _ in bus.stream(bytes(40 * MIB) for _ in range(64))) == 64
    assert not everybody.broken


def test_a_hundred_coroutines_are_busy_with_large_events():
    waiting: list[asyncio.Future[None]] = []

    async def send(_: bytes) -> None:
        waiting.append(asyncio.get_running_loop().create_future())
        if len(waiting) == 100:
            for each in waiting:
                each.set_result(None)
            waiting.clear()
            return
        await asyncio.wait_for(waiting[-1], BOUND_S)

    with EventBus([]) as bus:
        bus.subscribe(bytes, send)
        receipts = bus.stream(bytes(40 * MIB) for _ in range(200))
        assert not any(receipt.has_failure for receipt in receipts)


def test_large_events_of_one_key_do_not_keep_others_back():
    go = Event()

    def handle(event: bytes) -> None:
        if event[:1] == b"a":
            assert go.wait(BOUND_S)
        else:
            go.set()

    with EventBus([], io_workers=2) as bus:
        bus.subscribe(bytes, handle, key=lambda event: str(event[:1]))
        events = (first + bytes(40 * MIB) for first in [b"a"] * 60 + [b"b"])
        assert not any(receipt.has_failure for receipt in bus.stream(events))
