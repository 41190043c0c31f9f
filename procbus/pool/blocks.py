# SPDX-License-Identifier: MIT
"""Memory shared with workers for the large buffers of events: copied in once, read in place.

It is one anonymous file in memory without a name, so that nobody else can open it and nothing is
left behind, whoever dies first. Each block is a part of it that is never another's: the file is
sparse and larger than any machine's memory. A block that is not used any more is kept mapped for
the next event of its size, which saves three quarters of the time to fill it.
"""

from __future__ import annotations

import mmap
import os
import resource
import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from math import inf
from multiprocessing.reduction import DupFd
from typing import Any, Literal, NamedTuple, Self

from procbus.errors import SerializationError
from procbus.pool.logbook import anonymous_file
from procbus.sizes import format_size
from procbus.stats import SharedMemoryStats

OnOversize = Literal["pipe", "fail"]

#: A buffer of fewer bytes travels in the pipe.
LARGE = 128 * 1024
#: The most bytes that blocks of results may have which wait to be used again, for all workers.
IDLE_RESULTS = 1 << 30
#: Bytes of the sparse file, which only what is written takes memory of.
_SPACE = 1 << 44
#: Buffers in a block begin at multiples of this, as the fastest loops want it.
_ALIGNED = 64
#: Copied without a break: other threads wait for the GIL meanwhile, 0.1 ms.
_STRIDE = 1 << 20
#: Blocks of one kind that a process has mapped at most: the system allows some 65,000 mappings.
_MOST_MAPPED = 8192


class Place(NamedTuple):
    """Where what is large of an event, or of a result, lies."""

    #: Of the block, in bytes.
    offset: int
    capacity: int
    #: Start in the block and size of each buffer, in bytes.
    parts: tuple[tuple[int, int], ...]
    #: In which form: see `large`.
    form: int


class Room:
    """A sparse file in memory, seen from either process."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._closing = weakref.finalize(self, os.close, fd)

    @classmethod
    def create(cls, name: str) -> Self:
        """Make an empty one."""
        fd = anonymous_file(name)
        os.ftruncate(fd, _SPACE)
        return cls(fd)

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to a worker that is being spawned: it gets the file descriptor."""
        return _attach, (DupFd(self.fd),)

    def map(self, offset: int, capacity: int, access: int) -> mmap.mmap:
        """Map a block."""
        return mmap.mmap(self.fd, capacity, access=access, offset=offset)

    def give_back(self, mapped: mmap.mmap) -> None:
        """Give the memory of a block back to the system. It has to be mapped for writing."""
        if hasattr(mmap, "MADV_REMOVE"):  # Linux
            mapped.madvise(mmap.MADV_REMOVE)

    def close(self) -> None:
        """Let the file go, as with the last reference; what is mapped stays. Idempotent."""
        self._closing()
        self.fd = -1


def _attach(duplicate: Any) -> Room:
    return Room(duplicate.detach())


def most_mapped() -> int:
    """Blocks of one kind that a process may have mapped.

    Each takes a file descriptor, for `mmap` keeps one of its own. Most are left to the script.
    """
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return _MOST_MAPPED
    return max(8, min(files // 8, _MOST_MAPPED))


def capacity_for(size: int) -> int:
    """Bytes of a block that holds so many: whole pages, at most an eighth more than needed."""
    step = max(mmap.ALLOCATIONGRANULARITY, 1 << max(0, size.bit_length() - 4))
    return -(-size // step) * step


def parts_of(sizes: Sequence[int]) -> tuple[tuple[tuple[int, int], ...], int]:
    """Lay buffers of these sizes out; give start and size of each, and the size of all."""
    parts = []
    end = 0
    for size in sizes:
        parts.append((end, size))
        end += -(-size // _ALIGNED) * _ALIGNED
    return tuple(parts), max(end, 1)


def fill(
    target: memoryview, parts: Sequence[tuple[int, int]], buffers: Sequence[memoryview]
) -> None:
    """Copy buffers to their places."""
    for (start, size), buffer in zip(parts, buffers, strict=True):
        if buffer.ndim != 1 or buffer.format != "B":
            buffer = buffer.cast("B")
        for begin in range(0, size, _STRIDE):
            end = min(begin + _STRIDE, size)
            target[start + begin : start + end] = buffer[begin:end]


class Block:
    """The buffers of one event in shared memory. `EventMemory` guards all but `place`."""

    __slots__ = ("done", "keepers", "mapped", "memory", "place", "users")

    def __init__(self, memory: EventMemory, place: Place, mapped: mmap.mmap) -> None:
        self.memory = memory
        self.place = place
        self.mapped = mapped
        #: Workers whose handlers keep a view of it.
        self.keepers: set[int] = set()
        #: Deliveries of the event that workers run and that are not settled. The settlement's.
        self.users = 0
        #: Whether there are none any more.
        self.done = False

    def release(self) -> None:
        """No worker runs the event any more: it may be used again, once nobody keeps a view."""
        self.memory.release(self)


class EventMemory:
    """The blocks of all events of one pool. Thread-safe.

    `_lock` belongs to this object and guards all fields; nothing blocks while it is held, and
    buffers are copied without it.

    Args:
        limit: bytes that all blocks may have together, used or waiting to be used again; with 0
            everything travels in the pipe. None for a quarter of what is free at the first use.
        large: what has fewer bytes travels in the pipe.
        on_oversize: what to do with an event that is larger than the limit: send it through the
            pipe, or fail.
    """

    def __init__(
        self,
        limit: int | None = None,
        large: int = LARGE,
        on_oversize: OnOversize = "pipe",
    ) -> None:
        self._limit = limit
        self.large: float = inf if limit == 0 else large
        self._on_oversize = on_oversize
        #: Bytes that were copied in so far, and that came back from workers.
        self.sent = 0
        self.received = 0
        self.room = Room.create("procbus-events")
        #: Held while an event's buffers are copied in.
        self.copying = threading.Lock()
        self._lock = threading.Lock()
        self._freed = threading.Condition(self._lock)
        #: Blocks that wait to be used again, by offset, the one that waits longest first; and their
        #: offsets by capacity.
        self._idle: OrderedDict[int, tuple[int, mmap.mmap]] = OrderedDict()
        self._idle_of: dict[int, list[int]] = {}
        self._next = 0
        self._blocks: dict[int, Block] = {}
        #: Offsets of blocks that are no more, for each worker that may still have them mapped.
        self._gone: dict[int, list[int]] = {}
        self._used = 0
        self._kept = 0
        self._idle_bytes = 0
        #: Blocks that there may be, and how many of them handlers keep.
        self._most = most_mapped()
        self._kept_count = 0

    @property
    def limit(self) -> int:
        """Bytes that all blocks may have together."""
        if self._limit is None:
            from procbus.machine import available_bytes  # only now: it imports psutil

            self._limit = available_bytes() // 4
        return self._limit

    @property
    def idle_results(self) -> int:
        """Bytes that the blocks of results may have which wait to be used again."""
        return IDLE_RESULTS if self._limit is None else min(IDLE_RESULTS, self._limit)

    def check_oversize(self, handler: str, event_id: int, buffers: Sequence[memoryview]) -> None:
        """Raise SerializationError for what does not fit, if it is to fail."""
        if self._on_oversize == "fail":
            size = sum(buffer.nbytes for buffer in buffers)
            if self._kept_count >= self._most:
                raise SerializationError(
                    f"event {event_id} for {handler} has {format_size(size)} of large data, and "
                    f"handlers keep {self._kept_count} large events, as many as there may be: "
                    "keep copies, allow more open files (ulimit -n), or let it take the pipe "
                    '(on_oversize="pipe")'
                )
            raise SerializationError(
                f"event {event_id} for {handler} has {format_size(size)} of large data, above the "
                f"shared_memory_limit of {format_size(self.limit)}, {format_size(self._kept)} of "
                'which handlers keep: raise the limit, or let it take the pipe (on_oversize="pipe")'
            )

    def fits(self, buffers: Sequence[memoryview]) -> bool:
        """Whether there can be a block for these, if only others end."""
        _, size = parts_of([buffer.nbytes for buffer in buffers])
        return capacity_for(size) + self._kept <= self.limit and self._kept_count < self._most

    def put(self, buffers: Sequence[memoryview], form: int) -> Block | None:
        """Copy buffers into a block; None when there is no room for it now."""
        parts, size = parts_of([buffer.nbytes for buffer in buffers])
        with self._lock:
            block = self._locked_take(capacity_for(size), parts, form)
        if block is not None:
            with memoryview(block.mapped) as target:
                fill(target, parts, buffers)
            self.sent += size
        return block

    def _locked_take(
        self, capacity: int, parts: tuple[tuple[int, int], ...], form: int
    ) -> Block | None:
        idle = self._idle_of.get(capacity)
        if idle:
            offset = idle.pop()
            _, mapped = self._idle.pop(offset)
            self._idle_bytes -= capacity
        else:
            if not self._locked_make_room(capacity):
                return None
            offset, self._next = self._next, self._next + capacity
            mapped = self.room.map(offset, capacity, mmap.ACCESS_WRITE)
        self._used += capacity
        place = Place(offset, capacity, parts, form)
        block = self._blocks[offset] = Block(self, place, mapped)
        return block

    def _locked_make_room(self, capacity: int) -> bool:
        while (
            self._used + self._kept + self._idle_bytes + capacity > self.limit
            or len(self._blocks) + len(self._idle) >= self._most
        ):
            if not self._idle:
                return False
            offset, (size, mapped) = self._idle.popitem(last=False)
            self._idle_of[size].remove(offset)
            self._idle_bytes -= size
            self.room.give_back(mapped)
            mapped.close()
            for gone in self._gone.values():
                gone.append(offset)
        return True

    def release(self, block: Block) -> None:
        """The event of a block is settled. Idempotent."""
        with self._lock:
            if block.done:
                return
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
        self._freed.notify_all()

    def wait_for_room(self, timeout: float) -> None:
        """Wait until a block has come free, at most so many seconds."""
        with self._lock:
            self._freed.wait(timeout)

    # What workers tell.

    def join(self, worker: int) -> None:
        """A worker begins to map blocks."""
        with self._lock:
            self._gone[worker] = []

    def gone(self, worker: int) -> list[int]:
        """Offsets of blocks that a worker need not keep mapped."""
        if not self._gone.get(worker):
            return []
        with self._lock:
            gone, self._gone[worker] = self._gone[worker], []
            return gone

    def note_kept(self, worker: int, kept: Sequence[int], dropped: Sequence[int]) -> None:
        """Take note of blocks that a worker keeps a view of, and of those that it dropped since."""
        with self._lock:
            for offset in kept:
                if offset in self._blocks:  # a worker that is being killed may say it too late
                    self._blocks[offset].keepers.add(worker)
            for offset in dropped:
                if offset in self._blocks:
                    self._locked_drop(self._blocks[offset], worker)

    def leave(self, worker: int) -> None:
        """A worker is dead: it keeps nothing."""
        with self._lock:
            self._gone.pop(worker, None)
            for block in list(self._blocks.values()):
                self._locked_drop(block, worker)

    def _locked_drop(self, block: Block, worker: int) -> None:
        if worker in block.keepers:
            block.keepers.remove(worker)
            if block.done and not block.keepers:
                self._kept -= block.place.capacity
                self._kept_count -= 1
                self._locked_free(block)

    def close(self) -> None:
        """Give everything back. Idempotent."""
        with self._lock:
            for _, mapped in self._idle.values():
                mapped.close()
            self._idle.clear()
            self._idle_of.clear()
            self._idle_bytes = 0
            self.room.close()

    def stats(self) -> SharedMemoryStats:
        """The memory just now."""
        with self._lock:
            return SharedMemoryStats(
                self._used, self._kept, self._idle_bytes, self.sent, self.received
            )
