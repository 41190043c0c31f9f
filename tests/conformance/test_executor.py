# SPDX-License-Identifier: MIT
"""The promises of `concurrent.futures`, tested on its own executors and on ours alike.

After CPython's tests of that module. Nothing here knows which executor it has.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import itertools
import operator
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import (
    ALL_COMPLETED,
    FIRST_COMPLETED,
    FIRST_EXCEPTION,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    as_completed,
    wait,
)
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from procbus import EventBus, executor
from tests.matrix import quick_first
from tests.parts import BOUND_S

Make = Callable[[int], Executor]


def stdlib_processes(workers: int) -> Executor:
    # Not by fork, which Python 3.12 warns of where there are threads.
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"))


MAKERS: dict[str, Make] = {
    "procbus cpu": lambda workers: executor("cpu", max_workers=workers),
    "procbus io": lambda workers: executor("io", max_workers=workers),
    "ThreadPoolExecutor": ThreadPoolExecutor,
    "ProcessPoolExecutor": stdlib_processes,
}
PROCESSES = ("procbus cpu", "ProcessPoolExecutor")
THREADS = ("procbus io", "ThreadPoolExecutor")
OURS = ("procbus cpu", "procbus io")


@pytest.fixture(params=quick_first(MAKERS, len(OURS)))
def make(request: pytest.FixtureRequest) -> Make:
    return MAKERS[request.param]


@pytest.fixture(name="pool")
def pool_of_one(make: Make) -> Iterator[Executor]:
    with make(1) as made:
        yield made


def only(*names: str) -> pytest.MarkDecorator:
    """Ask some of them only."""
    ours = [name for name in names if name in OURS]
    theirs = [name for name in names if name not in OURS]
    return pytest.mark.parametrize("make", quick_first(ours + theirs, len(ours)), indirect=True)


# The functions that are called.


class Held:
    """Calls that wait in the worker until the test lets them go, by way of named pipes."""

    def __init__(self, directory: Path) -> None:
        self.begun, self.go = directory / "begun", directory / "go"
        os.mkfifo(self.begun)
        os.mkfifo(self.go)

    def wait_begun(self) -> None:
        self.begun.read_bytes()  # opening it waits for the other end, as below

    def let_go(self) -> None:
        self.go.write_bytes(b"")

    def end(self) -> None:
        """Release functions that are still held after a failed test."""
        for path in (self.begun, self.go):
            os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Held]:
    made = Held(tmp_path)
    yield made
    made.end()


def hold(begun: Path, go: Path) -> str:
    begun.write_bytes(b"")
    go.read_bytes()
    return "went on"


def power(base: int, exponent: int) -> int:
    return int(base**exponent)


def capture(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
    return args, kwargs


def touch(path: Path) -> None:
    path.touch()


def fail(error: BaseException) -> None:
    raise error


class Point:
    scale = 10

    def __init__(self, x: int) -> None:
        self.x = x

    def __call__(self, y: int) -> int:
        return self.x + y

    def times(self, y: int) -> int:
        return self.x * y

    @classmethod
    def scaled(cls, y: int) -> int:
        return cls.scale * y


class Unpicklable:
    def __reduce__(self) -> Any:
        raise TypeError("this stays here")


# submit


def test_submit_calls_with_all_arguments(pool: Executor) -> None:
    assert pool.submit(power, 2, 8).result() == 256
    assert pool.submit(capture, 1, self=2, fn=3).result() == ((1,), {"self": 2, "fn": 3})
    with pytest.raises(TypeError):
        pool.submit(fn=capture, arg=1)  # type: ignore[call-arg] # refusing it is the point
    with pytest.raises(TypeError):
        pool.submit(arg=1)  # type: ignore[call-arg] # likewise


def test_every_kind_of_callable_is_called(pool: Executor) -> None:
    point = Point(3)

    assert pool.submit(point.times, 5).result() == 15
    point.x = 4
    assert pool.submit(point.times, 5).result() == 20, "the instance is the one of the call"
    assert pool.submit(point, 5).result() == 9
    assert pool.submit(Point.scaled, 5).result() == 50
    assert pool.submit(Point, 5).result().x == 5
    assert pool.submit(functools.partial(power, 2), 5).result() == 32
    assert pool.submit(functools.partial(capture, 1, a=2), 3, b=4).result() == (
        (1, 3),
        {"a": 2, "b": 4},
    )
    assert pool.submit(functools.partial(point.times), 2).result() == 8
    assert pool.submit("text".upper).result() == "TEXT"
    assert pool.submit(operator.itemgetter(1), "abc").result() == "b"
    assert pool.submit(divmod, 7, 2).result() == (3, 1)
    assert pool.submit(max, [1, 3, 2]).result() == 3


def test_an_exception_comes_back_as_itself(pool: Executor) -> None:
    future = pool.submit(operator.floordiv, 1, 0)

    with pytest.raises(ZeroDivisionError):
        future.result()
    assert isinstance(future.exception(), ZeroDivisionError)
    assert pool.submit(operator.floordiv, 4, 2).exception() is None
    with pytest.raises(KeyError, match="which"):
        pool.submit(fail, KeyError("which")).result()


@only(*PROCESSES)
def test_an_exception_has_the_workers_traceback_as_its_cause(pool: Executor) -> None:
    error = pool.submit(fail, ValueError("no")).exception()

    assert error is not None
    assert "in fail" in str(error.__cause__)


@only(*THREADS)
def test_an_exception_that_is_no_error_comes_back_too(pool: Executor) -> None:
    assert isinstance(pool.submit(fail, SystemExit(3)).exception(), SystemExit)
    assert pool.submit(power, 2, 2).result() == 4


@only(*PROCESSES)
def test_argument_that_cannot_travel_fails_its_own_call(pool: Executor) -> None:
    bad = pool.submit(capture, Unpicklable())

    assert pool.submit(power, 2, 2).result() == 4
    assert "this stays here" in str(bad.exception())


def test_late_result_is_a_timeout_error(pool: Executor, held: Held) -> None:
    future = pool.submit(hold, held.begun, held.go)
    held.wait_begun()
    with pytest.raises(TimeoutError):
        future.result(timeout=0)
    with pytest.raises(TimeoutError):
        future.exception(timeout=0)
    held.let_go()
    assert future.result() == "went on"


@only(*THREADS)
def test_a_call_may_submit_another_and_wait_for_it(make: Make) -> None:
    with make(2) as pool:

        def outer() -> int:
            return pool.submit(power, 2, 3).result()

        assert pool.submit(outer).result() == 8


def test_several_threads_may_submit(make: Make) -> None:
    results: list[int] = []

    def submit_many(start: int) -> None:
        futures = [pool.submit(power, number, 2) for number in range(start, start + 50)]
        results.extend(future.result() for future in futures)

    with make(2) as pool:
        threads = [threading.Thread(target=submit_many, args=(50 * n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(BOUND_S)
    assert sorted(results) == [number**2 for number in range(200)]


def test_a_future_does_not_keep_the_arguments(pool: Executor) -> None:
    point = Point(1)
    gone = weakref.ref(point)
    futures: list[Future[Any]] = [pool.submit(capture, 1, of=point), pool.submit(point, 1)]
    wait(futures)
    # One more, because workers hold objects until their next call.
    wait([pool.submit(power, 1, 1)])
    futures[0].result()[1].clear()
    del point
    futures.pop(0)
    gc.collect()
    assert gone() is None


# The states of a future.


def test_a_call_that_has_not_begun_can_be_cancelled(pool: Executor, held: Held, tmp_path) -> None:
    running = pool.submit(hold, held.begun, held.go)
    held.wait_begun()
    # The standard's processes have one more call at hand than they run, which is running to it.
    ahead = [pool.submit(power, 2, 2) for _ in range(3)]
    pending = pool.submit(touch, tmp_path / "ran")

    assert not pending.running()
    assert not pending.done()
    assert pending.cancel()
    assert pending.cancel(), "again is the same"
    assert pending.cancelled()
    assert pending.done()
    with pytest.raises(CancelledError):
        pending.result()
    with pytest.raises(CancelledError):
        pending.exception()
    held.let_go()
    assert running.result() == "went on"
    assert [future.result() for future in ahead] == [4, 4, 4]
    assert pool.submit(power, 2, 3).result() == 8
    assert not (tmp_path / "ran").exists()


def test_a_call_that_is_running_or_done_cannot_be_cancelled(pool: Executor, held: Held) -> None:
    future = pool.submit(hold, held.begun, held.go)
    held.wait_begun()

    assert future.running()
    assert not future.cancel()
    assert not future.cancelled()
    held.let_go()
    assert future.result() == "went on"
    assert not future.running()
    assert not future.cancel()
    assert future.done()


# Callbacks.


def test_callbacks_are_called_in_order_even_if_one_raises(
    pool: Executor, held: Held, caplog: pytest.LogCaptureFixture
) -> None:
    called: list[Any] = []
    future = pool.submit(hold, held.begun, held.go)
    held.wait_begun()
    future.add_done_callback(called.append)
    future.add_done_callback(lambda _: fail(ValueError("in a callback")))
    future.add_done_callback(lambda done: called.append(done.result()))
    held.let_go()
    future.result()
    pool.shutdown()

    assert called == [future, "went on"]
    assert "exception calling callback" in caplog.text
    future.add_done_callback(called.append)
    assert called[-1] is future, "at once, where it is done"
    caplog.clear()  # the traceback in it keeps the standard's pipes


def test_callbacks_are_called_when_a_future_is_cancelled(pool: Executor, held: Held) -> None:
    called: list[bool] = []
    pool.submit(hold, held.begun, held.go)
    held.wait_begun()
    ahead = [pool.submit(power, 2, 2) for _ in range(3)]
    future = pool.submit(power, 2, 2)
    future.add_done_callback(lambda done: called.append(done.cancelled()))
    future.cancel()

    assert called == [True]
    held.let_go()
    wait(ahead)


def test_a_callback_may_submit_the_next_call(pool: Executor) -> None:
    second: list[Future[int]] = []
    submitted = threading.Event()

    def submit_next(first: Future[int]) -> None:
        second.append(pool.submit(power, first.result(), 2))
        submitted.set()

    pool.submit(power, 2, 2).add_done_callback(submit_next)
    assert submitted.wait(BOUND_S)
    assert second[0].result() == 16


# wait and as_completed


def test_wait_returns_at_the_end_that_return_when_names(make: Make, held: Held) -> None:
    with make(2) as pool:
        slow: Future[Any] = pool.submit(hold, held.begun, held.go)
        held.wait_begun()
        quick: Future[Any] = pool.submit(power, 2, 2)
        assert wait([slow, quick], return_when=FIRST_COMPLETED) == ({quick}, {slow})
        failed: Future[Any] = pool.submit(fail, ValueError("no"))
        done, not_done = wait([slow, failed], return_when=FIRST_EXCEPTION)
        assert (done, not_done) == ({failed}, {slow})
        assert wait([slow, quick], timeout=0) == ({quick}, {slow})
        held.let_go()
        done, not_done = wait([slow, quick, failed], return_when=ALL_COMPLETED)
        assert (done, not_done) == ({slow, quick, failed}, set())


def test_wait_sees_a_future_that_is_cancelled(pool: Executor, held: Held) -> None:
    pool.submit(hold, held.begun, held.go)
    held.wait_begun()
    ahead = [pool.submit(power, 2, 2) for _ in range(3)]
    pending = [pool.submit(power, 2, 2) for _ in range(3)]
    assert all(future.cancel() for future in pending)
    held.let_go()
    assert wait(pending).done == set(pending)
    assert set(as_completed(pending)) == set(pending)
    wait(ahead)


def test_as_completed_gives_futures_as_they_end(make: Make, held: Held) -> None:
    with make(2) as pool:
        slow: Future[Any] = pool.submit(hold, held.begun, held.go)
        held.wait_begun()
        quick: Future[Any] = pool.submit(power, 2, 2)
        completed = as_completed([slow, quick, quick])
        assert next(completed) is quick
        with pytest.raises(TimeoutError):
            next(as_completed([slow], timeout=0))
        held.let_go()
        assert list(completed) == [slow]


# map


def test_map_gives_results_in_order(make: Make) -> None:
    with make(2) as pool:
        assert list(pool.map(power, range(10), range(10))) == list(map(power, range(10), range(10)))
        assert list(pool.map(power, range(10), itertools.repeat(2))) == [n * n for n in range(10)]
        assert list(pool.map(Point(2).times, range(3))) == [0, 2, 4]
        assert list(pool.map(power, [])) == []


@pytest.mark.parametrize("chunksize", quick_first([3, 1, 6, 40, 100]))
def test_map_gives_the_same_in_chunks(make: Make, chunksize: int) -> None:
    with make(2) as pool:
        expected = list(map(power, range(40), range(40)))
        assert list(pool.map(power, range(40), range(40), chunksize=chunksize)) == expected
        halves = functools.partial(power, 2)
        assert list(pool.map(halves, range(4), chunksize=chunksize)) == [1, 2, 4, 8]


def test_map_raises_the_exception_of_a_call_in_its_turn(make: Make) -> None:
    with make(2) as pool:
        results = pool.map(divmod, [1, 1, 1, 1], [2, 3, 0, 5])
        assert next(results) == (0, 1)
        assert next(results) == (0, 1)
        with pytest.raises(ZeroDivisionError):
            next(results)


def test_map_submits_at_once_even_if_no_result_is_taken(make: Make, tmp_path: Path) -> None:
    with make(2) as pool:
        pool.map(touch, [tmp_path / "a", tmp_path / "b"])
    assert (tmp_path / "a").exists()
    assert (tmp_path / "b").exists()


def test_map_raises_a_timeout_error_and_cancels_the_rest(
    make: Make, held: Held, tmp_path: Path
) -> None:
    with make(1) as pool:
        running = pool.submit(hold, held.begun, held.go)
        held.wait_begun()
        ahead = [pool.submit(power, 2, 2) for _ in range(3)]
        results = pool.map(touch, [tmp_path / "a", tmp_path / "b"], timeout=0)
        with pytest.raises(TimeoutError):
            next(results)
        held.let_go()
        running.result()
        wait(ahead)
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "b").exists()


@only(*PROCESSES)
def test_map_refuses_chunks_of_nothing(pool: Executor) -> None:
    with pytest.raises(ValueError, match="chunksize must be >= 1"):
        pool.map(power, range(3), range(3), chunksize=0)


# shutdown


def test_submit_is_refused_after_the_shutdown(make: Make) -> None:
    pool = make(1)
    pool.submit(power, 2, 2)
    pool.shutdown()
    pool.shutdown()
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        pool.submit(power, 2, 2)
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        list(pool.map(power, [2], [2]))


def test_an_executor_that_did_nothing_can_be_shut_down(make: Make) -> None:
    make(1).shutdown()
    with make(1):
        pass


def test_shutdown_waits_for_pending_calls(make: Make, held: Held) -> None:
    pool = make(1)
    futures: list[Future[Any]] = [pool.submit(hold, held.begun, held.go), pool.submit(power, 2, 2)]
    held.wait_begun()
    closer = threading.Thread(target=pool.shutdown)
    closer.start()
    held.let_go()
    closer.join(BOUND_S)
    assert not closer.is_alive()
    assert all(future.done() for future in futures)
    assert futures[1].result() == 4


def join_threads() -> None:
    """The standard's processes are not waited for by a second shutdown."""
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join(BOUND_S)


def test_shutdown_without_waiting_lets_all_finish(make: Make, held: Held) -> None:
    pool = make(1)
    futures: list[Future[Any]] = [pool.submit(hold, held.begun, held.go), pool.submit(power, 2, 2)]
    held.wait_begun()
    pool.shutdown(wait=False)
    with pytest.raises(RuntimeError):
        pool.submit(power, 2, 2)
    held.let_go()
    assert [future.result(BOUND_S) for future in futures] == ["went on", 4]
    pool.shutdown()
    join_threads()


def test_shutdown_cancels_calls_that_have_not_begun(make: Make, held: Held) -> None:
    pool = make(1)
    running = pool.submit(hold, held.begun, held.go)
    held.wait_begun()
    pending = [pool.submit(power, 2, 2) for _ in range(20)]
    cancelled = threading.Semaphore(0)
    # The standard's processes have one more call at hand than they run, and cancel in a thread.
    for future in pending[3:]:
        future.add_done_callback(lambda _: cancelled.release())
    pool.shutdown(wait=False, cancel_futures=True)
    for _ in pending[3:]:
        assert cancelled.acquire(timeout=BOUND_S)
    held.let_go()
    pool.shutdown()
    join_threads()

    assert running.result() == "went on"
    assert all(future.cancelled() for future in pending[3:])
    assert all(future.done() for future in pending)


def test_leaving_the_block_waits_for_all(make: Make) -> None:
    with make(2) as pool:
        futures = [pool.submit(power, 2, n) for n in range(20)]
    assert all(future.done() for future in futures)


def test_an_error_that_leaves_the_block_cancels_nothing(make: Make) -> None:
    futures = []

    def use() -> None:
        with make(1) as pool:
            futures.append(pool.submit(power, 2, 2))
            raise LookupError

    with pytest.raises(LookupError):
        use()
    assert futures[0].result() == 4


# asyncio


def test_an_event_loop_runs_calls_on_it(make: Make) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        squares = [loop.run_in_executor(pool, power, n, 2) for n in range(5)]
        assert await asyncio.gather(*squares) == [0, 1, 4, 9, 16]
        with pytest.raises(ZeroDivisionError):
            await loop.run_in_executor(pool, divmod, 1, 0)

    with make(2) as pool:
        asyncio.run(main())


def test_a_task_that_is_cancelled_cancels_its_call(make: Make, held: Held, tmp_path: Path) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        running = loop.run_in_executor(pool, hold, held.begun, held.go)
        await asyncio.to_thread(held.wait_begun)
        ahead = [loop.run_in_executor(pool, power, 2, 2) for _ in range(3)]
        pending = loop.run_in_executor(pool, touch, tmp_path / "ran")
        pending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pending
        await asyncio.sleep(0)  # the loop passes it on in its next round
        held.let_go()
        assert await running == "went on"
        await asyncio.gather(*ahead)

    with make(1) as pool:
        asyncio.run(main())
    assert not (tmp_path / "ran").exists()


def noted(numbers: Iterable[int], taken: list[int]) -> Iterator[int]:
    for number in numbers:
        taken.append(number)
        yield number


# Additions of ours: an executor on an existing bus is no different.


@pytest.mark.parametrize("kind", ["cpu", "io"])
def test_a_bus_gives_an_executor_that_ends_without_it(kind: Any) -> None:
    with EventBus([], cpu_workers=1, io_workers=1) as bus:
        with bus.executor(kind) as pool:
            assert pool.submit(power, 2, 2).result() == 4
        with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
            pool.submit(power, 2, 2)
        again = bus.executor(kind)
        assert again.submit(power, 2, 3).result() == 8
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        again.submit(power, 2, 2)


@only(*OURS)
def test_map_reads_ahead_no_further_than_its_buffer(pool: Any) -> None:
    taken: list[int] = []
    results = pool.map(power, noted(itertools.count(), taken), itertools.repeat(2), buffersize=3)
    assert len(taken) == 3
    assert [next(results) for _ in range(4)] == [0, 1, 4, 9]
    assert len(taken) == 7
    results.close()
    with pytest.raises(ValueError, match="buffersize"):
        pool.map(power, [1], buffersize=0)
    with pytest.raises(TypeError, match="buffersize"):
        pool.map(power, [1], buffersize="3")


def test_a_buffer_counts_calls_though_they_go_in_chunks() -> None:
    taken: list[int] = []
    with executor("cpu", max_workers=1) as pool:
        results = pool.map(abs, noted(range(100), taken), chunksize=5, buffersize=20)
        assert len(taken) == 20
        assert list(results) == list(range(100))
