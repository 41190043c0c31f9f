"""A worker's side of shared memory, as its loop uses it."""

import mmap
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from procbus.pool.memory.events import Block, EventMemory
from procbus.pool.memory.results import ResultReader
from procbus.pool.memory.shared_file import CannotMap, Form, Place
from procbus.pool.memory.worker_side import WorkerMemory
from procbus.pool.wire import REST, BatchHead, End, Large, each_end, pack_end

LARGE = 1000


class Sides:
    """A worker's side and the parent's, with nothing in between."""

    def __init__(self) -> None:
        self.events = EventMemory(1 << 24)
        self.results = ResultReader(self.events, 1)
        self.worker = WorkerMemory(self.events.room, self.results.room, LARGE)

    def put(self, content: bytes, *, form: Form = Form.BYTES, writable: bool = False) -> Large:
        return (tuple(self.block(content, form).place), writable)

    def block(self, content: bytes, form: Form = Form.BYTES) -> Block:
        block = self.events.put([memoryview(content)], form, 1)
        assert block is not None
        return block


@pytest.fixture
def sides() -> Iterator[Sides]:
    sides = Sides()
    yield sides
    del sides.worker  # as with the process: its mappings go
    sides.results.close()
    sides.events.close()


def end_of(ahead: bytes, frame: bytes = REST) -> End:
    """The parent's reading of the end of one delivery."""
    [end] = each_end(ahead + pack_end(1.0, 2.0, frame), lambda *_: None)
    return end


def head(gone: list[int] | None = None, freed: Any = None) -> BatchHead:
    return BatchHead(1, [], [], [], [], [], [], [], {}, False, gone or [], freed, [])


def refuse(*_: int) -> mmap.mmap:
    raise CannotMap("no file descriptors")


def test_event_is_made_of_the_bytes_in_its_block(sides: Sides) -> None:
    assert sides.worker.load(memoryview(b""), sides.put(b"content")) == b"content"


def test_kept_blocks_are_reported_ahead_of_an_end_and_dropped_ones_ahead_of_the_next(
    sides: Sides,
) -> None:
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(np.arange(10.0), 5, buffer_callback=buffers.append)
    large = sides.put(bytes(buffers[0].raw()), form=Form.BUFFERS)
    array = sides.worker.load(memoryview(data), large)
    offset = large[0][0]

    ahead = sides.worker.note_end(large)

    assert [list(each) for each in end_of(ahead)[5] or ()] == [[offset], []]
    assert sides.worker.keeps
    assert sides.worker.note_end(None) == b""
    assert array.sum() == 45
    del array
    assert [list(each) for each in end_of(sides.worker.note_end(None))[5] or ()] == [[], [offset]]
    assert not sides.worker.keeps


def test_without_kept_blocks_nothing_goes_ahead(sides: Sides) -> None:
    large = sides.put(b"content")
    sides.worker.load(memoryview(b""), large)
    assert sides.worker.note_end(large) == b""
    assert not sides.worker.keeps


def test_plain_content_goes_back_as_it_is(sides: Sides) -> None:
    _, _, frame, _, place, _ = end_of(sides.worker.put_plain("ä" * LARGE))
    assert frame == REST
    assert place is not None
    assert place.form == Form.TEXT
    assert bytes(sides.results.views(place)[0]) == ("ä" * LARGE).encode()


@pytest.mark.parametrize("value", [b"small", [0] * LARGE, None])
def test_other_results_have_no_plain_content(sides: Sides, value: Any) -> None:
    assert sides.worker.put_plain(value) == b""


def test_buffers_go_into_memory_and_the_rest_through_the_pipe(sides: Sides) -> None:
    ahead, rest = sides.worker.put(b"rest", [memoryview(b"one"), memoryview(b"two")], bytes)
    _, _, frame, _, place, _ = end_of(ahead, rest)
    assert bytes(frame) == b"rest"
    assert place is not None
    assert [bytes(view) for view in sides.results.views(place)] == [b"one", b"two"]


def test_a_large_result_without_buffers_goes_into_memory_whole(sides: Sides) -> None:
    _, _, frame, _, place, _ = end_of(*sides.worker.put(b"frame", [], bytes))
    assert frame == REST
    assert place is not None
    assert place.form == Form.PICKLED
    assert bytes(sides.results.views(place)[0]) == b"frame"


def test_result_that_cannot_be_mapped_goes_through_the_pipe(
    sides: Sides, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sides.results.room, "map", refuse)
    assert sides.worker.put_plain(b"a" * LARGE) == b""
    assert sides.worker.put(b"frame", [], bytes) == (b"", b"frame")
    assert sides.worker.put(b"rest", [memoryview(b"one")], lambda: b"whole") == (b"", b"whole")


def test_a_worker_learns_which_blocks_are_gone_and_which_it_may_use_again(sides: Sides) -> None:
    large = sides.put(b"content")
    sides.worker.load(memoryview(b""), large)
    ahead = sides.worker.put_plain(b"a" * LARGE)
    place = end_of(ahead)[4]
    assert place is not None
    sides.results.views(place)

    sides.worker.begin(head([large[0][0]], (LARGE * LARGE, sides.results.freed())), memoryview(b""))

    again = end_of(sides.worker.put_plain(b"b" * LARGE))[4]
    assert again == Place(*place)
    assert sides.worker.load(memoryview(b""), large) == b"content"


def test_empty_head_changes_no_block(sides: Sides) -> None:
    assert bytes(sides.worker.begin(head(), memoryview(b"events"))) == b"events"
    assert not sides.worker.keeps
