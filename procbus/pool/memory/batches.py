# SPDX-License-Identifier: MIT
"""Memory shared with one worker, for batches of events that are too large for its pipe.

The companion copies the events of a batch into a slot, one behind the other, and the pipe carries
only their sizes. The worker unpickles the events from the slot, which copies the parts that it
keeps. A companion has at most two batches for its worker, so there are two slots, and no thread
ever waits for a slot. If no slot is free, the events take the pipe.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from procbus.codec.encoder import decode_with
from procbus.pool.memory.shared_file import CannotMap, Room

if TYPE_CHECKING:
    from procbus.pool.memory.events import EventMemory

#: Number of slots: one for the worker's present batch, and one for the next.
BATCH_SLOTS = 2
#: Maximum of a slot, and of the slots of all workers together, in bytes; because a batch of 8 MiB
#: costs little beside its events.
SLOT_BYTES = 8 << 20
ALL_BYTES = 64 << 20
#: Minimum of bytes copied at a time. A batch with fewer bytes takes the pipe.
LEAST_BYTES = 8 << 10

#: Start and size of a batch's events in the file, in bytes.
Stretch = tuple[int, int]

#: Size of a buffer in bytes, and whether the worker's copy of it may be written to.
PartSize = tuple[int, bool]


class EventParts:
    """An event with buffers that pickle has left out, and that are copied into and out of a slot.

    Args:
        pickled: the event without its buffers.
        buffers: the buffers.
        sizes: size of each buffer, and whether it may be written to.
    """

    __slots__ = ("parts", "size", "sizes")

    def __init__(
        self, pickled: bytes, buffers: Sequence[memoryview], sizes: Sequence[PartSize]
    ) -> None:
        self.parts: tuple[bytes | memoryview, ...] = pickled, *buffers
        self.sizes = tuple(sizes)
        self.size = len(pickled) + sum(size for size, _ in sizes)

    def __len__(self) -> int:
        return self.size


def load_parts(sizes: Sequence[PartSize], data: memoryview) -> Any:
    """Make an event of `EventParts`, with copies of its buffers: the slot is used again."""
    at = begin = len(data) - sum(size for size, _ in sizes)
    copies: list[bytes | bytearray] = []
    for size, writable in sizes:
        part = data[at : at + size]
        copies.append(bytearray(part) if writable else bytes(part))
        at += size
    return decode_with(data[:begin], copies)


class BatchWriter:
    """The parent's side. The writer belongs to the companion.

    Args:
        memory: memory of large events. Its limit holds for the slots too: see `slot_bytes`.
        workers: maximum of workers.
    """

    def __init__(self, memory: EventMemory, workers: int) -> None:
        #: Maximum of a batch's events, in bytes; 0 if there is no memory for them.
        self.slot_bytes = slot_bytes(memory, workers)
        #: Shared with the worker.
        self.room = Room.create("procbus-batches", BATCH_SLOTS * self.slot_bytes)
        self._mapped: mmap.mmap | None = None
        #: The slot of each batch that the worker has; then slot and size of the message prepared
        #: last, which the worker may never get.
        self._taken: dict[int, int] = {}
        self._slot = self._size = 0
        self._pid = os.getpid()

    def begin(self) -> int:
        """Begin a batch. The batch before was sent, or never will be.

        Returns:
            Room for the events of the batch, in bytes; 0 if all events have to take the pipe.
        """
        self._size = 0
        if not self.slot_bytes or len(self._taken) == BATCH_SLOTS:
            return 0
        if os.getpid() != self._pid:  # a child that user code forked here
            return 0
        if self._mapped is None:
            try:
                self._mapped = self.room.map(0, BATCH_SLOTS * self.slot_bytes, mmap.ACCESS_WRITE)
            except CannotMap:
                self.slot_bytes = 0
                return 0
        self._slot = 1 if 0 in self._taken.values() else 0
        return self.slot_bytes

    def put(self, events: Sequence[bytes | memoryview]) -> None:
        """Copy events behind the earlier ones of the batch. There must be room for them."""
        if os.getpid() != self._pid:
            return
        first = 0
        for at, part in enumerate(events):
            if len(part) >= LEAST_BYTES:  # by itself: a join with the others would copy it twice
                self._copy(b"".join(events[first:at]))
                self._copy(part)
                first = at + 1
        self._copy(b"".join(events[first:]))

    def _copy(self, data: bytes | memoryview) -> None:
        if not data:
            return
        assert self._mapped is not None
        begin = self._slot * self.slot_bytes + self._size
        self._mapped[begin : begin + len(data)] = data
        self._size += len(data)

    def stretch(self) -> Stretch | None:
        """Place of the batch's events; None if all of them take the pipe."""
        return (self._slot * self.slot_bytes, self._size) if self._size else None

    def sent(self, batch: int) -> None:
        """Note that the message prepared last is on its way to the worker."""
        if self._size:
            self._taken[batch], self._size = self._slot, 0

    def done(self, batch: int) -> None:
        """Free the slot of a batch that the worker has finished."""
        self._taken.pop(batch, None)

    def close(self) -> None:
        """Release the memory of a worker that is gone. Idempotent."""
        self.slot_bytes = 0
        self.room.close()
        if self._mapped is not None:
            self._mapped.close()
            self._mapped = None


def slot_bytes(memory: EventMemory, workers: int) -> int:
    """Size of a slot, in bytes of whole pages. All slots take at most half of a given limit."""
    limit = memory.given_limit
    all_bytes = ALL_BYTES if limit is None else min(ALL_BYTES, limit // 2)
    page = mmap.ALLOCATIONGRANULARITY
    return min(SLOT_BYTES, all_bytes // (BATCH_SLOTS * workers) // page * page)


class BatchReader:
    """The worker's side. The reader belongs to the worker's main thread.

    Args:
        room: shared with the parent.
    """

    def __init__(self, room: Room) -> None:
        self._room = room
        self._view: memoryview | None = None

    def events(self, stretch: Stretch) -> memoryview:
        """The events of a batch; it must be finished before this memory is used again."""
        begin, size = stretch
        if self._view is None:
            try:
                length = os.fstat(self._room.fd).st_size
                self._view = memoryview(self._room.map(0, length, mmap.ACCESS_READ))
            except CannotMap:
                return memoryview(self._room.read(begin, size)).toreadonly()
        return self._view[begin : begin + size]
