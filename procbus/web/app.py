# SPDX-License-Identifier: MIT
"""The pages and the JSON of the server."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial, wraps
from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import (
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Route

from procbus.core.errors import JournalError
from procbus.live.client import Declined, Gone, NoAnswer
from procbus.live.metrics import CONTENT_TYPE, exposition, families
from procbus.live.sockets import UnsafePlace
from procbus.web.guard import OWN_HOSTS, Guard, Headers
from procbus.web.journals import JournalView
from procbus.web.watch import Buses, Watch

#: Maximum length of the body of a request, in bytes.
MOST_BODY_BYTES = 1 << 14
#: Actions on a bus, each with the fields that it takes from the body.
_ACTIONS = {
    "stacks": ("worker",),
    "cancel": ("worker", "event_id"),
    "replay": ("letter",),
    "pause": ("kind",),
    "resume": ("kind",),
}

Endpoint = Callable[[Request], Awaitable[Response]]


def make_app(buses: Buses, guard: Guard, journal: str | None) -> Starlette:
    """Make the application.

    Args:
        buses: the buses to show.
        guard: lets requests in.
        journal: path of a journal to show beside the buses; None for none.
    """
    page = files("procbus.web").joinpath("page.html").read_text(encoding="utf-8")
    server = _Server(buses, guard, journal, page)

    @asynccontextmanager
    async def looking(_: Starlette) -> AsyncIterator[None]:
        await buses.start()
        yield
        await buses.stop()

    return Starlette(
        routes=[
            Route("/", server.page),
            Route("/healthz", server.health),
            Route("/readyz", server.ready),
            Route("/metrics", server.metrics),
            Route("/api/buses", server.reading(server.listed)),
            Route("/api/buses/{name}", server.reading(server.bus)),
            Route("/api/buses/{name}/events", server.reading(server.events)),
            Route("/api/buses/{name}/actions/{do}", server.acting(server.action), methods=["POST"]),
            Route("/api/journal", server.reading(server.journal)),
            Route("/api/journal/retry", server.acting(server.retry), methods=["POST"]),
        ],
        middleware=[
            Middleware(Headers, page=page),
            Middleware(TrustedHostMiddleware, allowed_hosts=OWN_HOSTS, www_redirect=False),
        ],
        exception_handlers={HTTPException: _refused},
        lifespan=looking,
    )


class _Server:
    """The answers to requests. Used by one event loop."""

    def __init__(self, buses: Buses, guard: Guard, journal: str | None, page: str) -> None:
        self._buses = buses
        self._guard = guard
        self._page = page
        self._given = None if journal is None else JournalView(journal)
        #: The journals of buses, by their paths.
        self._journals: dict[str, JournalView] = {}

    # Who may ask.

    def reading(self, answer: Endpoint) -> Endpoint:
        """Answer only the user of the server; give the reason if there is no answer."""

        @wraps(answer)
        async def answering(request: Request) -> Response:
            await run_in_threadpool(self._guard.check_reader, request)
            return await _told(answer, request)

        return answering

    def acting(self, answer: Endpoint) -> Endpoint:
        """Answer only requests with the token; give the reason if there is no answer."""

        @wraps(answer)
        async def answering(request: Request) -> Response:
            self._guard.check_actor(request)
            return await _told(answer, request)

        return answering

    # For all.

    async def page(self, _: Request) -> Response:
        """The page, which has no facts in it."""
        return HTMLResponse(self._page)

    async def health(self, _: Request) -> Response:
        """Say that the server runs."""
        return PlainTextResponse("ok\n")

    async def ready(self, _: Request) -> Response:
        """Whether a bus that is shown takes events."""
        try:
            there = await self._buses.listed()
        except UnsafePlace as error:
            return PlainTextResponse(f"{error}\n", 503)
        states = [
            each["bus"]["state"] if each["state"] == "live" else each["state"] for each in there
        ]
        if "open" in states:
            return PlainTextResponse("ok\n")
        return PlainTextResponse(f"{', '.join(states) or 'there is no bus'}\n", 503)

    async def metrics(self, _: Request) -> Response:
        """The figures of all buses, as Prometheus reads them; a bus that has ended has none."""
        try:
            figures = await self._buses.metrics()
        except UnsafePlace as error:
            return PlainTextResponse(f"{error}\n", 503)
        text = await run_in_threadpool(lambda: exposition(families(figures)))
        return Response(text, headers={"Content-Type": CONTENT_TYPE})

    # For the user.

    async def listed(self, _: Request) -> Response:
        """The buses, and the path of the journal that is shown beside them."""
        journal = None if self._given is None else self._given.path
        return _json({"buses": await self._buses.listed(), "journal": journal})

    async def bus(self, request: Request) -> Response:
        """A snapshot of one bus."""
        watch = await self._watch(request)
        if watch.state != "ended":
            return _json(await watch.ask("snapshot"))
        raise HTTPException(410, watch.said)

    async def events(self, request: Request) -> Response:
        """The state of one bus, again and again, as server-sent events."""
        watch = await self._watch(request)
        return StreamingResponse(watch.messages(), media_type="text/event-stream")

    async def journal(self, request: Request) -> Response:
        """The backlog and the dead letters of a journal."""
        view = await self._journal(request)
        return _json(await run_in_threadpool(view.read))

    # Actions.

    async def action(self, request: Request) -> Response:
        """Have a bus act."""
        do = request.path_params["do"]
        if do not in _ACTIONS:
            raise HTTPException(404, f"there is no action {do!r}; there are {', '.join(_ACTIONS)}")
        about = await _body(request)
        watch = await self._watch(request)
        fields = {name: about[name] for name in _ACTIONS[do] if name in about}
        if do == "stacks":
            return _json(await watch.stacks(**fields))
        return _json(await watch.ask(do, **fields))

    async def retry(self, request: Request) -> Response:
        """Have a dead letter of a journal run again."""
        name = (await _body(request)).get("id")
        if not isinstance(name, str):
            raise HTTPException(400, 'give the dead letter, as {"id": "EVENT:HANDLER"}')
        view = await self._journal(request)
        return _json(await run_in_threadpool(view.retry, name))

    async def _watch(self, request: Request) -> Watch:
        return await self._buses.watch(request.path_params["name"])

    async def _journal(self, request: Request) -> JournalView:
        """The journal of the bus in the query; without a bus, the journal beside the buses."""
        name = request.query_params.get("bus")
        if name is None:
            if self._given is None:
                raise HTTPException(404, "no journal was given: procbus serve --journal FILE")
            return self._given
        watch = await self._buses.watch(name)
        facts = watch.snapshot or await watch.ask("snapshot")
        path = facts["bus"]["journal"]
        if path is None:
            raise HTTPException(404, f"bus {name} has no journal")
        return self._journals.setdefault(path, JournalView(path))


async def _told(answer: Endpoint, request: Request) -> Response:
    """Answer a request; if there is no answer, say why."""
    try:
        return await answer(request)
    except Declined as error:
        raise HTTPException(409, str(error)) from None
    except Gone as error:
        raise HTTPException(404, str(error)) from None
    except (NoAnswer, UnsafePlace) as error:
        raise HTTPException(503, str(error)) from None
    except JournalError as error:
        raise HTTPException(409, str(error)) from None


async def _body(request: Request) -> dict[str, Any]:
    received = b""
    async for part in request.stream():
        received += part
        if len(received) > MOST_BODY_BYTES:
            raise HTTPException(413, f"the body is longer than {MOST_BODY_BYTES:,} bytes")
    try:
        found = json.loads(received or b"{}")
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise HTTPException(400, "the body is no object of JSON")
    return found


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


#: ASCII alone, so that a lone surrogate in a name does no harm.
_plain = partial(json.dumps, separators=(",", ":"), allow_nan=False)


def _json(facts: object) -> Response:
    return Response(_plain(facts), media_type="application/json")
