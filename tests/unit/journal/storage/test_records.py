# SPDX-License-Identifier: MIT
"""Records of the intake: reading gives the records that were laid out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procbus.journal.storage.changes import Changes
from procbus.journal.storage.records import (
    MOST_HANDLERS,
    SHIFT,
    DiscardedRecord,
    FailedRecord,
    HandlerRecord,
    PublishedRecord,
    ResultRecord,
    RetryRecord,
    RevivedRecord,
    SucceededRecord,
    pack_discarded,
    pack_failed,
    pack_handler,
    pack_published,
    pack_result,
    pack_retry,
    pack_revived,
    pack_succeeded,
    records_in,
    sole_delivery_in,
    succeeded_in,
)

ids = st.integers(1, 2**46)
numbers = st.integers(1, 2**62)
times = st.floats(0, 2e9)
handlers = st.lists(st.integers(1, MOST_HANDLERS), max_size=4, unique=True).map(tuple)
texts = st.none() | st.text()

published = st.builds(
    PublishedRecord,
    ids,
    st.integers(0, 2**46),
    times,
    texts,
    st.text(),
    texts,
    st.integers(0, 2),
    st.binary(),
    handlers,
)
others = (
    st.builds(SucceededRecord, times, st.lists(numbers, min_size=1, max_size=5).map(tuple))
    | st.builds(ResultRecord, numbers, times, st.integers(0, 2), st.binary())
    | st.builds(RetryRecord, numbers, st.integers(0, 99), times, st.binary())
    | st.builds(FailedRecord, numbers, st.integers(0, 99), times, st.booleans(), st.binary())
    | st.builds(DiscardedRecord, numbers, times)
    | st.builds(RevivedRecord, numbers)
    | st.builds(
        HandlerRecord, st.integers(1, MOST_HANDLERS), st.sampled_from(["io", "cpu"]), st.text()
    )
)


def pack(record: object) -> bytes:
    match record:
        case PublishedRecord(event, parent, at, topic, type_name, given_id, form, data, to):
            name = type_name.encode()
            return pack_published(event, parent or None, at, topic, name, given_id, form, data, to)
        case SucceededRecord(at, deliveries):
            return pack_succeeded(deliveries, at)
        case ResultRecord():
            return pack_result(*record)
        case RetryRecord():
            return pack_retry(*record)
        case FailedRecord():
            return pack_failed(*record)
        case DiscardedRecord():
            return pack_discarded(*record)
        case RevivedRecord():
            return pack_revived(*record)
        case HandlerRecord():
            return pack_handler(*record)
    raise AssertionError(record)


@given(st.lists(published | others, max_size=5))
def test_records_come_back_as_they_were(some):
    assert list(records_in(b"".join(map(pack, some)))) == some


def test_unknown_record_is_not_skipped():
    with pytest.raises(ValueError, match="unknown kind 99"):
        list(records_in(b"\x63\x00\x00\x00\x00"))


@given(published, others)
def test_only_a_frame_with_one_delivery_and_nothing_else_is_passed_over(event, other):
    frame = pack(event)
    sole = len(event.handlers) == 1 and event.given_id is None
    expected = event.event_id << SHIFT | event.handlers[0] if sole else 0
    assert sole_delivery_in(frame) == expected
    assert sole_delivery_in(frame + pack(other)) == 0
    assert sole_delivery_in(pack(other)) == 0
    assert succeeded_in(frame) == ()
    if isinstance(other, SucceededRecord):
        assert succeeded_in(pack(other)) == other.numbers
        assert succeeded_in(pack(other) + frame) == ()


def of(event_id: int, handler: int = 1) -> int:
    return event_id << SHIFT | handler


def event(event_id: int, *to: int, given_id: str | None = None) -> bytes:
    return pack_published(event_id, None, 1.0, None, b"t", given_id, 1, b"data", to or (1,))


@st.composite
def histories(draw):
    """Possible fates of a few events, in a possible order."""
    frames: list[bytes] = []
    open_: list[int] = []
    for event_id in range(1, draw(st.integers(1, 12))):
        given_id = draw(st.none() | st.just(f"id {event_id}"))
        to = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3, unique=True))
        frames.append(event(event_id, *to, given_id=given_id))
        open_ += [of(event_id, handler) for handler in to]
        for number in draw(st.permutations(open_))[: draw(st.integers(0, 3))]:
            how = draw(st.sampled_from(["success", "retry", "failure"]))
            if how == "success":
                frames.append(pack_succeeded([number], 2.0))
            elif how == "retry":
                frames.append(pack_retry(number, 1, 3.0, b"why"))
            else:
                frames.append(pack_failed(number, 1, 3.0, False, b"why"))
            if how != "retry":
                open_.remove(number)
    return frames


@given(histories(), st.booleans())
def test_quick_skipping_changes_no_result(frames, keep_all):
    quick, slow = Changes(keep_all), Changes(keep_all)
    quick.add_frames(frames)
    for frame in frames:
        for record in records_in(frame):
            slow.add(record)
    for name in ("events", "ids", "pending", "dead", "done", "last_id"):
        assert getattr(quick, name) == getattr(slow, name), name


def test_delivery_finished_at_once_needs_no_row():
    changes = Changes(keep_all=False)
    changes.add_frames([event(1), event(2, 1, 2), pack_succeeded([of(1), of(2, 1)], 2.0)])
    assert list(changes.events) == [2]
    assert list(changes.pending) == [of(2, 2)]
    assert changes.last_id == 2


def test_an_id_is_kept_with_how_it_ended():
    changes = Changes(keep_all=False)
    changes.add_frames([event(1, given_id="one"), pack_succeeded([of(1)], 2.0)])
    assert changes.ids == [("one", 1)]
    assert list(changes.done) == [of(1)]
    assert not changes.events
