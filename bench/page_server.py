"""A web server on the loopback for the scripts that fetch pages. It notes when each request came.

It answers after a while, as servers elsewhere do. Some pages are there at the second request only,
and one is not there at all.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from time import monotonic

ANSWER_S = 0.05
PAGE = b"<p>A page.</p>" * 100
#: Every such page fails at first.
SHY = 10
MISSING = "missing"


class PageServer:
    """Serves `/pages/NUMBER`.

    Attributes:
        port: on which it listens.
        came_at: when each request came, by a clock that only goes forward.
    """

    def __init__(self) -> None:
        self.port = 0
        self.came_at: list[float] = []
        self._asked: set[str] = set()

    def urls(self, count: int) -> list[str]:
        """The addresses of pages that are there, and one of a page that is not."""
        names = [*map(str, range(count)), MISSING]
        return [f"http://127.0.0.1:{self.port}/pages/{name}" for name in names]

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer all requests of one connection."""
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                request = await reader.readuntil(b"\r\n\r\n")
                self.came_at.append(monotonic())
                name = request.split(b" ", 2)[1].decode().rpartition("/")[2]
                await asyncio.sleep(ANSWER_S)
                status, page = self._status_of(name), PAGE
                head = f"HTTP/1.1 {status}\r\nContent-Length: {len(page)}\r\n\r\n"
                writer.write(head.encode() + page)
                await writer.drain()
        writer.close()

    def _status_of(self, name: str) -> str:
        if name == MISSING:
            return "404 Not Found"
        if int(name) % SHY == 0 and name not in self._asked:
            self._asked.add(name)
            return "503 Service Unavailable"
        return "200 OK"


@contextmanager
def page_server() -> Iterator[PageServer]:
    """Run a server, in a thread with an event loop of its own."""
    pages = PageServer()
    listens = threading.Event()
    ends: list[Callable[[], object]] = []

    async def serve() -> None:
        server = await asyncio.start_server(pages.answer, "127.0.0.1")
        pages.port = server.sockets[0].getsockname()[1]
        loop, done = asyncio.get_running_loop(), asyncio.Event()
        ends.append(lambda: loop.call_soon_threadsafe(done.set))
        listens.set()
        await done.wait()
        server.close()  # its open connections are tasks, which end with the loop

    thread = threading.Thread(target=asyncio.run, args=[serve()], name="page server")
    thread.start()
    listens.wait()
    try:
        yield pages
    finally:
        ends[0]()
        thread.join()
