# SPDX-License-Identifier: MIT
"""A worker's side of shared memory: events are read in place, results are copied in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from procbus.codec import decode, decode_with
from procbus.pool.block_reader import BlockReader
from procbus.pool.blocks import LARGE, Place, Room
from procbus.pool.result_memory import ResultWriter
from procbus.pool.wire import STREAM, BatchHead, Large, pack_kept, pack_place


class WorkerMemory:
    """What one worker shares with its parent. It belongs to the worker's main thread.

    Args:
        events: memory that the parent writes.
        results: memory that this worker writes.
        idle_limit: bytes of results' blocks that may wait to be used again.
    """

    def __init__(self, events: Room, results: Room, idle_limit: int) -> None:
        self._reader = BlockReader(events)
        self._writer = ResultWriter(results, idle_limit)

    @property
    def keeps(self) -> bool:
        """Whether a handler has kept a view of an event."""
        return self._reader.keeps

    def learn(self, head: BatchHead) -> None:
        """Take in what the parent says of blocks."""
        if head.gone:
            self._reader.forget(head.gone)
        if head.freed:
            self._writer.reuse(head.freed)

    def load(self, data: memoryview, large: Large) -> Any:
        """Decode an event whose buffers, or all of which, are in shared memory."""
        place, writable = large
        views = self._reader.views(Place(*place), writable=writable)
        return decode_with(data, views) if data else decode(views[0])

    def note_end(self, large: Large | None) -> bytes:
        """Tell, ahead of the end of a delivery, what its handler keeps of its event.

        Call it when nothing of that delivery is left on the stack.
        """
        kept: Sequence[int] = ()
        if large is not None and self._reader.is_kept(Place(*large[0])):
            kept = [large[0][0]]
        dropped = self._reader.dropped() if self._reader.keeps else ()
        return pack_kept(kept, dropped) if kept or dropped else b""

    def put(self, frame: bytes, buffers: Sequence[memoryview]) -> tuple[bytes, bytes]:
        """Put a result's buffers into shared memory, or all of a large one.

        Returns:
            What goes ahead of its end, and the rest of it.
        """
        if buffers:
            return pack_place(self._writer.put(buffers)), frame
        if len(frame) >= LARGE:
            return pack_place(self._writer.put([memoryview(frame)])), STREAM
        return b"", frame
