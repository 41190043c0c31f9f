# SPDX-License-Identifier: MIT
"""The intake: where a record is written before anything is done about it.

A file beside the database, of fixed size, mapped into memory. To write a record is to copy it
there: no system call, no other thread to be woken, and the GIL is not given away. Once it is in
the mapping the kernel has it, and it outlives this process, however that ends.

The file has two halves. Records are written to one while the writer of the journal moves those of
the other into the database. Each use of a half has a number, its generation; the checksum of a
frame is seeded with it, so that what is left over from an earlier use is never read again. A frame
that is not there as a whole (its writer was killed in the middle) ends the reading: nobody was told
that it is accepted.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import threading
import zlib
from collections.abc import Callable, Iterator

from procbus.locks import LOOK_UP_S, acquire

#: Bytes of each half.
HALF = 8 << 20
#: Before each frame: its length, and its checksum.
_FRAME = struct.Struct("<II")
#: At the beginning of each half: what it is, its generation, its size, and the seed. What lies
#: between that and the first frame is not ours: see `lock`.
_HALF = struct.Struct("<8sQQI")
_MAGIC = b"pbintak1"
_START = 64

_pack = _FRAME.pack
_crc32 = zlib.crc32


class Intake:
    """The intake of one journal. Thread-safe.

    `lock` belongs to this object. It guards which half is written to, and where; it is held while a
    record is copied, and never while waiting.

    Args:
        fd: the file, open for reading and writing; it stays the caller's.
        generation: of the first use: larger than any that the database has seen.
        half: bytes of each half.
        wake: called when records are there to be moved, once for all until the writer has begun.

    Raises:
        OSError: there is no room on the disk.
    """

    def __init__(
        self, fd: int, generation: int, wake: Callable[[], object], half: int = HALF
    ) -> None:
        self._fd = fd
        self._half = half
        _allocate(fd, 2 * half)
        self._map = mmap.mmap(fd, 2 * half)
        self.lock = threading.Lock()
        self._try_lock = self.lock.acquire
        self._unlock = self.lock.release
        self._room = threading.Condition(self.lock)
        self._wake = wake
        self._woken = False
        self.generation = generation
        #: Frames written so far: only ever more.
        self.frames_written = 0
        #: Why nothing can be written any more; None while all is well.
        self.broken: Exception | None = None
        self._closed = False
        #: The half that is being moved into the database; None for none.
        self._moving: int | None = None
        #: The half that is written to, where its next frame goes, and where it ends.
        self._active = 0
        self._at = 0
        self._end = 0
        self._seed = 0
        self._begin(0)

    @property
    def most(self) -> int:
        """The longest record that is worth its place here, in bytes."""
        return self._half // 4

    @property
    def written(self) -> int:
        """Bytes in the half that is written to."""
        return self._at - self._active * self._half - _START

    @property
    def crowded(self) -> bool:
        """Whether both halves are nearly full: `append` may have to wait soon."""
        return self._moving is not None and self.written > self._half // 4 * 3

    def append(self, records: bytes) -> int:
        """Write records that belong together, as one frame; wait while both halves are full.

        Returns:
            The generation that they are in.

        Raises:
            Exception: `broken`, once the writer has given up.
        """
        size = len(records)
        if not size:  # it would be read as the end
            raise ValueError("a frame without records")
        if not self._try_lock(False):
            acquire(self.lock)
        try:
            at = self._at
            body = at + 8
            end = body + size
            if end > self._end:
                at = self._locked_wait_for_room(size)
                body = at + 8
                end = body + size
            # The head last: without it the rest is not there.
            self._map[body:end] = records
            self._map[at:body] = _pack(size, _crc32(records, self._seed))
            self._at = end
            self.frames_written += 1
            generation = self.generation
            if not self._woken:
                self._woken = True
                self._wake()
            return generation
        finally:
            self._unlock()

    def _locked_wait_for_room(self, size: int) -> int:
        while self._at + 8 + size > self._end:
            if self.broken is not None:
                raise self.broken
            self._wake()
            self._room.wait(LOOK_UP_S)
        return self._at

    def swap(self) -> int | None:
        """Have the other half written to; return the one to be moved, None if it is empty.

        The other one must have been released. Called by the writer alone.
        """
        with self.lock:
            self._woken = False
            if not self.written:
                return None
            full, self._moving = self._active, self._active
            self.generation += 1
            self._begin(1 - full)
            self._room.notify_all()
            return full

    def frames(self, half: int) -> Iterator[bytes]:
        """The frames of a half that is not written to any more."""
        return frames_in(self._map, half * self._half, self._half)

    def release(self) -> None:
        """What was moved is in the database: its half may be written to again."""
        with self.lock:
            self._moving = None
            self._room.notify_all()

    def fail(self, error: Exception | None) -> None:
        """The writer cannot go on: have those that wait for room raise; None: it can again."""
        with self.lock:
            self.broken = error
            self._room.notify_all()

    def flush(self) -> None:
        """Have all that was written so far on the disk, power loss or not."""
        full = getattr(fcntl, "F_FULLFSYNC", None)
        if full is None:
            os.fdatasync(self._fd)
        else:  # macOS, where any other flush ends in the cache of the disk
            fcntl.fcntl(self._fd, full)

    def close(self) -> None:
        """Let the mapping go. Idempotent."""
        with self.lock:
            if not self._closed:
                self._closed = True
                self._end = 0
                self._map.close()

    def _begin(self, half: int) -> None:
        start = half * self._half
        seed = _seed_of(self.generation)
        head = _HALF.pack(_MAGIC, self.generation, self._half, seed)
        # No frame, before it says that there may be some.
        self._map[start + _START : start + _START + _FRAME.size] = bytes(_FRAME.size)
        self._map[start : start + len(head)] = head
        self._active = half
        self._seed = seed
        self._at = start + _START
        self._end = start + self._half


def left_in(fd: int) -> list[tuple[int, list[bytes]]]:
    """Read what an intake has, by generation: the first is the oldest.

    Raises:
        ValueError: it is not an intake, or not a whole one.
    """
    size = os.fstat(fd).st_size
    if size < _START:
        return []  # its owner died before it wrote anything
    found: list[tuple[int, list[bytes]]] = []
    with mmap.mmap(fd, size, prot=mmap.PROT_READ) as data:
        magic, _, half, _ = _HALF.unpack(data[: _HALF.size])
        if magic != _MAGIC:
            if any(data[: _HALF.size]):
                raise ValueError("it is not the intake of a journal")
            return []  # as above
        if size < 2 * half:
            raise ValueError(f"it is truncated: {size:,} of {2 * half:,} bytes are there")
        for start in (0, half):
            _, generation, _, seed = _HALF.unpack(data[start : start + _HALF.size])
            if seed == _seed_of(generation):
                found.append((generation, list(frames_in(data, start, half))))
    return sorted(found)


def frames_in(data: mmap.mmap | bytes, start: int, size: int) -> Iterator[bytes]:
    """The frames of one half, up to the first that is not whole."""
    *_, seed = _HALF.unpack(data[start : start + _HALF.size])
    at, end = start + _START, start + size
    while at + _FRAME.size <= end:
        length, checksum = _FRAME.unpack(data[at : at + _FRAME.size])
        at += _FRAME.size
        if not length or at + length > end:
            return
        frame = data[at : at + length]
        if zlib.crc32(frame, seed) != checksum:
            return
        yield frame
        at += length


def _seed_of(generation: int) -> int:
    return zlib.crc32(_MAGIC + generation.to_bytes(8, "little"))


def _allocate(fd: int, size: int) -> None:
    """Give the file its blocks: a write to a mapping that finds the disk full kills the process."""
    os.ftruncate(fd, size)
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, 0, size)
    else:  # macOS
        for at in range(0, size, 1 << 20):
            os.pwrite(fd, bytes(min(1 << 20, size - at)), at)
