# SPDX-License-Identifier: MIT
"""What travels on the pipe between a parent and one worker, and how it is laid out.

A message to the worker is one batch: a head (pickled) and the events (each pickled alone, so that
two events never share an object in the worker by accident, and one that fails to decode fails
alone; but for small numbers and strings, which are in the head). A message from the worker begins
with a byte that says what it is.
"""

from __future__ import annotations

import enum
import pickle
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from procbus.codec.encoder import ClassNumber, decode
from procbus.pool.memory.shared_file import Place

#: The message that ends a worker.
STOP = b""

#: What the pipe has of a result of which all is in shared memory.
REST = b"."

_HEAD_SIZE = struct.Struct("<Q")
_RESULTS = struct.Struct("<cqI?")
#: Start and end of a handler, in seconds of `time.monotonic()`, and the size of what follows.
_ENDED = struct.Struct("<ddI")
#: Added to the size of a frame that is the pickled value of a handler alone: it succeeded, and
#: published nothing. A frame of so many bytes or more does not fit beside it: see `_LONG`.
_ALONE = 1 << 31
#: In place of a start: this is not the end of a delivery but a class that the next ones need; where
#: the buffers of the next one are; which blocks of events are kept, and not any more; or the size
#: of what comes next, which says 0 itself.
_DEFINITION, _PLACE, _KEPT, _LONG = -1.0, -2.0, -3.0, -4.0


class Tag(bytes, enum.Enum):
    """First byte of a message from a worker."""

    HELLO = b"H"
    #: The user's set-up of the worker failed.
    BROKEN = b"B"
    RESULTS = b"R"
    LOG = b"L"
    WARNING = b"W"
    #: What its handlers took of the machine.
    MEASURED = b"M"


#: Asked for each batch; the enum takes two calls to say it.
RESULTS_TAG = Tag.RESULTS.value


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


#: Context variables that are taken along: which, by the number that a definition of them came
#: under, and the values as encoded.
Variables = tuple[int, bytes]
#: What deliveries of a batch have in common: handler, id of the parent event, topic, attempt, and
#: the variables that are taken along.
Kind = tuple[int, "int | None", "str | None", int, "Variables | None"]
#: Where what is large of an event lies (a `Place` as a plain tuple), and whether the handler gets a
#: copy that it may write to.
Large = tuple[tuple[Any, ...], bool]

#: In place of the size of an event that is in the head.
IN_HEAD = -1

#: Other types of events that may travel in the head; the most characters, and bits, of one.
_ATOMS = frozenset((float, bool, type(None)))
_LONGEST = 200
_WIDEST = 1 << 62


def size_in_head(event: Any) -> int:
    """About how many bytes a small number or string takes in the head; 0 for all other events.

    It may be pickled along with others: it cannot fail to decode, and if two are one object that
    does no harm. This takes 0.1 us for both sides, where pickling it alone takes 0.7.
    """
    kind = type(event)
    if kind is int:
        return 9 if -_WIDEST < event < _WIDEST else 0
    if kind is str:
        return 9 + len(event) if len(event) <= _LONGEST else 0
    return 9 if kind in _ATOMS else 0


class BatchHead(NamedTuple):
    """The head of a batch. Lists by delivery are one for each property: they pickle much faster."""

    number: int
    classes: list[tuple[ClassNumber, bytes]]
    #: Handlers that the worker does not know yet: number, name, definition, limit of memory.
    handlers: list[tuple[int, str, bytes, int | None]]
    #: The different kinds of deliveries; which of them each is; and the id of its event.
    kinds: list[Kind]
    which: list[int]
    ids: list[int]
    #: Of each event its size in bytes, or `IN_HEAD`; and those that are, in order.
    sizes: list[int]
    atoms: list[Any]
    #: Where the large part of an event lies, by index of the delivery.
    large: dict[int, Large]
    #: Whether a worker that has nearly the memory that a handler may have leaves the rest undone.
    careful: bool
    #: Blocks of events that are no more, and blocks of results that nobody has any
    #: more, with the bytes of these that may wait to be used again.
    gone: list[int]
    freed: tuple[int, list[tuple[int, int]]] | None
    #: Handlers that are not needed any more; to be let go of before the new ones are learnt.
    forgotten: list[int]
    #: New values of the script's globals.
    globals: Sequence[bytes] = ()


def pack_batch(head: BatchHead, events: Sequence[bytes]) -> bytes:
    """Lay out a batch for the pipe."""
    packed = pickle.dumps(tuple(head), pickle.HIGHEST_PROTOCOL)
    return b"".join((_HEAD_SIZE.pack(len(packed)), packed, *events))


def events_at(message: bytes) -> int:
    """Where the events begin in a batch."""
    return _HEAD_SIZE.size + int(_HEAD_SIZE.unpack_from(message)[0])


def unpack_batch(message: bytes | bytearray) -> tuple[BatchHead, memoryview]:
    """Give the head of a batch, and all its events one behind the other."""
    view = memoryview(message)
    start = _HEAD_SIZE.size
    end = start + _HEAD_SIZE.unpack_from(view)[0]
    return BatchHead(*decode(view[start:end])), view[end:]


def pack_end(started_at: float, ended_at: float, frame: bytes) -> bytes:
    """Lay out the end of one delivery."""
    size = len(frame)
    if size >= _ALONE:
        return _pack_long(started_at, ended_at, 0, frame)
    return _ENDED.pack(started_at, ended_at, size) + frame


def pack_success(started_at: float, ended_at: float, value: bytes) -> bytes:
    """Lay out the end of a delivery whose handler returned this, and published nothing."""
    size = len(value)
    if size >= _ALONE:
        return _pack_long(started_at, ended_at, _ALONE, value)
    return _ENDED.pack(started_at, ended_at, size | _ALONE) + value


def pack_definition(number: ClassNumber, definition: bytes) -> bytes:
    """Lay out a class that the following results need."""
    return _pack_note(_DEFINITION, (number, definition))


def pack_place(place: Place) -> bytes:
    """Lay out where the large buffers of the next result are."""
    return _pack_note(_PLACE, tuple(place))


def pack_kept(kept: Sequence[int], dropped: Sequence[int]) -> bytes:
    """Lay out which blocks of events a handler keeps a view of, and which it does not any more."""
    return _pack_note(_KEPT, (kept, dropped))


def _pack_note(what: float, note: object) -> bytes:
    data = pickle.dumps(note, pickle.HIGHEST_PROTOCOL)
    return pack_end(what, 0.0, data)


def _pack_long(started_at: float, ended_at: float, flag: int, frame: bytes) -> bytes:
    """Lay out what is too long for the size that comes with each end."""
    size = _pack_note(_LONG, len(frame))
    return b"".join((size, _ENDED.pack(started_at, ended_at, flag), frame))


def results_head(batch: int, done: int, complete: bool) -> bytes:
    """First part of a results message: the results themselves follow.

    Args:
        batch: its number.
        done: deliveries of it that have ended, with those in this message.
        complete: whether the worker is through with it.
    """
    return _RESULTS.pack(RESULTS_TAG, batch, done, complete)


class Results(NamedTuple):
    """A results message: some deliveries of a batch have ended, or the batch is complete."""

    batch: int
    #: How many deliveries of the batch have ended.
    done: int
    #: Whether the worker is through with the batch.
    complete: bool
    data: memoryview


class Successes(NamedTuple):
    """Handlers that succeeded one after the other and published nothing, as most do."""

    #: When each began and ended; the third number means nothing.
    times: Sequence[tuple[float, float, int]]
    values: Sequence[Any]


def read_successes(results: Results, told: int, received: int) -> tuple[Successes, int]:
    """Read the plain successes that a results message begins with.

    Args:
        results: the message.
        told: deliveries of the batch that ended before those in it.
        received: deliveries whose values are known from elsewhere: these come as None.

    Returns:
        Those, and where in the data the rest begins, which `each_end` reads.
    """
    data, head = results.data, _ENDED.size
    count, total = results.done - told, len(results.data)
    if total == count * head:  # all of them returned None: read in one go
        return Successes(list(_ENDED.iter_unpack(data)), (None,) * count), total
    times: list[tuple[float, float, int]] = []
    values: list[Any] = []
    unpack, position = _ENDED.unpack_from, 0
    while position < total:
        time = unpack(data, position)
        start = end = position + head
        size, value = time[2], None
        if size >= _ALONE:
            end += size - _ALONE
            if told + len(times) >= received:
                try:
                    value = decode(data[start:end])
                except BaseException:  # noqa: BLE001 - the user's code: see who reads the rest
                    break
        elif size or time[0] < 0:
            break
        times.append(time)
        values.append(value)
        position = end
    return Successes(times, values), position


def unpack_results(message: bytes | bytearray) -> Results:
    """Read a results message."""
    _, batch, done, complete = _RESULTS.unpack_from(message)
    return Results(batch, done, complete, memoryview(message)[_RESULTS.size :])


#: Start and end of the handler, and pickled (Ending, value, published or events dropped); empty
#: for a handler that returned None and published nothing. Then whether the value alone is pickled;
#: where the large part of it lies; and which blocks of events are kept from now on, and which no
#: longer.
End = tuple[float, float, memoryview, bool, "Place | None", "Kept | None"]
Kept = tuple[list[int], list[int]]


def each_end(
    data: bytes | memoryview,
    define: Callable[[ClassNumber, bytes], object],
) -> Iterator[End]:
    """Go through results, in order.

    Args:
        data: the results.
        define: gets the classes that the next ones need.
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
