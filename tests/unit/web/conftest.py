# SPDX-License-Identifier: MIT
"""A server of the test's own, in a thread, and a directory for the sockets of its buses."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from procbus.live.client import bus_named
from tests.unit.live_sockets import sockets as sockets
from tests.waits import BOUND_S

#: The libraries that these tests need; without one of them there is nothing to test.
NEEDED = ("httpx", "starlette", "uvicorn")
collect_ignore_glob = [] if all(map(find_spec, NEEDED)) else ["test_*.py"]

#: Makes a server, and gives a client with its address.
Serve = Callable[..., Any]


@pytest.fixture
def serve(sockets: Path) -> Iterator[Serve]:
    import httpx

    from procbus.web.server import WebServer

    running: list[tuple[WebServer, threading.Thread, Any]] = []

    def start(name: str | None = None, journal: str | None = None) -> Any:
        server = WebServer(None if name is None else bus_named(name), 0, journal)
        thread = threading.Thread(target=server.run)
        thread.start()
        client = httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=BOUND_S)
        running.append((server, thread, client))
        client.token = server.token
        return client

    yield start
    for server, thread, client in running:
        client.close()
        server.stop()
        thread.join(BOUND_S)
        assert not thread.is_alive()
