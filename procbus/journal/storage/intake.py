# SPDX-License-Identifier: MIT
"""The intake: the file that a record is written to before the bus acts on it.

It lies beside the database, has a fixed size, and is mapped into memory. Writing a record means
copying it into the mapping: no system call is made, no other thread is woken, and the GIL is not
released. A record in the mapping belongs to the kernel, and outlives this process, however the
process ends.

The file has two halves. Records are written to one half, while the journal's writer moves the
records of the other into the database. Each use of a half has a number, its generation. A half is
used again only when its records are in the database, on the disk. So a loss of power costs the last
accepted events, and leaves no gap before them. The layout of a half is described in `frames`.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import threading
import zlib
from collections import deque
from collections.abc import Callable

from procbus.core.locks import LOOK_UP_S, Lock, Tangled, acquire, later
from procbus.journal.storage.frames import FRAME, START, TAIL, UPTO_AT, Half, Head, half_in

#: Size of each half, in bytes.
HALF = 8 << 20
#: Part of a half that is kept for the ends of deliveries, for the time when the database cannot be
#: written; because a delivery whose end finds no room runs again at the next start.
KEPT_FOR_ENDS = 8
#: Size of the head of each frame, in bytes.
_BEFORE = FRAME.size

_pack = FRAME.pack
_crc32 = zlib.crc32


class Intake:
    """The intake of one journal. Thread-safe.

    The lock `lock` guards the choice of the half, and the offset in it. The lock is held while a
    record is copied, and never while waiting.

    Args:
        fd: descriptor of the file, open for reading and writing; the caller closes it.
        generation: generation of the first use, larger than any generation that the database has
            seen.
        half: size of each half, in bytes.
        wake: called when there are records to move; not called again until the writer has begun.

    Raises:
        OSError: there is no room on the disk.
    """

    def __init__(
        self, fd: int, generation: int, wake: Callable[[], object], half: int = HALF
    ) -> None:
        self._fd = fd
        self._half = half
        self._kept_for_ends = half // KEPT_FOR_ENDS
        #: Maximum size of a record here, in bytes.
        self.most = half // 4
        _allocate(fd, 2 * half)
        self._map = mmap.mmap(fd, 2 * half)
        #: The mapping as an array of numbers, and the index of the number that records how far the
        #: half is written.
        self._numbers = memoryview(self._map).cast("Q")
        self._upto = 0
        self.lock = Lock()
        self._try_lock = self.lock.acquire
        self._unlock = self.lock.release
        self._room = threading.Condition(self.lock)
        self._wake = wake
        self._woken = False
        self.generation = generation
        #: Last generation that the database has noted. Set by the writer.
        self.noted = generation - 1
        #: Returns the records with which each use of a half begins, so that the half can be read by
        #: itself.
        self.restate: Callable[[], bytes] = bytes
        #: Number of frames begun, and of frames written; both only grow. The difference is the
        #: frames that are being written: several if one interrupted another.
        self._begun = 0
        self.frames_written = 0
        #: The reason why nothing can be written any more; None while all is well.
        self.broken: Exception | None = None
        self._closed = False
        #: Records that a thread could not write, because it was tangled up; in order. They are
        #: written before all other records.
        self._left: deque[bytes] = deque()
        #: The half that is being moved into the database, None if none is; and the end of that
        #: half.
        self._moving: int | None = None
        self._moving_upto = 0
        #: The half in use for writing, the offset of its next frame, and the end of its room for
        #: all records.
        self._active = 0
        self._first = 0
        self._at = 0
        self._end = 0
        self._seed = 0
        self._marker = b""
        self._begin(0)

    @property
    def written(self) -> int:
        """Size of the records in the half in use, in bytes, without the restated records."""
        return self._at - self._first

    @property
    def crowded(self) -> bool:
        """Whether both halves are nearly full: `append` may have to wait soon."""
        return self._moving is not None and self.written > self._half // 4 * 3

    def append(self, records: bytes, *, ends: bool = False) -> int:
        """Write records that belong together, as one frame; wait while both halves are full.

        If the thread interrupted procbus itself and cannot write now, another thread writes the
        records a moment later, before any further record.

        Args:
            records: the records.
            ends: whether they are ends of deliveries. These have some room left while `broken`.

        Returns:
            The generation of the half that they are in.

        Raises:
            Exception: `broken`, once the writer has given up.
        """
        size = len(records)
        if not size:  # an empty frame would be read as the end of the half
            raise ValueError("a frame without records")
        if not self._try_lock(False):
            try:
                acquire(self.lock)
            except Tangled:
                return self._leave(records)
        wake = False
        try:
            if self._left:
                self._locked_write_left()
            at = self._at
            body = at + _BEFORE
            end = body + size
            if end > self._end:
                if self._begun > self.frames_written:  # it interrupted itself inside a frame
                    return self._leave(records)
                at = self._locked_wait_for_room(size, ends)
                body = at + _BEFORE
                end = body + size
            # Set first: a signal handler that interrupts this, and publishes, then writes behind
            # it.
            self._at = end
            self._begun += 1
            try:
                # The head after the rest, because a head promises the rest. As in `_write`.
                self._map[body:end] = records
                self._map[at:body] = _pack(self._marker, size, _crc32(records, self._seed))
                self._numbers[self._upto] = self._at
            except BaseException:  # Ctrl-C; a signal handler may have written behind it
                self._map[body:end] = records
                self._map[at:body] = _pack(self._marker, size, _crc32(records, self._seed))
                self._numbers[self._upto] = self._at
                raise
            finally:
                self.frames_written += 1
            generation = self.generation
            if not self._woken:
                self._woken = wake = True
        finally:
            self._unlock()
        if wake:
            self._wake()
        return generation

    def _leave(self, records: bytes) -> int:
        """Leave records to another thread."""
        if self.broken is not None:
            raise self.broken
        self._left.append(records)
        later(self._write_left)
        return self.generation

    def _write_left(self) -> None:
        with self.lock:
            self._locked_write_left()

    def _locked_write_left(self) -> None:
        left, self._left = self._left, deque()
        try:
            while left:
                self.append(left[0])
                left.popleft()
        finally:
            self._left.extendleft(reversed(left))

    def _locked_wait_for_room(self, size: int, ends: bool) -> int:
        while (over := self._at + _BEFORE + size - self._end) > 0:
            if self.broken is not None:
                if ends and over <= self._kept_for_ends and not self._closed:
                    break
                raise self.broken
            self._wake()
            self._room.wait(LOOK_UP_S)
        return self._at

    def swap(self) -> int | None:
        """Use the other half for writing; return the half to move, None if it is empty.

        The other half must have been released. Called only by the writer.
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
        """Read the half that `swap` returned last.

        Raises:
            ValueError: another program overwrote its head.
        """
        found = half_in(self._map, half * self._half, self._half, written=self._moving_upto)
        if found is None:
            raise ValueError("the head of its intake was overwritten")
        return found

    def release(self, noted: int) -> None:
        """Let a half be used again, because its records are in the database.

        Args:
            noted: last generation that the database has noted.
        """
        with self.lock:
            self.noted = noted
            self._moving = None
            self._room.notify_all()

    def fail(self, error: Exception | None) -> None:
        """Have waiting threads raise, because the writer cannot go on; None if it can again."""
        with self.lock:
            self.broken = error
            self._room.notify_all()

    def flush(self) -> None:
        """Return when everything written so far is on the disk, safe from a loss of power."""
        full = getattr(fcntl, "F_FULLFSYNC", None)
        if full is None:
            os.fdatasync(self._fd)
        else:  # macOS, where any other flush ends in the cache of the disk
            fcntl.fcntl(self._fd, full)

    def close(self) -> None:
        """Unmap the file. Idempotent."""
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
        self._end = end - self._kept_for_ends
        restated = self.restate()
        if 0 < len(restated) <= self._half // 8:
            self._first = self._write(self._at, restated)


def _allocate(fd: int, size: int) -> None:
    """Give the file its blocks, because writing to a mapping on a full disk kills the process."""
    os.ftruncate(fd, size)
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, 0, size)
    else:  # macOS
        for at in range(0, size, 1 << 20):
            os.pwrite(fd, bytes(min(1 << 20, size - at)), at)
