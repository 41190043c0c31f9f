# SPDX-License-Identifier: MIT
"""Handlers that wait for other handlers: they lend their place meanwhile."""

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from procbus import EventBus, JobDone, ProcbusError
from procbus.assembly import Makers, make_lanes
from procbus.lanes.event_loop import LoopLane
from procbus.lanes.threads import IoLane
from tests.parts import BOUND_S, BusWith, Held, in_thread, threads_up_to


def same(number: int) -> int:
    return number


def streamed(bus: EventBus, number: int, *, ordered: bool = False) -> Any:
    (receipt,) = bus.stream([number], topic="child", ordered=ordered)
    return receipt.result()


def mapped(bus: EventBus, number: int) -> Any:
    (result,) = bus.executor("io").map(same, [number])
    return result


def in_own_loop(bus: EventBus, number: int) -> Any:
    async def main() -> Any:
        receipts = [bus.publish("child", number) for _ in range(3)]
        await asyncio.gather(*(receipt.settled() for receipt in receipts))
        return receipts[0].result()

    return asyncio.run(main())


WAYS: dict[str, Callable[[EventBus, int], Any]] = {
    "result": lambda bus, n: bus.publish("child", n).result(BOUND_S),
    "wait": lambda bus, n: bus.publish("child", n).wait(BOUND_S) and n,
    "results": lambda bus, n: bus.publish("child", n).results(BOUND_S)[0],
    "stream": streamed,
    "ordered stream": partial(streamed, ordered=True),
    "future": lambda bus, n: bus.executor("io").submit(same, n).result(BOUND_S),
    "exception": lambda bus, n: bus.executor("io").submit(same, n).exception(BOUND_S) or n,
    "map": mapped,
    "a loop of its own": in_own_loop,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("child_is_async", [False, True])
def test_more_handlers_may_wait_than_there_are_threads(way, child_is_async):
    async def achild(number: int) -> int:
        return number

    with EventBus([], io_workers=2) as bus:
        bus.subscribe("child", achild if child_is_async else same)
        bus.subscribe("parent", lambda number: WAYS[way](bus, number))
        receipts = [bus.publish("parent", number) for number in range(7)]
        assert [r.result(BOUND_S) for r in receipts] == list(range(7))


def test_handlers_that_wait_may_be_nested_deeper_than_there_are_threads():
    with EventBus([], io_workers=1) as bus:

        def down(number: int) -> int:
            return 0 if not number else 1 + bus.publish("n", number - 1).result(BOUND_S)

        bus.subscribe("n", down)
        assert bus.publish("n", 30).result(BOUND_S) == 30
        # The threads that stood in have gone, except idle ones that were not asked yet.
        for _ in range(60):
            bus.publish("n", 0).result(BOUND_S)
        assert not bus.publish("n", 0).result(BOUND_S)


def test_after_a_wait_no_more_handlers_run_at_once_than_there_are_threads():
    running: list[int] = []
    most: list[int] = []
    first, second = Held(), Held()

    with EventBus([], io_workers=1) as bus:

        def parent(number: int) -> None:
            bus.publish("child", number).wait(BOUND_S)
            first(number)

        def other(number: int) -> None:
            running.append(number)
            most.append(len(running))
            second.events.append(number)
            running.remove(number)

        bus.subscribe("child", same)
        bus.subscribe("parent", parent)
        bus.subscribe("other", other)
        receipt = bus.publish("parent", 1)
        first.wait_begun()  # its wait is over, and it goes on: the thread that stood in ends
        others = [bus.publish("other", number) for number in range(3)]
        lane = bus.stats().lanes["io"]
        assert lane.busy == 1
        assert lane.depth == 3
        first.go.set()
        assert receipt.wait(BOUND_S)
        assert all(each.wait(BOUND_S) for each in others)
    assert max(most) == 1


def test_without_a_thread_to_stand_in_the_awaited_event_fails_and_no_handler_hangs():
    with BusWith(Makers(lanes=threads_up_to(2)), io_workers=2) as bus:
        together = threading.Barrier(2)

        def parent(number: int) -> Any:
            together.wait(BOUND_S)
            return bus.publish("child", number).result(BOUND_S)

        bus.subscribe("child", same)
        bus.subscribe("parent", parent)
        for receipt in [bus.publish("parent", number) for number in range(2)]:
            with pytest.raises(ProcbusError, match="can't start new thread"):
                receipt.result(BOUND_S)


def test_the_number_of_handlers_that_wait_is_bounded_and_the_last_is_refused():
    lanes = partial(make_lanes, make_io_lane=partial(IoLane, most_lent=3))
    with BusWith(Makers(lanes=lanes), io_workers=1) as bus:

        def down(number: int) -> Any:
            return number and bus.publish("n", number - 1).result(BOUND_S)

        bus.subscribe("n", down)
        with pytest.raises(ProcbusError, match="3 handlers wait for other handlers"):
            bus.publish("n", 30).result(BOUND_S)


@pytest.mark.parametrize("options", [{"concurrency": 1}, {"key": lambda number: "k"}])
@pytest.mark.parametrize("is_async", [False, True])
def test_waiting_for_a_delivery_that_waits_for_the_own_one_is_refused(options, is_async):
    with EventBus([]) as bus:

        def wait(number: int) -> Any:
            return number and bus.publish("n", 0).result(BOUND_S)

        async def await_it(number: int) -> Any:
            return number and await bus.publish("n", 0)

        bus.subscribe("n", await_it if is_async else wait, name="again", **options)
        with pytest.raises(ProcbusError, match="again waits in event #1 for its own delivery"):
            bus.publish("n", 1).result(BOUND_S)


@pytest.mark.parametrize("options", [{"concurrency": 1}, {"key": lambda number: "k"}])
@pytest.mark.parametrize("is_async", [False, True])
def test_batch_that_waits_for_a_delivery_behind_one_of_its_events_is_refused(options, is_async):
    with EventBus([]) as bus:

        def wait(numbers: list[int]) -> None:
            for number in numbers:
                if number:
                    bus.publish("n", 0).result(BOUND_S)

        async def await_it(numbers: list[int]) -> None:
            for number in numbers:
                if number:
                    await bus.publish("n", 0)

        handler = await_it if is_async else wait
        bus.subscribe("n", handler, name="again", batch=2, batch_wait=0.01, **options)
        with pytest.raises(ProcbusError, match="again waits in event #1 for its own delivery"):
            bus.publish("n", 1).result(BOUND_S)


@pytest.mark.parametrize("options", [{"concurrency": 1}, {"key": lambda number: "k"}])
@pytest.mark.parametrize("batch", [None, 2])
@pytest.mark.parametrize("how", ["block", "wait", "results", "async block", "await"])
@pytest.mark.parametrize("deep", [False, True])
def test_handler_that_waits_for_a_job_behind_itself_is_refused(
    options: dict[str, Any], batch: int | None, how: str, deep: bool
):
    done: list[JobDone] = []
    with EventBus([]) as bus:

        def wait(number: int) -> None:
            if number:
                with bus.job("inner") as job:
                    bus.publish("again" if deep else "n", 0)
                    if how == "wait":
                        job.wait(BOUND_S)
                    elif how == "results":
                        list(job.results("handler"))

        async def await_it(number: int) -> None:
            if number:
                async with bus.job("inner") as job:
                    bus.publish("n", 0)
                    if how == "await":
                        await job

        async def await_all(numbers: list[int]) -> None:
            for number in numbers:
                await await_it(number)

        def wait_all(numbers: list[int]) -> None:
            for number in numbers:
                wait(number)

        is_async = how in ("async block", "await")
        if deep and is_async:
            pytest.skip("an event loop does not look up while it waits")
        if batch:
            bus.subscribe(
                "n",
                await_all if is_async else wait_all,
                name="handler",
                batch=batch,
                batch_wait=0.01,
                **options,
            )
        else:
            bus.subscribe("n", await_it if is_async else wait, name="handler", **options)
        bus.subscribe("again", lambda number: bus.publish("n", number), name="again")
        bus.subscribe(JobDone, done.append)
        with pytest.raises(ProcbusError, match="handler waits in event #1 for its own delivery"):
            bus.publish("n", 1).result(BOUND_S)
        bus.drain()
    assert len(done) == 1


def test_waiting_for_another_key_of_the_same_handler_is_fine():
    with EventBus([], io_workers=1) as bus:

        def wait(number: int) -> int:
            return 1 if not number else 1 + bus.publish("n", number - 1).result(BOUND_S)

        bus.subscribe("n", wait, key=int)
        assert bus.publish("n", 5).result(BOUND_S) == 6


BLOCKING: dict[str, tuple[Callable[[EventBus], Any], str]] = {
    "result": (lambda bus: bus.publish("child", 1).result(BOUND_S), "await the receipt"),
    "wait": (lambda bus: bus.publish("child", 1).wait(), "await the receipt"),
    "results": (lambda bus: bus.publish("child", 1).results(), "await the receipt"),
    "stream": (lambda bus: list(bus.stream([1], topic="child")), "bus.astream"),
    "ordered": (lambda bus: list(bus.stream([1], topic="child", ordered=True)), "await"),
    "future": (
        lambda bus: bus.executor("io").submit(lambda: threading.Event().wait(0.1)).result(),
        "asyncio.wrap_future",
    ),
}


@pytest.mark.parametrize("way", BLOCKING)
def test_error_of_an_async_handler_that_would_block_the_loop_names_the_awaitable(way):
    block, advice = BLOCKING[way]

    async def child(number: int) -> int:
        await asyncio.sleep(0.001)
        return number

    with EventBus([]) as bus:

        async def parent(number: int) -> Any:
            return block(bus)

        bus.subscribe("child", child)
        bus.subscribe("parent", parent, name="parent")
        with pytest.raises(ProcbusError, match=f"parent waits on the event loop.*{advice}"):
            bus.publish("parent", 1).result(BOUND_S)


def test_an_async_handler_may_ask_whether_a_receipt_is_done_without_waiting():
    with EventBus([]) as bus:

        async def child(number: int) -> int:
            return number

        async def parent(number: int) -> Any:
            receipt = bus.publish("child", number)
            early = receipt.wait(0)
            await receipt.settled()
            return early, receipt.wait(0), receipt.wait(), receipt.result()

        bus.subscribe("child", child)
        bus.subscribe("parent", parent)
        assert bus.publish("parent", 1).result(BOUND_S) == (False, True, True, 1)


@pytest.mark.parametrize("way", ["await", "gather", "settled", "astream", "task"])
def test_more_async_handlers_may_await_than_the_loop_has_slots(way):
    lanes = partial(make_lanes, make_loop_lane=partial(LoopLane, most_at_once=10))

    async def child(number: int) -> int:
        await asyncio.sleep(0)
        return number

    with BusWith(Makers(lanes=lanes)) as bus:

        async def parent(number: int) -> Any:
            if way == "gather":
                both = (bus.publish("child", n).settled() for n in (number, number))
                one, _ = await asyncio.gather(*both)
                return one.result()
            if way == "settled":
                return (await bus.publish("child", number).settled()).result()
            if way == "astream":
                (one,) = [each async for each in bus.astream([number], topic="child")]
                return one.result()
            if way == "task":
                return await asyncio.create_task(awaits(number))
            return await bus.publish("child", number)

        async def awaits(number: int) -> Any:
            return await bus.publish("child", number)

        bus.subscribe("child", child)
        bus.subscribe("parent", parent)
        receipts = [bus.publish("parent", number) for number in range(50)]
        assert [r.result(BOUND_S) for r in receipts] == list(range(50))


def test_waiting_outside_handlers_is_unchanged():
    with EventBus([], io_workers=1) as bus:
        held = Held()
        bus.subscribe("n", held)
        receipt = bus.publish("n", 1)
        held.wait_begun()
        assert not receipt.wait(0.001)
        assert bus.stats().lanes["io"].workers == 1
        waiter = in_thread(lambda: receipt.wait(BOUND_S))
        held.go.set()
        waiter.join(BOUND_S)
        assert receipt.result() == 1
