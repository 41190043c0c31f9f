# SPDX-License-Identifier: MIT
"""How records lie in a half of the intake, and how they are read again whatever befell the file.

A half begins with a head, of which there is a copy at its end: its generation, and a marker of
eight random bytes. Each frame begins with that marker, then come its length and a checksum, which
is seeded with the marker: what is left over from an earlier use of the half is never read again,
and no event can have in it what would pass for a frame. Beside the head stands how far the half is
written.

A frame that is not whole may be one that was being written when its owner died: nobody was told
that it is accepted. It is a loss if whole frames follow it, if the half says that it was written
further than that, or if the marker is there, which is copied last. Such a loss is a `Gap`, and
never silent.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

#: Before each frame: the marker, its length, and its checksum.
FRAME = struct.Struct("<8sII")
#: The same, but for the marker.
_LENGTH_AND_SUM = struct.Struct("<8xII")
#: At the beginning of each half, and again at its end: what it is, its generation, the base of
#: that, its size, the marker, and a checksum of all that.
_HEAD = struct.Struct("<8sQQQ8s")
_SUM = struct.Struct("<I")
_MAGIC = b"pbintak2"
_OLDER = b"pbintak1"
#: Bytes before the first frame. The head takes 44; from 48 on is the pid of the owner, see `lock`.
START = 64
#: Bytes behind the last frame, for the copy of the head.
TAIL = 64
#: Where in a half it says how far it is written: an offset in the file, as the machine has numbers.
UPTO_AT = 56
_UPTO = struct.Struct("=Q")


class Head(NamedTuple):
    """What a half says of itself."""

    generation: int
    #: The last generation that the database had noted when this one began. Those between had
    #: nothing that was to be moved, but for the one just before, which is in the other half.
    base: int
    half: int
    marker: bytes

    def packed(self) -> bytes:
        """It as bytes."""
        data = _HEAD.pack(_MAGIC, self.generation, self.base, self.half, self.marker)
        return data + _SUM.pack(zlib.crc32(data))

    @property
    def seed(self) -> int:
        """What the checksums of its frames begin with."""
        return zlib.crc32(self.marker)


class Gap(NamedTuple):
    """Where something is lost."""

    #: So many frames are before it.
    frames: int
    #: Where in the file, and how many bytes.
    at: int
    size: int


class Half(NamedTuple):
    """What was read from one half."""

    generation: int
    base: int
    frames: list[bytes]
    gaps: list[Gap]


def left_in(fd: int, *, live: bool = False) -> list[Half]:
    """Read what an intake has: the half with the older generation first.

    Args:
        fd: the file.
        live: whether it is being written to: then all that was written before the call is read.

    Raises:
        ValueError: it is not an intake, or not a whole one.
    """
    size = os.fstat(fd).st_size
    if size < START:
        return []  # its owner died before it wrote anything
    with mmap.mmap(fd, size, prot=mmap.PROT_READ) as data:
        half = _size_of_halves(data)
        if half is None:
            return []  # as above
        found = (half_in(data, start, half, live=live) for start in (0, half))
        return sorted(each for each in found if each is not None)


def _size_of_halves(data: mmap.mmap) -> int | None:
    """The size of each half; None where nothing was ever written."""
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
    """Read one half; None if it has no head, and so was never used.

    Args:
        data: the file.
        start: where the half begins.
        size: of the half.
        live: whether it is being written to.
        written: up to where it was written, if that is known: nothing is looked for behind that.
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
        # At its place a frame needs no marker, which may be all that is damaged of it.
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
    """Where whole frames are behind a place, by their markers."""
    while (at := data.find(head.marker, at + 1, end)) >= 0:
        if at + FRAME.size > end:
            return
        _, length, checksum = FRAME.unpack(data[at : at + FRAME.size])
        body = at + FRAME.size
        records = data[body : body + length] if body + length <= end else b""
        if records and zlib.crc32(records, head.seed) == checksum:
            yield at
