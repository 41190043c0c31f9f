"""Memory for batches: two slots, none of which is written while the worker may read it."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator

import pytest

from procbus.pool.memory.batches import (
    ALL_BYTES,
    BATCH_SLOTS,
    LEAST_BYTES,
    SLOT_BYTES,
    BatchReader,
    BatchWriter,
    EventParts,
    load_parts,
)
from procbus.pool.memory.events import EventMemory
from procbus.pool.memory.shared_file import CannotMap, Room


@pytest.fixture
def memory() -> Iterator[EventMemory]:
    memory = EventMemory(8 << 20)
    yield memory
    memory.close()


@pytest.fixture
def writer(memory: EventMemory) -> Iterator[BatchWriter]:
    writer = BatchWriter(memory, 1)
    yield writer
    writer.close()


def put(writer: BatchWriter, batch: int, *events: bytes) -> tuple[int, int]:
    """Put a batch of events there, and send it."""
    assert writer.begin() >= sum(map(len, events))
    writer.put(events)
    stretch = writer.stretch()
    assert stretch is not None
    writer.sent(batch)
    return stretch


def test_the_worker_reads_the_events_of_a_batch_one_behind_the_other(writer: BatchWriter) -> None:
    stretch = put(writer, 1, b"one", b"", b"two")
    found = BatchReader(writer.room).events(stretch)
    assert (bytes(found), found.readonly) == (b"onetwo", True)
    found.release()


def test_events_may_be_put_there_bit_by_bit(writer: BatchWriter) -> None:
    writer.begin()
    for event in (b"a", b"bc", b"d" * 9_000):
        writer.put([event])
    stretch = writer.stretch()
    assert stretch is not None
    assert stretch[1] == 9_003
    found = BatchReader(writer.room).events(stretch)
    assert bytes(found) == b"abc" + b"d" * 9_000
    found.release()


@pytest.mark.parametrize("length", [0, 1, LEAST_BYTES - 1, LEAST_BYTES, 3 * LEAST_BYTES])
def test_any_event_may_be_long_or_have_buffers(writer: BatchWriter, length: int) -> None:
    buffers = [memoryview(b"1" * length), memoryview(b"2" * 9_000), memoryview(b"3" * length)]
    parts = EventParts(b"p", buffers, [(len(buffer), False) for buffer in buffers])
    whole = b"".join(parts.parts)
    assert len(parts) == len(whole)
    writer.begin()
    writer.put([b"a", b"l" * length, b"b"])
    writer.put(parts.parts)
    writer.put([b"d", *parts.parts])
    stretch = writer.stretch()
    assert stretch is not None
    found = BatchReader(writer.room).events(stretch)
    assert bytes(found) == b"a" + b"l" * length + b"b" + whole + b"d" + whole
    found.release()


@pytest.mark.parametrize("writable", [True, False])
def test_an_event_with_buffers_is_made_of_copies(writable: bool) -> None:
    buffers: list[pickle.PickleBuffer] = []
    event = [pickle.PickleBuffer(bytearray(b"first")), "between", pickle.PickleBuffer(b"second")]
    pickled = pickle.dumps(event, 5, buffer_callback=buffers.append)
    raw = [buffer.raw() for buffer in buffers]
    parts = EventParts(pickled, raw, [(view.nbytes, writable) for view in raw])
    slot = bytearray(b"".join(parts.parts))

    made = load_parts(parts.sizes, memoryview(slot).toreadonly())
    slot[:] = bytes(len(slot))  # the next batch is written there
    assert [bytes(made[0]), made[1], bytes(made[2])] == [b"first", "between", b"second"]
    assert memoryview(made[0]).readonly is not writable
    assert memoryview(made[2]).readonly, "as it was published"


def test_a_batch_without_events_there_has_no_stretch_and_takes_no_slot(writer: BatchWriter) -> None:
    for batch in range(5):
        assert writer.begin()
        assert writer.stretch() is None
        writer.sent(batch)
    assert writer.begin()


def test_a_slot_is_used_again_only_once_the_worker_is_through(writer: BatchWriter) -> None:
    reader = BatchReader(writer.room)
    first = reader.events(put(writer, 1, b"first"))
    second = reader.events(put(writer, 2, b"second"))
    assert writer.begin() == 0  # both are in the worker's hands
    writer.done(1)
    third = reader.events(put(writer, 3, b"third"))
    assert bytes(second) == b"second"
    assert bytes(first) == bytes(third) == b"third"
    writer.done(2)
    fourth = reader.events(put(writer, 4, b"fourth"))
    assert bytes(third) == b"third"
    for view in (first, second, third, fourth):
        view.release()


def test_a_message_that_is_never_sent_leaves_its_slot_to_the_next(writer: BatchWriter) -> None:
    for _ in range(2 * BATCH_SLOTS):
        assert writer.begin()
        writer.put([bytes(100)])
    stretches = [put(writer, batch, b"sent") for batch in range(BATCH_SLOTS)]
    assert len(set(stretches)) == BATCH_SLOTS
    assert [size for _, size in stretches] == [4] * BATCH_SLOTS


def test_a_slot_takes_as_much_as_it_has_room_for(writer: BatchWriter) -> None:
    whole = bytes(range(256)) * (writer.slot_bytes // 256)
    reader = BatchReader(writer.room)
    for batch in range(BATCH_SLOTS):
        found = reader.events(put(writer, batch, whole))
        assert found == whole
        found.release()
    assert os.fstat(writer.room.fd).st_size == BATCH_SLOTS * writer.slot_bytes


@pytest.mark.parametrize("workers", [1, 2, 8, 64, 500])
def test_the_slots_of_all_workers_together_are_bounded(workers: int) -> None:
    for limit in (None, 1 << 40, 64 << 20, 1 << 20, 10_000, 0):
        memory = EventMemory(limit)
        writer = BatchWriter(memory, workers)
        assert writer.slot_bytes <= SLOT_BYTES
        all_bytes = workers * BATCH_SLOTS * writer.slot_bytes
        assert all_bytes <= (ALL_BYTES if limit is None else min(ALL_BYTES, limit // 2))
        writer.close()
        memory.close()


def test_without_shared_memory_there_is_no_room() -> None:
    memory = EventMemory(0)
    writer = BatchWriter(memory, 2)
    assert writer.begin() == 0
    assert writer.stretch() is None
    writer.close()
    memory.close()


def test_events_take_the_pipe_if_no_memory_can_be_mapped(
    writer: BatchWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(*_: object) -> None:
        raise CannotMap("no descriptor is left")

    monkeypatch.setattr(Room, "map", cannot)
    assert writer.begin() == 0
    monkeypatch.undo()
    assert writer.begin() == 0  # it does not try again for each batch


def test_a_worker_that_can_map_nothing_copies_the_events_out(
    writer: BatchWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    stretch = put(writer, 1, b"x" * 10_000, b"yz")

    def cannot(*_: object) -> None:
        raise CannotMap("no descriptor is left")

    monkeypatch.setattr(Room, "map", cannot)
    found = BatchReader(writer.room).events(stretch)
    assert (bytes(found), found.readonly) == (b"x" * 10_000 + b"yz", True)


def test_a_forked_child_writes_nothing_there(writer: BatchWriter) -> None:
    """User code that forks while an event is pickled comes back twice: to the parent and here."""
    assert writer.begin()
    writer.put([b"of the parent"])
    pid = os.fork()
    if not pid:
        try:
            writer.put([b"of the child"])
            assert writer.begin() == 0
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    writer.put([b"!"])
    stretch = writer.stretch()
    assert stretch is not None
    found = BatchReader(writer.room).events(stretch)
    assert bytes(found) == b"of the parent!"
    found.release()


def test_closing_twice_lets_the_memory_go_once(memory: EventMemory) -> None:
    writer = BatchWriter(memory, 1)
    put(writer, 1, b"event")
    writer.close()
    writer.close()
    assert writer.begin() == 0
