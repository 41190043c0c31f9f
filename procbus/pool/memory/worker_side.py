# SPDX-License-Identifier: MIT
"""A worker's end of the blocks of events: mapped read-only, with a check for views that are kept.

A handler may keep a view of its event, in a global or a cache. Every view holds a reference to the
mapping, so the mapping's reference count shows whether a view is left. The parent does not use the
block again until all views are gone.
"""

from __future__ import annotations

import gc
import mmap
import sys
from collections.abc import Callable, Sequence
from typing import Any

from procbus.pool.memory.batches import BatchReader
from procbus.pool.memory.results import ResultWriter
from procbus.pool.memory.shared_file import CannotMap, Form, Place, Room, load, plain
from procbus.pool.wire import REST, BatchHead, Large, pack_kept, pack_place

#: Threshold of seemingly kept bytes above which old objects are searched for garbage too. The
#: search takes some 50 ms with large libraries. It is repeated whenever the amount has doubled.
_COLLECT_ABOVE = 64 << 20

#: Minimum size of a result without buffers that gets a block, in bytes, where the parent can read
#: results in the logbook; because there a result of 64 KB takes a quarter of the time of a block.
OWN_RESULT = 128 << 10


class BlockReader:
    """The blocks that one worker has mapped. The reader belongs to the worker's main thread.

    Args:
        room: the file shared with the parent.
        collect_above: threshold of seemingly kept bytes above which old objects are searched for
            garbage too.
        collect: replaces `gc.collect`.
    """

    def __init__(
        self,
        room: Room,
        *,
        collect_above: int = _COLLECT_ABOVE,
        collect: Callable[[int], object] = gc.collect,
    ) -> None:
        self._least_to_collect = collect_above
        self._collect = collect
        self._room = room
        self._mapped: dict[int, mmap.mmap] = {}
        #: Offset and capacity of kept blocks; and the threshold of their bytes for a full garbage
        #: collection. The first one is due at once: the first error imports modules, and the
        #: imports make enough objects that the garbage of the error counts as old.
        self._kept: dict[int, int] = {}
        self._collect_above = 0
        #: Number of references to a mapping without any view; it differs between Pythons.
        self._fewest = 0

    def views(self, place: Place, *, writable: bool) -> list[memoryview]:
        """Return the buffers of an event: read-only and in place, or as writable private copies."""
        offset, capacity, parts, _ = place
        mapped = self._mapped.get(offset)
        if mapped is None:
            try:
                self._mapped[offset] = self._room.map(offset, capacity, mmap.ACCESS_READ)
            except CannotMap:
                copies = [memoryview(self._room.read(offset + at, size)) for at, size in parts]
                return copies if writable else [copy.toreadonly() for copy in copies]
            self._fewest = self._references(offset)
            mapped = self._mapped[offset]
        whole = memoryview(mapped)
        views = [whole[start : start + size] for start, size in parts]
        return [memoryview(bytearray(view)) for view in views] if writable else views

    def is_kept(self, place: Place) -> bool:
        """Whether a view of the block is left. Call this when the handler has ended."""
        if self._is_used(place.offset):
            self._collect_garbage(place)
        if not self._is_used(place.offset):
            return False
        self._kept[place.offset] = place.capacity
        return True

    def _collect_garbage(self, place: Place) -> None:
        """Free views that only garbage holds: objects that refer to each other.

        An exception whose own frame refers to it is such garbage. Python collects it only after
        enough objects were made, which may be many large events later. Garbage of the handler that
        has just ended is mostly among the young objects, where collecting is cheap.
        """
        if not gc.isenabled():
            return
        self._collect(1)
        kept = sum(self._kept.values()) + place.capacity
        if kept > self._collect_above and self._is_used(place.offset):
            self._collect(2)
            self._collect_above = max(self._least_to_collect, 2 * kept)

    def _is_used(self, offset: int) -> bool:
        return offset in self._mapped and self._references(offset) > self._fewest

    def _references(self, offset: int) -> int:
        return sys.getrefcount(self._mapped[offset])

    def dropped(self) -> list[int]:
        """Return the offsets of blocks that were kept, and no longer are."""
        dropped = [offset for offset in self._kept if not self._is_used(offset)]
        for offset in dropped:
            del self._kept[offset]
        return dropped

    @property
    def keeps(self) -> bool:
        """Whether any block was kept."""
        return bool(self._kept)

    def forget(self, offsets: list[int]) -> None:
        """Unmap freed blocks."""
        for offset in offsets:
            mapped = self._mapped.pop(offset, None)
            if mapped is not None:
                mapped.close()


# A worker's end of shared memory: events are read in place, results are copied in.


class WorkerMemory:
    """The memory that one worker shares with its parent; for the worker's main thread alone.

    Args:
        events: memory that the parent writes.
        results: memory that this worker writes.
        large: minimum size of a buffer that gets a block, in bytes.
        batches: memory that the parent writes, for events that are not large; None for none.
        least_result: minimum size of a result without buffers that gets a block, in bytes; `large`
            if that is more.
    """

    def __init__(
        self,
        events: Room,
        results: Room,
        large: float,
        batches: Room | None = None,
        *,
        least_result: float = 0,
    ) -> None:
        self.large, self.least_result = large, max(large, least_result)
        self._batches = None if batches is None else BatchReader(batches)
        self._reader = BlockReader(events)
        self._writer = ResultWriter(results)

    @property
    def keeps(self) -> bool:
        """Whether a handler has kept a view of an event."""
        return self._reader.keeps

    def begin(self, head: BatchHead, rest: memoryview) -> memoryview:
        """Begin a batch: take in the parent's news of blocks.

        Returns:
            The events of the batch, one behind the other: from shared memory, or from the pipe.
        """
        if head.gone:
            self._reader.forget(head.gone)
        if head.freed is not None:
            self._writer.reuse(head.freed)
        if head.shared is None or self._batches is None:
            return rest
        return self._batches.events(head.shared)

    def load(self, data: memoryview, large: Large) -> Any:
        """Make an event whose large part is in shared memory."""
        place = Place(*large[0])
        views = self._reader.views(place, writable=large[1])
        return load(Form(place.form), data, views)

    def note_end(self, large: Large | None) -> bytes:
        """Lay out, ahead of the end of a delivery, which blocks its handler keeps.

        Call this when the Python stack has no object of that delivery any more.
        """
        kept: Sequence[int] = ()
        if large is not None and self._reader.is_kept(Place(*large[0])):
            kept = [large[0][0]]
        dropped = self._reader.dropped() if self._reader.keeps else ()
        return pack_kept(kept, dropped) if kept or dropped else b""

    def put_plain(self, value: Any) -> bytes:
        """Put a large result into shared memory, if it is a `bytes`, `str` or `bytearray`.

        Returns:
            The bytes that go ahead of the delivery's end; empty if the result takes another way.
        """
        found = plain(value, self.least_result)
        if found is None:
            return b""
        try:
            return pack_place(self._writer.put([found[1]], found[0]))
        except CannotMap:
            return b""

    def put(
        self, frame: bytes, buffers: Sequence[memoryview], encode_whole: Callable[[], bytes]
    ) -> tuple[bytes, bytes]:
        """Put the large part of a result into shared memory.

        Args:
            frame: the encoded result, without its large buffers.
            buffers: its large buffers.
            encode_whole: encodes the result with its buffers, in case they cannot be shared.

        Returns:
            The bytes that go ahead of the delivery's end, and the rest of the result.
        """
        try:
            if buffers:
                return pack_place(self._writer.put(buffers, Form.BUFFERS)), frame
            return pack_place(self._writer.put([memoryview(frame)], Form.PICKLED)), REST
        except CannotMap:
            return b"", encode_whole() if buffers else frame
