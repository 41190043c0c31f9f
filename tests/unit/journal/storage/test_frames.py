# SPDX-License-Identifier: MIT
"""Frames of the intake: whatever is damaged, the rest is read, and the damage is told."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from procbus.journal.storage.frames import FRAME, START, TAIL, Half, half_in, left_in
from procbus.journal.storage.intake import KEPT_FOR_ENDS, Intake

HALF = 4_096
SECTOR = 512
#: Of lengths from one byte to more than a sector.
FRAMES = [bytes([number]) * (1 + number * number * 2) for number in range(1, 17)]


@contextmanager
def file_of(data: bytes) -> Iterator[int]:
    fd = os.memfd_create("intake")
    try:
        os.pwrite(fd, data, 0)
        yield fd
    finally:
        os.close(fd)


def written(frames: list[bytes], half: int = HALF) -> bytes:
    """The file of an intake that was used twice, and has these frames in its first half now."""
    with file_of(b"") as fd:
        made = Intake(fd, 1, lambda: None, half)
        # Left over behind the frames, as far as all records may go.
        while made.written < half - half // KEPT_FOR_ENDS - 300:
            made.append(b"an earlier use")
        made.swap()
        made.release(0)
        made.append(b"other")
        made.swap()
        made.release(0)
        for frame in frames:
            made.append(frame)
        made.close()
        return os.pread(fd, 2 * half, 0)


def end_of(frames: list[bytes]) -> int:
    return START + sum(FRAME.size + len(frame) for frame in frames)


def first_half(data: bytes, half: int = HALF) -> Half:
    found = half_in(data, 0, half)
    assert found is not None
    assert found.generation == 3
    return found


def check_told(found: Half, frames: list[bytes]) -> None:
    """Read records were written, in order; missing ones are reported, in their place."""
    rest = iter(frames)
    assert all(frame in rest for frame in found.frames), "something else was read, or out of order"
    if found.frames != frames:
        assert found.gaps, f"{len(frames) - len(found.frames)} frames are lost, and nothing says so"


def test_intact_half_is_read_without_gaps():
    found = first_half(written(FRAMES))
    assert found.frames == FRAMES
    assert found.gaps == []


def test_a_bit_flipped_anywhere_costs_one_frame_at_most_and_is_reported():
    data = written(FRAMES)
    for at in range(end_of(FRAMES)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[at] ^= 1 << bit
            found = first_half(bytes(flipped))
            check_told(found, FRAMES)
            assert len(found.frames) >= len(FRAMES) - 1
            if at < START:
                assert found.frames == FRAMES, "the head has a copy"


def test_sector_of_zeros_anywhere_costs_only_its_frames_and_is_reported():
    frames = FRAMES[:12] + [b"short %d" % number for number in range(40)]
    data = written(frames)
    ends = [end_of(frames[:count]) for count in range(len(frames) + 1)]
    for start in range(end_of(frames)):
        holed = bytearray(data)
        end = min(start + SECTOR, HALF - TAIL)
        holed[start:end] = bytes(end - start)
        found = first_half(bytes(holed))
        kept = [
            frame
            for frame, begin, stop in zip(frames, ends, ends[1:], strict=False)
            if stop <= start or begin >= end
        ]
        assert set(kept) <= set(found.frames)
        if start > START or len(found.frames) == len(frames):  # it says how far it is written
            check_told(found, frames)


def test_random_bytes_anywhere_are_reported():
    data = written(FRAMES)
    chance = random.Random(5)
    for _ in range(2_000):
        holed = bytearray(data)
        start = chance.randrange(START, end_of(FRAMES))
        size = chance.randrange(1, 200)
        holed[start : start + size] = chance.randbytes(min(size, HALF - TAIL - start))
        check_told(first_half(bytes(holed[: 2 * HALF])), FRAMES)


@pytest.mark.parametrize("zeros", [False, True])
def test_a_file_cut_at_any_offset_within_a_half_is_reported(zeros: bool):
    """Behind the cut there is nothing, or zeros: the disk never got the rest."""
    data = written(FRAMES)
    for at in range(START, end_of(FRAMES)):
        cut = data[:at] + (bytes(HALF - at) if zeros else os.urandom(HALF - at))
        found = first_half(cut)
        check_told(found, FRAMES)
        whole = sum(end_of(FRAMES[:count]) <= at for count in range(1, len(FRAMES) + 1))
        assert found.frames[:whole] == FRAMES[:whole]


def test_a_write_that_was_interrupted_is_no_loss():
    """The head is copied behind the records: a kill leaves these without it."""
    data = written(FRAMES)
    end = end_of(FRAMES)
    for copied in range(1, 200):
        interrupted = bytearray(data)
        body = end + FRAME.size
        interrupted[body : body + copied] = b"r" * copied
        found = first_half(bytes(interrupted))
        assert found.frames == FRAMES
        assert found.gaps == []


@pytest.mark.parametrize("at", [0, 8, 16, 24, 32, 43])
def test_a_head_that_is_damaged_is_read_from_its_copy(at: int):
    data = bytearray(written(FRAMES))
    data[at] ^= 0xFF
    with file_of(bytes(data)) as fd:
        older, newer = left_in(fd)
    assert (older.generation, older.frames) == (2, [b"other"])
    assert newer.frames == FRAMES


def test_loss_of_the_first_sector_costs_only_its_contents():
    data = written(FRAMES)
    with file_of(bytes(SECTOR) + data[SECTOR:]) as fd:
        older, newer = left_in(fd)
    assert (older.generation, older.frames) == (2, [b"other"])
    assert newer.frames
    assert newer.gaps[0].frames == 0


def test_an_event_cannot_have_frames_in_it():
    """Even if the frame before is damaged, an event's contents are not taken for a record."""
    inner = written([b"forged"])
    forged = inner[START : end_of([b"forged"])]
    frames = [b"first", b"before " + forged + b" behind", b"last"]
    data = bytearray(written(frames))
    data[end_of(frames[:1]) + FRAME.size] ^= 1  # the event itself
    found = first_half(bytes(data))
    assert found.frames == [b"first", b"last"]
    assert len(found.gaps) == 1


def test_a_long_half_without_a_frame_is_looked_through_quickly_enough():
    data = bytearray(written([b"only", b"damaged"], 1 << 20))
    data[end_of([b"only"]) + FRAME.size] ^= 1
    found = first_half(bytes(data), 1 << 20)
    assert found.frames == [b"only"]
    assert len(found.gaps) == 1


def test_the_intake_of_an_older_procbus_is_not_taken_for_an_empty_one():
    with (
        file_of(b"pbintak1" + bytes(8_000)) as fd,
        pytest.raises(ValueError, match="left by an older procbus"),
    ):
        left_in(fd)


def test_a_truncated_file_is_refused_wherever_it_was_cut():
    data = written(FRAMES)
    for size in range(START, 2 * HALF, 97):
        with file_of(data[:size]) as fd, pytest.raises(ValueError, match="truncated"):
            left_in(fd)
