# SPDX-License-Identifier: MIT
"""Context variables: each delivery has its publisher's, and leaves none behind."""

import asyncio
import decimal
import gc
import logging
import threading
import weakref
from collections.abc import Callable
from contextvars import Context, ContextVar, copy_context
from functools import partial
from typing import Any

import pytest

from procbus import EventBus, current
from procbus.core.context import kept, running
from procbus.testing import InlineBus
from tests.parts import BOUND_S, Held, close_with_only, in_thread

who: ContextVar[str] = ContextVar("who", default="nobody")
other: ContextVar[Any] = ContextVar("other", default=None)


def look(event: Any) -> str:
    return who.get()


async def alook(event: Any) -> str:
    before = who.get()
    await asyncio.sleep(0)
    return before if who.get() == before else "changed"


def leave(event: Any) -> str:
    """Leave behind all that a handler can."""
    found = who.get()
    who.set(f"left by {event}")
    other.set(event)
    decimal.getcontext().prec = 5
    return found


async def aleave(event: Any) -> str:
    found = leave(event)
    await asyncio.sleep(0)
    return found


def as_publisher(name: str, function: Callable[[], Any]) -> Any:
    """Do something in a context in which `who` has this name."""

    def run() -> Any:
        who.set(name)
        return function()

    return Context().run(run)


HOW = pytest.mark.parametrize("how", ["threads", "loop", "inline"])


def bus_for(how: str, **options: Any) -> EventBus:
    return InlineBus([], **options) if how == "inline" else EventBus([], **options)


@HOW
def test_a_handler_runs_in_the_context_of_its_publisher(how):
    with bus_for(how) as bus:
        bus.subscribe("n", alook if how == "loop" else look)
        publishers = [f"publisher {number}" for number in range(4)]
        seen: dict[str, list[Any]] = {}

        def publish(name: str) -> None:
            receipts = [bus.publish("n", number) for number in range(250)]
            seen[name] = [receipt.result(BOUND_S) for receipt in receipts]

        threads = [in_thread(partial(as_publisher, n, partial(publish, n))) for n in publishers]
        for thread in threads:
            thread.join(BOUND_S)
        assert seen == {name: [name] * 250 for name in publishers}
        assert bus.publish("n", 1).result(BOUND_S) == "nobody"


@HOW
@pytest.mark.parametrize("publisher", [None, "somebody"])
@pytest.mark.parametrize("options", [{}, {"retries": 1}, {"key": lambda event: 1}], ids=" ".join)
def test_a_handler_leaves_nothing_behind(how, publisher, options):
    def publish_all() -> list[Any]:
        prec = decimal.getcontext().prec
        results = [bus.publish("n", number).result(BOUND_S) for number in range(20)]
        assert decimal.getcontext().prec == prec
        return results

    with bus_for(how) as bus:
        bus.subscribe("n", aleave if how == "loop" else leave, **options)
        if publisher is None:
            results = Context().run(publish_all)
        else:
            results = as_publisher(publisher, publish_all)
    assert results == [publisher or "nobody"] * 20


@HOW
def test_the_decimal_context_is_a_copy_of_the_publishers(how):
    def work(event: Any) -> int:
        prec = decimal.getcontext().prec
        decimal.getcontext().prec = 3
        return prec

    async def awork(event: Any) -> int:
        return work(event)

    with bus_for(how) as bus, decimal.localcontext() as here:
        here.prec = 40
        bus.subscribe("n", awork if how == "loop" else work)
        assert [bus.publish("n", n).result(BOUND_S) for n in range(5)] == [40] * 5
        assert here.prec == 40


@pytest.mark.parametrize("is_async", [False, True])
def test_each_attempt_begins_with_the_context_of_the_publisher(is_async):
    seen: list[tuple[str, int]] = []

    def fail(event: Any) -> None:
        seen.append((who.get(), decimal.getcontext().prec))
        who.set("a failed attempt")
        decimal.getcontext().prec = 3
        raise ValueError

    async def afail(event: Any) -> None:
        fail(event)

    with EventBus([]) as bus:

        def publish() -> Any:
            decimal.getcontext().prec = 40
            return bus.publish("n", 1)

        bus.subscribe("n", afail if is_async else fail, retries=2, backoff=0)
        receipt = as_publisher("somebody", publish)
        assert receipt.wait(BOUND_S)
    assert seen == [("somebody", 40)] * 3


@HOW
def test_events_of_a_handler_have_the_handlers_context(how):
    def parent(event: Any) -> Any:
        who.set(f"{who.get()}, handler of {event}")
        return current().publish("child", event)

    async def aparent(event: Any) -> Any:
        return parent(event)

    seen: list[str] = []
    with bus_for(how) as bus:
        bus.subscribe("parent", aparent if how == "loop" else parent)
        bus.subscribe("child", lambda event: seen.append(who.get()))
        as_publisher("somebody", lambda: bus.publish("parent", 1).result(BOUND_S))
        assert bus.drain(BOUND_S)
    assert seen == ["somebody, handler of 1"]


@pytest.mark.parametrize("is_async", [False, True])
def test_current_belongs_to_the_handler_and_not_to_its_publisher(is_async):
    def parent(event: Any) -> Any:
        other.set("so that the child gets a context")
        return current().event_id, bus.publish("child", event).result(BOUND_S)

    async def aparent(event: Any) -> Any:
        other.set("so that the child gets a context")
        return current().event_id, await bus.publish("child", event)

    def child(event: Any) -> Any:
        return current().event_id, current().parent_id, other.get()

    with EventBus([]) as bus:
        bus.subscribe("parent", aparent if is_async else parent)
        bus.subscribe("child", child)
        event_id, (child_id, parent_id, text) = bus.publish("parent", 1).result(BOUND_S)
    assert parent_id == event_id != child_id
    assert text.startswith("so that")


def test_several_handlers_of_an_event_have_contexts_of_their_own():
    with EventBus([]) as bus:
        for number in range(3):
            bus.subscribe("n", aleave if number == 1 else leave, name=f"h{number}")
        receipts = as_publisher("somebody", lambda: [bus.publish("n", n) for n in range(10)])
        for receipt in receipts:
            assert receipt.results(BOUND_S) == ["somebody"] * 3


def test_call_of_an_executor_has_the_context_of_its_submitter():
    with EventBus([]) as bus:
        executor = bus.executor("io")
        submitted = as_publisher("somebody", lambda: executor.submit(leave, 1))
        assert submitted.result(BOUND_S) == "somebody"
        assert executor.submit(leave, 1).result(BOUND_S) == "nobody"


def test_stream_has_the_context_of_its_consumer():
    with EventBus([]) as bus:
        bus.subscribe("n", look)
        bus.subscribe("a", alook)

        def go() -> set[str]:
            return {r.result() for topic in "na" for r in bus.stream(range(50), topic=topic)}

        assert as_publisher("somebody", go) == {"somebody"}

        async def ago() -> set[str]:
            return {r.result() async for r in bus.astream(range(50), topic="n")}

        assert as_publisher("somebody", lambda: asyncio.run(ago())) == {"somebody"}


def test_a_task_of_the_publisher_has_its_own_context():
    with EventBus([]) as bus:
        bus.subscribe("n", alook)

        async def publisher(name: str) -> set[Any]:
            who.set(name)
            return {await (await bus.apublish("n", number)) for number in range(30)}

        async def main() -> list[set[Any]]:
            return await asyncio.gather(*(publisher(f"task {number}") for number in range(4)))

        assert asyncio.run(main()) == [{f"task {number}"} for number in range(4)]


def test_threads_and_tasks_of_a_handler_see_the_usual_context():
    def with_thread(event: Any) -> Any:
        seen: list[Any] = []
        who.set("handler")
        context = copy_context()
        thread = in_thread(lambda: seen.append(context.run(lambda: (who.get(), current().topic))))
        thread.join(BOUND_S)
        return seen[0]

    async def with_tasks(event: Any) -> Any:
        who.set("handler")
        in_worker = await asyncio.to_thread(lambda: (who.get(), current().topic))
        in_task = await asyncio.create_task(asyncio.to_thread(lambda: current().topic))
        return in_worker if in_task == in_worker[1] else None

    with EventBus([]) as bus:
        bus.subscribe("thread", with_thread)
        bus.subscribe("tasks", with_tasks)
        for publisher in (None, "somebody"):
            run = partial(as_publisher, publisher) if publisher else Context().run
            for topic in ("thread", "tasks"):
                receipt = run(partial(bus.publish, topic, 1))
                assert receipt.result(BOUND_S) == ("handler", topic)


class Thing:
    """Something that can be watched."""


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_values_in_the_contexts_of_publisher_and_handler_are_freed(is_async, fails, monkeypatch):
    monkeypatch.setattr(logging.getLogger("procbus"), "disabled", True)  # records keep tracebacks
    things: list[weakref.ref[Any]] = []

    def new() -> Thing:
        thing = Thing()
        things.append(weakref.ref(thing))
        return thing

    def work(event: Any) -> None:
        other.set(new())
        if fails:
            raise ValueError from None

    async def awork(event: Any) -> None:
        work(event)

    with EventBus([], io_workers=1) as bus:
        bus.subscribe("n", awork if is_async else work, retries=1, backoff=0)
        bus.subscribe("look", look)

        def publish(event: Any) -> Any:
            other.set(new())
            return bus.publish("n", event)

        receipts = [Context().run(publish, number) for number in range(3)]
        receipts.append(Context().run(bus.publish, "n", 3))
        assert all(receipt.wait(BOUND_S) for receipt in receipts)
        if fails:  # tracebacks keep frames, and these what they had at hand
            for receipt in receipts:
                for outcome in (*receipt.deliveries[0].earlier, receipt.deliveries[0].outcome):
                    outcome.error.__traceback__ = None
                del receipt, outcome
            receipts.append(bus.publish("look", 1))  # what failed knows where it was raised
        Context().run(bus.publish, "look", 1).result(BOUND_S)
        assert bus.drain(BOUND_S)
        del receipts[:-1]
        for _ in range(100):
            gc.collect()
            if not any(thing() for thing in things):
                break
            threading.Event().wait(0.01)
        assert not [thing() for thing in things if thing() is not None]


def test_empty_context_is_not_kept():
    def in_handler() -> Context | None:
        running.set([])
        return kept(copy_context())

    assert kept(Context()) is None
    assert Context().run(in_handler) is None


def test_a_context_that_is_kept_does_not_keep_the_handler_that_published():
    def in_handler() -> Context | None:
        running.set(["the seat"])
        who.set("handler")
        return kept(copy_context())

    context = Context().run(in_handler)
    assert context is not None
    assert context.run(running.get) is None
    assert context[who] == "handler"


def test_delivery_held_by_a_lane_switch_keeps_its_publishers_context():
    """A handler of kind "auto" that moves: another thread puts the events published meanwhile."""
    held = Held()
    seen: list[str] = []

    def work(event: Any) -> None:
        seen.append(who.get())
        held(event)

    with EventBus([], cpu_workers=1) as bus:
        bus.subscribe("n", work, kind="auto", concurrency=1)
        first = as_publisher("first", lambda: bus.publish("n", 1))
        held.wait_begun()
        second = as_publisher("second", lambda: bus.publish("n", 2))
        held.go.set()
        assert first.wait(BOUND_S)
        assert second.wait(BOUND_S)
    assert seen == ["first", "second"]


def test_resumed_delivery_begins_with_an_empty_context(tmp_path):
    journal = tmp_path / "journal"
    seen: list[str] = []

    def work(event: Any) -> None:
        seen.append(who.get())

    with EventBus([], journal=journal) as bus:
        bus.subscribe("n", work, name="work")
        held = Held()
        bus.subscribe("held", held, concurrency=1, name="held")
        bus.publish("held", 1)
        held.wait_begun()
        as_publisher("before", lambda: [bus.publish("held", n) for n in range(3)])
        closer = close_with_only(1, bus)
        held.go.set()
        closer.join(BOUND_S)

    with EventBus([], journal=journal) as bus:
        bus.subscribe("n", work, name="work")
        bus.subscribe("held", work, name="held")
        as_publisher("now", lambda: bus.publish("n", 1))
        assert bus.drain(BOUND_S)
    assert seen.count("now") == 1
    assert seen.count("nobody") == len(seen) - 1 > 0
