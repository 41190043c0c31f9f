# SPDX-License-Identifier: MIT
"""Which requests are let in: by their host, by the user at the other end, and by the token.

Any process of this machine can connect to a port of the loopback address, and a web page from
elsewhere can have a browser send requests to that port. So only the user of the server may see the
facts about a bus, and an action needs the token, which only this user was shown.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
import socket
import struct
from collections.abc import MutableMapping
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: Names of this machine for itself. A name of someone else's may lead here too (DNS rebinding).
OWN_HOSTS = ("127.0.0.1", "localhost")

#: The sockets of this machine, and the user of each: a line for each socket.
_SOCKETS = "/proc/net/tcp"

#: Host and port of one end of a connection.
Address = tuple[str, int]


class Guard:
    """Lets in the user of the server, and the holder of the token.

    Args:
        token: the token.
    """

    def __init__(self, token: str) -> None:
        self._token = token.encode()

    def check_reader(self, request: Request) -> None:
        """Let a request read. The check may read a file of the kernel.

        Raises:
            HTTPException: 403, because the request comes from another user and has no token.
        """
        client, server = request.client, request.scope.get("server")
        if self._has_token(request):
            return
        if (
            client is None
            or server is None
            or not comes_from_own_user(tuple(client), tuple(server))
        ):
            raise HTTPException(
                403, "this is for the user who started procbus serve; others need its token"
            )

    def check_actor(self, request: Request) -> None:
        """Let a request act.

        Raises:
            HTTPException: 401, because the request has no token, or a wrong token.
        """
        if not self._has_token(request):
            raise HTTPException(
                401,
                "an action needs the token that procbus serve printed, in the header "
                '"Authorization: Bearer TOKEN"',
                {"WWW-Authenticate": "Bearer"},
            )

    def _has_token(self, request: Request) -> bool:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        same = hmac.compare_digest(given.strip().encode(), self._token)
        return scheme.lower() == "bearer" and same


def comes_from_own_user(client: Address, server: Address) -> bool:
    """Whether the other end of a loopback connection belongs to this user, or to root.

    Linux has the user of each socket in a table. Elsewhere no user is known, and every request
    needs the token.

    Args:
        client: the other end.
        server: this end.
    """
    try:
        ends = [f"{_hex(host)}:{port:04X}" for host, port in (client, server)]
        with open(_SOCKETS, encoding="ascii") as file:
            for line in file:
                # Number, own end, other end, state, queues, timer, retries, user, ...
                fields = line.split()
                if fields[1:3] == ends:
                    return int(fields[7]) in (os.geteuid(), 0)
    except (OSError, ValueError, AttributeError):
        pass
    return False


def _hex(host: str) -> str:
    return f"{struct.unpack('=I', socket.inet_aton(host))[0]:08X}"


class Headers:
    """Adds headers to each response that tell a browser to trust only the page itself.

    Args:
        app: the application.
        page: the text of the page. Only its scripts may run, and only its styles apply.
    """

    def __init__(self, app: ASGIApp, page: str) -> None:
        self._app = app
        self._added = {
            "Content-Security-Policy": policy_for(page),
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cache-Control": "no-store",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers: MutableMapping[str, Any] = MutableHeaders(scope=message)
                headers.update(self._added)
            await send(message)

        await self._app(scope, receive, sending if scope["type"] == "http" else send)


def policy_for(page: str) -> str:
    """The Content-Security-Policy that allows only the scripts and styles inside a page."""
    allowed = ["default-src 'none'", "connect-src 'self'", "img-src data:"]
    for element in ("script", "style"):
        texts = re.findall(rf"<{element}>(.*?)</{element}>", page, flags=re.DOTALL)
        hashes = (hashlib.sha256(text.encode()).digest() for text in texts)
        known = " ".join(f"'sha256-{base64.b64encode(each).decode()}'" for each in hashes)
        allowed.append(f"{element}-src {known}")
    return "; ".join([*allowed, "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"])
