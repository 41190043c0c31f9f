# SPDX-License-Identifier: MIT
"""Reports and records share the sending end of a worker, and no record waits for long."""

import socket
import threading
from collections.abc import Iterator

import pytest

from procbus.pool.child.outbox import Outlet
from tests.parts import BOUND_S

Ends = tuple[socket.socket, socket.socket]


@pytest.fixture
def ends() -> Iterator[Ends]:
    here, there = socket.socketpair()
    with here, there:
        yield here, there


#: In these tests a full pipe stays full.
NO_PATIENCE_S = 0.01


def fill(end: socket.socket) -> None:
    end.setblocking(False)
    try:
        while True:
            end.send(bytes(4096))
    except BlockingIOError:
        end.setblocking(True)


def drain(end: socket.socket) -> None:
    end.setblocking(False)
    try:
        while end.recv(1 << 16):
            pass
    except BlockingIOError:
        end.setblocking(True)


def test_reports_and_records_go_out_in_order(ends: Ends) -> None:
    written: list[bytes] = []
    out = Outlet(lambda *parts: written.append(b"".join(parts)), ends[0].fileno())
    out.send(b"report ", b"1")
    assert out.post(b"record ", b"1")
    out.send(b"report 2")
    assert written == [b"report 1", b"record 1", b"report 2"]


def test_record_waits_until_the_parent_reads(
    ends: Ends,
) -> None:
    written: list[bytes] = []
    out = Outlet(
        lambda *parts: written.append(b"".join(parts)),
        ends[0].fileno(),
        record_room_s=NO_PATIENCE_S,
    )
    fill(ends[0])
    assert [out.post(b"lost"), out.post(b"lost too")] == [False, False]
    assert written == []
    drain(ends[1])
    assert out.post(b"kept")
    assert written == [b"kept"]


def test_a_record_does_not_wait_for_a_report_that_waits(ends: Ends) -> None:
    begun, go_on = threading.Event(), threading.Event()
    written: list[bytes] = []

    def write(*parts: bytes | memoryview) -> None:
        begun.set()
        go_on.wait(BOUND_S)
        written.append(b"".join(parts))

    out = Outlet(write, ends[0].fileno(), record_room_s=NO_PATIENCE_S)
    reporting = threading.Thread(target=out.send, args=(b"report",))
    reporting.start()
    try:
        assert begun.wait(BOUND_S)
        assert not out.post(b"record")
    finally:
        go_on.set()
        reporting.join(BOUND_S)
    assert out.post(b"next record")
    assert written == [b"report", b"next record"]


def test_a_record_made_in_the_middle_of_a_message_comes_after_it(ends: Ends) -> None:
    """A finalizer that the garbage collector runs just then may log, in the same thread."""
    written: list[bytes] = []

    def write(*parts: bytes | memoryview) -> None:
        if parts == (b"report",):
            assert out.post(b"from a finalizer")
        written.append(b"".join(parts))

    out = Outlet(write, ends[0].fileno())
    out.send(b"report")
    assert written == [b"report", b"from a finalizer"]


def test_once_the_parent_is_gone_records_are_dropped_in_silence(ends: Ends) -> None:
    writes = []

    def write(*parts: bytes | memoryview) -> None:
        writes.append(parts)
        raise BrokenPipeError

    out = Outlet(write, ends[0].fileno())
    assert out.post(b"1")
    assert out.post(b"2")
    assert len(writes) == 1
    with pytest.raises(BrokenPipeError):
        out.send(b"report")


def test_many_threads_may_post_at_once(ends: Ends) -> None:
    writing = threading.Lock()
    written: list[bytes] = []

    def write(*parts: bytes | memoryview) -> None:
        assert writing.acquire(blocking=False), "two threads write at the same time"
        written.append(b"".join(parts))
        writing.release()

    out = Outlet(write, ends[0].fileno())
    refused: list[bytes] = []

    def post_all() -> None:
        refused.extend(b"r" for _ in range(500) if not out.post(b"r"))

    threads = [threading.Thread(target=post_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(BOUND_S)
    assert len(written) == 2_000
    assert refused == []
