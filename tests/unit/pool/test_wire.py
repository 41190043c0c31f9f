"""Messages on the pipe come out as they went in."""

import struct
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from procbus.codec.encoder import decode
from procbus.codec.encoder import encode_atom as encode
from procbus.pool import wire
from procbus.pool.memory.shared_file import Form, Place
from procbus.pool.wire import (
    GREATEST_INT,
    IN_HEAD,
    IS_FLOAT,
    IS_INT,
    LEAST_INT,
    STOP,
    BatchHead,
    CommonHead,
    Large,
    Tag,
    each_end,
    pack_bare,
    pack_batch,
    pack_definition,
    pack_end,
    pack_float,
    pack_int,
    pack_kept,
    pack_place,
    pack_success,
    read_successes,
    results_head,
    unpack_batch,
    unpack_results,
)

seconds = st.floats(min_value=0.0, allow_nan=False, allow_infinity=False)


@given(
    number=st.integers(1, 2**62),
    events=st.lists(st.binary(max_size=50), max_size=10),
    classes=st.lists(st.tuples(st.tuples(st.integers(0), st.integers(0)), st.binary()), max_size=3),
    handlers=st.lists(
        st.tuples(st.integers(0), st.text(), st.binary(), st.tuples(st.none(), st.none())),
        max_size=3,
    ),
    topic=st.none() | st.text(),
)
def test_a_batch_comes_out_as_it_went_in(number, events, classes, handlers, topic) -> None:
    kinds: list[CommonHead] = [(1, None, topic, 1, None), (2, 77, topic, 3, (5, b"variables"))]
    ids, which = list(range(len(events))), [n % 2 for n in range(len(events))]
    sizes, atoms = [len(event) for event in events], ["atom", 1]
    large: dict[int, Large] = {0: ((1, 2), True)}
    deliveries = kinds, which, ids, sizes, atoms, large
    sent = BatchHead(
        *(number, classes, handlers, *deliveries, True, [7], (10, [(8, 9)]), [11]),
        forms=[IN_HEAD, int(Form.PICKLED)],
        shapes=[(b"class", ("name",))],
        parts=[((4096, True),)],
    )
    message = pack_batch(sent, events)
    assert message != STOP
    head, data = unpack_batch(message)
    assert head == sent
    assert bytes(data) == b"".join(events)


@given(
    number=st.integers(1, 2**62),
    complete=st.booleans(),
    ends=st.lists(
        st.one_of(
            st.tuples(seconds, seconds, st.binary(max_size=50)),
            st.tuples(st.tuples(st.integers(0), st.integers(0)), st.binary(max_size=50)),
        ),
        max_size=10,
    ),
)
def test_results_come_out_as_they_went_in(number, complete, ends) -> None:
    data = b"".join(pack_end(*end) if len(end) == 3 else pack_definition(*end) for end in ends)
    message = results_head(number, 3, complete) + data
    assert message[:1] == Tag.RESULTS.value
    results = unpack_results(message)
    assert (results.batch, results.done, results.complete) == (number, 3, complete)

    seen: list[object] = []
    for started_at, ended_at, frame, alone, place, kept in each_end(
        results.data, lambda cls, definition: seen.append((cls, definition))
    ):
        seen.append((started_at, ended_at, bytes(frame)))
        assert (alone, place, kept) == (False, None, None)
    assert seen == ends


def end_of(began: float, ended: float, value: Any) -> bytes:
    """Lay out a success as the worker does."""
    if value is None:
        return pack_bare(began, ended, 0)
    if type(value) is int and LEAST_INT <= value <= GREATEST_INT:
        return pack_int(began, ended, IS_INT, value)
    if type(value) is float:
        return pack_float(began, ended, IS_FLOAT, value)
    return pack_success(began, ended, encode(value))


ints = st.integers(LEAST_INT, GREATEST_INT)
floats = st.floats(allow_nan=False)
anything = st.none() | st.booleans() | st.integers() | floats | st.text()


@given(
    ends=st.sampled_from((ints, floats, ints | floats, anything)).flatmap(
        lambda values: st.lists(st.tuples(seconds, seconds, values))
    ),
    told=st.integers(0, 5),
)
def test_plain_successes_are_read_at_once(ends, told: int) -> None:
    data = b"".join(end_of(*end) for end in ends)
    results = unpack_results(results_head(1, told + len(ends), True) + data)
    (times, values), position = read_successes(results, told, told)
    assert [(began, ended) for began, ended, _ in times] == [end[:2] for end in ends]
    assert list(values) == [end[2] for end in ends]
    assert [type(value) for value in values] == [type(end[2]) for end in ends]
    assert position == len(data)
    seen = list(each_end(data, lambda *_: None))  # from a logbook they are read so
    assert [decode(end[2]) if end[3] else None for end in seen] == list(values)


@pytest.mark.parametrize(
    "data",
    [
        pack_end(1.0, 2.0, b"frame"),
        pack_definition((1, 2), b"class") + pack_end(1.0, 2.0, b""),
        pack_kept([3], []) + pack_success(1.0, 2.0, b"N."),
        pack_end(1.0, 2.0, b"x" * len(pack_end(1.0, 2.0, b""))),  # as long as two that are bare
        pack_success(1.0, 2.0, b"it cannot be loaded"),
        pack_end(1.0, 2.0, b"x" * 8),  # as long as a number
    ],
)
def test_other_end_stops_the_row_of_plain_successes(data: bytes) -> None:
    first = pack_success(1.0, 2.0, encode("one"))
    results = unpack_results(results_head(1, 2, True) + first + data)
    (times, values), position = read_successes(results, 0, 0)
    assert (len(times), values, position) == (1, ["one"], len(first))


@pytest.mark.parametrize("number", [7, 7.5])
def test_number_that_follows_other_ends_or_precedes_them_is_read(number: float) -> None:
    known = pack_kept([3], []) + end_of(1.0, 2.0, number)
    (end,) = each_end(known, lambda *_: None)
    assert (decode(end[2]), end[3], end[5]) == (number, True, ([3], []))

    data = end_of(1.0, 2.0, number) + pack_success(3.0, 4.0, b"x" * 8)
    results = unpack_results(results_head(1, 2, True) + data)
    (times, values), position = read_successes(results, 0, 0)
    assert (times[0][:2], values, position) == ((1.0, 2.0), [number], 28)


def test_values_that_are_known_from_elsewhere_are_not_loaded_again() -> None:
    data = pack_success(1.0, 2.0, b"it cannot be loaded") + pack_success(3.0, 4.0, encode("two"))
    results = unpack_results(results_head(1, 3, True) + data)
    (times, values), _ = read_successes(results, 1, 2)
    assert (len(times), values) == (2, [None, "two"])


def test_the_tags_are_distinguished_by_one_byte_and_stop_is_none_of_them() -> None:
    assert len({tag.value for tag in Tag}) == len(Tag)
    assert {len(tag.value) for tag in Tag} == {1}
    assert STOP not in {tag.value for tag in Tag}


@pytest.mark.parametrize("cut", [1, 10])
def test_results_that_were_cut_off_are_an_error_and_not_read_as_fewer(cut: int) -> None:
    whole = pack_end(1.0, 2.0, b"frame")
    if cut > len(b"frame"):  # in the middle of the head
        with pytest.raises(Exception, match="requires a buffer"):
            list(each_end(whole[: len(whole) - cut], lambda *_: None))
    else:
        (end,) = each_end(whole[:-cut], lambda *_: None)
        assert bytes(end[2]) != b"frame"


def test_note_ahead_of_an_end_belongs_to_that_end_alone() -> None:
    place = Place(4096, 8192, ((0, 100), (128, 7)), 1)
    data = (
        pack_place(place) + pack_kept([3], [5]) + pack_end(1.0, 2.0, b"a") + pack_end(3.0, 4.0, b"")
    )
    first, second = each_end(data, lambda *_: None)
    assert (first[0], bytes(first[2]), first[4], first[5]) == (1.0, b"a", place, ([3], [5]))
    assert (second[0], second[4], second[5]) == (3.0, None, None)


#: As if the size field of an end had fewer bits, because a longer frame is too large for a test.
SHORTEST_LONG = 1 << 7


@given(
    ends=st.lists(
        st.tuples(seconds, seconds, st.integers(0, 3 * SHORTEST_LONG), st.booleans()), max_size=8
    ),
    note=st.integers(0, 3 * SHORTEST_LONG),
)
@example(ends=[(1.0, 2.0, SHORTEST_LONG - 1, True), (1.0, 2.0, 5, True)], note=SHORTEST_LONG)
@example(ends=[(1.0, 2.0, SHORTEST_LONG, True), (1.0, 2.0, 5, True)], note=SHORTEST_LONG - 1)
@example(ends=[(1.0, 2.0, 2 * SHORTEST_LONG, False), (1.0, 2.0, 0, False)], note=0)
def test_frame_longer_than_its_size_field_comes_out_unchanged(ends, note: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire, "_ALONE", SHORTEST_LONG)
        data = pack_definition((1, 2), b"d" * note)
        for began, ended, size, alone in ends:
            data += (pack_success if alone else pack_end)(began, ended, b"x" * size)
        defined: list[object] = []
        found = [
            (began, ended, len(frame), alone)
            for began, ended, frame, alone, *_ in each_end(data, lambda *each: defined.append(each))
        ]
        assert defined == [((1, 2), b"d" * note)]
        assert found == ends


@given(values=st.lists(st.none() | st.text(max_size=300), max_size=8))
def test_a_long_value_ends_the_row_of_plain_successes_and_the_rest_follows(values) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire, "_ALONE", SHORTEST_LONG)
        data = b"".join(
            pack_end(1.0, 2.0, b"") if value is None else pack_success(1.0, 2.0, encode(value))
            for value in values
        )
        results = unpack_results(results_head(1, len(values), True) + data)
        (times, read), position = read_successes(results, 0, 0)
        rest = [
            decode(frame) if alone else None
            for _, _, frame, alone, *_ in each_end(data[position:], lambda *_: None)
        ]
        assert [*read, *rest] == values
        assert len(times) == len(read)


@pytest.mark.parametrize("number", [0, 1, 2**63 - 1])
@pytest.mark.parametrize("done", [0, 1, 2**32 - 1])
def test_numbers_of_a_results_message_at_their_limits(number: int, done: int) -> None:
    results = unpack_results(results_head(number, done, False))
    assert (results.batch, results.done) == (number, done)


@pytest.mark.parametrize(("number", "done"), [(2**63, 1), (-(2**63) - 1, 1), (1, 2**32), (1, -1)])
def test_numbers_beyond_their_limits_are_an_error_and_not_others(number: int, done: int) -> None:
    with pytest.raises(struct.error):
        results_head(number, done, False)


@pytest.mark.parametrize("size", [0, 1, 2**16])
def test_the_head_of_a_batch_may_have_any_size(size: int) -> None:
    head = BatchHead(1, [((0, 1), bytes(size))], [], [], [], [], [], [], {}, False, [], None, [])
    found, events = unpack_batch(pack_batch(head, [b"event"]))
    assert found == head
    assert bytes(events) == b"event"
