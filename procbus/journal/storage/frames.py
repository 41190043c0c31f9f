# SPDX-License-Identifier: MIT
"""The layout of records in a half of the intake, and reading them from a damaged file.

A half begins with a head, and ends with a copy of it. The head has the half's generation and a
marker of eight random bytes. Each frame begins with that marker, followed by its length and a
checksum. The checksum is seeded with the marker, so frames of an earlier use of the half are never
read again, and no event can contain bytes that pass for a frame. Beside the head the half records
how far it is written.

A frame that is not whole may have been half written when its owner died. Its publisher was never
told that the event is accepted, so nothing is lost. An incomplete frame is a loss in three cases:
if whole frames follow it; if the half records that it was written further; or if the frame's marker
is there, because the marker is copied last. Such a loss is reported as a `Gap`, never silently
skipped.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

#: Head of each frame: the marker, the length, and the checksum.
FRAME = struct.Struct("<8sII")
#: The head of a frame without the marker.
_LENGTH_AND_SUM = struct.Struct("<8xII")
#: Head of each half, and its copy at the end: magic bytes, generation, the base of the generation,
#: size, marker, and a checksum of all these.
_HEAD = struct.Struct("<8sQQQ8s")
_SUM = struct.Struct("<I")
_MAGIC = b"pbintak2"
_OLDER = b"pbintak1"
#: Offset of the first frame, in bytes. The head takes 44; the owner's pid is at 48, see `lock`.
START = 64
#: Size of the copy of the head behind the last frame, in bytes.
TAIL = 64
#: Offset in a half of the field that records how far it is written: a native number.
UPTO_AT = 56
_UPTO = struct.Struct("=Q")


class Head(NamedTuple):
    """The head of a half."""

    generation: int
    #: The last generation that the database had noted when this generation began. The generations
    #: between the two had nothing to move, except the generation just before this one, which is in
    #: the other half.
    base: int
    half: int
    marker: bytes

    def packed(self) -> bytes:
        """The head as bytes."""
        data = _HEAD.pack(_MAGIC, self.generation, self.base, self.half, self.marker)
        return data + _SUM.pack(zlib.crc32(data))

    @property
    def seed(self) -> int:
        """The start value of the checksums of this half's frames."""
        return zlib.crc32(self.marker)


class Gap(NamedTuple):
    """A place where records are lost."""

    #: Number of frames before the gap.
    frames: int
    #: Offset in the file, and size in bytes.
    at: int
    size: int


class Half(NamedTuple):
    """The contents of one half."""

    generation: int
    base: int
    frames: list[bytes]
    gaps: list[Gap]


def left_in(fd: int, *, live: bool = False) -> list[Half]:
    """Read an intake: the half with the older generation first.

    Args:
        fd: descriptor of the file.
        live: whether a bus is writing to it. Then all records written before the call are read.

    Raises:
        ValueError: it is not an intake, or not a complete one.
    """
    size = os.fstat(fd).st_size
    if size < START:
        return []  # the intake's owner died before its first write
    with mmap.mmap(fd, size, prot=mmap.PROT_READ) as data:
        half = _size_of_halves(data)
        if half is None:
            return []  # the same
        found = (half_in(data, start, half, live=live) for start in (0, half))
        return sorted(each for each in found if each is not None)


def _size_of_halves(data: mmap.mmap) -> int | None:
    """The size of each half; None if the file was never written."""
    size = len(data)
    for start in (0, size - TAIL, size // 2, size // 2 - TAIL):
        head = _head_at(data, start)
        if head is not None:
            if size < 2 * head.half:
                raise ValueError(f"it is truncated: {size:,} of {2 * head.half:,} bytes are there")
            return head.half
    if data[: len(_OLDER)] == _OLDER:
        raise ValueError("it was left by an older procbus, which has to finish it first")
    if any(data[: _HEAD.size]):
        raise ValueError("it is not the intake of a journal")
    return None


def _head_at(data: mmap.mmap | bytes, at: int) -> Head | None:
    if at < 0:
        return None
    packed = data[at : at + _HEAD.size]
    if len(packed) < _HEAD.size or not packed.startswith(_MAGIC):
        return None
    if data[at + _HEAD.size : at + _HEAD.size + _SUM.size] != _SUM.pack(zlib.crc32(packed)):
        return None
    return Head(*_HEAD.unpack(packed)[1:])


def half_in(
    data: mmap.mmap | bytes,
    start: int,
    size: int,
    *,
    live: bool = False,
    written: int | None = None,
) -> Half | None:
    """Read one half; None if it has no head, because it was never used.

    Args:
        data: the file.
        start: offset of the half.
        size: size of the half.
        live: whether a bus is writing to it.
        written: offset up to which the half was written, if known. Frames behind this offset are
            not looked for.
    """
    head = _head_at(data, start) or _head_at(data, start + size - TAIL)
    if head is None:
        return None
    marker, seed, end = head.marker, head.seed, start + size - TAIL
    (upto,) = _UPTO.unpack(data[start + UPTO_AT : start + UPTO_AT + _UPTO.size])
    upto = upto if start <= upto <= end else start
    if written is not None:
        end = upto = written
    elif live:
        end = upto
    frames: list[bytes] = []
    gaps: list[Gap] = []
    unpack, before, crc32 = _LENGTH_AND_SUM.unpack_from, FRAME.size, zlib.crc32
    at = start + START
    while at + before <= end:
        # A frame in its place is read without its marker, because the marker alone may be damaged.
        length, checksum = unpack(data, at)
        body = at + before
        if length and body + length <= end:
            frame = data[body : body + length]
            if crc32(frame, seed) == checksum:
                frames.append(frame)
                at = body + length
                continue
        following = next(_whole_after(data, at, end, head), None)
        if following is not None:
            gaps.append(Gap(len(frames), at, following - at))
            at = following
            continue
        if at < upto or data[at : at + len(marker)] == marker:
            gaps.append(Gap(len(frames), at, max(upto - at, before)))
        break
    return Half(head.generation, head.base, frames, gaps)


def _whole_after(data: mmap.mmap | bytes, at: int, end: int, head: Head) -> Iterator[int]:
    """Yield the offsets of whole frames behind a place, found by their markers."""
    while (at := data.find(head.marker, at + 1, end)) >= 0:
        if at + FRAME.size > end:
            return
        _, length, checksum = FRAME.unpack(data[at : at + FRAME.size])
        body = at + FRAME.size
        records = data[body : body + length] if body + length <= end else b""
        if records and zlib.crc32(records, head.seed) == checksum:
            yield at
