# SPDX-License-Identifier: MIT
"""Events on their way to one worker, with their large parts in shared memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from procbus.codec.encoder import Encoder
from procbus.core.delivery import Delivery
from procbus.core.receipt import Receipt
from procbus.pool.memory.batches import EventParts, PartSize
from procbus.pool.memory.events import Block, EventMemory
from procbus.pool.memory.shared_file import PLAIN, CannotMap, Form
from procbus.pool.wire import Kept, Large

#: Minimum size of an event without buffers that gets a block of its own, in bytes; because a block
#: costs the script 25 us more than room in a batch. With less room in a batch than for two such
#: events, all events above the threshold of shared memory get blocks.
OWN_BLOCK = 512 << 10
#: Minimum size of an event with buffers that gets a block of its own, in bytes; because the worker
#: reads the buffers of a block in place, without a copy.
OWN_BUFFERS = 256 << 10
#: Minimum size of a buffer that is copied into a batch from where it lies, in bytes. Shorter ones
#: are pickled.
LEAST_BUFFER = 4 << 10


#: An event for a batch: its bytes; their form; the place of its large part, if there is one; and
#: whether there was room for the large part.
EncodedEvent = tuple["bytes | EventParts", int, "Large | None", bool]

#: Forms as plain numbers, which are pickled much faster.
BYTES, _BUFFERS, _PICKLED = int(Form.BYTES), int(Form.BUFFERS), int(Form.PICKLED)
_PLAIN = {kind: int(form) for kind, form in PLAIN.items()}


class EventWriter:
    """Encodes the events of one worker's batches. The writer belongs to the companion.

    Args:
        worker: number of the worker, unique in this process.
        events: memory for large parts: shared by all workers of a pool.
        encoder: the encoder of this worker.
    """

    def __init__(self, worker: int, events: EventMemory, encoder: Encoder) -> None:
        self._worker = worker
        self._events = events
        self._encoder = encoder
        #: Minimum size of an event without buffers that gets a block, and of the buffers of one
        #: that has some, in bytes.
        self.least = self._least_buffers = events.large
        #: Blocks pinned for the worker's batches, and for the last message, which may never be
        #: sent; and the value of `openings` before that message found no room.
        self._pins: dict[int, list[Block]] = {}
        self._pinned: list[Block] = []
        self._openings = 0
        self._in_line = False
        #: Freed blocks that no sent message has reported yet.
        self._gone_due: list[int] = []
        events.join(worker)

    # For a message.

    def begin(self, shared_bytes: int = 0) -> None:
        """Begin a message. The message before was sent, or never will be.

        Args:
            shared_bytes: room for the events of its batch in shared memory.
        """
        large = self.least = self._least_buffers = self._encoder.large = self._events.large
        if shared_bytes >= 2 * OWN_BLOCK:
            self.least, self._least_buffers = max(large, OWN_BLOCK), max(large, OWN_BUFFERS)
            self._encoder.large = min(large, LEAST_BUFFER)
        if self._pinned:
            pinned, self._pinned = self._pinned, []
            self._events.unpin(pinned)

    def encode(self, delivery: Delivery, receipt: Receipt) -> EncodedEvent:
        """Encode an event."""
        encoder, event = self._encoder, receipt.event
        kind = type(event)
        form = _PLAIN.get(kind)
        if form is not None:
            content = event
            if kind is str:
                content = _encoded(event)
            elif kind is bytearray:
                content = bytes(event)  # another thread may change it while the batch is made
            if len(content) < self.least:
                return content, form, None, True
            return self._share(delivery, receipt, form, [memoryview(content)], b"")
        data = encoder.encode(event)
        if encoder.buffers:
            buffers, encoder.buffers = encoder.buffers, []
            return self._with_buffers(delivery, receipt, data, buffers)
        if len(data) < self.least:
            return data, _PICKLED, None, True
        return self._share(delivery, receipt, _PICKLED, [memoryview(data)], b"")

    def _with_buffers(
        self, delivery: Delivery, receipt: Receipt, data: bytes, buffers: Sequence[memoryview]
    ) -> EncodedEvent:
        """Put an event's buffers into a block if a block pays off, and else into the batch."""
        large, encoder = self._events.large, self._encoder
        own = [buffer for buffer in buffers if buffer.nbytes >= large]
        if sum(buffer.nbytes for buffer in own) >= self._least_buffers:
            if len(own) < len(buffers):  # only the large buffers go into the block
                data = encoder.encode_with(receipt.event, large)
                own, encoder.buffers = encoder.buffers, []
            return self._share(delivery, receipt, _BUFFERS, own, data)
        writable = delivery.subscription.handler.writable
        sizes: list[PartSize] = [
            (buffer.nbytes, writable if buffer.nbytes >= large else not buffer.readonly)
            for buffer in buffers
        ]
        return EventParts(data, buffers, sizes), _BUFFERS, None, True

    def _share(
        self,
        delivery: Delivery,
        receipt: Receipt,
        form: int,
        buffers: Sequence[memoryview],
        rest: bytes,
    ) -> EncodedEvent:
        """Put the large part of an event where workers see it, unless it is there already."""
        events = self._events
        with events.copying:  # so that a second worker waits for this copy, and makes no second one
            block = receipt.block
            if not isinstance(block, Block) or not events.pin(block):
                if not events.fits(buffers):
                    events.check_oversize(delivery.handler.name, receipt.id, buffers)
                    return self._whole(receipt.event)
                self._openings = events.openings
                try:
                    block = events.put(buffers, form, self._worker)
                except CannotMap:
                    return self._whole(receipt.event)
                if block is None:
                    return b"", form, None, False
                _hand_to(receipt, block)
            self._pinned.append(block)
        return rest, form, (tuple(block.place), delivery.subscription.handler.writable), True

    def _whole(self, event: Any) -> EncodedEvent:
        return self._encoder.encode_whole(event), _PICKLED, None, True

    def leave_line(self) -> None:
        """Leave the line of waiting workers, because the message found room or needs none."""
        if self._in_line:
            self._in_line = False
            self._events.leave_line(self._worker)

    def gone(self) -> list[int]:
        """Freed blocks that the message has to report."""
        self._gone_due += self._events.gone(self._worker)
        return self._gone_due

    def sent(self, batch: int) -> None:
        """Note that the message is on its way to the worker."""
        if self._pinned:
            self._pins[batch], self._pinned = self._pinned, []
        self._gone_due.clear()

    def wait_for_room(self, timeout_s: float) -> None:
        """Wait until there may be room for the last message."""
        self._in_line = True
        self._events.wait_for_room(self._worker, self._openings, timeout_s)

    # From the worker.

    def note_kept(self, kept: Kept) -> None:
        """Note the blocks that a handler keeps views of, and the ones it no longer keeps."""
        self._events.note_kept(self._worker, *kept)

    def done(self, batch: int) -> None:
        """Note that the worker has finished a batch."""
        if self._pins:
            self._events.unpin(self._pins.pop(batch, ()))

    def close(self) -> None:
        """Forget the worker's blocks, because the worker is gone."""
        for pinned in self._pins.values():
            self._pinned += pinned
        self._pins.clear()
        self.begin()
        self._events.leave(self._worker)


def _encoded(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:  # half a surrogate pair; naming a way for it takes 0.1 us
        return text.encode(errors="surrogatepass")


def _hand_to(receipt: Receipt, block: Block) -> None:
    """Have the settlement release a block once the last cpu delivery of its event is settled."""
    with receipt.lock:
        deliveries = receipt.deliveries
        block.users = sum(d.receipt is not None and d.handler.kind == "cpu" for d in deliveries)
        receipt.block = block
    if not block.users:  # the delivery was cancelled meanwhile
        block.release()
