# SPDX-License-Identifier: MIT
"""The intake: where a record is written before anything is done about it.

A file beside the database, of fixed size, mapped into memory. To write a record is to copy it
there: no system call, no other thread to be woken, and the GIL is not given away. Once it is in
the mapping the kernel has it, and it outlives this process, however that ends.

The file has two halves. Records are written to one while the writer of the journal moves those of
the other into the database. Each use of a half has a number, its generation. A half is written to
again only once the disk has what was in it, in the database: so a loss of power costs the end of
what was accepted, and leaves no gap before that. How a half is laid out is told in `frames`.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import threading
import zlib
from collections.abc import Callable

from procbus.core.locks import LOOK_UP_S, Lock, Tangled, acquire
from procbus.journal.storage.frames import FRAME, START, TAIL, UPTO_AT, Half, Head, half_in

#: Bytes of each half.
HALF = 8 << 20
#: Bytes before each frame.
_BEFORE = FRAME.size

_pack = FRAME.pack
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
        #: The longest record that is worth its place here, in bytes.
        self.most = half // 4
        _allocate(fd, 2 * half)
        self._map = mmap.mmap(fd, 2 * half)
        #: The mapping as numbers, and which of them says how far the half is written.
        self._numbers = memoryview(self._map).cast("Q")
        self._upto = 0
        self.lock = Lock()
        self._try_lock = self.lock.acquire
        self._unlock = self.lock.release
        self._room = threading.Condition(self.lock)
        self._wake = wake
        self._woken = False
        self.generation = generation
        #: The last generation that the database has noted. Set by the writer.
        self.noted = generation - 1
        #: Gives records that each use of a half begins with, so that it makes sense by itself.
        self.restate: Callable[[], bytes] = bytes
        #: Frames begun and written so far: only ever more. Between the two are those that are being
        #: written: more than one where one interrupted another.
        self._begun = 0
        self.frames_written = 0
        #: Why nothing can be written any more; None while all is well.
        self.broken: Exception | None = None
        self._closed = False
        #: The half that is being moved into the database, None for none; and where it ends.
        self._moving: int | None = None
        self._moving_upto = 0
        #: The half that is written to, where its next frame goes, and where it ends.
        self._active = 0
        self._first = 0
        self._at = 0
        self._end = 0
        self._seed = 0
        self._marker = b""
        self._begin(0)

    @property
    def written(self) -> int:
        """Bytes in the half that is written to, of what happened."""
        return self._at - self._first

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
            body = at + _BEFORE
            end = body + size
            if end > self._end:
                at = self._locked_wait_for_room(size)
                body = at + _BEFORE
                end = body + size
            # First: a signal handler that interrupts this and publishes writes behind it.
            self._at = end
            self._begun += 1
            try:
                # The head behind the rest, which is not there without it. As in `_write`.
                self._map[body:end] = records
                self._map[at:body] = _pack(self._marker, size, _crc32(records, self._seed))
                self._numbers[self._upto] = self._at
            except BaseException:  # Ctrl-C, and others may have written behind it
                self._map[body:end] = records
                self._map[at:body] = _pack(self._marker, size, _crc32(records, self._seed))
                self._numbers[self._upto] = self._at
                raise
            finally:
                self.frames_written += 1
            generation = self.generation
            if not self._woken:
                self._woken = True
                self._wake()
            return generation
        finally:
            self._unlock()

    def _locked_wait_for_room(self, size: int) -> int:
        while self._at + _BEFORE + size > self._end:
            if self.broken is not None:
                raise self.broken
            if self._begun > self.frames_written:  # this thread was interrupted in the midst of one
                raise Tangled
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
            self._moving_upto = self._at
            self.generation += 1
            self._begin(1 - full)
            self._room.notify_all()
            return full

    def read(self, half: int) -> Half:
        """Read the half that `swap` gave last.

        Raises:
            ValueError: somebody overwrote its head.
        """
        found = half_in(self._map, half * self._half, self._half, written=self._moving_upto)
        if found is None:
            raise ValueError("the head of its intake was overwritten")
        return found

    def release(self, noted: int) -> None:
        """What was to be moved is in the database: its half may be written to again.

        Args:
            noted: the last generation that the database has noted.
        """
        with self.lock:
            self.noted = noted
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
                self._numbers.release()
                self._map.close()

    def _write(self, at: int, records: bytes) -> int:
        body = at + _BEFORE
        self._at = end = body + len(records)
        self._map[body:end] = records
        self._map[at:body] = _pack(self._marker, len(records), _crc32(records, self._seed))
        self._numbers[self._upto] = end
        return end

    def _begin(self, half: int) -> None:
        start = half * self._half
        end = start + self._half - TAIL
        head = Head(self.generation, self.noted, self._half, os.urandom(8))
        packed = head.packed()
        self._upto = (start + UPTO_AT) // self._numbers.itemsize
        self._numbers[self._upto] = start + START
        self._map[start : start + len(packed)] = packed
        self._map[end : end + len(packed)] = packed
        self._active = half
        self._marker = head.marker
        self._seed = head.seed
        self._first = self._at = start + START
        self._end = end
        restated = self.restate()
        if 0 < len(restated) <= self._half // 8:
            self._first = self._write(self._at, restated)


def _allocate(fd: int, size: int) -> None:
    """Give the file its blocks: a write to a mapping that finds the disk full kills the process."""
    os.ftruncate(fd, size)
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, 0, size)
    else:  # macOS
        for at in range(0, size, 1 << 20):
            os.pwrite(fd, bytes(min(1 << 20, size - at)), at)
