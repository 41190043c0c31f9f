"""Messages in a stream of bytes: however it is cut, they come out whole and in order."""

import hypothesis.strategies as st
from hypothesis import given

from procbus.pool.channel import SIZE, Pieces


@given(st.lists(st.binary(max_size=40), max_size=8), st.lists(st.integers(1, 30), min_size=1))
def test_however_the_stream_is_cut_the_messages_come_out_in_order(
    messages: list[bytes], sizes: list[int]
) -> None:
    stream = b"".join(SIZE.pack(len(message)) + message for message in messages)
    pieces, out = Pieces(), []
    position = at = 0
    while position < len(stream):
        size = sizes[at % len(sizes)]
        out += pieces.take_in(stream[position : position + size])
        position, at = position + size, at + 1

    assert out == messages


def test_a_message_is_given_with_its_last_byte() -> None:
    pieces = Pieces()

    assert pieces.take_in(SIZE.pack(3) + b"ab") == []
    assert pieces.take_in(b"c" + SIZE.pack(0) + SIZE.pack(2)) == [b"abc", b""]
    assert pieces.take_in(b"de") == [b"de"]
