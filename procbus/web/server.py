# SPDX-License-Identifier: MIT
"""The server: a socket on the loopback address, and uvicorn on it."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable

import uvicorn

from procbus.live.sockets import BusSocket
from procbus.web.app import make_app
from procbus.web.guard import OWN_HOSTS, Guard
from procbus.web.watch import Buses

#: Number of random bytes in a token.
TOKEN_BYTES = 24


class WebServer:
    """Serves the page, until SIGINT or SIGTERM come.

    Args:
        only: the socket of the only bus to show; None for all buses of this user.
        port: the port; 0 for any free one.
        journal: path of a journal to show beside the buses; None for none.

    Raises:
        OSError: the port cannot be used.
    """

    def __init__(self, only: BusSocket | None, port: int, journal: str | None = None) -> None:
        self.token = secrets.token_urlsafe(TOKEN_BYTES)
        self._socket = socket.create_server((OWN_HOSTS[0], port))
        self.port: int = self._socket.getsockname()[1]
        self._server = uvicorn.Server(
            uvicorn.Config(
                make_app(Buses(only), Guard(self.token), journal),
                log_config=None,
                log_level="critical",
                access_log=False,
                # Headers do not say who the other end is: a browser sends what a page tells it.
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=0,  # pages look until they are closed
                ws="none",
                lifespan="on",
            )
        )

    @property
    def address(self) -> str:
        """The address of the page, with the token, which no browser sends to a server."""
        return f"http://{OWN_HOSTS[0]}:{self.port}/#token={self.token}"

    def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Serve. Call it in the main thread.

        Args:
            ready: called before the first request is answered.
        """
        ready()
        with self._socket:
            self._server.run([self._socket])

    def stop(self) -> None:
        """End `run` soon, from any thread."""
        self._server.should_exit = True
