"""A worker's view of events' blocks: read in place, and seen whether a handler keeps it."""

import gc
import mmap
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from procbus.pool.memory.events import EventMemory
from procbus.pool.memory.shared_file import CannotMap, Place
from procbus.pool.memory.worker_side import BlockReader
from tests.parts import BOUND_S

PAGE = mmap.ALLOCATIONGRANULARITY


@pytest.fixture
def memory() -> Iterator[EventMemory]:
    memory = EventMemory(1 << 30)
    yield memory
    memory.close()


@pytest.fixture
def reader(memory: EventMemory) -> Iterator[BlockReader]:
    reader = BlockReader(memory.room)
    yield reader
    gc.collect()
    reader.forget(list(range(0, 100 * PAGE, PAGE)))


def put(memory: EventMemory, *contents: bytes) -> Place:
    block = memory.put([memoryview(content) for content in contents], 0, 1)
    assert block is not None
    return block.place


class Garbage:
    """Refers to itself, and to a view."""

    def __init__(self, view: memoryview) -> None:
        self.view = view
        self.me = self


def test_an_event_is_read_in_place_and_cannot_be_written(
    memory: EventMemory, reader: BlockReader
) -> None:
    place = put(memory, b"one", b"two")
    views = reader.views(place, writable=False)
    assert [bytes(view) for view in views] == [b"one", b"two"]
    with pytest.raises(TypeError, match="read-only"):
        views[0][0] = 1
    assert not np.frombuffer(views[0], np.uint8).flags.writeable


def test_a_writable_event_is_a_copy_that_keeps_no_block(
    memory: EventMemory, reader: BlockReader
) -> None:
    place = put(memory, b"one")
    [copy] = reader.views(place, writable=True)
    copy[:] = b"two"
    assert bytes(reader.views(place, writable=False)[0]) == b"one"
    assert not reader.is_kept(place)


def test_a_block_is_mapped_once(memory: EventMemory, reader: BlockReader) -> None:
    place = put(memory, b"one")
    first, second = reader.views(place, writable=False), reader.views(place, writable=False)
    assert first[0].obj is second[0].obj


def test_a_block_without_views_is_not_kept(memory: EventMemory, reader: BlockReader) -> None:
    place = put(memory, b"one")
    reader.views(place, writable=False)
    assert not reader.is_kept(place)
    assert not reader.keeps


@pytest.mark.parametrize("times", [1, 3])
def test_any_view_keeps_a_block_until_the_last_is_gone(
    memory: EventMemory, reader: BlockReader, times: int
) -> None:
    place = put(memory, b"a" * 64, b"b" * 64)
    arrays: list[Any] = []
    for _ in range(times):
        arrays += [np.frombuffer(view)[1:] for view in reader.views(place, writable=False)]
    assert reader.is_kept(place)
    assert reader.keeps
    while arrays:
        assert reader.dropped() == []
        arrays.pop()
    assert reader.dropped() == [place.offset]
    assert reader.dropped() == []
    assert not reader.keeps


def test_a_view_that_another_thread_holds_keeps_a_block(
    memory: EventMemory, reader: BlockReader
) -> None:
    place = put(memory, b"one")
    let_go = threading.Event()
    views = reader.views(place, writable=False)

    def hold(views: list[memoryview]) -> None:
        let_go.wait(BOUND_S)

    holder = threading.Thread(target=hold, args=(views,))
    holder.start()
    del views
    assert reader.is_kept(place)
    let_go.set()
    holder.join()
    del holder
    assert reader.dropped() == [place.offset]


def test_blocks_are_kept_each_by_itself(memory: EventMemory, reader: BlockReader) -> None:
    first, second = put(memory, b"one"), put(memory, b"two")
    kept = reader.views(first, writable=False)
    reader.views(second, writable=False)
    assert reader.is_kept(first)
    assert not reader.is_kept(second)
    assert bytes(kept[0]) == b"one"


def test_block_that_only_garbage_refers_to_is_not_kept(
    memory: EventMemory, reader: BlockReader
) -> None:
    place = put(memory, b"one")
    Garbage(reader.views(place, writable=False)[0])
    assert not reader.is_kept(place)


def test_garbage_keeps_a_block_if_it_is_not_collected(
    memory: EventMemory, reader: BlockReader
) -> None:
    place = put(memory, b"one")
    gc.disable()
    try:
        Garbage(reader.views(place, writable=False)[0])
        assert reader.is_kept(place)
    finally:
        gc.enable()
    gc.collect()
    assert reader.dropped() == [place.offset]


def test_old_garbage_is_looked_for_once_it_keeps_much(
    memory: EventMemory,
) -> None:
    generations: list[int] = []
    reader = BlockReader(memory.room, collect_above=3 * PAGE, collect=generations.append)
    kept = []
    for _ in range(13):
        place = put(memory, b"one")
        kept.append(reader.views(place, writable=False))
        assert reader.is_kept(place)
    # The first time, above 3 pages, and above twice as many as there were then: 1, 4, 9.
    assert [generations.count(1), generations.count(2)] == [13, 3]
    kept.clear()
    reader.forget(reader.dropped())


def test_a_block_that_is_no_more_is_unmapped(memory: EventMemory, reader: BlockReader) -> None:
    place = put(memory, b"one")
    mapped = reader.views(place, writable=False)[0].obj
    assert isinstance(mapped, mmap.mmap)
    reader.forget([place.offset, 1 << 40])
    assert mapped.closed
    assert bytes(reader.views(place, writable=False)[0]) == b"one"


@pytest.mark.parametrize("writable", [False, True])
def test_block_that_cannot_be_mapped_is_copied_out(
    memory: EventMemory, reader: BlockReader, monkeypatch: pytest.MonkeyPatch, writable: bool
) -> None:
    place = put(memory, b"one", b"two")

    def refuse(*_: int) -> mmap.mmap:
        raise CannotMap("no file descriptors")

    monkeypatch.setattr(memory.room, "map", refuse)
    views = reader.views(place, writable=writable)
    assert [bytes(view) for view in views] == [b"one", b"two"]
    assert [view.readonly for view in views] == [not writable] * 2
    assert not reader.is_kept(place)
