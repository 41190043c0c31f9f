# SPDX-License-Identifier: MIT
"""A worker's view of the blocks of events: mapped for reading only, and seen whether kept.

A handler may keep a view, in a global or a cache. Whether one is left shows in the reference count
of the mapping, since every view of it holds a reference. The parent then does not use the block
again until the view is gone.
"""

from __future__ import annotations

import mmap
import sys

from procbus.pool.blocks import Place, Room


class BlockReader:
    """The blocks that one worker has mapped. It belongs to the worker's main thread."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._mapped: dict[int, mmap.mmap] = {}
        self._kept: set[int] = set()
        #: References that there are to a mapping without any view: how many differs by Python.
        self._fewest = 0

    def views(self, place: Place, *, writable: bool) -> list[memoryview]:
        """The buffers of an event: in place and read-only, or a private copy that is writable."""
        offset, capacity, parts, _ = place
        mapped = self._mapped.get(offset)
        if mapped is None:
            self._mapped[offset] = self._room.map(offset, capacity, mmap.ACCESS_READ)
            self._fewest = self._references(offset)
            mapped = self._mapped[offset]
        whole = memoryview(mapped)
        views = [whole[start : start + size] for start, size in parts]
        return [memoryview(bytearray(view)) for view in views] if writable else views

    def is_kept(self, place: Place) -> bool:
        """Whether a view of the block is left; call it when the handler has ended."""
        if not self._is_used(place.offset):
            return False
        self._kept.add(place.offset)
        return True

    def _is_used(self, offset: int) -> bool:
        return offset in self._mapped and self._references(offset) > self._fewest

    def _references(self, offset: int) -> int:
        return sys.getrefcount(self._mapped[offset])

    def dropped(self) -> list[int]:
        """Offsets of blocks that were kept, and are not any more."""
        dropped = [offset for offset in self._kept if not self._is_used(offset)]
        self._kept.difference_update(dropped)
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
