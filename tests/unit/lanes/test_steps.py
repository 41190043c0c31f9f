"""The CPU time of one coroutine among many."""

import asyncio
import time
from collections.abc import Callable, Generator
from typing import Any

import pytest

from procbus.lanes.event_loop import Steps
from tests.parts import BOUND_S


def spin(seconds: float) -> float:
    """Compute for as long; give the CPU time that it took."""
    began = now = time.thread_time()
    while now - began < seconds:
        now = time.thread_time()
    return now - began


async def work(times: int) -> float:
    computed_s = 0.0
    for _ in range(times):
        computed_s += spin(0.005)
        await asyncio.sleep(0)
    return computed_s


def run(make: Callable[[], Any]) -> Any:
    return asyncio.run(make())


def test_metered_awaitable_returns_the_awaited_value():
    async def main() -> Any:
        return await Steps(work(1))

    assert run(main) >= 0.005


def test_only_its_own_steps_are_counted():
    mine, other = Steps(work(4)), Steps(work(8))

    async def one(steps: Steps) -> Any:
        return await steps

    async def main() -> Any:
        return await asyncio.gather(one(mine), one(other), work(8))

    mine_s, other_s, _ = run(main)
    assert mine_s <= mine.cpu_s < mine_s + 0.02, "and a little for the steps themselves"
    assert other_s <= other.cpu_s < other_s + 0.02


def test_waiting_takes_no_cpu_time():
    async def main() -> tuple[Steps, float]:
        gate = asyncio.Event()
        steps = Steps(gate.wait())

        async def wait() -> None:
            await steps

        waiting = asyncio.ensure_future(wait())
        await asyncio.sleep(0)  # it waits now
        began = time.monotonic()
        await asyncio.sleep(0.05)
        waited_s = time.monotonic() - began
        gate.set()
        await waiting
        return steps, waited_s

    steps, waited_s = run(main)
    assert steps.cpu_s < 0.02
    assert steps.suspended_s >= waited_s


def test_exception_of_the_coroutine_comes_through():
    async def fail() -> None:
        await asyncio.sleep(0)
        raise KeyError("x")

    async def main() -> None:
        await Steps(fail())

    with pytest.raises(KeyError):
        run(main)


def test_cancelling_reaches_it_and_it_may_clean_up():
    seen: list[str] = []
    waits = asyncio.Event()

    async def stubborn() -> str:
        waits.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append("cancelled")
            await asyncio.sleep(0)
        return "went on"

    async def main() -> None:
        async def body() -> None:
            seen.append(await Steps(stubborn()))

        task = asyncio.create_task(body())
        await asyncio.wait_for(waits.wait(), BOUND_S)
        task.cancel()
        await asyncio.wait([task])

    run(main)
    assert seen == ["cancelled", "went on"]


def test_a_future_may_be_awaited_too():
    async def main() -> Any:
        future = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(future.set_result, 7)
        return await Steps(future)

    assert run(main) == 7


def test_closing_a_coroutine_closes_the_awaited_one():
    closed: list[bool] = []

    class Pause:
        def __await__(self) -> Generator[None, None, None]:
            yield

    async def patient() -> None:
        try:
            await Pause()
        finally:
            closed.append(True)

    async def body() -> None:
        await Steps(patient())

    coroutine = body()
    coroutine.send(None)
    coroutine.close()
    assert closed == [True]
