# SPDX-License-Identifier: MIT
"""Memory shared with one worker for batches of events that are too much for its pipe.

The companion copies the events of a batch into a slot, one behind the other, and the pipe carries
only their sizes. The worker unpickles them from there, which copies what it keeps. A companion has
at most two batches for its worker, so there are two slots, and nobody ever waits for one: where
none is to be had, the events take the pipe.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence

from procbus.pool.memory.events import EventMemory
from procbus.pool.memory.shared_file import CannotMap, Room

#: A batch that the worker is at, and one behind it.
SLOTS = 2
#: Bytes of a slot, and of the slots of all workers together: both at most. A batch in a slot of
#: 4 MiB costs little beside its events.
SLOT_BYTES = 4 << 20
ALL_BYTES = 64 << 20
#: Events are copied in so many bytes at a time. A batch with fewer takes the pipe.
LEAST_BYTES = 8 << 10

#: Where in the file the events of a batch begin, and how many bytes they have.
Stretch = tuple[int, int]


class BatchWriter:
    """The parent's side. It belongs to the companion.

    Args:
        memory: that of large events, whose limit holds here too: see `slot_bytes`.
        workers: how many workers there may be.
    """

    def __init__(self, memory: EventMemory, workers: int) -> None:
        #: Bytes that the events of a batch may have; 0 where there is no memory for them.
        self.slot_bytes = slot_bytes(memory, workers)
        #: Shared with the worker.
        self.room = Room.create("procbus-batches", SLOTS * self.slot_bytes)
        self._mapped: mmap.mmap | None = None
        #: By batch that the worker has, its slot; and of the message prepared last, which the
        #: worker may never get, the slot and how many bytes are there.
        self._taken: dict[int, int] = {}
        self._slot = self._size = 0
        self._pid = os.getpid()

    def begin(self) -> int:
        """A batch is begun. The one before was sent, or never will be.

        Returns:
            How many bytes there is room for; 0 where all have to take the pipe.
        """
        self._size = 0
        if not self.slot_bytes or len(self._taken) == SLOTS:
            return 0
        if os.getpid() != self._pid:  # a child that user code forked here: it is no memory of its
            return 0
        if self._mapped is None:
            try:
                self._mapped = self.room.map(0, SLOTS * self.slot_bytes, mmap.ACCESS_WRITE)
            except CannotMap:
                self.slot_bytes = 0
                return 0
        self._slot = 1 if 0 in self._taken.values() else 0
        return self.slot_bytes

    def put(self, events: Sequence[bytes]) -> None:
        """Copy events to the others of the batch. There has to be room for them."""
        assert self._mapped is not None
        if os.getpid() != self._pid:
            return
        data = events[0] if len(events) == 1 else b"".join(events)
        begin = self._slot * self.slot_bytes + self._size
        self._mapped[begin : begin + len(data)] = data
        self._size += len(data)

    def stretch(self) -> Stretch | None:
        """Where the events of the batch lie; None where none was put there."""
        return (self._slot * self.slot_bytes, self._size) if self._size else None

    def sent(self, batch: int) -> None:
        """The message prepared last is on its way to the worker."""
        if self._size:
            self._taken[batch], self._size = self._slot, 0

    def done(self, batch: int) -> None:
        """The worker is through with a batch."""
        self._taken.pop(batch, None)

    def close(self) -> None:
        """Let the memory go: the worker is gone. Idempotent."""
        self.slot_bytes = 0
        self.room.close()
        if self._mapped is not None:
            self._mapped.close()
            self._mapped = None


def slot_bytes(memory: EventMemory, workers: int) -> int:
    """Bytes of a slot, in whole pages. All slots take at most half of a limit that was set."""
    limit = memory.given_limit
    all_bytes = ALL_BYTES if limit is None else min(ALL_BYTES, limit // 2)
    page = mmap.ALLOCATIONGRANULARITY
    return min(SLOT_BYTES, all_bytes // (SLOTS * workers) // page * page)


class BatchReader:
    """The worker's side. It belongs to the worker's main thread.

    Args:
        room: shared with the parent.
    """

    def __init__(self, room: Room) -> None:
        self._room = room
        self._view: memoryview | None = None

    def events(self, stretch: Stretch) -> memoryview:
        """The events of a batch, which has to be through before this memory is used again."""
        begin, size = stretch
        if self._view is None:
            try:
                length = os.fstat(self._room.fd).st_size
                self._view = memoryview(self._room.map(0, length, mmap.ACCESS_READ))
            except CannotMap:
                return memoryview(self._room.read(begin, size)).toreadonly()
        return self._view[begin : begin + size]
