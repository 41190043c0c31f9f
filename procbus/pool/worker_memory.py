# SPDX-License-Identifier: MIT
"""A worker's side of shared memory: events are read in place, results are copied in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from procbus.pool.block_reader import BlockReader
from procbus.pool.large import Form, load, plain
from procbus.pool.result_memory import ResultWriter
from procbus.pool.room import CannotMap, Place, Room
from procbus.pool.wire import REST, BatchHead, Large, pack_kept, pack_place


class WorkerMemory:
    """What one worker shares with its parent. It belongs to the worker's main thread.

    Args:
        events: memory that the parent writes.
        results: memory that this worker writes.
        large: what has fewer bytes travels in the pipe.
    """

    def __init__(self, events: Room, results: Room, large: float) -> None:
        self.large = large
        self._reader = BlockReader(events)
        self._writer = ResultWriter(results)

    @property
    def keeps(self) -> bool:
        """Whether a handler has kept a view of an event."""
        return self._reader.keeps

    def learn(self, head: BatchHead) -> None:
        """Take in what the parent says of blocks."""
        if head.gone:
            self._reader.forget(head.gone)
        if head.freed is not None:
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
            frame: the result as encoded, without its large buffers.
            buffers: those.
            encode_whole: encodes it with them; used where they cannot be shared.

        Returns:
            What goes ahead of its end, and the rest of it.
        """
        try:
            if buffers:
                return pack_place(self._writer.put(buffers, Form.BUFFERS)), frame
            return pack_place(self._writer.put([memoryview(frame)], Form.PICKLED)), REST
        except CannotMap:
            return b"", encode_whole() if buffers else frame
