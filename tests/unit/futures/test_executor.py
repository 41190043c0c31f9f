# SPDX-License-Identifier: MIT
"""Features of a procbus executor beyond the standard's promises; see conformance for those."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Future, wait
from functools import partial
from pathlib import Path
from pickle import PicklingError
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from procbus import (
    BusClosed,
    EventBus,
    HandlerTimeout,
    OptionError,
    ProcbusError,
    QueueFull,
    SerializationError,
    WorkerDied,
    current,
    executor,
)
from procbus.core.context import HandlerContext
from procbus.core.gil import gil_is_on
from procbus.core.handler import Kind
from procbus.core.meter import LONG_S
from procbus.futures.call_future import CallFuture
from procbus.futures.calls import Call
from procbus.futures.handlers import MOST_CALLABLES, MOST_SIBLINGS
from tests.matrix import quick_first
from tests.parts import BOUND_S, Held
from tests.waits import eventually


def square(number: int) -> int:
    return number * number


def die(code: int) -> None:
    os._exit(code)


def fail(text: str) -> None:
    raise ValueError(text)


def sleep_for_ever() -> None:
    threading.Event().wait()


def live_calls() -> int:
    """How many callables a worker has just now."""
    gc.collect()
    return sum(isinstance(each, Call) for each in gc.get_objects())


def publish(what: str) -> str:
    current().publish("heard", what)
    return what


def name_of_current() -> str:
    return current().handler


# Failures.


def test_a_killed_worker_fails_one_future() -> None:
    with executor("cpu", max_workers=2) as pool:
        futures = [pool.submit(square, n) for n in range(100)]
        dead = pool.submit(die, 3)
        futures += [pool.submit(square, n) for n in range(100)]
        error = dead.exception()
        assert [future.result() for future in futures] == [n * n for n in range(100)] * 2
    assert isinstance(error, WorkerDied)
    assert error.exit_code == 3
    assert error.handler == f"{__name__}.die"


def test_failures_go_to_the_future_and_nowhere_else(caplog: pytest.LogCaptureFixture) -> None:
    with EventBus([], io_workers=1) as bus, bus.executor("io") as pool:
        error = pool.submit(fail, "mine").exception()
        assert bus.stats().handlers[f"{__name__}.fail"].failed == 1
        assert not bus.dead_letters
    assert isinstance(error, ValueError)
    assert caplog.records == []


def test_argument_that_cannot_travel_is_named_by_its_path() -> None:
    with executor("cpu", max_workers=1) as pool:
        error = pool.submit(square, [threading.Lock()]).exception()
    assert isinstance(error, SerializationError)
    assert "[0]" in error.path


def test_the_options_hold_for_every_call(caplog: pytest.LogCaptureFixture) -> None:
    attempts: list[int] = []

    def flaky() -> str:
        attempts.append(current().attempt)
        if len(attempts) < 3:
            raise OSError("not yet")
        return "at last"

    with executor("io", max_workers=1, retries=2, backoff=0) as pool:
        assert pool.submit(flaky).result() == "at last"
    assert attempts == [1, 2, 3]
    with executor("cpu", max_workers=1, timeout=0.5) as pool:
        for slow in [pool.submit(sleep_for_ever) for _ in range(2)]:
            assert isinstance(slow.exception(BOUND_S), HandlerTimeout)


def test_a_call_that_waits_for_its_next_attempt_can_be_cancelled() -> None:
    failed = threading.Event()

    def flaky() -> None:
        failed.set()
        raise OSError

    with EventBus([], io_workers=1) as bus:
        pool = bus.executor("io", retries=5, backoff=3600)
        future = pool.submit(flaky)
        assert failed.wait(BOUND_S)
        eventually(future.cancel)  # at once, or in the moment when its failure is settled
        assert bus.drain(BOUND_S)
        assert bus.stats().retrying == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"kind": "gpu"}, '"io".*"cpu".*gpu'),
        ({"timeout": -1}, "timeout"),
        ({"timout": 3}, "no option timout.*timeout"),
        ({"key": len}, "no option key"),
        ({"priority": "high"}, "priority"),
        ({"kind": "io", "max_memory": "1 GiB"}, "max_memory"),
        ({"max_workers": 0}, "workers"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: Any, says: str) -> None:
    with pytest.raises(OptionError, match=says):
        executor(**options)


@pytest.mark.parametrize("kind", ["cpu", "io"])
def test_object_that_is_not_callable_is_refused_at_once(kind: Any) -> None:
    with executor(kind) as pool, pytest.raises(TypeError, match="5 is not callable"):
        pool.submit(5)  # type: ignore[arg-type] # refusing it is the point


async def anyhow(number: int) -> int:
    await asyncio.sleep(0)
    return number


def test_an_async_function_runs_on_the_event_loop_of_the_bus() -> None:
    with executor("io") as pool:
        future: Future[Any] = pool.submit(anyhow, 3)  # the standard's types know no such thing
        assert future.result() == 3
        made = [pool.submit(partial(lambda m, n: anyhow(m * n), 2), n).result() for n in range(3)]
    assert all(asyncio.iscoroutine(each) for each in made), "what returns one is no async def"
    for each in made:
        each.close()
    with executor("cpu") as pool, pytest.raises(TypeError, match="anyhow is async"):
        pool.submit(anyhow, 3)


# As the standard has it.


class Mine:
    """Something that can be referred to weakly."""


def make_one(number: int) -> Mine:
    return Mine()


#: Without the GIL an object that another thread made is freed once that thread runs again.
FREED_AT_ONCE = pytest.mark.skipif(not gil_is_on(), reason="its thread frees it, later")


@FREED_AT_ONCE
@pytest.mark.parametrize("chunksize", quick_first([3, 1]))
def test_map_keeps_no_result_that_it_gave_out(chunksize: int) -> None:
    with executor("io", max_workers=2) as pool:
        for result in pool.map(make_one, range(8), chunksize=chunksize):
            gone = weakref.ref(result)
            del result
            assert gone() is None


@FREED_AT_ONCE
def test_a_chunk_of_map_keeps_no_result_that_it_gave_out() -> None:
    with executor("cpu", max_workers=1) as pool:
        results = pool.map(make_one, range(6), chunksize=3)
        first = weakref.ref(next(results))
        second = weakref.ref(next(results))
        assert (first(), second()) == (None, None)


def add_one(array: Any) -> Any:
    array += 1
    return array


@pytest.mark.parametrize("size", quick_first([100_000, 10]))
def test_arrays_are_private_copies_unless_they_are_to_be_shared(size: int) -> None:
    numpy = pytest.importorskip("numpy")
    zeros = numpy.zeros(size)
    with EventBus([], cpu_workers=1) as bus:
        pool = bus.executor("cpu")
        changed = pool.submit(add_one, zeros).result()
        assert changed.sum() == size
        assert changed.flags.writeable
        assert zeros.sum() == 0
        shared = bus.executor("cpu", writable=False)
        failed = shared.submit(add_one, zeros).exception()
    assert isinstance(failed, ValueError) == (size == 100_000), "a small one takes the pipe"


def test_number_of_workers_is_in_the_standards_attribute() -> None:
    with executor("cpu", max_workers=3) as cpu, executor("io", max_workers=5) as io:
        counts = [getattr(pool, "_max_workers") for pool in (cpu, io)]  # noqa: B009 - of others
        assert counts == [3, 5]
        cpu.submit(square, 2).result()
        assert getattr(cpu, "_max_workers") == 3  # noqa: B009


@pytest.mark.parametrize("kind", ["cpu", "io"])
@pytest.mark.parametrize("workers", [0, -1, 2.5, "2", True])
def test_the_error_names_the_argument_that_was_given(kind: Any, workers: Any) -> None:
    with pytest.raises(ValueError, match="max_workers must be greater than 0"):
        executor(kind, max_workers=workers)


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("max_tasks_per_child", "max_events_per_worker="),
        ("mp_context", "leave it out"),
        ("thread_name_prefix", "leave it out"),
        ("max_workers", "cpu_workers="),
        ("initializer", "worker_init="),
        ("initargs", "worker_init="),
        ("timeot", "did you mean timeout="),
        ("xyz", "has no option xyz=. It has: timeout,"),
    ],
)
def test_an_argument_that_the_standard_has_and_a_bus_has_not_says_its_place(
    option: str, told: str
) -> None:
    options: Any = {option: 1}
    with EventBus([]) as bus, pytest.raises(OptionError) as caught:
        bus.executor("cpu", **options)
    assert told in str(caught.value)


state: list[Any] = []


def remember(*what: Any) -> None:
    state.append(what)


def recall() -> list[Any]:
    return state


def test_an_initializer_runs_once_in_each_process() -> None:
    with executor("cpu", max_workers=1, initializer=remember, initargs=(1, "a")) as pool:
        assert [pool.submit(recall).result() for _ in range(3)] == [[(1, "a")]] * 3
    assert state == []


def test_an_initializer_runs_once_in_each_thread() -> None:
    ran: list[str] = []
    both = threading.Barrier(2, timeout=BOUND_S)

    def note() -> None:
        ran.append(threading.current_thread().name)

    def call(number: int) -> str:
        if number < 2:
            both.wait()
        return threading.current_thread().name

    with executor("io", max_workers=2, initializer=note) as pool:
        names = set(pool.map(call, range(20)))
        assert pool.submit(anyhow, 1).result() == 1  # type: ignore[comparison-overlap]
    assert len(names) == 2
    assert names < set(ran)
    assert len(ran) == 3, "and once in the thread of the event loop"


@pytest.mark.parametrize("kind", ["cpu", "io"])
def test_calls_fail_whose_worker_cannot_be_set_up(kind: Any) -> None:
    with executor(kind, max_workers=1, initializer=fail, initargs=("no",)) as pool:
        error = pool.submit(square, 2).exception()
    assert isinstance(error, BrokenExecutor)
    assert "ValueError: no" in f"{error} {error.__cause__}"


def leave() -> None:
    sys.exit("no licence")


@pytest.mark.parametrize("kind", ["cpu", "io"])
def test_an_initializer_that_exits_fails_the_call_as_a_worker_that_died(kind: Any) -> None:
    with executor(kind, max_workers=1, initializer=leave) as pool:
        error = pool.submit(square, 2).exception()
        asked_again = pool.submit(square, 2).exception()
    assert isinstance(error, BrokenExecutor)
    assert "SystemExit" in str(error)
    assert "no licence" in f"{error} {error.__cause__}"
    assert isinstance(asked_again, BrokenExecutor)


def test_an_initializer_that_makes_no_sense_is_refused() -> None:
    for kind in ("cpu", "io"):
        with pytest.raises(TypeError, match="initializer must be a callable, not 5"):
            executor(kind, initializer=5)  # type: ignore[arg-type] # refusing it is the point
    with pytest.raises(SerializationError, match=r"initializer .*remember.* cannot travel"):
        executor("cpu", initializer=remember, initargs=(threading.Lock(),))


def linger(path: str) -> None:
    signal.signal(signal.SIGTERM, lambda *_: Path(path).write_text("told") and os._exit(0))
    Path(path).write_text("begun")
    while True:  # a signal that comes in the moment before a wait for ever would not end that
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("end", "left"), [("terminate_workers", "told"), ("kill_workers", "begun")]
)
def test_workers_can_be_ended_at_once(tmp_path: Path, end: str, left: str) -> None:
    pool = executor("cpu", max_workers=1)
    path = tmp_path / "state"
    running, waiting = pool.submit(linger, str(path)), pool.submit(square, 3)
    eventually(lambda: path.exists() and path.read_text() == "begun")
    getattr(pool, end)()
    assert isinstance(running.exception(BOUND_S), BrokenExecutor)
    assert waiting.cancelled()
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(square, 1)
    pool.shutdown()
    assert path.read_text() == left


def test_workers_of_others_are_not_ended() -> None:
    with EventBus([], cpu_workers=1) as bus:
        with pytest.raises(RuntimeError, match="belong to the bus"):
            bus.executor("cpu").kill_workers()
        with executor("io") as pool, pytest.raises(RuntimeError, match="threads"):
            pool.terminate_workers()


def test_errors_are_also_standard_ones() -> None:
    assert issubclass(HandlerTimeout, TimeoutError)
    assert issubclass(WorkerDied, BrokenExecutor)
    assert issubclass(SerializationError, PicklingError)
    assert issubclass(BusClosed, RuntimeError)
    for error in (HandlerTimeout, WorkerDied, SerializationError, BusClosed):
        assert issubclass(error, ProcbusError)
    late = HandlerTimeout("late", handler="h", event_id=3, limit_s=0.5, stack="there")
    again = pickle.loads(pickle.dumps(late))
    assert (str(again), vars(again)) == ("late", vars(late))


# One that is dropped.


def procbus_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("procbus")]


@pytest.mark.parametrize("kind", ["cpu", "io"])
def test_dropped_executor_finishes_and_ends_its_workers(kind: Any, tmp_path: Path) -> None:
    pool = executor(kind, max_workers=1)
    pid = pool.submit(os.getpid).result()
    futures = [pool.submit(square, n) for n in range(50)]
    gone = weakref.ref(pool)
    del pool
    assert gone() is None
    assert [future.result(BOUND_S) for future in futures] == [n * n for n in range(50)]
    eventually(lambda: not procbus_threads())
    assert kind == "io" or not psutil.pid_exists(pid)


def test_dropped_bus_finishes_its_accepted_calls() -> None:
    held = Held()
    bus = EventBus([], io_workers=1)
    bus.subscribe("n", held)
    receipts = [bus.publish("n", n) for n in range(3)]
    held.wait_begun()
    del bus
    held.go.set()
    assert [receipt.result(BOUND_S) for receipt in receipts] == [0, 1, 2]
    eventually(lambda: not procbus_threads())


def test_stream_or_executor_of_a_dropped_bus_keeps_it() -> None:
    def stream() -> Any:
        bus = EventBus([], io_workers=1)
        bus.subscribe("n", square)
        return bus.stream(range(100), topic="n", ordered=True)

    assert [receipt.result() for receipt in stream()] == [n * n for n in range(100)]

    def of_a_bus() -> Any:
        return EventBus([], io_workers=1).executor("io")

    pool = of_a_bus()
    gc.collect()
    assert [pool.submit(square, n).result() for n in range(3)] == [0, 1, 4]
    del pool
    eventually(lambda: not procbus_threads())


def test_a_bus_that_the_collector_finds_ends_its_workers() -> None:
    bus = EventBus([], io_workers=1)
    bus.subscribe("n", square)
    assert bus.publish("n", 3).result() == 9
    knot: list[Any] = [bus]
    knot.append(knot)
    del bus, knot
    gc.collect()
    eventually(lambda: not procbus_threads())


# Names.


@pytest.mark.parametrize("kind", ["cpu", "io"])
def test_calls_are_counted_under_the_name_of_the_callable(kind: Any) -> None:
    with EventBus([], cpu_workers=1, io_workers=1) as bus:
        pool = bus.executor(kind)
        wait([pool.submit(square, n) for n in range(5)])
        assert pool.submit(name_of_current).result() == f"{__name__}.name_of_current"
        assert pool.submit(partial(name_of_current)).result() == f"{__name__}.name_of_current"
        assert pool.submit("a".upper).result() == "A"
        assert bus.stats().handlers[f"{__name__}.square"].succeeded == 5
        assert "str.upper" in bus.stats().handlers
        pool.shutdown()
        # Counts of an executor stay.
        assert bus.stats().handlers[f"{__name__}.square"].succeeded == 5
        assert repr(pool) == f"<BusExecutor {kind}, shut down: 0 calls pending>"


def test_a_future_says_which_call_it_is_of() -> None:
    held = Held()
    with executor("io", max_workers=1) as pool:
        running, pending = pool.submit(held, 1), pool.submit(held, 2)
        held.wait_begun()
        assert repr(running) == "<Future of tests.parts.Held.__call__: running>"
        assert repr(pending) == "<Future of tests.parts.Held.__call__: pending>"
        held.go.set()
    assert "finished" in repr(running)


# Callables are shipped once, and let go.


def test_a_callable_keeps_its_globals_in_a_worker() -> None:
    def count() -> int:
        calls.append(1)
        return len(calls)

    calls: list[int] = []
    with executor("cpu", max_workers=1) as pool:
        assert [pool.submit(count).result() for _ in range(3)] == [1, 2, 3]


def test_workers_let_go_of_callables() -> None:
    with executor("cpu", max_workers=1) as pool:
        pool.submit(live_calls).result()
        for number in range(2 * MOST_CALLABLES):
            # Of the source of each there is one function, as with functions of modules.
            function = eval(f"lambda: {number}")
            assert pool.submit(function).result() == number
        assert pool.submit(live_calls).result() <= MOST_CALLABLES + 1
        gone = weakref.ref(function)
        del function
    gc.collect()
    assert gone() is None, "the executor lets go of them with its shutdown"


@pytest.mark.parametrize("wait", [True, False])
def test_callables_are_let_go_with_the_last_call_after_the_shutdown(wait: bool) -> None:
    held = Held()
    go = held.go

    def call() -> bool:
        time.sleep(2 * LONG_S)  # a thread notes its last long run
        return go.wait(BOUND_S)

    done = weakref.ref(call)
    with EventBus([], io_workers=2) as bus:
        pool = bus.executor("io")
        futures = [pool.submit(call), pool.submit(held, 1)]
        del call
        if wait:
            go.set()
        pool.shutdown(wait)
        go.set()
        assert [future.result() for future in futures] == [True, 1]
        assert bus.drain(BOUND_S)
        pool.shutdown()
        # The thread of the last call is on its way out of it; then the call is in a circle.
        eventually(lambda: gc.collect() is not None and done() is None)


def test_closures_made_for_each_call_do_not_add_up() -> None:
    def adding(number: int) -> Callable[[int], int]:
        return lambda other: number + other

    with EventBus([], cpu_workers=1) as bus:
        pool = bus.executor("cpu")
        before = pool.submit(live_calls).result()
        for number in range(10 * MOST_SIBLINGS):
            assert pool.submit(adding(number), 1).result() == number + 1
        assert pool.submit(live_calls).result() - before <= MOST_SIBLINGS
        name = f"{__name__}.{adding.__qualname__}.<locals>.<lambda>"
        assert bus.stats().handlers[name].succeeded == 10 * MOST_SIBLINGS
        # One that is called again and again is shipped after all.
        used = adding(5)
        assert [pool.submit(used, n).result() for n in range(4)] == [5, 6, 7, 8]
        assert pool.submit(live_calls).result() - before == MOST_SIBLINGS + 1
        assert list(pool.map(adding(7), range(4), chunksize=2)) == [7, 8, 9, 10]


# Room on the bus.


def test_a_cancelled_call_gives_its_room_back() -> None:
    held = Held()
    with EventBus([], io_workers=1, max_pending=3, on_full="raise") as bus:
        pool = bus.executor("io")
        running = pool.submit(held, 0)
        held.wait_begun()
        for _ in range(10):
            pending = [pool.submit(held, 1), pool.submit(held, 2)]
            with pytest.raises(QueueFull):
                pool.submit(held, 3)
            assert all(future.cancel() for future in pending)
        held.go.set()
        assert running.result() == 0
        assert bus.drain(BOUND_S)
        assert bus.stats().pending == 0
        assert held.events == [0]


def test_callbacks_may_submit_to_a_bus_that_is_full() -> None:
    held = Held()
    done: list[Future[Any]] = []
    through = threading.Event()

    def again(future: Future[Any]) -> None:
        done.append(future)
        if len(done) == 20:
            through.set()
        else:
            pool.submit(held, len(done)).add_done_callback(again)
            pool.submit(held, "one more that takes its room")

    with EventBus([], io_workers=1, max_pending=1) as bus:
        pool = bus.executor("io")
        first = pool.submit(held, 0)
        first.add_done_callback(again)
        held.go.set()
        assert through.wait(BOUND_S)


def test_callback_that_is_added_while_its_call_is_settled_runs_as_inside_the_call() -> None:
    future: CallFuture[int] = CallFuture()
    call: Any = SimpleNamespace(
        owner=SimpleNamespace(
            context_of=lambda *_: HandlerContext("call", 7, None, None, 1, lambda *_: None)
        )
    )
    future.ending = call  # as in the moment before the result is set
    seen: list[int] = []
    future.add_done_callback(lambda _: seen.append(current().event_id))
    future.set_result(1)
    assert seen == [7]


# The end.


def test_a_call_cannot_wait_for_its_own_end() -> None:
    with (
        executor("io") as pool,
        pytest.raises(RuntimeError, match="would wait for that call itself"),
    ):
        pool.submit(pool.shutdown).result()


@pytest.mark.parametrize("kind", ["io", "cpu"])
def test_a_handler_may_use_an_executor_of_its_bus_for_a_block(kind: Kind) -> None:
    with EventBus([], io_workers=1, cpu_workers=1) as bus:

        def handle(_: int) -> list[int]:
            with bus.executor(kind) as pool:
                futures = [pool.submit(square, n) for n in range(3)]
            assert all(future.done() for future in futures)
            return [future.result() for future in futures]

        bus.subscribe("x", handle)
        assert bus.publish("x", 1).result(BOUND_S) == [0, 1, 4]


def test_a_call_may_use_another_executor_of_its_bus_for_a_block() -> None:
    with EventBus([], io_workers=1) as bus:

        def inner() -> int:
            with bus.executor("io") as pool:
                future = pool.submit(square, 3)
            return future.result(0)

        assert bus.executor("io").submit(inner).result(BOUND_S) == 9


def test_a_call_cannot_wait_for_its_own_end_on_a_bus_that_it_shares() -> None:
    with EventBus([]) as bus:
        pool = bus.executor("io")
        with pytest.raises(RuntimeError, match="would wait for that call itself"):
            pool.submit(pool.shutdown).result(BOUND_S)
        assert pool.submit(square, 2).result(BOUND_S) == 4


def test_a_callback_cannot_wait_for_the_end_of_another_executor_of_the_bus() -> None:
    refused: list[str] = []
    through = threading.Event()

    def end(_: Future[int]) -> None:
        try:
            other.shutdown()
        except RuntimeError as error:
            refused.append(str(error))
        through.set()

    held = Held()
    with EventBus([], io_workers=1) as bus:
        other = bus.executor("io")
        future = bus.executor("io").submit(held, 1)
        future.add_done_callback(end)
        held.go.set()
        assert through.wait(BOUND_S)
    assert len(refused) == 1
    assert "would wait" in refused[0]


@pytest.mark.parametrize("awaits", [True, False])
def test_an_async_handler_may_end_an_executor_whose_calls_it_has_awaited(awaits: bool) -> None:
    held = Held()
    with EventBus([], io_workers=1) as bus:

        async def handle(_: int) -> int:
            with bus.executor("io") as pool:
                future = pool.submit(held, 3)
                if awaits:
                    return await asyncio.wrap_future(future)
            return 0

        bus.subscribe("x", handle)
        if awaits:
            held.go.set()
            assert bus.publish("x", 1).result(BOUND_S) == 3
        else:
            with pytest.raises(ProcbusError, match=r"await asyncio\.wrap_future"):
                bus.publish("x", 1).result(BOUND_S)
            held.go.set()


def test_an_executor_ends_the_bus_that_is_its_own() -> None:
    with executor("io", max_workers=1) as pool:
        pool.submit(square, 2)
        names = {thread.name for thread in threading.enumerate()}
        assert any(name.startswith("procbus-io") for name in names)
    names = {thread.name for thread in threading.enumerate()}
    assert not any(name.startswith("procbus-io") for name in names)


def test_ctrl_c_cancels_calls_that_have_not_begun() -> None:
    held = Held()

    def interrupted() -> list[Future[Any]]:
        with executor("io", max_workers=1) as pool:
            futures.extend(pool.submit(held, n) for n in range(3))
            held.wait_begun()
            held.go.set()
            raise KeyboardInterrupt

    futures: list[Future[Any]] = []
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert all(future.done() for future in futures)
    assert futures[0].result() == 0


def test_closed_bus_cancels_calls_it_does_not_run() -> None:
    held = Held()
    bus = EventBus([], io_workers=1)
    pool = bus.executor("io")
    running, pending = pool.submit(held, 0), pool.submit(held, 1)
    held.wait_begun()
    closer = threading.Thread(target=lambda: bus.close(cancel=True))
    closer.start()
    wait([pending], BOUND_S)
    assert pending.cancelled()
    held.go.set()
    closer.join(BOUND_S)
    assert running.result() == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_cannot_submit() -> None:
    with executor("io", max_workers=1) as pool:
        pool.submit(square, 2).result()
        child = os.fork()
        if child == 0:
            try:
                pool.submit(square, 2)
            except RuntimeError:
                os._exit(7)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_journal_has_the_events_of_calls_but_no_calls(tmp_path: Path) -> None:
    events: list[str] = []
    path = tmp_path / "journal.db"
    with EventBus([], cpu_workers=1, io_workers=1, journal=path, keep="all") as bus:
        bus.subscribe("heard", events.append, name="hear")
        for kind in ("cpu", "io"):
            pool = bus.executor(kind, retries=1, backoff=0)
            assert pool.submit(publish, kind).result() == kind
            assert pool.submit(square, 3).result() == 9
            assert isinstance(pool.submit(fail, "no").exception(), ValueError)
            assert pool.submit(abs, -1).result() == 1
        bus.drain()
    assert sorted(events) == ["cpu", "io"]
    with EventBus([], journal=path) as bus:
        bus.subscribe("heard", events.append, name="hear")
        bus.start()
        assert bus.resume_summary is not None
        assert len(bus.dead_letters) == 0
    assert sorted(events) == ["cpu", "io"], "all of it was through"
