"""Memory for results: the caller's own, and used again once he has let go."""

import gc
import mmap
import os
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from procbus.pool.memory.events import EventMemory
from procbus.pool.memory.results import ResultReader, ResultWriter
from procbus.pool.memory.shared_file import CannotMap, Place

PAGE = mmap.ALLOCATIONGRANULARITY


class Ends:
    """A worker's end and the parent's, with nothing in between."""

    def __init__(self, memory: EventMemory, workers: int) -> None:
        self.memory = memory
        self.reader = ResultReader(memory, workers)
        self.writer = ResultWriter(self.reader.room)

    def put(self, content: bytes, pages: int = 1) -> Place:
        return self.writer.put([memoryview(content.ljust(pages * PAGE, content[:1]))], 0)

    def take(self, place: Place) -> memoryview:
        [view] = self.reader.views(place)
        return view

    def tell_freed(self) -> list[int]:
        """Tell the worker which blocks are free; return the offsets."""
        freed = self.reader.freed()
        self.writer.reuse((self.reader.idle_limit(), freed))
        return [offset for offset, _ in freed]

    def taken(self) -> int:
        """Bytes of memory that results take."""
        return os.stat(self.reader.room.fd).st_blocks * 512

    def close(self) -> None:
        del self.writer  # as with the process: its mappings go
        self.reader.close()
        self.memory.close()


def make_ends(pages: int = 100, workers: int = 1) -> Ends:
    return Ends(EventMemory(pages * PAGE), workers)


@pytest.fixture
def ends() -> Iterator[Ends]:
    ends = make_ends()
    yield ends
    ends.close()


def test_a_result_comes_as_it_was_with_all_its_parts(ends: Ends) -> None:
    place = ends.writer.put([memoryview(b"one"), memoryview(b"two")], 2)
    assert place.form == 2
    assert [bytes(view) for view in ends.reader.views(place)] == [b"one", b"two"]
    assert ends.memory.stats().received == 6


def test_writing_to_a_result_changes_nothing_else(ends: Ends) -> None:
    place = ends.put(b"a")
    first = ends.take(place)
    first[:] = b"z" * PAGE
    assert bytes(ends.reader.room.read(place.offset, PAGE)) == b"a" * PAGE


def test_a_block_is_used_again_only_once_its_result_is_gone(ends: Ends) -> None:
    place = ends.put(b"a")
    array = np.frombuffer(ends.take(place), np.uint8)[5:]
    assert ends.tell_freed() == []
    assert ends.put(b"b").offset != place.offset
    assert (array == ord("a")).all()
    del array
    assert ends.tell_freed() == [place.offset]
    assert ends.reader.freed() == []
    assert ends.put(b"c").offset == place.offset


def test_idle_memory_goes_back_to_the_system_beyond_its_bound() -> None:
    ends = make_ends(pages=4, workers=2)  # of each worker may two be idle
    places = [ends.put(b"a") for _ in range(4)]
    for place in places:
        ends.take(place)
    ends.tell_freed()
    assert ends.taken() == 2 * PAGE
    ends.close()


def test_result_beyond_the_limit_is_copied_out_at_once() -> None:
    ends = make_ends(pages=2)
    places = [ends.put(bytes([number])) for number in range(4)]
    views = [ends.take(place) for place in places]
    assert ends.tell_freed() == [place.offset for place in places[2:]]
    ends.put(b"x")
    ends.put(b"y")
    assert [view[0] for view in views] == [0, 1, 2, 3]
    views[3][:] = b"z" * PAGE
    del views
    gc.collect()
    assert sorted(ends.tell_freed()) == [place.offset for place in places[:2]]
    ends.close()


def test_result_that_the_parent_cannot_map_is_copied_out(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = ends.put(b"a")
    with monkeypatch.context() as patch:
        patch.setattr(ends.reader.room, "map", refuse)
        view = ends.take(place)
    assert ends.tell_freed() == [place.offset]
    ends.put(b"b")
    assert bytes(view) == b"a" * PAGE
    view[0] = 1


def refuse(*_: int) -> mmap.mmap:
    raise CannotMap("no file descriptors")


def test_result_that_a_worker_cannot_map_uses_up_nothing(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(ends.reader.room, "map", refuse)
        with pytest.raises(CannotMap):
            ends.put(b"a")
    assert ends.put(b"b").offset == 0


def test_memory_that_cannot_be_given_back_is_given_back_later(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends.writer = ResultWriter(ends.reader.room, most=1)
    mapped, unmapped = ends.put(b"a"), ends.put(b"b")
    ends.take(mapped)
    ends.take(unmapped)
    with monkeypatch.context() as patch:
        patch.setattr(ends.reader.room, "map", refuse)
        ends.tell_freed()
    assert ends.taken() == 2 * PAGE
    ends.take(ends.put(b"c"))
    ends.tell_freed()
    assert ends.taken() == PAGE


def test_result_in_use_alone_outlives_the_worker(ends: Ends) -> None:
    places = [ends.put(bytes([number])) for number in range(5)]
    views = [ends.take(place) for place in places[:4]]
    kept = views[1]
    del views
    gc.collect()
    ends.tell_freed()
    probe = os.dup(ends.reader.room.fd)
    try:
        ends.reader.close()
        ends.reader.close()
        assert os.fstat(probe).st_blocks * 512 == PAGE
    finally:
        os.close(probe)
    assert bytes(kept) == bytes([1]) * PAGE


def test_block_that_a_forked_child_may_have_is_not_reused(ends: Ends) -> None:
    before = ends.put(b"a")
    held = ends.take(before)
    ends.reader.note_fork()
    after = ends.put(b"b")
    ends.take(after)
    del held
    assert ends.tell_freed() == [after.offset]
    assert ends.put(b"c").offset == after.offset
    assert ends.put(b"d").offset != before.offset
    assert ends.reader.freed() == []


class AnyResults(RuleBasedStateMachine):
    """Results are made, taken, written to and dropped in any order."""

    @initialize(workers=st.integers(1, 2))
    def start(self, workers: int) -> None:
        self.ends = make_ends(pages=6, workers=workers)
        self.count = 0
        #: Results on their way, and results in use, each with its contents.
        self.under_way: list[tuple[Place, bytes]] = []
        self.held: list[tuple[memoryview, bytes]] = []

    @rule(pages=st.integers(1, 4))
    def make(self, pages: int) -> None:
        self.count += 1
        content = self.count.to_bytes(4, "big") * (pages * PAGE // 4)
        self.under_way.append((self.ends.writer.put([memoryview(content)], 0), content))

    @precondition(lambda self: self.under_way)
    @rule()
    def take(self) -> None:
        place, content = self.under_way.pop(0)
        self.held.append((self.ends.take(place), content))

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0))
    def write(self, which: int) -> None:
        which %= len(self.held)
        view, content = self.held[which]
        view[:] = content[::-1]
        self.held[which] = (view, content[::-1])

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0))
    def drop(self, which: int) -> None:
        self.held.pop(which % len(self.held))

    @rule()
    def tell_freed(self) -> None:
        self.ends.tell_freed()

    @invariant()
    def what_somebody_has_is_what_it_was(self) -> None:
        if hasattr(self, "ends"):
            for view, content in self.held:
                assert view == content

    def teardown(self) -> None:
        """A block that is no longer in use is idle within its bound, or the system's again."""
        if not hasattr(self, "ends"):
            return
        while self.under_way:
            self.take()
        self.held.clear()
        self.ends.tell_freed()
        assert self.ends.taken() <= 6 * PAGE
        self.ends.close()


TestAnyResults = AnyResults.TestCase
