# SPDX-License-Identifier: MIT
"""Handlers with a rate, on every lane: no window has more runs, and no event is lost."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from procbus import DeliveryState, EventBus, Receipt, WorkerDied, current
from tests.clusters import HAS_DASK, NO_DASK, cluster, warm_up
from tests.journal_scripts import killed
from tests.waits import BOUND_S
from tests.windows import most_in_a_window

WINDOW_S = 0.2
RATE = f"5/{WINDOW_S}s"


def double(number: int) -> int:
    return 2 * number


async def double_later(number: int) -> int:
    await asyncio.sleep(0)
    return 2 * number


def begun(receipts: Sequence[Receipt[Any, Any]]) -> list[float]:
    """When the handlers of these events began, as their workers noted."""
    return [receipt.deliveries[0].outcome.started_at for receipt in receipts]  # type: ignore[union-attr] # all are settled


@pytest.fixture(params=["threads", "event loop", "processes", "cpu on threads"])
def place(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("concurrency", [None, 1])
def test_no_window_has_more_runs_than_the_rate(place: str, concurrency: int | None) -> None:
    function: Any = double_later if place == "event loop" else double
    kind: Any = "cpu" if place in ("processes", "cpu on threads") else "io"
    with EventBus([], cpu="threads" if place == "cpu on threads" else "processes") as bus:
        bus.subscribe("number", function, kind=kind, rate=RATE, concurrency=concurrency)
        receipts = [bus.publish("number", number) for number in range(18)]
        assert bus.drain(BOUND_S)

        assert [receipt.result() for receipt in receipts] == [2 * n for n in range(18)]
        assert most_in_a_window(begun(receipts), WINDOW_S) <= 5
        [of_handler] = bus.stats().handlers.values()
        assert (of_handler.published, of_handler.succeeded, of_handler.held) == (18, 18, 0)


def test_each_key_has_its_own_rate() -> None:
    with EventBus([]) as bus:
        bus.subscribe("host", str.upper, rate="1/day", rate_key=str)
        receipts = [bus.publish("host", host) for host in ("a", "b", "c", "a")]

        assert [receipt.result(BOUND_S) for receipt in receipts[:3]] == ["A", "B", "C"]
        assert bus.stats().handlers["str.upper"].held == 1
        receipts[3].cancel()
        assert receipts[3].deliveries[0].state is DeliveryState.CANCELLED


def test_held_event_holds_no_place_of_other_handlers() -> None:
    with EventBus([], io_workers=1) as bus:
        bus.subscribe("slow", double, name="slow", rate="1/day", concurrency=1)
        bus.subscribe("quick", double, name="quick")
        held = [bus.publish("slow", number) for number in range(3)]

        assert bus.publish("quick", 4).result(BOUND_S) == 8
        assert [receipt.wait(BOUND_S) for receipt in held[:1]] == [True]
        assert bus.cancel(handler="slow") == 2


def test_run_that_is_longer_than_the_window_counts_from_its_beginning() -> None:
    free = threading.Event()

    def hold(number: int) -> None:
        free.wait(BOUND_S)

    with EventBus([], io_workers=4) as bus:
        bus.subscribe("number", hold, rate=f"2/{WINDOW_S}s")
        running = [threading.Event() for _ in range(4)]
        bus.listen(Began(running))
        for number in range(4):
            bus.publish("number", number)

        assert all(each.wait(BOUND_S) for each in running)  # the first two are running still
        free.set()


class Began:
    """Sets one event after the other as handlers begin."""

    def __init__(self, events: list[threading.Event]) -> None:
        self._left = iter(events)

    def started(self, moment: object) -> None:
        next(self._left).set()


def test_dead_worker_counts_as_one_run() -> None:
    def die_at_first(number: int) -> int:
        if current().attempt == 1 and number == 0:
            os.kill(os.getpid(), 9)
        return number

    with EventBus([], cpu_workers=1) as bus:
        bus.subscribe("number", die_at_first, kind="cpu", rate=RATE)
        receipts = [bus.publish("number", number) for number in range(12)]
        assert bus.drain(BOUND_S)

        assert isinstance(receipts[0].deliveries[0].exception(), WorkerDied)
        assert [receipt.result() for receipt in receipts[1:]] == list(range(1, 12))
        assert most_in_a_window(begun(receipts), WINDOW_S) <= 5


@pytest.fixture(scope="module")
def dask_address() -> Iterator[str]:
    """A cluster that is there before the test is watched for things that it leaves behind."""
    with cluster(workers=1, threads=1) as address:
        warm_up(address)
        yield address


@pytest.mark.slow
@pytest.mark.timeout(180)  # processes of Dask take seconds to start on a busy machine
@pytest.mark.skipif(not HAS_DASK, reason=NO_DASK)
def test_a_rate_holds_on_a_dask_cluster(dask_address: str) -> None:
    from procbus import DaskPool

    with EventBus([], cpu=DaskPool(dask_address)) as bus:
        bus.subscribe("number", double, kind="cpu", rate=RATE)
        receipts = [bus.publish("number", number) for number in range(12)]
        assert bus.drain(BOUND_S)

        assert [receipt.result() for receipt in receipts] == [2 * n for n in range(12)]
        assert most_in_a_window(begun(receipts), WINDOW_S) <= 5


def test_held_events_of_a_journal_run_after_a_kill(tmp_path: Path) -> None:
    path = killed(
        tmp_path / "bus.db",
        """
        bus.subscribe("word", len, name="words", rate="2/day")
        receipts = [bus.publish("word", str(number)) for number in range(6)]
        assert all(receipt.wait(60) for receipt in receipts[:2])
        """,
    )
    seen: list[str] = []
    with EventBus([], journal=path) as bus:
        bus.subscribe("word", seen.append, name="words", rate=RATE)
    assert sorted(seen)[-4:] == ["2", "3", "4", "5"]
