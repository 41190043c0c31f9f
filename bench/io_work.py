"""Handlers that wait: for time, for another process on a loopback socket, for files.

Each comes as a function and, where asyncio has a way, as a coroutine function that waits alike.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from .client import fetch
from .limit import bare_processes

SLEEP_S = 0.010
ANSWER_S = 0.005  # time for which the server thinks
ANSWER = b"x" * 4096
FILE = b"y" * 16 * 1024


def nap(seconds: float) -> None:
    """Sleep."""
    time.sleep(seconds)


async def async_nap(seconds: float) -> None:
    """Sleep on the event loop."""
    await asyncio.sleep(seconds)


def request(port: int) -> int:
    """Fetch the one answer."""
    return check(len(fetch(port, 0)))


async def async_request(port: int) -> int:
    """Do the same on the event loop."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"0\n")
    length = len(await reader.read(-1))
    writer.close()
    await writer.wait_closed()
    return check(length)


def check(length: int) -> int:
    """Return the length of a whole answer."""
    if length != len(ANSWER):
        raise RuntimeError(f"{length} bytes came instead of {len(ANSWER)}")
    return length


def write_and_read(directory: str) -> int:
    """Write a new file, wait until the disk has it, read it back, delete it."""
    descriptor, path = tempfile.mkstemp(dir=directory)
    try:
        with open(descriptor, "wb") as file:
            file.write(FILE)
            file.flush()
            os.fsync(file.fileno())
        with open(path, "rb") as file:
            return len(file.read())
    finally:
        os.unlink(path)


def serve(pipe: Connection, answers: Sequence[bytes], answer_s: float) -> None:
    """Process body: say the port, then answer each line that is a number, until killed."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = int(await reader.readline())
        await asyncio.sleep(answer_s)
        writer.write(answers[number])
        await writer.drain()
        writer.close()

    async def run() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=1024)
        async with server:
            pipe.send(server.sockets[0].getsockname()[1])
            await asyncio.Event().wait()

    asyncio.run(run())


@contextmanager
def server(answers: Sequence[bytes] = (ANSWER,), answer_s: float = ANSWER_S) -> Iterator[int]:
    """Run a server in a process of its own; give its port.

    Args:
        answers: the server's answers, by number.
        answer_s: time for which it thinks first, in seconds.
    """
    with bare_processes(1, serve, answers, answer_s) as (pipe,):
        if not pipe.poll(20):
            raise RuntimeError("the server did not start within 20 s")
        yield pipe.recv()


@contextmanager
def sleep_time() -> Iterator[float]:
    """Give how long to sleep."""
    yield SLEEP_S


@contextmanager
def directory() -> Iterator[str]:
    """Give a directory for files."""
    with tempfile.TemporaryDirectory(prefix="procbus-bench-") as path:
        yield path


class IoKind(NamedTuple):
    """One kind of waiting.

    Attributes:
        handler: waits on a thread or in a process.
        coroutine: waits on an event loop; None where asyncio has no way.
        event: a context manager that returns the event.
        wait_s: minimum wait of each, in seconds; None if unknown.
    """

    handler: Callable[[Any], Any]
    coroutine: Callable[[Any], Any] | None
    event: Callable[[], Any]
    wait_s: float | None


IO_KINDS = {
    "sleep 10 ms": IoKind(nap, async_nap, sleep_time, SLEEP_S),
    "socket, answer after 5 ms": IoKind(request, async_request, server, ANSWER_S),
    "file, 16 KiB and fsync": IoKind(write_and_read, None, directory, None),
}
