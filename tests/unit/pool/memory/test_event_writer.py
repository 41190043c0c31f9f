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
from procbus.pool.memory.batches import EventParts, load_parts
from procbus.pool.memory.event_writer import (
    LEAST_BUFFER,
    OWN_BLOCK,
    OWN_BUFFERS,
    EncodedEvent,
    EventWriter,
)
from procbus.pool.memory.events import Block, EventMemory
from procbus.pool.memory.shared_file import LOADERS, CannotMap, Form
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


def encode(writer: EventWriter, delivery: Delivery) -> EncodedEvent:
    assert delivery.receipt is not None
    return writer.encode(delivery, delivery.receipt)


def made(data: bytes | EventParts, form: int) -> Any:
    """The event that a worker makes."""
    if isinstance(data, EventParts):
        assert form == Form.BUFFERS
        return load_parts(data.sizes, memoryview(b"".join(data.parts)))
    return LOADERS[form](memoryview(data))


def pins(delivery: Delivery) -> int:
    assert delivery.receipt is not None
    block = delivery.receipt.block
    assert isinstance(block, Block)
    return block.pins


def test_a_small_event_travels_in_the_pipe(writer: EventWriter, events: EventMemory) -> None:
    data, event_form, large, room = encode(writer, delivery_of((1, "two")))

    assert made(data, event_form) == (1, "two")
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
    data, _, large, room = encode(writer, delivery_of(event))

    assert large is not None
    assert large[0][3] == form
    assert len(data) < LARGE
    assert room


@pytest.mark.parametrize("length", [0, 1, LARGE - 1, LARGE, 20 * LARGE])
@pytest.mark.parametrize("kind", ["bytes", "str", "surrogates", "bytearray", "pickled"])
def test_event_without_buffers_needs_no_block_where_its_batch_has_room(
    writer: EventWriter, events: EventMemory, kind: str, length: int
) -> None:
    event = {
        "bytes": b"x" * length,
        "str": "ä" * length,
        "surrogates": "ä\udc80" * length,
        "bytearray": bytearray(length),
        "pickled": ["x" * length],
    }[kind]
    writer.begin(2 * OWN_BLOCK)
    data, form, large, room = encode(writer, delivery_of(event))

    found = made(data, form)
    assert (type(found), found) == (type(event), event)
    assert (large, room, events.stats().sent) == (None, True, 0)


def frozen(array: Any) -> Any:
    array.flags.writeable = False
    return array


@pytest.mark.parametrize("threshold", [LARGE, 1 << 20])
@pytest.mark.parametrize("writable", [False, True])
def test_array_needs_no_block_where_its_batch_has_room(threshold: int, writable: bool) -> None:
    memory = EventMemory(4 * OWN_BLOCK, threshold)
    writer = writer_for(1, memory)
    arrays = {
        "short": np.arange(3),
        "long": np.arange(LEAST_BUFFER // 8),
        "frozen": frozen(np.arange(LEAST_BUFFER // 8)),
        "fortran": np.asfortranarray(np.ones((40, 50))),
        "strided": np.arange(LEAST_BUFFER)[::3],
        "longest": np.zeros(OWN_BUFFERS - 100_000, np.uint8),
    }
    delivery = delivery_to(subscription_of(kind="cpu", writable=writable), arrays)
    writer.begin(2 * OWN_BLOCK)
    data, form, large, room = encode(writer, delivery)

    assert (large, room, memory.stats().sent) == (None, True, 0)
    found = made(data, form)
    for name, array in arrays.items():
        assert np.array_equal(found[name], array)
        assert found[name].flags.f_contiguous == (array.flags.f_contiguous or name == "strided")
        if name != "strided":  # which numpy pickles without a buffer
            writes = name != "frozen" and (writable or array.nbytes < threshold)
            assert found[name].flags.writeable is writes, name
    writer.close()
    memory.close()


@pytest.mark.parametrize(
    ("room", "event"),
    [
        (2 * OWN_BLOCK - 1, b"x" * LARGE),
        (2 * OWN_BLOCK, b"x" * OWN_BLOCK),
        (2 * OWN_BLOCK, ["x" * OWN_BLOCK]),
        (2 * OWN_BLOCK - 1, np.arange(LARGE // 4)),
        (2 * OWN_BLOCK, np.zeros(OWN_BUFFERS, np.uint8)),
        (2 * OWN_BLOCK, [np.zeros(OWN_BUFFERS // 2, np.uint8), np.ones(OWN_BUFFERS // 2, np.int8)]),
    ],
    ids=["little room", "bytes", "list", "array, little room", "array", "arrays"],
)
def test_event_gets_a_block_if_it_is_large_or_its_batch_has_little_room(
    room: int, event: Any
) -> None:
    memory = EventMemory(4 * OWN_BLOCK, LARGE)
    writer = writer_for(1, memory)
    writer.begin(room)
    assert encode(writer, delivery_of(event))[2] is not None
    writer.close()
    memory.close()


def test_block_has_the_large_buffers_of_an_event_alone() -> None:
    memory = EventMemory(4 * OWN_BLOCK)
    writer = writer_for(1, memory)
    large, small = np.zeros(OWN_BUFFERS, np.uint8), np.ones(2 * LEAST_BUFFER, np.uint8)
    writer.begin(2 * OWN_BLOCK)
    data, form, place, _ = encode(writer, delivery_of([small, large]))

    assert form == Form.BUFFERS
    assert place is not None
    assert [size for _, size in place[0][2]] == [large.nbytes]
    assert isinstance(data, bytes)
    found = pickle.loads(data, buffers=[large.data])
    assert np.array_equal(found[0], small)
    assert found[0].flags.writeable, "it is a copy of the handler's own, as without the large one"
    writer.close()
    memory.close()


def test_an_event_is_copied_once_for_two_workers(events: EventMemory) -> None:
    one, other = writer_for(1, events), writer_for(2, events)
    receipt = receipt_for(
        subscription_of(kind="cpu"), subscription_of(kind="cpu"), event=b"x" * LARGE
    )
    places = [encode(w, d)[2] for w, d in zip((one, other), receipt.deliveries, strict=True)]

    assert places[0] == places[1]
    assert pins(receipt.deliveries[0]) == 2


def test_event_without_room_waits_until_a_block_is_free(writer: EventWriter) -> None:
    first, second = delivery_of(b"x" * LARGE), delivery_of(b"y" * LARGE)
    writer.begin()
    encode(writer, first)
    writer.sent(1)
    writer.begin()
    assert encode(writer, second)[2:] == (None, False)

    writer.done(1)
    assert pins(first) == 0
    writer.wait_for_room(0.0)
    assert encode(writer, second)[2:] != (None, False), "what is not pinned makes room"
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
    data, _, large, room = encode(writer, delivery_of(event))

    assert len(data) > LIMIT
    assert large is None
    assert room


def test_event_that_cannot_be_mapped_travels_in_the_pipe(
    writer: EventWriter, events: EventMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: int) -> mmap.mmap:
        raise CannotMap("no file descriptors")

    monkeypatch.setattr(events.room, "map", refuse)
    data, form, large, room = encode(writer, delivery_of(b"x" * LARGE))

    assert made(data, form) == b"x" * LARGE
    assert large is None
    assert room
