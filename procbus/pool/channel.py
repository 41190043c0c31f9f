# SPDX-License-Identifier: MIT
"""Whole messages over one end of a pipe, with one system call for each small message.

`multiprocessing.Connection` makes two system calls to read a message, and two to write a message of
over 16 KB. The additional calls cost 12 of the 100 us from publishing to a result. This module is
for POSIX only; on Windows the methods of the connection would have to do.
"""

from __future__ import annotations

import os
import select
import socket
import struct
from multiprocessing.connection import Connection
from time import monotonic

_SIZE = struct.Struct("<Q")
#: Size of one read, in bytes. A larger message is read straight to its final place.
_CHUNK = 1 << 16
#: Maximum time for looking for the next message before going to sleep, in seconds.
_AWAKE_S = 200e-6


class Channel:
    """One end of a pipe. One thread may send and another receive at the same time.

    Args:
        pipe: a duplex end of `multiprocessing.Pipe()`; the caller closes it.
        stay_awake: whether the receiver looks for the next message for a moment before it sleeps.
            It does so only while messages arrive quickly one after the other. Leave this off in a
            process whose other threads have work to do.
    """

    def __init__(self, pipe: Connection, *, stay_awake: bool = False) -> None:
        self._pipe = pipe  # not used, but kept so that it stays open
        self._fd = pipe.fileno()
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)
        #: Duration of the last wait for a message, in seconds; None for a receiver that always
        #: sleeps.
        self._last_wait_s = 1.0 if stay_awake else None
        #: Bytes read beyond the last message. They belong to the receiver.
        self._read = b""

    def buffer_size(self) -> int:
        """Number of bytes that the pipe holds while the other side does not read."""
        with socket.socket(fileno=os.dup(self._fd)) as end:
            return end.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)

    def leave(self) -> None:
        """Release the pipe in a forked child, because it belongs to the parent. Takes no lock.

        Two processes that write to one pipe would tear each other's messages.
        """
        nothing = os.open(os.devnull, os.O_RDWR)
        try:
            os.dup2(nothing, self._fd, inheritable=False)
        finally:
            os.close(nothing)

    def send(self, *parts: bytes | memoryview) -> None:
        """Send one message, given in parts. Blocks while the pipe is full.

        Raises:
            OSError: the other end is closed.
        """
        size = sum(map(len, parts))
        head = _SIZE.pack(size)
        if size < _CHUNK:
            self._write(b"".join((head, *parts)))
        else:
            for part in (head, *parts):
                self._write(part)

    def _write(self, data: bytes | memoryview) -> None:
        written = os.write(self._fd, data)
        while written < len(data):  # interrupted by a signal, or more than one call takes
            written += os.write(self._fd, memoryview(data)[written:])

    def receive(self, timeout: float | None = None) -> bytes | bytearray | None:
        """Wait for the next message; return None if none has begun within `timeout` seconds.

        Raises:
            EOFError: the other end is closed, and nothing is left to read.
            OSError: the pipe is broken.
        """
        data = self._read
        while True:
            if len(data) >= _SIZE.size:
                end = _SIZE.size + _SIZE.unpack_from(data)[0]
                if len(data) >= end:
                    self._read = data[end:]
                    return data[_SIZE.size : end]
                if end > _CHUNK:
                    self._read = b""
                    return self._receive_rest(data[_SIZE.size :], end - _SIZE.size)
            if timeout is not None and not data and not self._poll.poll(timeout * 1e3):
                return None
            if self._last_wait_s is not None and not data:
                self._last_wait_s = self._wait_awake(self._last_wait_s)
            chunk = os.read(self._fd, _CHUNK)
            if not chunk:
                raise EOFError
            data = data + chunk if data else chunk

    def _wait_awake(self, last_wait_s: float) -> float:
        """Wait for data, at first awake if the last message came soon; return the duration.

        Falling asleep and waking up takes 30 us or more: on a quiet machine this was two thirds of
        the time from publishing to a result. The receiver stays awake for at most `_AWAKE_S` for
        one message, and not at all if messages are rare.
        """
        poll = self._poll.poll
        began = now = monotonic()
        if last_wait_s < _AWAKE_S:
            while not poll(0):
                os.sched_yield()  # the receiver of our last message may wait for this core
                now = monotonic()
                if now - began > _AWAKE_S:
                    break
            else:
                return now - began
        poll()
        return monotonic() - began

    def _receive_rest(self, start: bytes, size: int) -> bytearray:
        message = bytearray(size)
        message[: len(start)] = start
        got = len(start)
        with memoryview(message) as view:
            while got < size:
                count = os.readv(self._fd, [view[got:]])
                if not count:
                    raise EOFError
                got += count
        return message


# Messages of a worker process, from a stream of bytes in the format of `Channel`.

SIZE = struct.Struct("<Q")


class Pieces:
    """Puts messages together from chunks of bytes."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._bytes = 0
        #: Number of bytes below which there is no whole message.
        self._needed = SIZE.size

    def take_in(self, chunk: bytes) -> list[bytes]:
        """Take the next chunk; return the messages that are complete now."""
        self._chunks.append(chunk)
        self._bytes += len(chunk)
        if self._bytes < self._needed:
            return []
        data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        pieces: list[bytes] = []
        begin = 0
        while len(data) - begin >= SIZE.size:
            start = begin + SIZE.size
            end = start + SIZE.unpack_from(data, begin)[0]
            if end > len(data):
                self._needed = end - begin
                break
            pieces.append(data[start:end])
            begin = end
        else:
            self._needed = SIZE.size
        self._chunks = [data[begin:]] if begin < len(data) else []
        self._bytes = len(data) - begin
        return pieces
