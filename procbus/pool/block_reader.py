# SPDX-License-Identifier: MIT
"""A worker's view of the blocks of events: mapped for reading only, and seen whether kept.

A handler may keep a view, in a global or a cache. Whether one is left shows in the reference count
of the mapping, since every view of it holds a reference. The parent then does not use the block
again until the view is gone.
"""

from __future__ import annotations

import gc
import mmap
import sys

from procbus.pool.room import CannotMap, Place, Room

#: From so many bytes on that seem to be kept, old objects are searched for garbage too (some 50 ms
#: with large libraries), and again whenever there are twice as many.
_COLLECT_ABOVE = 64 << 20


class BlockReader:
    """The blocks that one worker has mapped. It belongs to the worker's main thread."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._mapped: dict[int, mmap.mmap] = {}
        #: Offset and capacity of blocks that were kept; above how many bytes of them all garbage is
        #: looked for.
        self._kept: dict[int, int] = {}
        self._collect_above = _COLLECT_ABOVE
        #: References that there are to a mapping without any view: how many differs by Python.
        self._fewest = 0

    def views(self, place: Place, *, writable: bool) -> list[memoryview]:
        """The buffers of an event: in place and read-only, or a private copy that is writable."""
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
        """Whether a view of the block is left; call it when the handler has ended."""
        if self._is_used(place.offset):
            self._collect_garbage(place)
        if not self._is_used(place.offset):
            return False
        self._kept[place.offset] = place.capacity
        return True

    def _collect_garbage(self, place: Place) -> None:
        """Free views that only garbage holds: objects that refer to each other.

        An exception that its own frame refers to is such garbage. Python looks for it when enough
        objects were made, which may be many large events later. What the handler has just left is
        mostly among the young objects, where looking takes little.
        """
        if not gc.isenabled():
            return
        gc.collect(1)
        kept = sum(self._kept.values()) + place.capacity
        if kept > self._collect_above and self._is_used(place.offset):
            gc.collect()
            self._collect_above = max(_COLLECT_ABOVE, 2 * kept)

    def _is_used(self, offset: int) -> bool:
        return offset in self._mapped and self._references(offset) > self._fewest

    def _references(self, offset: int) -> int:
        return sys.getrefcount(self._mapped[offset])

    def dropped(self) -> list[int]:
        """Offsets of blocks that were kept, and are not any more."""
        dropped = [offset for offset in self._kept if not self._is_used(offset)]
        for offset in dropped:
            del self._kept[offset]
        return dropped

    @property
    def keeps(self) -> bool:
        """Whether a block was kept."""
        return bool(self._kept)

    def forget(self, offsets: list[int]) -> None:
        """Unmap blocks that are no more."""
        for offset in offsets:
            mapped = self._mapped.pop(offset, None)
            if mapped is not None:
                mapped.close()
