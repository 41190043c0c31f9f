"""Whole messages over one end of a pipe."""

import os
import threading
from collections.abc import Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procbus.pool.channel import Channel

Ends = tuple[Connection, Connection]


@pytest.fixture
def ends() -> Iterator[Ends]:
    here, there = Pipe()
    with here, there:
        yield here, there


@given(
    st.lists(
        st.lists(st.binary(max_size=40) | st.integers(0, 200_000).map(bytes), max_size=3),
        max_size=8,
    )
)
def test_messages_come_out_whole_and_in_order(messages: list[list[bytes]]) -> None:
    here, there = Pipe()
    with here, there:
        sender = Channel(here)

        def send_all() -> None:
            for parts in messages:
                sender.send(*parts)

        thread = threading.Thread(target=send_all)
        thread.start()
        receiver = Channel(there)
        received = [bytes(receiver.receive() or b"") for _ in messages]
        thread.join(60)
    assert received == [b"".join(parts) for parts in messages]


def test_several_messages_that_arrive_together_are_distinguished(ends: Ends) -> None:
    sender, receiver = map(Channel, ends)
    for message in (b"one", b"", b"three"):
        sender.send(message)
    assert [receiver.receive() for _ in range(3)] == [b"one", b"", b"three"]


def test_a_message_that_arrives_byte_by_byte_is_put_together(ends: Ends) -> None:
    here, there = ends
    whole, size = b"x" * 20, b"\x14" + bytes(7)

    def trickle() -> None:
        for byte in size + whole:
            os.write(here.fileno(), bytes([byte]))

    thread = threading.Thread(target=trickle)
    thread.start()
    assert Channel(there).receive() == whole
    thread.join(60)


def test_messages_sent_before_the_other_end_closed_are_still_received(ends: Ends) -> None:
    here, there = ends
    Channel(here).send(b"last words")
    here.close()
    receiver = Channel(there)
    assert receiver.receive() == b"last words"
    with pytest.raises(EOFError):
        receiver.receive()


@pytest.mark.parametrize(
    "sent", [b"\x10", b"\x10" + bytes(7) + b"half", b"\x00\x00\x20" + bytes(5)]
)
def test_the_end_in_the_middle_of_a_message_is_the_end(ends: Ends, sent: bytes) -> None:
    here, there = ends
    os.write(here.fileno(), sent)
    here.close()
    with pytest.raises(EOFError):
        Channel(there).receive()


def test_a_receiver_that_stays_awake_gets_the_same(ends: Ends) -> None:
    here, there = ends
    sender, receiver = Channel(here), Channel(there, stay_awake=True)
    answers = Channel(here)

    def echo() -> None:
        for _ in range(50):
            receiver_message = receiver.receive()
            assert receiver_message is not None
            Channel(there).send(bytes(receiver_message))

    thread = threading.Thread(target=echo)
    thread.start()
    got = []
    for number in range(50):
        sender.send(str(number).encode())
        got.append(answers.receive())
    thread.join(60)
    assert got == [str(number).encode() for number in range(50)]


def test_a_receiver_that_stays_awake_sees_the_end(ends: Ends) -> None:
    here, there = ends
    receiver = Channel(there, stay_awake=True)
    Channel(here).send(b"one")
    Channel(here).send(b"two")
    assert [receiver.receive(), receiver.receive()] == [b"one", b"two"]
    here.close()
    with pytest.raises(EOFError):
        receiver.receive()


def test_a_receiver_without_patience_gives_up_and_loses_nothing(ends: Ends) -> None:
    here, there = ends
    receiver = Channel(there)
    assert receiver.receive(0.0) is None
    Channel(here).send(b"late")
    assert receiver.receive(10.0) == b"late"


def test_sending_to_a_closed_end_is_an_error(ends: Ends) -> None:
    here, there = ends
    there.close()
    with pytest.raises(OSError, match="Broken pipe"):
        Channel(here).send(b"to nobody")
