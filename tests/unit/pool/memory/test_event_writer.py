# SPDX-License-Identifier: MIT
"""Events on their way to a worker: large parts lie in shared memory while they are needed."""

import mmap
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from procbus.codec.encoder import PARENT, Encoder
from procbus.core.delivery import Delivery
from procbus.pool.memory.batches import LEAST_CONTENT, Content
from procbus.pool.memory.event_writer import OWN_BLOCK, EventWriter
from procbus.pool.memory.events import Block, EventMemory
from procbus.pool.memory.shared_file import CannotMap, Form
from procbus.pool.wire import Large
from tests.parts import delivery_to, receipt_for, subscription_of

LARGE = 1000
#: There is room for one block.
LIMIT = mmap.ALLOCATIONGRANULARITY


@pytest.fixture
def events() -> Iterator[EventMemory]:
    events = EventMemory(LIMIT, LARGE)
    yield events
    events.close()


@pytest.fixture
def writer(events: EventMemory) -> EventWriter:
    return writer_for(1, events)


def writer_for(worker: int, events: EventMemory) -> EventWriter:
    return EventWriter(worker, events, Encoder(PARENT, events.large))


def delivery_of(event: Any) -> Delivery:
    return delivery_to(subscription_of(kind="cpu"), event)


def encode(writer: EventWriter, delivery: Delivery) -> tuple[bytes | Content, Large | None, bool]:
    assert delivery.receipt is not None
    return writer.encode(delivery, delivery.receipt)


def whole(data: bytes | Content) -> bytes:
    return b"".join(data.parts) if isinstance(data, Content) else data


def pins(delivery: Delivery) -> int:
    assert delivery.receipt is not None
    block = delivery.receipt.block
    assert isinstance(block, Block)
    return block.pins


def test_a_small_event_travels_in_the_pipe(writer: EventWriter, events: EventMemory) -> None:
    data, large, room = encode(writer, delivery_of((1, "two")))

    assert pickle.loads(whole(data)) == (1, "two")
    assert large is None
    assert room
    assert events.stats().in_flight == 0


@pytest.mark.parametrize(
    ("event", "form"),
    [
        (b"x" * LARGE, Form.BYTES),
        (np.arange(LARGE // 4), Form.BUFFERS),
        (["x" * LARGE], Form.PICKLED),
    ],
)
def test_large_event_lies_in_shared_memory(writer: EventWriter, event: Any, form: Form) -> None:
    data, large, room = encode(writer, delivery_of(event))

    assert large is not None
    assert large[0][3] == form
    assert len(data) < LARGE
    assert room


@pytest.mark.parametrize(
    "event",
    [
        b"x" * LEAST_CONTENT,
        "a" * LEAST_CONTENT,
        "ä\udc80" * LEAST_CONTENT,
        bytearray(LEAST_CONTENT),
        ["x" * LARGE],
        b"x" * (LEAST_CONTENT - 1),
    ],
    ids=["bytes", "str", "surrogates", "bytearray", "pickled", "short"],
)
def test_event_without_buffers_needs_no_block_where_its_batch_has_room(
    writer: EventWriter, events: EventMemory, event: Any
) -> None:
    writer.begin(2 * OWN_BLOCK)
    data, large, room = encode(writer, delivery_of(event))

    assert (type(pickle.loads(whole(data))), pickle.loads(whole(data))) == (type(event), event)
    assert len(data) == len(whole(data))
    assert (large, room, events.stats().sent) == (None, True, 0)


@pytest.mark.parametrize(
    ("room", "event"),
    [
        (2 * OWN_BLOCK - 1, b"x" * LARGE),
        (2 * OWN_BLOCK, b"x" * OWN_BLOCK),
        (2 * OWN_BLOCK, ["x" * OWN_BLOCK]),
        (2 * OWN_BLOCK, np.arange(LARGE // 4)),
    ],
    ids=["little room", "large bytes", "large list", "array"],
)
def test_event_gets_a_block_if_it_is_large_or_has_buffers_or_its_batch_has_little_room(
    room: int, event: Any
) -> None:
    memory = EventMemory(4 * OWN_BLOCK, LARGE)
    writer = writer_for(1, memory)
    writer.begin(room)
    assert encode(writer, delivery_of(event))[1] is not None
    writer.close()
    memory.close()


def test_an_event_is_copied_once_for_two_workers(events: EventMemory) -> None:
    one, other = writer_for(1, events), writer_for(2, events)
    receipt = receipt_for(
        subscription_of(kind="cpu"), subscription_of(kind="cpu"), event=b"x" * LARGE
    )
    places = [encode(w, d)[1] for w, d in zip((one, other), receipt.deliveries, strict=True)]

    assert places[0] == places[1]
    assert pins(receipt.deliveries[0]) == 2


def test_event_without_room_waits_until_a_block_is_free(writer: EventWriter) -> None:
    first, second = delivery_of(b"x" * LARGE), delivery_of(b"y" * LARGE)
    writer.begin()
    encode(writer, first)
    writer.sent(1)
    writer.begin()
    assert encode(writer, second) == (b"", None, False)

    writer.done(1)
    assert pins(first) == 0
    writer.wait_for_room(0.0)
    assert encode(writer, second)[1:] != (None, False), "what is not pinned makes room"
    writer.leave_line()


def test_a_message_that_is_dropped_keeps_nothing_pinned(writer: EventWriter) -> None:
    delivery = delivery_of(b"x" * LARGE)
    encode(writer, delivery)
    assert pins(delivery) == 1

    writer.begin()
    assert pins(delivery) == 0


def test_end_of_a_worker_unpins_its_blocks(writer: EventWriter) -> None:
    delivery = delivery_of(b"x" * LARGE)
    encode(writer, delivery)
    writer.sent(1)
    encode(writer, delivery)
    assert pins(delivery) == 2

    writer.close()
    assert pins(delivery) == 0


@pytest.mark.parametrize("event", [b"x" * (LIMIT + 1), np.arange(LIMIT)])
def test_event_larger_than_the_limit_travels_in_the_pipe(writer: EventWriter, event: Any) -> None:
    data, large, room = encode(writer, delivery_of(event))

    assert len(data) > LIMIT
    assert large is None
    assert room


def test_event_that_cannot_be_mapped_travels_in_the_pipe(
    writer: EventWriter, events: EventMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: int) -> mmap.mmap:
        raise CannotMap("no file descriptors")

    monkeypatch.setattr(events.room, "map", refuse)
    data, large, room = encode(writer, delivery_of(b"x" * LARGE))

    assert pickle.loads(whole(data)) == b"x" * LARGE
    assert large is None
    assert room
