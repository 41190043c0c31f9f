# SPDX-License-Identifier: MIT
"""The bus in a running event loop: it waits where `publish` would block, and the loop goes on."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from procbus import BusClosed, EventBus, QueueFull, TopicError
from tests.matrix import quick_first
from tests.parts import BOUND_S, Held, double


async def bounded(awaitable: Any) -> Any:
    return await asyncio.wait_for(awaitable, BOUND_S)


async def agen(count: int) -> AsyncIterator[int]:
    for number in range(count):
        await asyncio.sleep(0)
        yield number


def test_publishing_and_awaiting_the_receipt():
    async def main() -> Any:
        async with EventBus([]) as bus:
            bus.subscribe(int, double)
            bus.subscribe("a", double)
            first = await bus.apublish(4)
            second = await bus.apublish("a", 5)
            return await bounded(first), await bounded(second), second.topic

    assert asyncio.run(main()) == (8, 10, "a")


def test_the_loop_goes_on_while_the_bus_is_full():
    held = Held()

    async def main() -> None:
        async with EventBus([], max_pending=1) as bus:
            bus.subscribe(int, held)
            await bus.apublish(0)
            waiting = [asyncio.ensure_future(bus.apublish(n)) for n in range(1, 20)]
            for _ in range(10):
                await asyncio.sleep(0)
            assert not any(w.done() for w in waiting)
            held.go.set()
            receipts = await bounded(asyncio.gather(*waiting))
            assert [await bounded(r) for r in receipts] == list(range(1, 20))

    asyncio.run(main())
    assert sorted(held.events) == list(range(20))


def test_giving_up_while_waiting_for_room_publishes_nothing():
    held = Held()

    async def main() -> None:
        async with EventBus([], max_pending=1) as bus:
            bus.subscribe(int, held)
            await bus.apublish(0)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(bus.apublish(1), 0.01)
            held.go.set()

    asyncio.run(main())
    assert held.events == [0]


def test_a_full_bus_that_raises_and_a_closed_one():
    held = Held()

    async def main() -> None:
        bus = EventBus([], max_pending=1, on_full="raise")
        bus.subscribe(int, held)
        await bus.apublish(0)
        with pytest.raises(QueueFull):
            await bus.apublish(1)
        held.go.set()
        await asyncio.to_thread(bus.close)
        with pytest.raises(BusClosed):
            await bus.apublish(1)

    asyncio.run(main())


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("max_pending", [1, 3, 1000])
@pytest.mark.parametrize("on_full", quick_first(["block", "raise"]))
@pytest.mark.parametrize("source", quick_first([lambda: agen(100), lambda: range(100)]))
def test_every_event_of_a_stream_comes_back_once(ordered, max_pending, on_full, source):
    async def main() -> list[int]:
        async with EventBus([], max_pending=max_pending, on_full=on_full) as bus:
            bus.subscribe(int, double)
            bus.subscribe(object, lambda e: None)
            receipts = [r async for r in bus.astream(source(), ordered=ordered)]
            assert all(r.done for r in receipts)
            return [r.results()[0] for r in receipts]

    results = asyncio.run(main())
    assert (results if ordered else sorted(results)) == [2 * n for n in range(100)]


@pytest.mark.parametrize("ordered", [False, True])
def test_a_stream_takes_no_more_than_there_is_room_for(ordered):
    taken: list[int] = []
    held = Held()

    async def numbers() -> AsyncIterator[int]:
        for number in range(50):
            taken.append(number)
            yield number

    async def main() -> None:
        async with EventBus([], max_pending=4) as bus:
            bus.subscribe("n", held)
            stream = bus.astream(numbers(), topic="n", ordered=ordered)
            first = asyncio.ensure_future(anext(stream))
            await asyncio.to_thread(held.wait_begun, 4)
            for _ in range(10):
                await asyncio.sleep(0)
            assert len(taken) <= 5
            held.go.set()
            await bounded(first)
            assert len([r async for r in stream]) == 49

    asyncio.run(main())


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_an_error_of_the_source_comes_after_all_receipts(ordered, asynchronous):
    def numbers() -> Iterator[int]:
        yield from range(20)
        raise ZeroDivisionError

    async def anumbers() -> AsyncIterator[int]:
        for number in numbers():
            yield number

    async def main() -> list[int]:
        got: list[int] = []
        async with EventBus([], max_pending=7) as bus:
            bus.subscribe(int, double)
            stream = bus.astream(anumbers() if asynchronous else numbers(), ordered=ordered)

            async def consume() -> None:
                async for receipt in stream:
                    got.append(receipt.result())

            with pytest.raises(ZeroDivisionError):
                await consume()
        return got

    results = asyncio.run(main())
    assert (results if ordered else sorted(results)) == [2 * n for n in range(20)]


def test_a_malformed_topic_is_refused():
    async def main() -> None:
        async with EventBus([]) as bus:
            with pytest.raises(TopicError):
                [r async for r in bus.astream([1], topic="a..b")]

    asyncio.run(main())


def test_leaving_the_block_does_not_block_the_loop():
    held = Held()

    async def main() -> None:
        async with EventBus([]) as bus:
            bus.subscribe(int, held)
            bus.publish(1)
            asyncio.get_running_loop().call_later(0.01, held.go.set)

    asyncio.run(main())
    assert held.events == [1]


def test_async_handlers_and_the_users_loop_are_apart():
    async def main() -> bool:
        mine = asyncio.get_running_loop()

        async def handle(event: int) -> bool:
            await asyncio.sleep(0)
            return asyncio.get_running_loop() is mine

        async with EventBus([]) as bus:
            bus.subscribe(int, handle)
            return bool(await bounded(await bus.apublish(1)))

    assert asyncio.run(main()) is False
