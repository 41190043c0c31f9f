"""The roads of a worker's results, with its parent in the same process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from math import inf
from typing import Any

import pytest

from procbus.pool.child.loop import LEFT_BYTES, Worker
from procbus.pool.handler_cache import Definitions
from procbus.pool.logbook import CAPACITY, SEGMENTS, Logbook
from procbus.pool.memory.batches import LEAST_BYTES, BatchWriter
from procbus.pool.memory.events import EventMemory
from procbus.pool.memory.results import ResultReader
from procbus.pool.memory.worker_side import WorkerMemory
from procbus.pool.parent_end import ParentEnd
from procbus.pool.wire import RESULTS_TAG, SHARED_TAG, unpack_batch
from tests.conformance import handlers
from tests.conformance.drive import deliveries


class Both:
    """A worker and its parent, and all that the worker has sent."""

    def __init__(self, limit: int | None) -> None:
        self.memory = EventMemory(limit)
        results = ResultReader(self.memory, 1)
        batches = BatchWriter(self.memory, 1)
        self.end = ParentEnd(Definitions(), self.memory, results, batches)
        self.logbook = Logbook.create(segments=SEGMENTS)
        self.tokens = threading.Semaphore(0)
        self.sent: list[bytes] = []
        shared = WorkerMemory(self.memory.room, results.room, self.memory.large, batches.room)
        # It does not wait for its parent, which reads only once the batch has ended.
        self.worker = Worker(
            self._send,
            self.logbook,
            shared,
            self.tokens,
            self.end.number,
            looks=2,
            flush_s=inf,  # else a batch that is held up sends its results in two parts
        )

    def _send(self, *parts: bytes | memoryview) -> None:
        message = b"".join(parts)
        if message[:1] in (RESULTS_TAG, SHARED_TAG):
            self.sent.append(message)

    def run(self, function: Any, *events: object) -> bytes:
        """Run a batch; return its message."""
        message = self.end.prepare(1, deliveries(function, *events))
        assert not message.rest
        self.end.sent(message)
        self.tokens.release(len(message.deliveries))
        self.worker.run_batch(message.data)
        return bytes(message.data)

    def read(self) -> list[Any]:
        """The results of all that was sent."""
        values: list[Any] = []
        for message in self.sent:
            left = message[:1] == SHARED_TAG
            report = self.end.report(message, self.logbook.results if left else None)
            if left:
                self.logbook.taken()
            values += report.successes.values
            values += [outcome.value for outcome, _ in report.ends]
        return values

    def roads(self) -> list[bytes]:
        return [message[:1] for message in self.sent]

    def close(self) -> None:
        del self.worker  # with it what it has mapped
        self.end.close()
        self.logbook.close()
        self.memory.close()


@pytest.fixture(params=[64 << 20, 0], ids=["shared", "pipe"])
def both(request: pytest.FixtureRequest) -> Iterator[Both]:
    both = Both(request.param)
    yield both
    both.close()


def test_few_bytes_of_results_are_sent(both: Both) -> None:
    both.run(handlers.double, *range(100))
    assert both.roads() == [RESULTS_TAG]
    assert both.read() == [2 * number for number in range(100)]


def test_many_bytes_of_results_are_left_for_the_parent(both: Both) -> None:
    both.run(handlers.echo, *(bytes([number]) * 1_000 for number in range(40)))
    assert both.roads() == [SHARED_TAG]
    assert len(both.sent[0]) < 100
    assert both.read() == [bytes([number]) * 1_000 for number in range(40)]


def test_results_are_sent_where_the_parent_does_not_read(both: Both) -> None:
    count = (SEGMENTS + 2) * CAPACITY // 16_000
    both.run(handlers.numbered, *range(count))
    roads = both.roads()
    assert roads[: SEGMENTS - 1] == [SHARED_TAG] * (SEGMENTS - 1)
    assert set(roads[SEGMENTS - 1 :]) == {RESULTS_TAG}
    assert both.read() == [handlers.numbered(number) for number in range(count)]


def test_result_too_large_for_a_segment_is_sent_with_the_ones_before_it() -> None:
    with closing(Both(0)) as both:  # else it would go through shared memory of its own
        both.run(handlers.sized_or_exit, 10, CAPACITY, 20, 2 * CAPACITY, 30)
        assert [len(value) for value in both.read()] == [10, CAPACITY, 20, 2 * CAPACITY, 30]
        assert SHARED_TAG not in both.roads()


@pytest.mark.parametrize("size", [LEFT_BYTES - 100, LEFT_BYTES, LEFT_BYTES + 100, CAPACITY - 60])
def test_results_around_each_border_are_read(both: Both, size: int) -> None:
    both.run(handlers.sized_or_exit, *[size] * 3)
    assert [len(value) for value in both.read()] == [size] * 3


def test_the_pipe_has_the_events_of_a_batch_only_where_they_are_few() -> None:
    with closing(Both(None)) as both:
        few = both.run(handlers.size_of, bytes(100), bytes(200))
        assert unpack_batch(few)[0].shared is None
        head, rest = unpack_batch(both.run(handlers.size_of, *[bytes(LEAST_BYTES)] * 9))
        assert head.shared is not None
        assert head.shared[1] == 9 * LEAST_BYTES
        assert not rest


@pytest.mark.parametrize("limit", [None, 0])
def test_small_events_are_read_from_shared_memory_and_from_the_pipe(limit: int | None) -> None:
    events: list[Any] = [{"number": number, "text": "x" * (number % 50)} for number in range(700)]
    with closing(Both(limit)) as both:
        both.run(handlers.echo, *events)
        assert both.read() == events
