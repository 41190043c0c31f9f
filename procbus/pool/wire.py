# SPDX-License-Identifier: MIT
"""The layout of messages on the pipe between a parent and one worker.

A message to the worker is one batch: a pickled head, followed by the events. Each event is encoded
alone. So two events share no object by accident, and an event that cannot be decoded is the only
one that fails. Small numbers and strings, and the values of plain instances, are in the head
instead. The first byte of a message from the worker tells the kind of message.
"""

from __future__ import annotations

import enum
import pickle
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from procbus.codec.encoder import ClassNumber, decode, encode_atom
from procbus.codec.in_head import Shape
from procbus.pool.memory.batches import PartSize
from procbus.pool.memory.shared_file import Form, Place

#: The message that ends a worker.
STOP = b""

#: The bytes in the pipe of a result that is wholly in shared memory.
REST = b"."

_HEAD_SIZE = struct.Struct("<Q")
_RESULTS = struct.Struct("<cqI?")
_SHARED = struct.Struct("<cqI?QQ")
#: Start and end of a handler, in seconds of `time.monotonic()`, and the size of the rest.
_ENDED = struct.Struct("<ddI")
#: Flag in the size of a frame that is the pickled return value alone: the handler succeeded and
#: published nothing. A frame of this size or more does not fit beside the flag: see `_LONG`.
_ALONE = 1 << 31
#: Values in place of the size, for a whole number of 64 bits and for a float: the handler succeeded
#: and returned the number, which follows in 8 bytes.
IS_INT, IS_FLOAT = (1 << 32) - 1, (1 << 32) - 2
LEAST_INT, GREATEST_INT = -(1 << 63), (1 << 63) - 1
_INT_ENDED, _FLOAT_ENDED = struct.Struct("<ddIq"), struct.Struct("<ddId")
#: The layouts of such an end without the size; and the layout of the size alone.
_TIMED_NUMBER = {(IS_INT,): struct.Struct("<dd4xq"), (IS_FLOAT,): struct.Struct("<dd4xd")}
_NUMBER_KIND = struct.Struct("<16xI8x")
#: Values in place of a start, which mark a note about the next ends. The note is a class that they
#: need; the place of the next buffers; changes of the blocks of events that are kept; or the size
#: of the next frame, whose own size field is 0.
_DEFINITION, _PLACE, _KEPT, _LONG = -1.0, -2.0, -3.0, -4.0


class Tag(bytes, enum.Enum):
    """First byte of a message from a worker."""

    HELLO = b"H"
    #: The user's set-up failed in the worker.
    BROKEN = b"B"
    RESULTS = b"R"
    #: Results that lie in the logbook.
    SHARED = b"S"
    LOG = b"L"
    WARNING = b"W"
    #: The handlers' use of the machine.
    MEASURED = b"M"


#: The values of two tags, which each batch needs; reading one from the enum takes two calls.
RESULTS_TAG, SHARED_TAG = Tag.RESULTS.value, Tag.SHARED.value


class Ending(enum.IntEnum):
    """How a delivery ended in the worker."""

    SUCCEEDED = 0
    RAISED = 1
    #: The handler could not be loaded in the worker.
    NO_HANDLER = 2
    #: The event could not be decoded in the worker.
    NO_EVENT = 3
    #: The result, or an event published, could not be encoded.
    NO_RESULT = 4


#: Context variables of a bus: the number of their definition, and their encoded values.
Variables = tuple[int, bytes]
#: Properties that deliveries of a batch share: handler, id of the parent event, topic, attempt, and
#: context variables.
CommonHead = tuple[int, "int | None", "str | None", int, "Variables | None"]
#: Place of the large part of an event (a `Place` as a plain tuple), and whether the handler gets a
#: writable copy.
Large = tuple[tuple[Any, ...], bool]

#: Maximum time for which a finished result waits before it is sent, in seconds.
FLUSH_S = 0.010

#: Forms of events beside the members of `Form`. The first number: a number or string in the head.
#: From the second number on: an instance whose values are in the head, one number for each shape
#: of the batch.
IN_HEAD = len(Form)
FIRST_SHAPE = IN_HEAD + 1


#: A handler that is new to the worker: number, name, encoded form; and its limits of time in
#: seconds and of memory in bytes.
HandlerDefinition = tuple[int, str, bytes, tuple[float | None, int | None]]


class BatchHead(NamedTuple):
    """The head of a batch. Lists by delivery are one for each property: they pickle much faster."""

    number: int
    classes: list[tuple[ClassNumber, bytes]]
    #: Handlers new to the worker.
    handlers: list[HandlerDefinition]
    #: The different kinds of deliveries; the index of each delivery's kind; and the ids of the
    #: events.
    kinds: list[CommonHead]
    which: list[int]
    ids: list[int]
    #: Sizes in bytes of the events that follow; and the events in the head, in order.
    sizes: list[int]
    atoms: list[Any]
    #: Place of the large part of an event, by index of the delivery.
    large: dict[int, Large]
    #: Whether a worker whose memory is near a handler's limit leaves the delivery undone.
    careful: bool
    #: Freed blocks of events; freed blocks of results, with the maximum of bytes in blocks of
    #: results that wait to be used again.
    gone: list[int]
    freed: tuple[int, list[tuple[int, int]]] | None
    #: Handlers that are no longer needed; dropped before the new ones are taken in.
    forgotten: list[int]
    #: New values of the script's globals.
    globals: Sequence[bytes] = ()
    #: Start and size of the events in shared memory; None if the events follow in the message.
    shared: tuple[int, int] | None = None
    #: Form of each event: a `Form` as a plain number, `IN_HEAD`, or a shape from `FIRST_SHAPE` on.
    forms: Sequence[int] = ()
    #: The shapes of instances in the head.
    shapes: Sequence[Shape] = ()
    #: Sizes of the buffers at the end of each event that has some.
    parts: Sequence[Sequence[PartSize]] = ()


def pack_batch(head: BatchHead, events: Sequence[bytes | memoryview]) -> bytes:
    """Lay out a batch for the pipe."""
    packed = pickle.dumps(tuple(head), pickle.HIGHEST_PROTOCOL)
    return b"".join((_HEAD_SIZE.pack(len(packed)), packed, *events))


def events_at(message: bytes) -> int:
    """Offset of the events in a batch."""
    return _HEAD_SIZE.size + int(_HEAD_SIZE.unpack_from(message)[0])


def unpack_batch(message: bytes | bytearray) -> tuple[BatchHead, memoryview]:
    """Return the head of a batch, and the bytes of all its events, one behind the other."""
    view = memoryview(message)
    start = _HEAD_SIZE.size
    end = start + _HEAD_SIZE.unpack_from(view)[0]
    return BatchHead(*decode(view[start:end])), view[end:]


#: Functions that lay out the end of a delivery whose handler published nothing, and returned None,
#: an int in the range above, or a float. Each takes the start, the end and the size. For a number
#: the size is `IS_INT` or `IS_FLOAT`, and the number follows.
pack_bare, pack_int, pack_float = _ENDED.pack, _INT_ENDED.pack, _FLOAT_ENDED.pack


def pack_end(started_at: float, ended_at: float, frame: bytes) -> bytes:
    """Lay out the end of one delivery."""
    size = len(frame)
    if size >= _ALONE:
        return _pack_long(started_at, ended_at, 0, frame)
    return _ENDED.pack(started_at, ended_at, size) + frame


def pack_success(started_at: float, ended_at: float, value: bytes) -> bytes:
    """Lay out the end of a delivery whose handler returned a value and published nothing."""
    size = len(value)
    if size >= _ALONE - 2:  # with the flag the two sizes below are `IS_FLOAT` and `IS_INT`
        return _pack_long(started_at, ended_at, _ALONE, value)
    return _ENDED.pack(started_at, ended_at, size | _ALONE) + value


def pack_definition(number: ClassNumber, definition: bytes) -> bytes:
    """Lay out a class that the next results need."""
    return _pack_note(_DEFINITION, (number, definition))


def pack_place(place: Place) -> bytes:
    """Lay out the place of the next result's large buffers."""
    return _pack_note(_PLACE, tuple(place))


def pack_kept(kept: Sequence[int], dropped: Sequence[int]) -> bytes:
    """Lay out the blocks of events that a handler keeps views of, and blocks it no longer keeps."""
    return _pack_note(_KEPT, (kept, dropped))


def _pack_note(what: float, note: object) -> bytes:
    data = pickle.dumps(note, pickle.HIGHEST_PROTOCOL)
    return pack_end(what, 0.0, data)


def _pack_long(started_at: float, ended_at: float, flag: int, frame: bytes) -> bytes:
    """Lay out a frame that is too long for the size field of an end."""
    size = _pack_note(_LONG, len(frame))
    return b"".join((size, _ENDED.pack(started_at, ended_at, flag), frame))


def results_head(batch: int, done: int, complete: bool) -> bytes:
    """Return the first part of a results message. The results themselves follow.

    Args:
        batch: number of the batch.
        done: number of its ended deliveries, including the ones in the message.
        complete: whether the worker has finished the batch.
    """
    return _RESULTS.pack(RESULTS_TAG, batch, done, complete)


def shared_results(batch: int, done: int, complete: bool, place: tuple[int, int]) -> bytes:
    """Return a whole results message for results that stay in the logbook.

    Args:
        batch: number of the batch.
        done: number of its ended deliveries, including the ones in the message.
        complete: whether the worker has finished the batch.
        place: start and size of the results in the logbook.
    """
    return _SHARED.pack(SHARED_TAG, batch, done, complete, *place)


class Results(NamedTuple):
    """A results message: some deliveries of a batch have ended, or the batch is complete."""

    batch: int
    #: Number of deliveries of the batch that have ended.
    done: int
    #: Whether the worker is finished with the batch.
    complete: bool
    data: memoryview


class Successes(NamedTuple):
    """Handlers that succeeded one after the other and published nothing, as most do."""

    #: Start and end of each; the third number is unused.
    times: Sequence[tuple[float, float, int]]
    values: Sequence[Any]


def read_successes(results: Results, told: int, received: int) -> tuple[Successes, int]:
    """Read the plain successes at the beginning of a results message.

    Args:
        results: the message.
        told: number of deliveries of the batch that ended before the ones in the message.
        received: number of deliveries whose values are known already. Their values come as None.

    Returns:
        The successes, and the offset of the other ends, which `each_end` reads.
    """
    data, head = results.data, _ENDED.size
    count, total = results.done - told, len(results.data)
    if total == count * head:  # all handlers returned None: read in one go
        return Successes(list(_ENDED.iter_unpack(data)), (None,) * count), total
    if total == count * _INT_ENDED.size:
        kinds = set(_NUMBER_KIND.iter_unpack(data))
        if len(kinds) == 1 and (numbers := _TIMED_NUMBER.get(kinds.pop())) is not None:
            # All returned an int, or all a float.
            ended = list(numbers.iter_unpack(data))
            return Successes(ended, [value for _, _, value in ended]), total
    times: list[tuple[float, float, int]] = []
    values: list[Any] = []
    unpack, position, known = _ENDED.unpack_from, 0, received - told
    while position < total:
        time = unpack(data, position)
        start = end = position + head
        size, value = time[2], None
        if size >= IS_FLOAT:
            value = _number(data, position, size)
            end = position + _INT_ENDED.size
        elif size >= _ALONE:
            end += size - _ALONE
            if known <= 0:
                try:
                    value = decode(data[start:end])
                except BaseException:  # noqa: BLE001 - the user's code: the outcome's maker reports it
                    break
        elif size or time[0] < 0:
            break
        known -= 1
        times.append(time)
        values.append(value)
        position = end
    return Successes(times, values), position


def _number(data: memoryview, position: int, size: int) -> int | float:
    """Read the number that a handler returned, from the end of its delivery."""
    ended = _INT_ENDED if size == IS_INT else _FLOAT_ENDED
    number: int | float = ended.unpack_from(data, position)[3]
    return number


def unpack_results(message: bytes | bytearray) -> Results:
    """Read a results message."""
    _, batch, done, complete = _RESULTS.unpack_from(message)
    return Results(batch, done, complete, memoryview(message)[_RESULTS.size :])


def unpack_shared(message: bytes | bytearray, view: Callable[[int, int], memoryview]) -> Results:
    """Read a results message whose results lie in the logbook.

    Args:
        message: the message.
        view: returns the bytes of a place.
    """
    _, batch, done, complete, start, size = _SHARED.unpack_from(message)
    return Results(batch, done, complete, view(start, size))


#: Start and end of the handler, and pickled (Ending, value, published or events dropped); empty
#: for a handler that returned None and published nothing. Then whether the value alone is pickled;
#: the place of the value's large part; and the blocks of events that are kept from now on, and the
#: ones that are no longer kept.
End = tuple[float, float, memoryview, bool, "Place | None", "Kept | None"]
Kept = tuple[list[int], list[int]]


def each_end(
    data: bytes | memoryview,
    define: Callable[[ClassNumber, bytes], object],
) -> Iterator[End]:
    """Go through the ends in a results message, in order.

    Args:
        data: the results.
        define: called with each class that the next results need.
    """
    view = memoryview(data)
    unpack, head, total = _ENDED.unpack_from, _ENDED.size, len(view)
    nothing = view[:0]
    position = 0
    place: Place | None = None
    kept: Kept | None = None
    long = 0
    while position < total:
        started_at, ended_at, size = unpack(view, position)
        if size >= IS_FLOAT:
            number = memoryview(encode_atom(_number(view, position, size)))
            position += _INT_ENDED.size
            yield started_at, ended_at, number, True, place, kept
            place = kept = None
            continue
        alone = size >= _ALONE
        if alone:
            size -= _ALONE
        if long:
            size, long = long, 0
        position += head
        frame = view[position : position + size] if size else nothing
        position += size
        if started_at >= 0:
            yield started_at, ended_at, frame, alone, place, kept
            place = kept = None
        elif started_at == _DEFINITION:
            define(*decode(frame))
        elif started_at == _PLACE:
            place = Place(*decode(frame))
        elif started_at == _LONG:
            long = decode(frame)
        else:
            kept = decode(frame)
