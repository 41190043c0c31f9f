# SPDX-License-Identifier: MIT
"""Blocks of shared memory for the large buffers of events: copied in once, read in place.

A block that is no longer used stays mapped for the next event of its size, because filling it then
takes only a quarter of the time. All blocks together stay under a limit. While an event lives, its
buffers can be copied in again. So a block that no worker uses at the moment makes room for another
event. Otherwise events that wait for each other could fill the memory for ever.
"""

from __future__ import annotations

import contextlib
import mmap
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from math import inf
from typing import Literal

from procbus.core.errors import SerializationError
from procbus.core.stats import SharedMemoryStats
from procbus.core.validation import format_size
from procbus.pool.memory.shared_file import (
    CannotMap,
    Place,
    Room,
    capacity_for,
    fill,
    most_mapped,
    parts_of,
)
from procbus.system.no_fork import no_fork

OnOversize = Literal["pipe", "fail"]

#: Minimum size of a buffer in shared memory, in bytes; smaller ones take the pipe. At this size a
#: single event takes as long either way, and streamed events take a sixth of the time, because more
#: go into one batch.
LARGE = 32 * 1024
#: The limit if the amount of free memory is unknown, in bytes.
_GUESSED_LIMIT = 64 << 20
#: Maximum of bytes in blocks of results that wait to be used again, for all workers.
IDLE_RESULTS = 1 << 30


class Block:
    """The buffers of one event in shared memory. `EventMemory` guards all but `place`, `users`."""

    __slots__ = ("done", "keepers", "mapped", "memory", "pins", "place", "users")

    def __init__(self, memory: EventMemory, place: Place, mapped: mmap.mmap) -> None:
        self.memory = memory
        self.place = place
        self.mapped = mapped
        #: Workers whose handlers keep a view of the block.
        self.keepers: set[int] = set()
        #: Open deliveries of the event that workers run. Written by the settlement.
        self.users = 0
        #: Number of batches with a delivery of the event that workers have, or are about to get.
        self.pins = 1
        #: Whether the event has lost the block: it is settled, or made room for another event.
        self.done = False

    def release(self) -> None:
        """Free the block, because no worker runs the event any more. Kept views delay its reuse."""
        self.memory.release(self)


def _available_bytes() -> int:
    with no_fork:
        from procbus.system.memory import available_bytes  # only now: it imports psutil

    return available_bytes()


class EventMemory:
    """The blocks of all events of one pool. Thread-safe.

    The lock `_lock` guards all fields. No thread blocks while it holds the lock, and buffers are
    copied without the lock.

    Args:
        limit: maximum of bytes in all blocks, used or waiting to be used again. 0 sends everything
            through the pipe. None takes a quarter of the memory that is free at the first use.
        large: minimum size of a part in shared memory, in bytes; smaller ones take the pipe.
        on_oversize: treatment of an event larger than the limit: it takes the pipe, or it fails.
        available: measures free memory, in bytes.
    """

    def __init__(
        self,
        limit: int | None = None,
        large: int = LARGE,
        on_oversize: OnOversize = "pipe",
        *,
        available: Callable[[], int] = _available_bytes,
    ) -> None:
        self._available = available
        self._limit = limit
        self.large: float = inf if limit == 0 else large
        self._on_oversize = on_oversize
        #: Bytes copied in so far, and bytes that came back from workers.
        self.sent = 0
        self.received = 0
        self.room = Room.create("procbus-events")
        #: Held while an event's buffers are copied in.
        self.copying = threading.Lock()
        self._lock = threading.RLock()
        self._opened = threading.Condition(self._lock)
        #: Number of times that room may have appeared. Any thread may read the number.
        self.openings = 0
        #: Workers that wait for room, the longest waiting first.
        self._line: list[int] = []
        #: Blocks that wait to be used again, by offset, the longest waiting first. Then the offsets
        #: of these blocks, by capacity.
        self._idle: OrderedDict[int, tuple[int, mmap.mmap]] = OrderedDict()
        self._idle_of: dict[int, list[int]] = {}
        self._next = 0
        self._blocks: dict[int, Block] = {}
        #: Offsets of freed blocks, for each worker that may still have them mapped.
        self._gone: dict[int, list[int]] = {}
        self._used = 0
        self._kept = 0
        self._idle_bytes = 0
        #: Maximum number of blocks, and number of blocks that handlers keep.
        self._most = most_mapped()
        self._kept_count = 0

    @property
    def given_limit(self) -> int | None:
        """The limit, if it was given or is known already; otherwise None."""
        return self._limit

    @property
    def limit(self) -> int:
        """Maximum of bytes in all blocks."""
        if self._limit is None:
            try:
                self._limit = self._available() // 4
            except OSError:  # no file descriptor left: try again the next time
                return _GUESSED_LIMIT
        return self._limit

    @property
    def idle_results(self) -> int:
        """Maximum of bytes in blocks of results that wait to be used again."""
        return min(IDLE_RESULTS, self.limit)

    def check_oversize(self, handler: str, event_id: int, buffers: Sequence[memoryview]) -> None:
        """Raise SerializationError for an event that is too large, if such events have to fail."""
        if self._on_oversize == "fail" and not self._is_small_enough(buffers):
            size = sum(buffer.nbytes for buffer in buffers)
            raise SerializationError(
                f"event #{event_id} for {handler} has {format_size(size)} of large data, above the "
                f"shared_memory_limit of {format_size(self.limit)}, {format_size(self._kept)} of "
                'which handlers keep: raise the limit, or let it take the pipe (on_oversize="pipe")'
            )

    def fits(self, buffers: Sequence[memoryview]) -> bool:
        """Whether there can be a block for these buffers once others are freed."""
        return self._is_small_enough(buffers) and self._kept_count < self._most

    def _is_small_enough(self, buffers: Sequence[memoryview]) -> bool:
        _, size = parts_of([buffer.nbytes for buffer in buffers])
        return capacity_for(size) + self._kept <= self.limit

    def put(self, buffers: Sequence[memoryview], form: int, worker: int) -> Block | None:
        """Copy buffers into a block, and pin it; None if there is no room now.

        Args:
            buffers: the large buffers of an event.
            form: see `Place`.
            worker: the worker that gets the event. Workers that wait for room longer come first.

        Raises:
            CannotMap: see `Room.map`.
        """
        parts, size = parts_of([buffer.nbytes for buffer in buffers])
        capacity = capacity_for(size)
        with self._lock:
            if self._line and self._line[0] != worker:
                return None
            found = self._locked_take(capacity)
            if found is None:
                return None
            offset, mapped = found
            self._used += capacity
            block = Block(self, Place(offset, capacity, parts, form), mapped)
            self._blocks[offset] = block
        with memoryview(mapped) as target:
            fill(target, parts, buffers)
        self.sent += size
        return block

    def _locked_take(self, capacity: int) -> tuple[int, mmap.mmap] | None:
        """Find memory for a block: an idle block, new memory, or an event's unused block."""
        while not self._idle_of.get(capacity):
            if self._locked_has_room(capacity):
                try:
                    mapped = self.room.map(self._next, capacity, mmap.ACCESS_WRITE)
                except CannotMap:
                    if not self._idle:
                        raise
                else:
                    offset, self._next = self._next, self._next + capacity
                    return offset, mapped
            if self._idle:
                self._locked_give_back()
            elif not self._locked_evict():
                return None
        offset = self._idle_of[capacity].pop()
        _, mapped = self._idle.pop(offset)
        self._idle_bytes -= capacity
        return offset, mapped

    def _locked_has_room(self, capacity: int) -> bool:
        taken = self._used + self._kept + self._idle_bytes
        return taken + capacity <= self.limit and len(self._blocks) + len(self._idle) < self._most

    def _locked_give_back(self) -> None:
        """Give the longest waiting memory back to the system."""
        offset, (size, mapped) = self._idle.popitem(last=False)
        self._idle_of[size].remove(offset)
        self._idle_bytes -= size
        self.room.give_back(mapped)
        mapped.close()
        for gone in self._gone.values():
            gone.append(offset)

    def _locked_evict(self) -> bool:
        """Take away the block of the oldest event that no worker uses now, if there is one."""
        for block in self._blocks.values():
            if not (block.pins or block.keepers or block.done):
                self._locked_release(block)
                return True
        return False

    def pin(self, block: Block) -> bool:
        """Keep a block in place for a batch; False if its event has lost it."""
        with self._lock:
            block.pins += not block.done
            return not block.done

    def unpin(self, blocks: Iterable[Block]) -> None:
        """Release blocks, because batches have finished with them."""
        with self._lock:
            for block in blocks:
                block.pins -= 1
            self._locked_note_room()

    def release(self, block: Block) -> None:
        """Free a block, because its event is settled. Idempotent."""
        with self._lock:
            if not block.done:
                self._locked_release(block)

    def _locked_release(self, block: Block) -> None:
        block.done = True
        self._used -= block.place.capacity
        if block.keepers:
            self._kept += block.place.capacity
            self._kept_count += 1
        else:
            self._locked_free(block)

    def _locked_free(self, block: Block) -> None:
        offset, capacity, *_ = block.place
        del self._blocks[offset]
        self._idle[offset] = (capacity, block.mapped)
        self._idle_of.setdefault(capacity, []).append(offset)
        self._idle_bytes += capacity
        self._locked_note_room()

    def _locked_note_room(self) -> None:
        self.openings += 1
        self._opened.notify_all()

    def wait_for_room(self, worker: int, openings: int, timeout: float) -> None:
        """Wait until there may be room for a message that had none.

        A waiting worker keeps its place in line, so that smaller events do not overtake a large one
        for ever.

        Args:
            worker: the worker that waits.
            openings: the value of `openings` before the failed attempt, so that no room is missed.
            timeout: maximum wait, in seconds.
        """
        with self._lock:
            if worker not in self._line:
                self._line.append(worker)
            self._opened.wait_for(
                lambda: self._line[:1] == [worker] and self.openings != openings, timeout
            )

    def leave_line(self, worker: int) -> None:
        """Leave the line, because a worker no longer waits for room. Idempotent."""
        with self._lock:
            self._locked_leave_line(worker)

    def _locked_leave_line(self, worker: int) -> None:
        if worker in self._line:
            self._line.remove(worker)
            self._locked_note_room()

    # Reports of workers.

    def join(self, worker: int) -> None:
        """Note that a worker begins to map blocks."""
        with self._lock:
            self._gone[worker] = []

    def gone(self, worker: int) -> list[int]:
        """Return the offsets of freed blocks that a worker can unmap."""
        if not self._gone.get(worker):
            return []
        with self._lock:
            gone, self._gone[worker] = self._gone[worker], []
            return gone

    def note_kept(self, worker: int, kept: Sequence[int], dropped: Sequence[int]) -> None:
        """Note which blocks a worker keeps views of, and which it has dropped."""
        with self._lock:
            for offset in kept:
                if offset in self._blocks:  # a worker that is being killed may report too late
                    self._blocks[offset].keepers.add(worker)
            for offset in dropped:
                if offset in self._blocks:
                    self._locked_drop(self._blocks[offset], worker)

    def leave(self, worker: int) -> None:
        """Release the blocks that a dead worker kept."""
        with self._lock:
            self._gone.pop(worker, None)
            self._locked_leave_line(worker)
            for block in list(self._blocks.values()):
                self._locked_drop(block, worker)

    def _locked_drop(self, block: Block, worker: int) -> None:
        if worker in block.keepers:
            block.keepers.remove(worker)
            if block.done and not block.keepers:
                self._kept -= block.place.capacity
                self._kept_count -= 1
                self._locked_free(block)

    def note_received(self, size: int) -> None:
        """Count bytes that came back from a worker."""
        with self._lock:
            self.received += size

    def close(self) -> None:
        """Give all memory back, after the workers have ended. Idempotent."""
        with self._lock:
            for mapped in [
                *(m for _, m in self._idle.values()),
                *(b.mapped for b in self._blocks.values()),
            ]:
                with contextlib.suppress(BufferError):  # a hanging thread is filling it
                    mapped.close()
            self._idle.clear()
            self._idle_of.clear()
            self._idle_bytes = 0
            self.room.close()

    def stats(self) -> SharedMemoryStats:
        """The present state of the memory."""
        # Without the lock, since slightly inconsistent figures do no harm.
        return SharedMemoryStats(
            self._used, self._kept, self._idle_bytes, self.sent, self.received, self._limit or 0
        )
