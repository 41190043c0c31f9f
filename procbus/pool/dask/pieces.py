# SPDX-License-Identifier: MIT
"""The messages of a worker process, out of a stream of bytes: see `procbus.pool.channel`."""

from __future__ import annotations

import struct

SIZE = struct.Struct("<Q")


class Pieces:
    """Puts together what comes in chunks."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._bytes = 0
        #: Below so many there is no whole message.
        self._needed = SIZE.size

    def take_in(self, chunk: bytes) -> list[bytes]:
        """Take the next chunk; return the messages that are whole now."""
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
