# SPDX-License-Identifier: MIT
"""Async resources of a bus that runs handlers at once: opened once, and closed with the bus."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import ContextVar
from typing import Any

import pytest

from procbus import EventBus, Resource, current, resource, use
from procbus.core.resources import Scope
from procbus.testing import InlineBus


class Inline:
    """Makes the buses under test, and keeps the steps of their resources."""

    def __init__(self, make: Callable[..., EventBus]) -> None:
        self.make = make
        self.steps: list[str] = []

    def client(self, scope: Scope = "worker") -> Resource[asyncio.AbstractEventLoop]:
        @resource(scope=scope)
        async def client() -> AsyncIterator[asyncio.AbstractEventLoop]:
            self.steps.append("open")
            await asyncio.sleep(0)
            yield asyncio.get_running_loop()
            await asyncio.sleep(0)
            self.steps.append("closed")

        return client


@pytest.fixture(params=["InlineBus", "PROCBUS_INLINE"])
def inline(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Inline:
    if request.param == "InlineBus":
        return Inline(InlineBus)
    monkeypatch.setenv("PROCBUS_INLINE", "1")
    return Inline(EventBus)


@pytest.mark.parametrize("scope", ["worker", "bus"])
def test_async_resource_is_opened_once_and_closed_with_the_bus(inline: Inline, scope: Any) -> None:
    client = inline.client(scope)

    async def fetch(event: int, loop: asyncio.AbstractEventLoop = use(client)) -> bool:
        await asyncio.sleep(0)
        return asyncio.get_running_loop() is loop

    async def fetch_too(event: int, loop: asyncio.AbstractEventLoop = use(client)) -> bool:
        return await fetch(event, loop)

    with inline.make([]) as bus:
        bus.subscribe("url", fetch)
        bus.subscribe("url", fetch_too)
        assert [bus.publish("url", each).results() for each in range(3)] == [[True, True]] * 3
        assert inline.steps == ["open"]
    assert inline.steps == ["open", "closed"]
    bus.close()
    assert inline.steps == ["open", "closed"]


def test_async_resource_of_scope_event_is_opened_for_each_attempt(inline: Inline) -> None:
    client = inline.client("event")

    async def fetch(event: int, loop: object = use(client)) -> None: ...

    with inline.make([]) as bus:
        bus.subscribe("url", fetch)
        for each in range(2):
            bus.publish("url", each).result()
        assert inline.steps == ["open", "closed"] * 2


def test_bus_in_a_running_loop_keeps_async_resources_too(inline: Inline) -> None:
    client = inline.client()

    async def fetch(event: int, loop: asyncio.AbstractEventLoop = use(client)) -> bool:
        return asyncio.get_running_loop() is loop

    async def main() -> None:
        async with inline.make([]) as bus:
            bus.subscribe("url", fetch)
            for each in range(3):
                assert await (await bus.apublish("url", each))
            assert inline.steps == ["open"]
        assert inline.steps == ["open", "closed"]

    asyncio.run(main())


def test_handler_inside_another_one_has_a_loop_and_a_client_of_its_own(inline: Inline) -> None:
    client = inline.client()

    async def fetch(event: int, loop: asyncio.AbstractEventLoop = use(client)) -> bool:
        if event:
            receipt = current().publish("url", event - 1)
            assert receipt is not None
            assert receipt.done
        return asyncio.get_running_loop() is loop

    with inline.make([]) as bus:
        bus.subscribe("url", fetch)
        for _ in range(2):
            assert bus.publish("url", 1).result()
        assert inline.steps == ["open"] * 2
    assert inline.steps == ["open"] * 2 + ["closed"] * 2


def test_async_resource_uses_plain_ones_of_this_thread(inline: Inline) -> None:
    threads: list[int] = []

    @resource(scope="bus")
    def config() -> Iterator[str]:
        threads.append(threading.get_ident())
        yield "config"
        inline.steps.append("config closed")

    @resource
    async def client(config: str = use(config)) -> AsyncIterator[str]:
        yield f"client with {config}"
        inline.steps.append("client closed")

    async def fetch(event: int, client: str = use(client), own: str = use(config)) -> str:
        return client + own

    with inline.make([]) as bus:
        bus.subscribe("url", fetch)
        assert bus.publish("url", 1).result() == "client with configconfig"
    assert threads == [threading.get_ident()]
    assert inline.steps == ["client closed", "config closed"]


def test_async_resource_that_fails_to_open_is_tried_again(inline: Inline) -> None:
    tries: list[int] = []

    @resource
    async def client() -> AsyncIterator[int]:
        tries.append(1)
        if len(tries) == 1:
            raise ConnectionError("not yet")
        yield len(tries)

    async def fetch(event: int, client: int = use(client)) -> int:
        return client

    with inline.make([]) as bus:
        bus.subscribe("url", fetch)
        with pytest.raises(ConnectionError, match="not yet") as caught:
            bus.publish("url", 1).result()
        assert "while opening the resource" in caught.value.__notes__[0]
        assert [bus.publish("url", each).result() for each in range(2)] == [2, 2]


def test_fake_of_an_async_resource_is_a_value_or_another_resource() -> None:
    steps: list[str] = []

    @resource
    async def client() -> AsyncIterator[str]:
        yield "real"

    @resource
    async def fake() -> AsyncIterator[str]:
        steps.append("open")
        yield "async fake"
        steps.append("closed")

    @resource
    def plain_fake() -> str:
        return "plain fake"

    async def fetch(event: int, client: str = use(client)) -> str:
        return client

    for stands_in, given in (("a value",) * 2, (plain_fake, "plain fake"), (fake, "async fake")):
        with InlineBus([], resources={client: stands_in}) as bus:
            bus.subscribe("url", fetch)
            assert [bus.publish("url", each).result() for each in range(2)] == [given] * 2
    assert steps == ["open", "closed"]


def test_async_handler_sees_its_own_event_and_the_variables_of_its_publisher(
    inline: Inline,
) -> None:
    user: ContextVar[int] = ContextVar("user")

    async def tell(event: int) -> tuple[int, int]:
        await asyncio.sleep(0)
        return current().event_id, user.get()

    with inline.make([]) as bus:
        bus.subscribe("n", tell)
        for number in range(3):
            user.set(number)
            receipt = bus.publish("n", number)
            assert receipt.result() == (receipt.id, number)
