# SPDX-License-Identifier: MIT
"""Records of the intake, laid out in bytes.

A record begins with its kind and the length of the rest. Records that must be written together, or
not at all, go into one frame of the intake, one behind the other.

A delivery is known by one number: its event's number, with its handler's number in the lowest bits.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

#: Number of the lowest bits in a delivery's number that hold its handler's number.
SHIFT = 16
MOST_HANDLERS = (1 << SHIFT) - 1


class RecordKind:
    """The first byte of a record. Plain integers, because looking up an enum member costs 60 ns."""

    HANDLER = 1
    PUBLISHED = 2
    SUCCEEDED = 3
    RESULT = 4
    RETRY = 5
    FAILED = 6
    DISCARDED = 7
    REVIVED = 8
    CANCELLED = 9
    OWNED = 10
    JOB = 11
    TICK = 12


#: Head of every record: its kind, and the length of the rest.
_HEAD = struct.Struct("<BI")
#: Kind, length, event, its parent, time, form of the data, number of handlers, and lengths of the
#: topic, the type and the given id. Then follow the handlers' numbers, those three texts, and the
#: data.
_PUBLISHED = struct.Struct("<BIqqdBHIII")
#: The same fields, and the number of the first handler, which follows them.
_SOLE = struct.Struct("<BIqqdBHIIIH")
#: Fields that show whether it has a single delivery, and which: length, event, number of handlers,
#: length of the given id, number of the first handler.
_GLANCE = struct.Struct("<xIq17xH8xIH")
_SUCCEEDED = struct.Struct("<BIdq")
_SUCCEEDED_HEAD = struct.Struct("<BId")
#: Kind, length, delivery, time, form.
_RESULT = struct.Struct("<BIqdB")
#: Kind, length, delivery, attempts so far, time of the next.
_RETRY = struct.Struct("<BIqId")
#: Kind, length, delivery, attempts, time, quarantined or not.
_FAILED = struct.Struct("<BIqId?")
_DISCARDED = struct.Struct("<BIqd")
_REVIVED = struct.Struct("<BIq")
_HANDLER = struct.Struct("<BIHB")
_CANCELLED = struct.Struct("<BIq")
#: Kind, length, number of jobs. Then follow the jobs' numbers and the deliveries'.
_OWNED = struct.Struct("<BIH")
#: Kind, length, job, step, time; number of jobs around it, length of its id. Then follow the
#: numbers of the jobs around it, its id, and its name.
_JOB = struct.Struct("<BIIBdHI")
#: Kind, length, time, length of the schedule's name. Then follow its name and its times.
_TICK = struct.Struct("<BIdI")

_REST_OF = {
    each: each.size - _HEAD.size
    for each in (
        _PUBLISHED,
        _SOLE,
        _SUCCEEDED,
        _RESULT,
        _RETRY,
        _FAILED,
        _DISCARDED,
        _REVIVED,
        _HANDLER,
        _CANCELLED,
        _OWNED,
        _JOB,
        _TICK,
    )
}
_REST_OF_PUBLISHED = _REST_OF[_PUBLISHED]
_REST_OF_SOLE = _REST_OF[_SOLE]
_SIZE_OF_SOLE = _SOLE.size
_REST_OF_SUCCEEDED = _REST_OF[_SUCCEEDED]
_SIZE_OF_HEAD = _HEAD.size
#: Value of a length field if there is no text.
_NONE = 0xFFFF_FFFF

_SMALL_KINDS = {"io": 0, "cpu": 1}
_KINDS = ("io", "cpu")


class PublishedRecord(NamedTuple):
    """An event was accepted, with a delivery for each of the handlers."""

    event_id: int
    #: 0 for no parent.
    parent_id: int
    published_at: float
    topic: str | None
    type_name: str
    given_id: str | None
    form: int
    data: bytes
    handlers: tuple[int, ...]


class RetryRecord(NamedTuple):
    """An attempt failed, and another follows; with 0 attempts, the first attempt is delayed."""

    number: int
    attempts: int
    due_at: float
    outcomes: bytes


class FailedRecord(NamedTuple):
    """A delivery failed for good."""

    number: int
    attempts: int
    failed_at: float
    quarantined: bool
    outcomes: bytes


class ResultRecord(NamedTuple):
    """A delivery succeeded, with its result."""

    number: int
    finished_at: float
    form: int
    data: bytes


class SucceededRecord(NamedTuple):
    """Deliveries succeeded."""

    finished_at: float
    numbers: tuple[int, ...]


class DiscardedRecord(NamedTuple):
    """A dead letter was cleared, or replayed by an older procbus; or a delivery was cancelled."""

    number: int
    at: float


class RevivedRecord(NamedTuple):
    """A dead letter was replayed: its delivery is unfinished again."""

    number: int


class HandlerRecord(NamedTuple):
    """A handler got its number."""

    number: int
    kind: str
    name: str


class CancelledRecord(NamedTuple):
    """A delivery was cancelled for good. The records that end the delivery follow this one."""

    number: int


class OwnedRecord(NamedTuple):
    """Deliveries of a new event belong to jobs."""

    jobs: tuple[int, ...]
    numbers: tuple[int, ...]


class JobStep:
    """Steps of a job: its block is entered; is left; the job is done; it is cancelled by a call."""

    ENTERED = 0
    LEFT = 1
    DONE = 2
    CANCELLED = 3


class JobRecord(NamedTuple):
    """A job made a step. The last three fields are empty, unless its block is entered."""

    job: int
    step: int
    at: float
    #: Numbers of the outer jobs that this job belongs to, inner ones first.
    above: tuple[int, ...]
    id: str
    name: str


class TickRecord(NamedTuple):
    """A schedule had a tick, or began."""

    name: str
    #: The times of the schedule, as text.
    spec: str
    #: Time of the tick; 0 once the schedule was cancelled.
    at: float


Record = (
    PublishedRecord
    | RetryRecord
    | FailedRecord
    | ResultRecord
    | SucceededRecord
    | DiscardedRecord
    | RevivedRecord
    | HandlerRecord
    | CancelledRecord
    | OwnedRecord
    | JobRecord
    | TickRecord
)


def pack_published(
    event_id: int,
    parent_id: int | None,
    published_at: float,
    topic: str | None,
    type_name: bytes,
    given_id: str | None,
    form: int,
    data: bytes,
    handlers: Sequence[int],
) -> bytes:
    """Lay out the record of an event; `handlers` are the handlers' numbers."""
    topic_data = b"" if topic is None else topic.encode()
    id_data = b"" if given_id is None else given_id.encode()
    count = len(handlers)
    tail = topic_data + type_name + id_data + data
    if count == 1:  # the usual case: packed at once
        return (
            _SOLE.pack(
                RecordKind.PUBLISHED,
                _REST_OF_SOLE + len(tail),
                event_id,
                parent_id or 0,
                published_at,
                form,
                1,
                _NONE if topic is None else len(topic_data),
                len(type_name),
                _NONE if given_id is None else len(id_data),
                handlers[0],
            )
            + tail
        )
    tail = struct.pack(f"<{count}H", *handlers) + tail
    return (
        _PUBLISHED.pack(
            RecordKind.PUBLISHED,
            _REST_OF_PUBLISHED + len(tail),
            event_id,
            parent_id or 0,
            published_at,
            form,
            count,
            _NONE if topic is None else len(topic_data),
            len(type_name),
            _NONE if given_id is None else len(id_data),
        )
        + tail
    )


def pack_succeeded(numbers: Sequence[int], finished_at: float) -> bytes:
    """Lay out the record of deliveries that succeeded, without their results."""
    if len(numbers) == 1:
        return _SUCCEEDED.pack(RecordKind.SUCCEEDED, _REST_OF_SUCCEEDED, finished_at, numbers[0])
    count = len(numbers)
    head = _SUCCEEDED_HEAD.pack(RecordKind.SUCCEEDED, 8 + 8 * count, finished_at)
    return head + struct.pack(f"<{count}q", *numbers)


def pack_result(number: int, finished_at: float, form: int, data: bytes) -> bytes:
    """Lay out the record of one delivery that succeeded, with its result."""
    rest = _REST_OF[_RESULT] + len(data)
    return _RESULT.pack(RecordKind.RESULT, rest, number, finished_at, form) + data


def pack_retry(number: int, attempts: int, due_at: float, outcomes: bytes) -> bytes:
    """Lay out the record of a failed attempt that another follows."""
    rest = _REST_OF[_RETRY] + len(outcomes)
    return _RETRY.pack(RecordKind.RETRY, rest, number, attempts, due_at) + outcomes


def pack_failed(
    number: int, attempts: int, failed_at: float, quarantined: bool, outcomes: bytes
) -> bytes:
    """Lay out the record of a delivery that failed for good."""
    rest = _REST_OF[_FAILED] + len(outcomes)
    return (
        _FAILED.pack(RecordKind.FAILED, rest, number, attempts, failed_at, quarantined) + outcomes
    )


def pack_discarded(number: int, at: float) -> bytes:
    """Lay out the record that a dead letter was cleared."""
    return _DISCARDED.pack(RecordKind.DISCARDED, _REST_OF[_DISCARDED], number, at)


def pack_revived(number: int) -> bytes:
    """Lay out the record that a dead letter was replayed."""
    return _REVIVED.pack(RecordKind.REVIVED, _REST_OF[_REVIVED], number)


def pack_handler(number: int, kind: str, name: str) -> bytes:
    """Lay out the record of a handler that got its number."""
    data = name.encode()
    rest = _REST_OF[_HANDLER] + len(data)
    return _HANDLER.pack(RecordKind.HANDLER, rest, number, _SMALL_KINDS[kind]) + data


def pack_cancelled(number: int) -> bytes:
    """Lay out the record that a delivery was cancelled for good."""
    return _CANCELLED.pack(RecordKind.CANCELLED, _REST_OF[_CANCELLED], number)


def pack_owned(jobs: Sequence[int], numbers: Sequence[int]) -> bytes:
    """Lay out the record that new deliveries belong to jobs."""
    tail = struct.pack(f"<{len(jobs)}I{len(numbers)}q", *jobs, *numbers)
    return _OWNED.pack(RecordKind.OWNED, _REST_OF[_OWNED] + len(tail), len(jobs)) + tail


def pack_job(
    job: int, step: int, at: float, above: Sequence[int] = (), id: str = "", name: str = ""
) -> bytes:
    """Lay out the record of a step of a job."""
    id_data = id.encode()
    tail = struct.pack(f"<{len(above)}I", *above) + id_data + name.encode()
    rest = _REST_OF[_JOB] + len(tail)
    return _JOB.pack(RecordKind.JOB, rest, job, step, at, len(above), len(id_data)) + tail


def pack_tick(name: str, spec: str, at: float) -> bytes:
    """Lay out the record of a schedule's tick."""
    name_data, spec_data = name.encode(), spec.encode()
    rest = _REST_OF[_TICK] + len(name_data) + len(spec_data)
    return _TICK.pack(RecordKind.TICK, rest, at, len(name_data)) + name_data + spec_data


def succeeded_in(frame: bytes) -> tuple[int, ...]:
    """The deliveries of a frame that only records their success; empty for other frames."""
    if frame[0] != RecordKind.SUCCEEDED:
        return ()
    _, rest = _HEAD.unpack_from(frame)
    if len(frame) != _HEAD.size + rest:
        return ()
    return struct.unpack_from(f"<{(rest - 8) // 8}q", frame, _SUCCEEDED_HEAD.size)


def sole_delivery_in(frame: bytes) -> int:
    """The delivery of a frame with one event, one delivery and no given id; 0 for other frames."""
    size = len(frame)
    if frame[0] != RecordKind.PUBLISHED or size < _SIZE_OF_SOLE:
        return 0
    rest, event_id, count, given, handler = _GLANCE.unpack_from(frame)
    if count != 1 or given != _NONE or size != _SIZE_OF_HEAD + rest:
        return 0
    return int(event_id << SHIFT | handler)


def records_in(frame: bytes | memoryview) -> Iterator[Record]:
    """Read the records of one frame."""
    at, end = 0, len(frame)
    while at < end:
        kind, rest = _HEAD.unpack_from(frame, at)
        stop = at + _HEAD.size + rest
        if kind == RecordKind.PUBLISHED:
            yield _published(frame, at, stop)
        elif kind == RecordKind.SUCCEEDED:
            _, _, finished_at = _SUCCEEDED_HEAD.unpack_from(frame, at)
            start = at + _SUCCEEDED_HEAD.size
            numbers = struct.unpack_from(f"<{(stop - start) // 8}q", frame, start)
            yield SucceededRecord(finished_at, numbers)
        elif kind == RecordKind.RESULT:
            _, _, number, finished_at, form = _RESULT.unpack_from(frame, at)
            yield ResultRecord(number, finished_at, form, bytes(frame[at + _RESULT.size : stop]))
        elif kind == RecordKind.RETRY:
            _, _, number, attempts, due_at = _RETRY.unpack_from(frame, at)
            yield RetryRecord(number, attempts, due_at, bytes(frame[at + _RETRY.size : stop]))
        elif kind == RecordKind.FAILED:
            _, _, number, attempts, failed_at, quarantined = _FAILED.unpack_from(frame, at)
            outcomes = bytes(frame[at + _FAILED.size : stop])
            yield FailedRecord(number, attempts, failed_at, quarantined, outcomes)
        elif kind == RecordKind.DISCARDED:
            _, _, number, when = _DISCARDED.unpack_from(frame, at)
            yield DiscardedRecord(number, when)
        elif kind == RecordKind.REVIVED:
            _, _, number = _REVIVED.unpack_from(frame, at)
            yield RevivedRecord(number)
        elif kind == RecordKind.HANDLER:
            _, _, number, small = _HANDLER.unpack_from(frame, at)
            name = _text(frame[at + _HANDLER.size : stop])
            yield HandlerRecord(number, _KINDS[small], name)
        elif kind == RecordKind.CANCELLED:
            _, _, number = _CANCELLED.unpack_from(frame, at)
            yield CancelledRecord(number)
        elif kind == RecordKind.OWNED:
            yield _owned(frame, at, stop)
        elif kind == RecordKind.JOB:
            yield _job(frame, at, stop)
        elif kind == RecordKind.TICK:
            _, _, when, size = _TICK.unpack_from(frame, at)
            mid = at + _TICK.size + size
            yield TickRecord(_text(frame[mid - size : mid]), _text(frame[mid:stop]), when)
        else:
            raise ValueError(f"a record of unknown kind {kind}")
        at = stop


def _published(frame: bytes | memoryview, at: int, stop: int) -> PublishedRecord:
    (_, _, event_id, parent_id, published_at, form, count, topic, type_size, given) = (
        _PUBLISHED.unpack_from(frame, at)
    )
    at += _PUBLISHED.size
    handlers = struct.unpack_from(f"<{count}H", frame, at)
    at += 2 * count
    topic_text = given_text = None
    if topic != _NONE:
        topic_text = _text(frame[at : at + topic])
        at += topic
    type_text = _text(frame[at : at + type_size])
    at += type_size
    if given != _NONE:
        given_text = _text(frame[at : at + given])
        at += given
    return PublishedRecord(
        event_id,
        parent_id,
        published_at,
        topic_text,
        type_text,
        given_text,
        form,
        bytes(frame[at:stop]),
        handlers,
    )


def _owned(frame: bytes | memoryview, at: int, stop: int) -> OwnedRecord:
    _, _, count = _OWNED.unpack_from(frame, at)
    at += _OWNED.size
    jobs = struct.unpack_from(f"<{count}I", frame, at)
    at += 4 * count
    return OwnedRecord(jobs, struct.unpack_from(f"<{(stop - at) // 8}q", frame, at))


def _job(frame: bytes | memoryview, at: int, stop: int) -> JobRecord:
    _, _, job, step, when, count, id_size = _JOB.unpack_from(frame, at)
    at += _JOB.size
    above = struct.unpack_from(f"<{count}I", frame, at)
    at += 4 * count
    id = _text(frame[at : at + id_size])
    return JobRecord(job, step, when, above, id, _text(frame[at + id_size : stop]))


def _text(data: bytes | memoryview) -> str:
    return str(data, "utf-8")
