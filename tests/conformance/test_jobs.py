"""A job owns all that its block sets going, wherever the handlers run."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from procbus import DaskPool, EventBus, Job, JobDone, JobFailed, ProcbusError, current
from procbus.testing import InlineBus
from tests.clusters import HAS_DASK, NO_DASK
from tests.parts import BOUND_S

DASK: Any = pytest.param("cpu dask", marks=pytest.mark.skipif(not HAS_DASK, reason=NO_DASK))
PLACES = ["io", "async", "cpu", "cpu threads", DASK, "inline"]


def spread(depth: int) -> int:
    if depth:
        current().publish("number", depth - 1)
        current().publish("number", depth - 1)
    return depth


async def spread_async(depth: int) -> int:
    return spread(depth)


def spread_all(depths: list[int]) -> list[int]:
    return [spread(depth) for depth in depths]


def fail_first(number: int) -> int:
    if current().attempt == 1:
        raise ValueError(number)
    return number


def fail(number: int) -> None:
    raise KeyError(number)


class Place:
    """A bus whose handlers run in one place."""

    def __init__(self, name: str, cluster: str) -> None:
        self.kind: Any = "cpu" if name.startswith("cpu") else "io"
        cpu: Any = "threads" if name == "cpu threads" else "processes"
        if name == "cpu dask":
            cpu = DaskPool(cluster)
        self.bus = InlineBus([]) if name == "inline" else EventBus([], cpu_workers=2, cpu=cpu)
        self.spread: Callable[..., Any] = spread_async if name == "async" else spread
        self.done: list[JobDone] = []
        self.bus.subscribe(JobDone, self.note)

    def note(self, done: JobDone) -> None:
        self.done.append(done)

    def subscribe(self, handler: Callable[..., Any], **options: Any) -> None:
        self.bus.subscribe("number", handler, kind=self.kind, **options)


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, dask_cluster: str) -> Iterator[Place]:
    place = Place(request.param, dask_cluster)
    with place.bus:
        yield place


def test_job_counts_events_at_any_depth_and_tells_its_end_once(place: Place) -> None:
    place.subscribe(place.spread)
    with place.bus.job("spread") as job:
        place.bus.publish("number", 4)
    assert job.done
    assert (job.succeeded, job.failed, job.cancelled, job.pending) == (31, 0, 0, 0)
    place.bus.drain()
    assert place.done == [JobDone("spread", job.id, 31, 0, 0)]
    assert sorted(job.results(place.spread)) == [0] * 16 + [1] * 8 + [2] * 4 + [3] * 2 + [4]
    assert list(job.results(place.spread)) == []


def test_events_outside_of_the_block_do_not_count(place: Place) -> None:
    place.subscribe(place.spread)
    place.bus.publish("number", 3)
    with place.bus.job("spread") as job:
        place.bus.publish("number", 1)
    place.bus.publish("number", 3)
    assert job.succeeded == 3


def test_batch_handlers_events_belong_to_the_job(place: Place) -> None:
    place.subscribe(spread_all, batch=4)
    with place.bus.job("spread") as job:
        for _ in range(4):
            place.bus.publish("number", 2)
    assert job.succeeded == 28


def test_retried_delivery_is_pending_until_its_last_attempt(place: Place) -> None:
    place.subscribe(fail_first, retries=1, backoff=0)
    with place.bus.job("retry") as job:
        place.bus.publish("number", 1)
        if isinstance(place.bus, InlineBus):
            place.bus.drain()
    assert (job.succeeded, job.failed) == (1, 0)


def test_too_many_failures_cancel_the_job(place: Place) -> None:
    place.subscribe(fail)
    job = place.bus.job("fail", max_failed=2)

    def publish_all() -> None:
        with job:
            for number in range(50):
                place.bus.publish("number", number)

    with pytest.raises(JobFailed, match="'fail' was cancelled") as raised:
        publish_all()
    assert isinstance(raised.value.__cause__, KeyError)
    assert job.failed > 2
    assert job.failed + job.cancelled == 50
    with pytest.raises(JobFailed):
        job.wait()
    place.bus.drain()
    assert [done.failed for done in place.done] == [job.failed]


def test_stream_and_map_and_calls_belong_to_the_job(place: Place) -> None:
    place.subscribe(place.spread)
    with place.bus.job("all") as job:
        assert len(list(place.bus.stream([1, 1], topic="number"))) == 2
        assert list(place.bus.map(place.spread, [0, 0, 0])) == [0, 0, 0]
        assert place.bus.call(place.spread, 0).result(BOUND_S) == 0
    assert job.succeeded == 10


def test_inner_job_belongs_to_the_outer_one(place: Place) -> None:
    place.subscribe(place.spread)
    with place.bus.job("outer") as outer:
        with place.bus.job("inner") as inner:
            place.bus.publish("number", 1)
        assert (inner.succeeded, inner.done, outer.done) == (3, True, False)
        place.bus.publish("number", 0)
    assert outer.succeeded == 5  # with the delivery of the inner job's JobDone
    place.bus.drain()
    assert [done.name for done in place.done] == ["inner", "outer"]


def test_wait_in_the_block_is_for_what_was_published_so_far(place: Place) -> None:
    place.subscribe(place.spread)
    with place.bus.job("spread") as job:
        assert job.wait(0)
        place.bus.publish("number", 2)
        assert job.wait(BOUND_S)
        assert job.succeeded == 7
        assert not job.done
        assert sorted(job.results(place.spread)) == [0, 0, 0, 0, 1, 1, 2]


def test_async_block_waits_without_blocking_the_loop(place: Place) -> None:
    place.subscribe(place.spread)

    async def spread_in_task(number: int) -> int:
        async with place.bus.job(f"task {number}") as job:
            await place.bus.apublish("number", number)
            assert await job is job
        return job.succeeded

    async def main() -> list[int]:
        return await asyncio.gather(*(spread_in_task(number) for number in range(4)))

    assert asyncio.run(main()) == [1, 3, 7, 15]


def test_jobs_of_two_threads_do_not_mix(place: Place) -> None:
    if isinstance(place.bus, InlineBus):
        pytest.skip("an InlineBus is for one thread")
    place.subscribe(place.spread)
    together = threading.Barrier(2)
    counts = {}

    def spread_in_thread(depth: int) -> None:
        with place.bus.job(f"thread {depth}") as job:
            together.wait(BOUND_S)
            for _ in range(20):
                place.bus.publish("number", depth)
        counts[depth] = job.succeeded

    threads = [threading.Thread(target=spread_in_thread, args=(depth,)) for depth in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(BOUND_S)
    assert counts == {1: 60, 2: 140}


def test_tree_shows_who_published_what(place: Place) -> None:
    place.subscribe(place.spread, name="spread")
    with place.bus.job("spread") as job:
        place.bus.publish("number", 1)
    lines = job.tree().splitlines()
    assert lines[0] == "Job 'spread': 3 succeeded"
    assert len(lines) == 7
    assert lines[2].startswith("   └─ spread: succeeded, waited")
    assert lines[3].startswith("      ├─ event")
    assert lines[6].startswith("         └─ spread: succeeded, waited")


def test_handler_that_waits_for_its_own_job_is_refused(place: Place) -> None:
    if place.kind == "cpu":
        pytest.skip("a worker process has no job to wait for")
    jobs: list[Job] = []
    place.bus.subscribe("wait", lambda number: jobs[0].wait())
    with place.bus.job("wait") as job:
        jobs.append(job)
        receipt = place.bus.publish("wait", 1)
        with pytest.raises(ProcbusError, match="cannot end before this handler has"):
            receipt.result(BOUND_S)
