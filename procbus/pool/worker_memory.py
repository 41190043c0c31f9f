# SPDX-License-Identifier: MIT
"""A worker's side of shared memory: events are read in place, results are copied in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from procbus.pool.block_reader import BlockReader
from procbus.pool.blocks import Place, Room
from procbus.pool.large import Form, load, plain
from procbus.pool.result_memory import ResultWriter
from procbus.pool.wire import REST, BatchHead, Large, pack_kept, pack_place


class WorkerMemory:
    """What one worker shares with its parent. It belongs to the worker's main thread.

    Args:
        events: memory that the parent writes.
        results: memory that this worker writes.
        idle_limit: bytes of results' blocks that may wait to be used again.
        large: what has fewer bytes travels in the pipe.
    """

    def __init__(self, events: Room, results: Room, idle_limit: int, large: float) -> None:
        self.large = large
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
        """Make an event of which the large part is in shared memory."""
        place = Place(*large[0])
        views = self._reader.views(place, writable=large[1])
        return load(Form(place.form), data, views)

    def note_end(self, large: Large | None) -> bytes:
        """Tell, ahead of the end of a delivery, what its handler keeps of its event.

        Call it when nothing of that delivery is left on the stack.
        """
        kept: Sequence[int] = ()
        if large is not None and self._reader.is_kept(Place(*large[0])):
            kept = [large[0][0]]
        dropped = self._reader.dropped() if self._reader.keeps else ()
        return pack_kept(kept, dropped) if kept or dropped else b""

    def put_plain(self, value: Any) -> bytes:
        """Put a result into shared memory that is large, and content alone.

        Returns:
            What goes ahead of its end; empty when it is no such result.
        """
        found = plain(value, self.large)
        return b"" if found is None else pack_place(self._writer.put([found[1]], found[0]))

    def put(self, frame: bytes, buffers: Sequence[memoryview]) -> tuple[bytes, bytes]:
        """Put the large part of a result into shared memory.

        Returns:
            What goes ahead of its end, and the rest of it.
        """
        if buffers:
            return pack_place(self._writer.put(buffers, Form.BUFFERS)), frame
        if len(frame) >= self.large:
            return pack_place(self._writer.put([memoryview(frame)], Form.PICKLED)), REST
        return b"", frame
