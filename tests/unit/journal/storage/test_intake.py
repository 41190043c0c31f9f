# SPDX-License-Identifier: MIT
"""The intake: written records are there after any death, and nothing else is."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procbus.core.errors import JournalError
from procbus.core.locks import Lock
from procbus.journal.storage.frames import left_in
from procbus.journal.storage.intake import Intake

HALF = 1 << 14
BOUND_S = 60.0


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    made = os.open(tmp_path / "intake", os.O_RDWR | os.O_CREAT, 0o600)
    yield made
    os.close(made)


def whole(fd: int) -> list[tuple[int, list[bytes]]]:
    """The generations with their frames, of an intake that nothing befell."""
    left = left_in(fd)
    assert [each.gaps for each in left] == [[]] * len(left)
    return [(each.generation, each.frames) for each in left]


def intake(fd: int, generation: int = 1) -> Intake:
    return Intake(fd, generation, lambda: None, HALF)


def test_records_are_left_in_an_intake_that_was_not_closed(fd: int):
    made = intake(fd)
    made.append(b"one")
    made.append(b"two")
    assert whole(fd) == [(1, [b"one", b"two"])]
    made.close()


def test_both_halves_are_read_the_older_first(fd: int):
    made = intake(fd)
    made.append(b"old")
    half = made.swap()
    made.append(b"new")
    assert whole(fd) == [(1, [b"old"]), (2, [b"new"])]
    assert half is not None
    assert made.read(half).frames == [b"old"]
    made.close()


def test_a_frame_without_records_is_refused_since_it_would_be_read_as_the_end(fd: int):
    made = intake(fd)
    with pytest.raises(ValueError, match="a frame without records"):
        made.append(b"")
    made.append(b"one")
    assert whole(fd) == [(1, [b"one"])]
    made.close()


def test_an_empty_half_is_not_moved(fd: int):
    made = intake(fd)
    assert made.swap() is None
    made.close()


def test_each_use_of_a_half_begins_with_the_names_of_handlers(fd: int):
    made = intake(fd)
    made.append(b"one")
    made.restate = lambda: b"names"
    made.swap()
    made.release(0)
    assert made.written == 0
    assert made.swap() is None, "names alone are nothing to be moved"
    made.append(b"two")
    assert whole(fd) == [(1, [b"one"]), (2, [b"names", b"two"])]
    made.close()


def test_records_of_an_earlier_use_are_never_read(fd: int):
    made = intake(fd)
    for number in range(20):
        made.append(b"frame %d of the first use" % number)
    made.swap()
    made.release(0)
    made.append(b"second")
    made.swap()  # the first half again
    made.release(0)
    made.append(b"frame 0 of the third  use")  # as long as what was there
    assert whole(fd) == [(2, [b"second"]), (3, [b"frame 0 of the third  use"])]
    made.close()


def test_a_new_owner_begins_where_the_generations_ended(fd: int):
    first = intake(fd, 7)
    first.append(b"seven")
    first.close()
    second = intake(fd, 8)
    second.append(b"eight")
    assert whole(fd) == [(8, [b"eight"])]
    second.close()


@given(
    st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=20),
    st.integers(0, 2**32),
)
def test_frames_before_a_truncated_write_are_whole(frames, seed):
    """As when a process is killed in the middle of a copy, or power fails between two pages."""
    fd = os.memfd_create("intake")
    try:
        made = Intake(fd, 3, lambda: None, HALF)
        ends = []
        for frame in frames:
            made.append(frame)
            ends.append(made.written + 64)
        made.close()
        some = random.Random(seed)
        cut = some.randrange(64, ends[-1])
        os.pwrite(fd, some.randbytes(ends[-1] - cut), cut)
        whole = sum(end <= cut for end in ends)
        ((generation, _, left, _),) = left_in(fd)
        assert generation == 3
        assert left[:whole] == frames[:whole]
        assert len(left) in (whole, whole + 1)
        assert left == frames[: len(left)], "what was not written as a whole is not there"
    finally:
        os.close(fd)


def test_writers_wait_for_room_until_a_half_was_moved(fd: int):
    woken = threading.Event()
    made = Intake(fd, 1, woken.set, HALF)
    frame = b"x" * (HALF // 4)
    for _ in range(3):
        made.append(frame)
    written = threading.Event()

    def write() -> None:
        made.append(frame)
        written.set()

    writer = threading.Thread(target=write)
    writer.start()
    assert woken.wait(BOUND_S)
    assert not written.is_set()
    assert made.swap() == 0
    assert written.wait(BOUND_S)
    writer.join(BOUND_S)
    made.close()


def test_writers_that_wait_get_the_error_when_nothing_can_be_moved(fd: int):
    made = intake(fd)
    frame = b"x" * (HALF // 4)
    for _ in range(3):
        made.append(frame)
    made.fail(JournalError("the disk is gone"))
    with pytest.raises(JournalError, match="the disk is gone"):
        made.append(frame)
    made.append(b"there is room for this one")
    assert whole(fd)[0][1][-1] == b"there is room for this one"
    made.close()


def append_until_refused(made: Intake, frames: list[bytes], *, ends: bool = False) -> int:
    """Append frames; give the number of those that were written."""
    for number, frame in enumerate(frames):
        try:
            made.append(frame, ends=ends)
        except JournalError:
            return number
    return len(frames)


def test_ends_have_room_left_when_nothing_can_be_moved_and_events_have_none(fd: int):
    made = intake(fd)
    frame = b"x" * 100
    made.fail(JournalError("the disk is full"))
    assert append_until_refused(made, [frame] * HALF) < HALF
    ends = append_until_refused(made, [b"end %d" % each for each in range(HALF)], ends=True)
    assert 10 < ends < HALF
    assert whole(fd)[0][1][-ends:] == [b"end %d" % each for each in range(ends)]

    made.fail(None)
    assert made.swap() == 0
    assert len(made.read(0).frames) == len(whole(fd)[0][1])
    made.release(1)
    made.append(b"works again")
    assert whole(fd)[-1] == (2, [b"works again"])
    made.close()


def test_ends_get_no_room_in_a_closed_intake(fd: int):
    made = intake(fd)
    made.fail(JournalError("the journal is closed"))
    made.close()
    with pytest.raises(JournalError, match="the journal is closed"):
        made.append(b"end", ends=True)


def test_records_of_many_threads_are_all_written(fd: int):
    made = Intake(fd, 1, lambda: None, 1 << 20)
    threads = [
        threading.Thread(
            target=lambda n=n: [made.append(b"%d %d" % (n, each)) for each in range(500)]
        )
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(BOUND_S)
    ((_, frames),) = whole(fd)
    assert sorted(frames) == sorted(b"%d %d" % (n, each) for n in range(8) for each in range(500))
    for n in range(8):  # each thread's own in their order
        assert [f for f in frames if f.startswith(b"%d " % n)] == [
            b"%d %d" % (n, each) for each in range(500)
        ]
    made.close()


def test_the_whole_file_has_its_blocks_from_the_first(fd: int):
    made = intake(fd)
    status = os.fstat(fd)
    assert status.st_size == 2 * HALF
    assert status.st_blocks * 512 >= 2 * HALF, "a full disk would kill the process later"
    made.close()


def test_a_file_whose_owner_died_at_once_is_empty(fd: int):
    assert left_in(fd) == []
    os.pwrite(fd, b"1234", 48)
    assert left_in(fd) == []
    os.ftruncate(fd, 2 * HALF)
    assert left_in(fd) == []


def test_a_tangled_thread_leaves_its_records_which_come_before_all_later_ones(fd: int):
    writing = intake(fd)
    has, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with writing.lock:
            has.set()
            go_on.wait(BOUND_S)
            writing.append(b"later")

    holder = threading.Thread(target=hold)
    holder.start()
    assert has.wait(BOUND_S)
    with Lock():  # as if this thread had been interrupted
        writing.append(b"left")
        writing.append(b"left too")
    go_on.set()
    holder.join(BOUND_S)
    writing.close()
    assert whole(fd) == [(1, [b"left", b"left too", b"later"])]


def test_a_tangled_thread_gets_the_error_when_nothing_can_be_written(fd: int):
    writing = intake(fd)
    writing.fail(JournalError("the disk is full"))
    with pytest.raises(JournalError, match="disk is full"):
        writing._leave(b"left")  # noqa: SLF001 - no other way to be tangled up
