"""Blocks for events: within their limit, and never reused while a view is left."""

import mmap
import os
import resource
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from procbus.core.errors import SerializationError
from procbus.pool.memory.events import IDLE_RESULTS, Block, EventMemory
from procbus.pool.memory.shared_file import CannotMap, capacity_for
from tests.parts import BOUND_S, in_thread

PAGE = mmap.ALLOCATIONGRANULARITY
MakeMemory = Callable[..., EventMemory]


@pytest.fixture
def make_memory() -> Iterator[MakeMemory]:
    made: list[EventMemory] = []

    def make(pages: int, **options: Any) -> EventMemory:
        made.append(EventMemory(pages * PAGE, **options))
        made[-1].join(1)
        made[-1].join(2)
        return made[-1]

    yield make
    for memory in made:
        memory.close()


def page(content: bytes, pages: int = 1) -> list[memoryview]:
    return [memoryview(content.ljust(pages * PAGE, content[:1]))]


def put(memory: EventMemory, content: bytes, pages: int = 1) -> Block:
    block = memory.put(page(content, pages), 0, 1)
    assert block is not None
    return block


def read(memory: EventMemory, block: Block) -> bytes:
    [(start, size)] = block.place.parts
    return bytes(memory.room.read(block.place.offset + start, size))


def settle(memory: EventMemory, block: Block) -> None:
    memory.unpin([block])
    block.release()


def test_block_is_there_for_readers_of_the_room(make_memory: MakeMemory) -> None:
    memory = make_memory(10)
    block = memory.put([memoryview(b"one"), memoryview(b"two")], 3, 1)
    assert block is not None
    offset, _, parts, form = block.place
    assert [memory.room.read(offset + start, size) for start, size in parts] == [b"one", b"two"]
    assert form == 3
    assert memory.stats().in_flight == PAGE


def test_a_block_is_used_again_for_an_event_of_its_size(make_memory: MakeMemory) -> None:
    memory = make_memory(10)
    first = put(memory, b"a")
    settle(memory, first)
    second = put(memory, b"b")
    assert second.place.offset == first.place.offset
    assert second.mapped is first.mapped
    assert memory.stats().idle == 0


def test_block_of_another_size_gets_other_memory(make_memory: MakeMemory) -> None:
    memory = make_memory(10)
    first = put(memory, b"a")
    settle(memory, first)
    assert put(memory, b"b", 2).place.offset != first.place.offset
    assert memory.stats().idle == PAGE


def test_memory_that_waits_longest_makes_room_and_goes_back_to_the_system(
    make_memory: MakeMemory,
) -> None:
    memory = make_memory(4)
    old, young = put(memory, b"a"), put(memory, b"b", 2)
    settle(memory, old)
    settle(memory, young)
    put(memory, b"c", 2)
    put(memory, b"d", 2)
    assert memory.gone(1) == memory.gone(2) == [old.place.offset]
    assert memory.gone(1) == []
    assert os.stat(memory.room.fd).st_blocks * 512 == 4 * PAGE


def test_full_memory_takes_nothing_until_an_event_is_settled(make_memory: MakeMemory) -> None:
    memory = make_memory(2)
    first, _ = put(memory, b"a"), put(memory, b"b")
    assert memory.put(page(b"c"), 0, 1) is None
    settle(memory, first)
    assert read(memory, put(memory, b"c")) == page(b"c")[0]


def test_settling_twice_frees_once(make_memory: MakeMemory) -> None:
    memory = make_memory(3)
    block = put(memory, b"a")
    settle(memory, block)
    again = put(memory, b"b")
    block.release()
    assert memory.stats().in_flight == PAGE
    assert put(memory, b"c").place.offset != again.place.offset


# An event that no worker has at hand makes room.


def test_block_that_no_worker_uses_makes_room(make_memory: MakeMemory) -> None:
    memory = make_memory(2)
    waiting, running = put(memory, b"a"), put(memory, b"b")
    memory.unpin([waiting])
    put(memory, b"c")
    assert not memory.pin(waiting)
    assert memory.pin(running)
    waiting.release()
    assert memory.stats().in_flight == 2 * PAGE


def test_the_oldest_makes_room_first_and_as_many_as_are_needed(make_memory: MakeMemory) -> None:
    memory = make_memory(4)
    blocks = [put(memory, b"a") for _ in range(4)]
    memory.unpin(blocks)
    put(memory, b"b", 2)
    assert [memory.pin(block) for block in blocks] == [False, False, True, True]


def test_a_block_pinned_twice_stays_until_both_are_through(make_memory: MakeMemory) -> None:
    memory = make_memory(1)
    block = put(memory, b"a")
    assert memory.pin(block)
    memory.unpin([block])
    assert memory.put(page(b"b"), 0, 1) is None
    memory.unpin([block])
    assert memory.put(page(b"b"), 0, 1) is not None


def test_a_block_with_a_view_left_makes_no_room(make_memory: MakeMemory) -> None:
    memory = make_memory(1)
    block = put(memory, b"a")
    memory.note_kept(1, [block.place.offset], [])
    memory.unpin([block])
    assert memory.put(page(b"b"), 0, 1) is None
    assert memory.pin(block), "it is still its event's"
    memory.unpin([block])
    memory.note_kept(1, [], [block.place.offset])
    assert memory.put(page(b"b"), 0, 1) is not None


# Kept blocks.


def test_kept_block_is_not_reused_until_the_handler_drops_it(make_memory: MakeMemory) -> None:
    memory = make_memory(10)
    block = put(memory, b"a")
    memory.note_kept(1, [block.place.offset], [])
    memory.note_kept(2, [block.place.offset], [])
    settle(memory, block)
    assert memory.stats().kept == PAGE
    assert put(memory, b"b").place.offset != block.place.offset
    memory.note_kept(1, [], [block.place.offset])
    assert memory.stats().kept == PAGE
    memory.leave(2)
    assert memory.stats().kept == 0
    assert put(memory, b"c").place.offset == block.place.offset


def test_reports_on_freed_blocks_change_nothing(
    make_memory: MakeMemory,
) -> None:
    memory = make_memory(10)
    block = put(memory, b"a")
    settle(memory, block)
    memory.note_kept(1, [block.place.offset], [1 << 40])
    memory.note_kept(1, [], [block.place.offset])
    memory.leave(1)
    memory.leave(1)
    assert memory.stats().idle == PAGE
    assert memory.stats().kept == 0


def test_worker_that_is_gone_gets_no_message(make_memory: MakeMemory) -> None:
    memory = make_memory(1)
    memory.leave(1)
    settle(memory, put(memory, b"a"))
    put(memory, b"b")
    assert memory.gone(1) == []


# Events that do not fit.


def test_event_larger_than_the_limit_less_kept_blocks_never_fits(
    make_memory: MakeMemory,
) -> None:
    memory = make_memory(3)
    block = put(memory, b"a")
    assert memory.fits(page(b"b", 3))
    assert not memory.fits(page(b"b", 4))
    memory.note_kept(1, [block.place.offset], [])
    settle(memory, block)
    assert memory.fits(page(b"b", 2))
    assert not memory.fits(page(b"b", 3))


def test_event_that_does_not_fit_takes_the_pipe_unless_it_is_to_fail(
    make_memory: MakeMemory,
) -> None:
    make_memory(1).check_oversize("handler", 7, page(b"a", 2))
    with pytest.raises(SerializationError, match=r"event #7 for handler .* shared_memory_limit"):
        make_memory(1, on_oversize="fail").check_oversize("handler", 7, page(b"a", 2))


def test_default_limit_is_a_quarter_of_the_free_memory_at_the_first_use() -> None:
    available = 0
    memory = EventMemory(available=lambda: available)
    try:
        available = 40 * PAGE
        assert memory.limit == 10 * PAGE
        available = 80 * PAGE
        assert memory.limit == memory.idle_results == 10 * PAGE
    finally:
        memory.close()


def test_results_keep_no_more_than_is_good_for_a_large_machine() -> None:
    memory = EventMemory(1 << 40)
    assert memory.idle_results == IDLE_RESULTS
    memory.close()


def test_number_of_blocks_is_bounded_by_the_mappings(make_memory: MakeMemory) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (80, hard))
    try:
        memory = make_memory(1000, on_oversize="fail")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    blocks = [put(memory, b"a") for _ in range(10)]
    assert memory.put(page(b"b"), 0, 1) is None
    memory.note_kept(1, [block.place.offset for block in blocks], [])
    for block in blocks:
        settle(memory, block)
    assert not memory.fits(page(b"b"))
    memory.check_oversize("handler", 7, page(b"b"))  # it is not too large: it takes the pipe


def test_idle_memory_is_given_up_first_if_no_more_can_be_mapped(
    make_memory: MakeMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = make_memory(100)
    settle(memory, put(memory, b"a"))
    real, refusals = memory.room.map, 1

    def refuse(*args: int) -> mmap.mmap:
        nonlocal refusals
        if refusals:
            refusals -= 1
            raise CannotMap("no file descriptors")
        return real(*args)

    monkeypatch.setattr(memory.room, "map", refuse)
    put(memory, b"b", 2)
    assert memory.stats().idle == 0
    refusals = 1
    with pytest.raises(CannotMap):
        memory.put(page(b"c", 3), 0, 1)
    assert memory.stats().in_flight == 2 * PAGE


# Waiting.


@pytest.mark.parametrize("how", ["settled", "at hand no more", "view gone", "worker gone"])
def test_waiter_for_room_is_woken(make_memory: MakeMemory, how: str) -> None:
    memory = make_memory(1)
    block = put(memory, b"a")
    offset = block.place.offset
    if how in ("view gone", "worker gone"):
        memory.note_kept(2, [offset], [])
        settle(memory, block)
    ways: dict[str, Callable[[], object]] = {
        "settled": block.release,
        "at hand no more": lambda: memory.unpin([block]),
        "view gone": lambda: memory.note_kept(2, [], [offset]),
        "worker gone": lambda: memory.leave(2),
    }
    openings = memory.openings
    waiter = in_thread(lambda: memory.wait_for_room(1, openings, 600))
    ways[how]()
    waiter.join(BOUND_S)
    assert not waiter.is_alive()
    assert memory.put(page(b"b"), 0, 1) is not None


def test_room_that_came_before_the_waiting_is_not_missed(make_memory: MakeMemory) -> None:
    memory = make_memory(1)
    block = put(memory, b"a")
    openings = memory.openings
    assert memory.put(page(b"b"), 0, 1) is None
    settle(memory, block)
    waiter = in_thread(lambda: memory.wait_for_room(1, openings, 600))
    waiter.join(BOUND_S)
    assert not waiter.is_alive()


def test_while_one_waits_for_room_no_other_gets_any(make_memory: MakeMemory) -> None:
    memory = make_memory(3)
    blocks = [put(memory, b"a") for _ in range(3)]
    assert memory.put(page(b"b", 3), 0, 2) is None
    memory.wait_for_room(2, memory.openings, 0.001)
    memory.wait_for_room(1, memory.openings, 0.001)
    settle(memory, blocks[0])
    assert memory.put(page(b"c"), 0, 1) is None
    settle(memory, blocks[1])
    settle(memory, blocks[2])
    assert memory.put(page(b"c"), 0, 1) is None
    assert memory.put(page(b"b", 2), 0, 2) is not None
    openings = memory.openings
    waiter = in_thread(lambda: memory.wait_for_room(1, openings, 600))
    memory.leave_line(2)
    memory.leave_line(2)
    waiter.join(BOUND_S)
    assert not waiter.is_alive()
    assert memory.put(page(b"c"), 0, 1) is not None


def test_worker_that_is_gone_leaves_the_line(make_memory: MakeMemory) -> None:
    memory = make_memory(1)
    memory.wait_for_room(2, memory.openings, 0.001)
    memory.leave(2)
    assert memory.put(page(b"c"), 0, 1) is not None


def test_waiting_has_an_end_without_any_room(make_memory: MakeMemory) -> None:
    memory = make_memory(1)
    memory.wait_for_room(1, memory.openings, 0.001)
    assert memory.openings == 0


def test_bytes_that_come_back_are_counted_by_all_threads_together(make_memory: MakeMemory) -> None:
    memory = make_memory(1)

    def receive() -> None:
        for _ in range(10_000):
            memory.note_received(1)

    threads = [in_thread(receive) for _ in range(4)]
    for thread in threads:
        thread.join(BOUND_S)
    assert memory.stats().received == 40_000


def test_closing_gives_everything_back(make_memory: MakeMemory) -> None:
    memory = make_memory(10)
    block = put(memory, b"a")
    settle(memory, block)
    memory.close()
    memory.close()
    assert memory.stats().idle == 0
    assert memory.room.fd == -1
    assert block.mapped.closed


class AnyMemory(RuleBasedStateMachine):
    """Events come, run on several workers, are kept, retried and settled in any order."""

    PAGES = 8
    WORKERS = (1, 2, 3)

    @initialize()
    def start(self) -> None:
        self.memory = EventMemory(self.PAGES * PAGE)
        for worker in self.WORKERS:
            self.memory.join(worker)
        self.count = 0
        #: Events that are not settled: their content, and their pins by worker.
        self.open: dict[Block, tuple[bytes, list[int]]] = {}
        #: The views of workers: the block, its content, the worker.
        self.views: list[tuple[Block, bytes, int]] = []

    def pick(self, among: Sequence[Any], which: int) -> Any:
        return among[which % len(among)]

    @rule(pages=st.integers(1, 5), worker=st.sampled_from(WORKERS))
    def publish(self, pages: int, worker: int) -> None:
        self.count += 1
        content = self.count.to_bytes(4, "big") * (pages * PAGE // 4)
        block = self.memory.put([memoryview(content)], 0, 1)
        if block is None:
            # It is full of blocks in use, which cannot make room.
            in_use = sum(
                b.place.capacity
                for b in {*self.open, *(b for b, _, _ in self.views)}
                if (not b.done and b.pins) or any(b is v for v, _, _ in self.views)
            )
            assert in_use + capacity_for(len(content)) > self.PAGES * PAGE
            return
        self.open[block] = (content, [worker])

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0), worker=st.sampled_from(WORKERS))
    def give(self, which: int, worker: int) -> None:
        """Another batch gets the event, unless it has made room."""
        block = self.pick(list(self.open), which)
        if self.memory.pin(block):
            self.open[block][1].append(worker)
        else:
            assert not self.open[block][1], "a block at hand makes no room"
            del self.open[block]

    @precondition(lambda self: any(pins for _, pins in self.open.values()))
    @rule(which=st.integers(0), keep=st.booleans())
    def complete(self, which: int, keep: bool) -> None:
        """A batch is through with an event; its handler may have kept a view."""
        block = self.pick([b for b, (_, pins) in self.open.items() if pins], which)
        content, pins = self.open[block]
        worker = pins.pop()
        if keep:
            self.memory.note_kept(worker, [block.place.offset], [])
            self.views.append((block, content, worker))
        self.memory.unpin([block])

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0))
    def settle(self, which: int) -> None:
        """Its last delivery is settled. A batch may be through with it only later."""
        block = self.pick(list(self.open), which)
        _, pins = self.open.pop(block)
        block.release()
        self.memory.unpin([block] * len(pins))

    @precondition(lambda self: self.views)
    @rule(which=st.integers(0))
    def drop(self, which: int) -> None:
        block, _, worker = self.views.pop(which % len(self.views))
        if not any(b is block and w == worker for b, _, w in self.views):
            self.memory.note_kept(worker, [], [block.place.offset])

    @rule(worker=st.sampled_from(WORKERS))
    def die(self, worker: int) -> None:
        """A worker dies, and another takes its place."""
        for block, (_, pins) in self.open.items():
            self.memory.unpin([block] * pins.count(worker))
            pins[:] = [pin for pin in pins if pin != worker]
        self.views = [view for view in self.views if view[2] != worker]
        self.memory.leave(worker)
        self.memory.join(worker)

    @invariant()
    def it_stays_under_its_limit(self) -> None:
        if hasattr(self, "memory"):
            stats = self.memory.stats()
            assert stats.in_flight + stats.kept + stats.idle <= self.PAGES * PAGE
            assert os.stat(self.memory.room.fd).st_blocks * 512 <= self.PAGES * PAGE

    @invariant()
    def what_somebody_reads_never_changes(self) -> None:
        if hasattr(self, "memory"):
            at_hand = [(block, content) for block, (content, pins) in self.open.items() if pins]
            for block, content in [*at_hand, *((b, c) for b, c, _ in self.views)]:
                assert read(self.memory, block) == content

    def teardown(self) -> None:
        """In the end everything has come back, and all of the limit can be had at once."""
        if not hasattr(self, "memory"):
            return
        while self.open:
            self.settle(0)
        while self.views:
            self.drop(0)
        stats = self.memory.stats()
        assert (stats.in_flight, stats.kept) == (0, 0)
        assert self.memory.put([memoryview(bytes(self.PAGES * PAGE))], 0, 1) is not None
        self.memory.close()


TestAnyMemory = AnyMemory.TestCase


def test_blocks_are_handed_out_to_many_threads_at_once(make_memory: MakeMemory) -> None:
    memory = make_memory(4)
    wrong: list[bytes] = []

    def work(number: int) -> None:
        content = bytes([number]) * PAGE
        for _ in range(200):
            openings = memory.openings
            while (block := memory.put([memoryview(content)], 0, number)) is None:
                memory.wait_for_room(number, openings, BOUND_S)
                openings = memory.openings
            memory.leave_line(number)
            if (found := read(memory, block)) != content:
                wrong.append(found)
            settle(memory, block)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(BOUND_S)
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong
    assert memory.stats().in_flight == 0
    assert memory.stats().sent == 8 * 200 * PAGE
