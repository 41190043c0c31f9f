# SPDX-License-Identifier: MIT
"""Memory shared with one worker for the large buffers of its results.

The worker copies the buffers into a block. The parent maps the block privately, so the receiver of
the result may write to the buffers and may keep them. When the result is gone, the worker uses the
block again.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import weakref
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from procbus.pool.memory.shared_file import (
    SPACE,
    CannotMap,
    Place,
    Room,
    capacity_for,
    fill,
    most_mapped,
    parts_of,
)

if TYPE_CHECKING:
    from procbus.pool.memory.events import EventMemory

#: Maximum of bytes in blocks that wait to be used again; then the offset and capacity of each block
#: that is no longer in use.
Freed = tuple[int, list[tuple[int, int]]]


class ResultWriter:
    """The worker's end. The writer belongs to the worker's main thread.

    Args:
        room: the file shared with the parent.
        most: maximum of mapped blocks; further blocks are mapped only while they are filled. None
            for the maximum that this process may map.
    """

    def __init__(self, room: Room, *, most: int | None = None) -> None:
        self._room = room
        self._most = most_mapped() if most is None else most
        self._mapped: dict[int, mmap.mmap] = {}
        self._idle: dict[int, list[int]] = {}
        self._idle_bytes = 0
        #: Blocks to be given back to the system, which needs a mapping that was not possible yet.
        self._owed: list[tuple[int, int]] = []
        self._next = 0

    def put(self, buffers: Sequence[memoryview], form: int) -> Place:
        """Copy the buffers of a result into a block.

        Raises:
            CannotMap: see `Room.map`.
        """
        parts, size = parts_of([buffer.nbytes for buffer in buffers])
        capacity = capacity_for(size)
        idle = self._idle.get(capacity)
        if idle:
            offset = idle.pop()
            self._idle_bytes -= capacity
            mapped = self._mapped[offset]
        else:
            mapped = self._room.map(self._next, capacity, mmap.ACCESS_WRITE)
            offset, self._next = self._next, self._next + capacity
        with memoryview(mapped) as target:
            fill(target, parts, buffers)
        if offset not in self._mapped:
            if len(self._mapped) < self._most:
                self._mapped[offset] = mapped
            else:
                mapped.close()
        return Place(offset, capacity, parts, form)

    def reuse(self, freed: Freed) -> None:
        """Take blocks back that are no longer in use."""
        idle_limit, blocks = freed
        owed, self._owed = self._owed, []
        for offset, capacity in blocks:
            if offset in self._mapped and self._idle_bytes + capacity <= idle_limit:
                self._idle.setdefault(capacity, []).append(offset)
                self._idle_bytes += capacity
            else:
                owed.append((offset, capacity))
        for offset, capacity in owed:
            mapped = self._mapped.pop(offset, None)
            try:
                if mapped is None:
                    mapped = self._room.map(offset, capacity, mmap.ACCESS_WRITE)
            except CannotMap:
                self._owed.append((offset, capacity))
                continue
            self._room.give_back(mapped)
            mapped.close()


#: All readers of this process, by identity. This is a dict because each operation on a dict is one
#: step: a thread may make a reader while another thread forks. A `WeakSet` does not promise that.
_readers: dict[int, weakref.ref[ResultReader]] = {}


def _forget(key: int, _: object) -> None:
    _readers.pop(key, None)


def _note_fork() -> None:
    for reference in list(_readers.values()):
        if (reader := reference()) is not None:
            reader.note_fork()


os.register_at_fork(before=_note_fork)


class ResultReader:
    """The parent's end. The reader belongs to the companion, except for the dropping of results.

    Args:
        memory: the memory of events. The results of all workers together may take as many bytes of
            shared memory as the events; further results are copied out.
        workers: maximum number of workers.
    """

    def __init__(self, memory: EventMemory, workers: int) -> None:
        #: Shared with the worker.
        self.room = Room.create("procbus-results")
        self._memory = memory
        self._workers = workers
        #: Maximum of this worker's blocks in use.
        self._most = max(1, most_mapped() // workers)
        #: Blocks whose results are in use: offset and capacity.
        self._alive: dict[int, int] = {}
        #: Blocks whose result a forked child may have: the worker cannot use them again.
        self._forked: set[int] = set()
        #: Offsets of blocks no longer in use. Any thread may add one when it drops the last view,
        #: in the middle of anything; so it needs no lock.
        self._dropped: deque[int] = deque()
        key = id(self)
        _readers[key] = weakref.ref(self, partial(_forget, key))

    def views(self, place: Place) -> list[memoryview]:
        """Return the buffers of a result, which belong to the caller from now on."""
        offset, capacity, parts, _ = place
        self._memory.note_received(sum(size for _, size in parts))
        crowded = (
            len(self._alive) >= self._most
            or sum(self._alive.values()) + capacity > self._memory.limit // self._workers
        )
        self._alive[offset] = capacity
        if not crowded:
            # A private mapping: writes stay in this process, so the caller may write.
            with contextlib.suppress(CannotMap):
                mapped = self.room.map(offset, capacity, mmap.ACCESS_COPY)
                weakref.finalize(mapped, self._dropped.append, offset).atexit = False
                whole = memoryview(mapped)
                return [whole[start : start + size] for start, size in parts]
        self._dropped.append(offset)
        return [memoryview(self.room.read(offset + start, size)) for start, size in parts]

    def freed(self) -> list[tuple[int, int]]:
        """Return offset and capacity of blocks that fell out of use since the last call."""
        freed = []
        while self._dropped:
            offset = self._dropped.popleft()
            if offset not in self._forked:
                freed.append((offset, self._alive.pop(offset)))
        return freed

    def note_fork(self) -> None:
        """Note that a child is about to be forked, which will share every result of this process.

        Otherwise the child would see the worker's next writes, once this process has dropped the
        result. From any thread.
        """
        self._forked.update(self._alive)

    def idle_limit(self) -> int:
        """Maximum of bytes in one worker's blocks that wait to be used again."""
        return self._memory.idle_results // self._workers

    def close(self) -> None:
        """Give all memory back except results in use, because the worker is gone. Idempotent."""
        if self.room.fd < 0:
            return
        self.freed()
        begin = 0
        for offset, capacity in [*sorted(self._alive.items()), (SPACE, 0)]:
            self.room.give_back_between(begin, offset)
            begin = offset + capacity
        self.room.close()
