"""How many events a stream may have under way."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from threading import Event

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procbus import EventBus, current
from procbus.core.stats import NOTHING_SHARED, SharedMemoryStats
from procbus.stream import Window
from tests.parts import BOUND_S

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
    assert make_window(10_000, lambda: 2, Memory()).size(5) == 10_000


def test_bytes_copied_before_the_stream_do_not_count():
    memory = Memory()
    memory.send(100 * MIB)
    assert make_window(10_000, lambda: 2, memory).size(0) == 10_000


def test_large_events_have_half_the_limit_of_shared_memory():
    memory = Memory()
    window = make_window(10_000, lambda: 2, memory)
    memory.send(40 * MIB)
    assert window.size(4) == 12


def test_every_worker_may_have_one_event_running_and_one_on_its_way():
    memory = Memory()
    window = make_window(10_000, lambda: 8, memory)
    memory.send(200 * MIB)
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
    window = make_window(most, lambda: workers, memory)
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
