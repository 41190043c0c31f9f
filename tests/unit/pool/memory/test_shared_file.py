"""A room: a sparse file in memory that has no name, in which blocks lie."""

import mmap
import os
import resource
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procbus.pool.memory.shared_file import (
    CannotMap,
    Room,
    capacity_for,
    fill,
    most_mapped,
    parts_of,
)

PAGE = mmap.ALLOCATIONGRANULARITY


@pytest.fixture
def room() -> Iterator[Room]:
    room = Room.create("procbus-test")
    yield room
    room.close()


def write(room: Room, offset: int, data: bytes) -> None:
    with closing(room.map(offset, capacity_for(len(data)), mmap.ACCESS_WRITE)) as mapped:
        mapped[: len(data)] = data


def taken(room: Room) -> int:
    """Bytes of memory that the file takes."""
    return os.stat(room.fd).st_blocks * 512


@contextmanager
def limit(which: int, least: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(which)
    resource.setrlimit(which, (least, hard))
    try:
        yield
    finally:
        resource.setrlimit(which, (soft, hard))


def test_room_takes_memory_only_for_written_bytes(room: Room) -> None:
    assert taken(room) == 0
    write(room, 1 << 50, b"x" * PAGE)
    assert taken(room) == PAGE


def test_only_its_user_can_open_a_room(room: Room) -> None:
    file = os.fstat(room.fd)
    assert file.st_mode & 0o777 == 0o600
    device = os.stat("/dev/shm").st_dev
    with os.scandir("/dev/shm") as entries:
        named = {(device, entry.inode()) for entry in entries}
    assert (file.st_dev, file.st_ino) not in named


def test_writes_of_one_mapping_are_seen_by_others_and_by_reads(room: Room) -> None:
    write(room, PAGE, b"shared")
    with closing(room.map(PAGE, PAGE, mmap.ACCESS_READ)) as mapped:
        assert mapped[:6] == b"shared"
    assert room.read(PAGE, 6) == b"shared"


def test_memory_that_was_given_back_is_gone(room: Room) -> None:
    with closing(room.map(0, PAGE, mmap.ACCESS_WRITE)) as mapped:
        mapped[:] = b"x" * PAGE
        room.give_back(mapped)
    assert taken(room) == 0


def test_memory_between_two_offsets_alone_is_given_back(room: Room) -> None:
    for page in (0, 1, 2, 5, 1 << 40):
        write(room, page * PAGE, b"x" * PAGE)
    room.give_back_between(1 * PAGE, 5 * PAGE)
    assert taken(room) == 3 * PAGE
    assert room.read(0, 1) + room.read(5 * PAGE, 1) == b"xx"
    room.give_back_between(5 * PAGE, 1 << 60)
    assert taken(room) == PAGE


def test_giving_back_from_an_empty_room_does_nothing(room: Room) -> None:
    room.give_back_between(0, 1 << 60)
    assert taken(room) == 0


def test_a_room_without_file_descriptors_says_that_it_cannot_map(room: Room) -> None:
    with limit(resource.RLIMIT_NOFILE, room.fd + 1):
        taken_up = []
        try:
            while True:
                taken_up.append(os.dup(room.fd))
        except OSError:
            pass
        try:
            with pytest.raises(CannotMap):
                room.map(0, PAGE, mmap.ACCESS_READ)
            assert room.read(0, 1) == b"\0"
        finally:
            for fd in taken_up:
                os.close(fd)


def test_a_room_fits_under_a_limit_for_the_size_of_files() -> None:
    # Python ignores SIGXFSZ, so that the system call fails instead.
    with limit(resource.RLIMIT_FSIZE, 4 * PAGE), closing(Room.create("procbus-test")) as room:
        write(room, 3 * PAGE, b"x")
        with pytest.raises(CannotMap):
            room.map(4 * PAGE, PAGE, mmap.ACCESS_WRITE)


def test_closing_twice_does_nothing_and_closes_no_other_file() -> None:
    room = Room.create("procbus-test")
    number = room.fd
    room.close()
    with open(os.devnull) as other:
        room.close()
        assert room.fd == -1
        assert other.fileno() == number
        os.fstat(number)


def test_mapped_blocks_leave_most_descriptors_to_the_script() -> None:
    with limit(resource.RLIMIT_NOFILE, 800):
        assert most_mapped() == 100
    with limit(resource.RLIMIT_NOFILE, 50):
        assert most_mapped() == 8


def test_mappings_are_limited_even_if_descriptors_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    infinity = resource.RLIM_INFINITY
    monkeypatch.setattr(resource, "getrlimit", lambda _: (infinity, infinity))
    assert most_mapped() == 8192


@given(st.integers(1, 1 << 50))
def test_a_capacity_is_whole_pages_and_little_more_than_needed(size: int) -> None:
    capacity = capacity_for(size)
    assert capacity % PAGE == 0
    assert size <= capacity <= max(size * 9 / 8, size + PAGE)


@given(st.integers(1, 1 << 50))
def test_size_equal_to_a_capacity_needs_no_larger_one(size: int) -> None:
    assert capacity_for(capacity_for(size)) == capacity_for(size)


@given(st.lists(st.integers(0, 300)))
def test_parts_do_not_overlap_and_begin_where_fast_loops_want_them(sizes: list[int]) -> None:
    parts, total = parts_of(sizes)
    assert [size for _, size in parts] == sizes
    end = 0
    for start, size in parts:
        assert start % 64 == 0
        assert start >= end
        end = start + size
    assert max(end, 1) <= total <= sum(sizes) + 64 * len(sizes) + 1


@given(st.lists(st.binary(max_size=300)))
def test_buffers_are_copied_to_their_places(contents: list[bytes]) -> None:
    parts, total = parts_of([len(content) for content in contents])
    target = bytearray(total)
    fill(memoryview(target), parts, [memoryview(content) for content in contents])
    assert [target[start : start + size] for start, size in parts] == contents


def test_buffer_larger_than_a_stride_is_copied_whole() -> None:
    content = os.urandom((5 << 20) + 3)
    parts, total = parts_of([len(content)])
    target = bytearray(total)
    fill(memoryview(target), parts, [memoryview(content)])
    assert target[: len(content)] == content


def test_buffers_of_other_items_than_bytes_are_copied_as_bytes() -> None:
    wide = memoryview(bytes(range(24))).cast("d")
    raw: Any = wide
    target = bytearray(64)
    fill(memoryview(target), [(0, 24)], [raw])
    assert target[:24] == bytes(range(24))
