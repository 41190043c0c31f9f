# SPDX-License-Identifier: MIT
"""A bus that runs handlers at once: as every bus, without threads and processes."""

from __future__ import annotations

import asyncio
import threading
from functools import partial
from typing import Any

import pytest

from procbus import (
    Cancelled,
    EventBus,
    HandlerTimeout,
    OptionError,
    ProcbusError,
    SerializationError,
    current,
)
from procbus.testing import Clock, InlineBus


def square(number: int) -> int:
    return number * number


def fail(event: object) -> None:
    raise ValueError(f"no {event}")


def publish_two(number: int) -> int:
    current().publish("made", number + 1)
    current().publish("made", number + 2)
    if number < 0:
        raise ValueError("negative")
    return number


@pytest.fixture(params=[False, True], ids=["as it is", "pickled"])
def pickling(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.mark.parametrize("kind", ["cpu", "io"])
def test_handlers_run_in_the_thread_that_publishes(kind: Any, pickling: bool) -> None:
    before = threading.active_count()
    with InlineBus([], pickling=pickling) as bus:
        bus.subscribe("n", square, kind=kind)
        bus.subscribe("n", lambda _: threading.get_ident(), kind=kind)
        receipt = bus.publish("n", 3)
        assert receipt.done
        assert receipt.results() == [9, threading.get_ident()]
        assert threading.active_count() == before
        assert isinstance(bus, EventBus)
        assert bus.stats().handlers[f"{__name__}.square"].succeeded == 1
        assert bus.drain(0)


def test_an_async_handler_is_run_to_its_end() -> None:
    async def double(number: int) -> int:
        await asyncio.sleep(0)
        return 2 * number

    async def main() -> Any:
        return await (await bus.apublish("n", 4))

    with InlineBus([]) as bus:
        bus.subscribe("n", double)
        assert bus.publish("n", 2).result() == 4
        assert asyncio.run(main()) == 8, "inside an event loop too"


def test_a_cpu_handler_gets_a_copy_where_pickling_is_on(pickling: bool) -> None:
    event = [1]
    with InlineBus([], pickling=pickling) as bus:
        bus.subscribe("n", lambda numbers: numbers, kind="cpu")
        result = bus.publish("n", event).result()
    assert result == event
    assert (result is event) is not pickling


def test_event_that_cannot_travel_fails_only_with_pickling() -> None:
    with InlineBus([]) as bus:
        bus.subscribe("n", lambda _: None, kind="cpu")
        assert bus.publish("n", threading.Lock()).result() is None
    with InlineBus([], pickling=True) as bus:
        bus.subscribe("n", lambda _: None, kind="cpu")
        with pytest.raises(SerializationError):
            bus.publish("n", [threading.Lock()]).result()


@pytest.mark.parametrize("kind", ["cpu", "io"])
def test_failure_is_handled_as_on_every_bus(kind: Any, pickling: bool) -> None:
    with InlineBus([], pickling=pickling) as bus:
        bus.subscribe("n", fail, kind=kind, name="fail")
        receipt = bus.publish("n", 1)
        with pytest.raises(AssertionError, match=r"(?s)fail 1 \(ValueError 1\).*in fail\n"):
            bus.assert_no_failures()
        bus.assert_no_failures()  # by now it was looked at
        assert isinstance(receipt.deliveries[0].exception(), ValueError)
        [letter] = bus.dead_letters
        bus.subscribe("n", square)
        assert bus.dead_letters.replay()[0].deliveries[0].handler.name == letter.handler


def test_events_of_a_cpu_handler_come_with_its_success(pickling: bool) -> None:
    seen: list[int] = []
    with InlineBus([], pickling=pickling) as bus:
        bus.subscribe("n", publish_two, kind="cpu")
        bus.subscribe("made", seen.append)
        receipt = bus.publish("n", 1)
        failed = bus.publish("n", -1).deliveries[0]
        assert isinstance(failed.exception(), ValueError)
        assert failed.outcome is not None
        assert failed.outcome.dropped_events == 2
        made = bus.assert_published("made", count=2)
    assert seen == [2, 3]
    assert [each.parent_id for each in made] == [receipt.id, receipt.id]
    assert bus.published.events == [1, 2, 3, -1], "in the order of their publishing"


def test_handler_may_wait_for_its_own_event() -> None:
    with InlineBus([]) as bus:
        bus.subscribe("outer", lambda n: bus.publish("inner", n).result() + 1)
        bus.subscribe("inner", square)
        assert bus.publish("outer", 3).result() == 10


@pytest.mark.parametrize("kind", ["cpu", "io"])
def test_a_cascade_may_be_long(kind: Any, pickling: bool) -> None:
    def count(number: int) -> None:
        if number:
            current().publish("n", number - 1)

    with InlineBus([], pickling=pickling) as bus:
        bus.subscribe("n", count, kind=kind)
        bus.publish("n", 2_000)
        assert len(bus.published) == 2_001
        assert bus.stats().pending == 0


def test_retries_follow_at_once_by_a_clock_that_goes_on_by_itself(pickling: bool) -> None:
    def flaky(_: object) -> int:
        if current().attempt < 300:
            raise OSError("not yet")
        return current().attempt

    with InlineBus([], pickling=pickling) as bus:
        bus.subscribe("n", flaky, kind="cpu", retries=500, backoff=[1, 2])
        assert bus.publish("n", 1).result() == 300
        assert bus.clock.now() == 1 + 298 * 2


def test_retries_wait_for_a_clock_that_the_test_turns() -> None:
    clock = Clock()
    attempts: list[float] = []

    def flaky(_: object) -> None:
        attempts.append(clock.now())
        if len(attempts) < 3:
            raise OSError("not yet")

    with InlineBus([], clock=clock) as bus:
        bus.subscribe("n", flaky, retries=2, backoff=[1, 10])
        receipt = bus.publish("n", 1)
        assert not receipt.done
        assert bus.stats().retrying == 1
        clock.advance(0.5)
        assert attempts == [0]
        clock.advance(0.5)
        assert attempts == [0, 1]
        clock.advance(100)
        assert attempts == [0, 1, 11]
        assert receipt.done
        assert clock.now() == 101


def test_closing_and_draining_run_the_retries_that_wait() -> None:
    tries: list[object] = []

    def flaky(event: object) -> None:
        tries.append(event)
        raise OSError

    with InlineBus([], clock=Clock()) as bus:
        bus.subscribe("n", flaky, retries=3, backoff=3600)
        first = bus.publish("n", 1)
        assert len(tries) == 1
        assert bus.drain()
        assert len(tries) == 4
        second = bus.publish("n", 2)
    assert len(tries) == 8
    assert all(isinstance(r.deliveries[0].exception(), OSError) for r in (first, second))


@pytest.mark.parametrize("kind", ["cpu", "io"])
def test_a_handler_that_takes_longer_than_its_limit_ends_there(kind: Any, pickling: bool) -> None:
    clock = Clock(auto=True)

    def slow(seconds: float) -> str:
        clock.advance(seconds)
        return "in time"

    with InlineBus([], clock=clock, pickling=pickling) as bus:
        bus.subscribe("n", slow, kind=kind, timeout=30, name="slow")
        assert bus.publish("n", 29).result() == "in time"
        with pytest.raises(HandlerTimeout, match="timeout of 30 s"):
            bus.publish("n", 31).result()
        assert clock.now() == 29 + 30
        assert bus.stats().handlers["slow"].timed_out == 1


@pytest.mark.parametrize("kind", ["cpu", "io"])
def test_remaining_s_goes_by_the_clock_of_the_bus(kind: Any, pickling: bool) -> None:
    clock = Clock()

    def look(seconds: float) -> tuple[float | None, float | None]:
        before = current().remaining_s
        clock.advance(seconds)
        return before, current().remaining_s

    with InlineBus([], clock=clock, pickling=pickling) as bus:
        bus.subscribe("n", look, kind=kind, timeout=30)
        assert bus.publish("n", 12).result() == (30, 18)
        assert bus.publish("n", 0).result() == (30, 30)


#: A bus for a handler that is pickled, which a bus cannot be.
_BUSES: dict[str, InlineBus] = {}


def _work(clock: Clock, seconds: float, event: int) -> str:
    clock.advance(1)
    assert _BUSES["bus"].cancel(handler="work") == 1
    assert current().cancelled
    clock.advance(seconds)
    return "done"


@pytest.mark.parametrize("kind", ["cpu", "io"])
@pytest.mark.parametrize(("seconds", "ends_at"), [(1.5, None), (2, 3), (40, 3)])
def test_a_cancelled_handler_ends_after_its_grace_by_the_clock(
    kind: Any, pickling: bool, seconds: float, ends_at: float | None
) -> None:
    clock = Clock()
    with InlineBus([], clock=clock, pickling=pickling) as bus:
        _BUSES["bus"] = bus
        bus.subscribe("n", partial(_work, clock, seconds), kind=kind, grace=2, name="work")
        receipt = bus.publish("n", 1)
        if ends_at is None:
            assert receipt.result() == "done"
            return
        error = receipt.deliveries[0].exception()
        assert isinstance(error, Cancelled)
        assert error.__cause__ is None
        assert "after 3 s in its handler" in str(error)
        assert clock.now() == ends_at


def test_the_grace_of_a_handler_around_another_does_not_count_the_inner_one() -> None:
    clock = Clock()

    def outer(_: int) -> str:
        bus.cancel(handler="outer")
        bus.publish("inner", 1)
        clock.advance(1)
        return "done"

    with InlineBus([], clock=clock) as bus:
        bus.subscribe("outer", outer, grace=2, name="outer")
        bus.subscribe("inner", clock.advance)
        bus.publish("inner", 10)
        assert bus.publish("outer", 1).result() == "done"


def test_an_executor_of_it_runs_calls_at_once(pickling: bool) -> None:
    with InlineBus([], pickling=pickling) as bus, bus.executor("cpu") as pool:
        future = pool.submit(square, 3)
        assert future.done()
        assert list(pool.map(square, range(3))) == [0, 1, 4]
        assert isinstance(pool.submit(fail, 1).exception(), ValueError)


def test_the_set_up_of_workers_is_called_once() -> None:
    calls: list[str] = []
    with InlineBus([], worker_init=lambda: calls.append("set up")) as bus:
        bus.subscribe("n", square, kind="cpu")
        assert calls == []
        bus.publish("n", 1)
        bus.publish("n", 2)
    assert calls == ["set up"]


def test_options_for_workers_and_journals_are_refused() -> None:
    options: Any = {"cpu_workers": 2}
    with pytest.raises(OptionError, match=r"cpu_workers.*no workers"):
        InlineBus([], **options)


def test_ctrl_c_in_a_handler_reaches_the_test() -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    with InlineBus([]) as bus:
        bus.subscribe("n", interrupt)
        with pytest.raises(KeyboardInterrupt):
            bus.publish("n", 1)
        assert bus.stats().pending == 0


def test_a_handler_cannot_close_the_bus() -> None:
    with InlineBus([]) as bus:
        bus.subscribe("n", lambda _: bus.close())
        with pytest.raises(ProcbusError, match="would wait for that handler"):
            bus.publish("n", 1).result()


def test_each_thread_runs_the_events_it_publishes() -> None:
    idents: dict[int, int] = {}

    def note(number: int) -> None:
        idents[number] = threading.get_ident()

    with InlineBus([]) as bus:
        bus.subscribe("n", note)
        bus.publish("n", 1)
        thread = threading.Thread(target=bus.publish, args=("n", 2))
        thread.start()
        thread.join()
    assert idents == {1: threading.get_ident(), 2: thread.ident}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"cpu_workers": 2}, "no option cpu_workers: it has no workers"),
        ({"timeout": 2}, r"an option of a handler, not of InlineBus: @subscribe\(timeout"),
        ({"maxsize": 2}, "no option maxsize=; did you mean max_pending="),
    ],
)
def test_option_that_an_inline_bus_lacks_is_refused_with_its_place(options, says):
    with pytest.raises(OptionError, match=says):
        InlineBus([], **options)
