# SPDX-License-Identifier: MIT
"""`current()`: the facts about the running delivery."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import pytest

from procbus import EventBus, ProcbusError, TopicError, current
from procbus.core.context import HandlerContext, running, running_context
from tests.parts import BOUND_S


def test_outside_a_handler_there_is_no_current_delivery():
    with pytest.raises(ProcbusError, match="only inside a running handler"):
        current()


@pytest.mark.parametrize("is_async", [False, True])
def test_a_handler_sees_its_event(is_async):
    def look(event: Any) -> tuple[Any, ...]:
        at = current()
        return at.event_id, at.parent_id, at.topic, at.attempt, at.handler, repr(at)

    async def alook(event: Any) -> tuple[Any, ...]:
        return look(event)

    with EventBus([]) as bus:
        bus.subscribe("a", alook if is_async else look, name="look")
        receipt = bus.publish("a", 1)
        text = f"<current: look with event #{receipt.id}, attempt 1>"
        assert receipt.result(BOUND_S) == (receipt.id, None, "a", 1, "look", text)


#: Each handler starts a thread, which looks at `current()` while the handler runs and once it has
#: ended. Each thread of procbus that began in a handler looks too.
THREADS_OF_HANDLERS = """
import asyncio, threading
from procbus import EventBus, ProcbusError, current

def look():
    try:
        return current().event_id
    except ProcbusError:
        return None

def start_thread(event):
    ended, seen = threading.Event(), []
    def work():
        seen.append(look())
        looked.set()
        ended.wait(60)
        seen.append(look())
    looked = threading.Event()
    thread = threading.Thread(target=work)
    thread.start()
    looked.wait(60)
    return ended, thread, seen

left, left_in_worker = [], []

def start(event):
    left.append(start_thread(event))

def in_worker(event):
    if event == "begin":
        left_in_worker.append(start_thread(event))
        return
    ended, thread, seen = left_in_worker[0]
    ended.set()
    thread.join(60)
    return seen

async def in_pool(event):
    return await asyncio.get_running_loop().run_in_executor(None, look)

async def to_thread(event):
    return await asyncio.to_thread(look) == current().event_id

with EventBus([], io_workers=1, cpu_workers=1) as bus:
    bus.subscribe("thread", start)
    bus.subscribe("worker", in_worker, kind="cpu")
    bus.subscribe("pool", in_pool)
    bus.subscribe("copied", to_thread)
    first = bus.publish("thread", 1)
    first.result(60)
    bus.publish("thread", 2).result(60)  # the same thread of procbus went on
    ended, thread, seen = left[0]
    ended.set()
    thread.join(60)
    left[1][0].set()
    print([at and at - first.id for at in seen])
    begun = bus.publish("worker", "begin")
    begun.result(60)
    print([at and at - begun.id for at in bus.publish("worker", "end").result(60)])
    print([bus.publish("pool", 1).result(60) for _ in range(3)])
    print([bus.publish("copied", 1).result(60) for _ in range(3)])
"""


@pytest.mark.parametrize(
    "inherits",
    [
        0,
        pytest.param(
            1, marks=pytest.mark.skipif(sys.version_info < (3, 14), reason="no such option")
        ),
    ],
)
def test_thread_that_a_handler_starts_has_its_delivery_where_threads_inherit(inherits):
    option = ["-X", f"thread_inherit_context={inherits}"] if sys.version_info >= (3, 14) else []
    done = subprocess.run(
        [sys.executable, *option, "-c", THREADS_OF_HANDLERS],
        capture_output=True,
        text=True,
        timeout=BOUND_S,
    )
    while_it_runs = 0 if inherits else None
    assert (done.stdout.splitlines(), done.stderr) == (
        [str([while_it_runs, None])] * 2 + [str([None] * 3), str([True] * 3)],
        "",
    )


def context(published: list[Any]) -> HandlerContext:
    def publish(event: Any, topic: str | None) -> Any:
        published.append((event, topic))
        return len(published)

    return HandlerContext("h", 1, None, None, 1, publish)


def test_publishing_takes_one_or_two_arguments_and_returns_the_result_of_the_bus():
    published: list[Any] = []
    at = context(published)
    given: list[Any] = [at.publish("event"), at.publish("topic", "payload")]
    given.append(at.publish("topic", None))
    assert given == [1, 2, 3]
    assert published == [("event", None), ("payload", "topic"), (None, "topic")]


@pytest.mark.parametrize("topic", [None, 5, object()])
def test_malformed_topic_is_refused(topic):
    published: list[Any] = []
    with pytest.raises(TopicError):
        context(published).publish(topic, "payload")
    assert published == []


def test_context_takes_no_further_attributes():
    with pytest.raises(AttributeError):
        context([]).result = 1  # type: ignore[attr-defined] # the point


def test_two_threads_may_ask_for_the_context_at_once() -> None:
    """They share a seat where a handler runs its threads in copies of its own context."""
    steps: list[str] = []

    class Seat(list[Any]):
        """Notes each step of a look at it: between two steps another thread may change it."""

        def __getattribute__(self, name: str) -> Any:
            steps.append(name)
            return super().__getattribute__(name)

        def __iter__(self) -> Any:
            steps.append("__iter__")
            return super().__iter__()

    def ask() -> HandlerContext | None:
        running.set(Seat([HandlerContext, "h", 1, None, None, 1, lambda *_: None]))
        return running_context()

    context = copy_context().run(ask)
    assert context is not None
    assert (context.handler, context.event_id) == ("h", 1)
    assert steps == ["copy"]


def test_seat_is_free_once_its_handler_has_ended() -> None:
    """A thread that the handler started may still have a copy of the context."""

    def make() -> HandlerContext:
        seat.clear()  # the handler ends in the middle of a look
        return HandlerContext("h", 1, None, None, 1, lambda *_: None)

    def ask() -> list[HandlerContext | None]:
        running.set(seat)
        return [running_context(), running_context()]

    seat: list[Any] = [make]
    first, second = copy_context().run(ask)
    assert first is not None
    assert second is None


@pytest.mark.slow
def test_threads_that_share_a_seat_agree_on_the_event() -> None:
    def ask() -> list[HandlerContext | None]:
        barrier.wait(BOUND_S)
        return [running_context() for _ in range(3)]

    wrong: list[Any] = []
    for _ in range(200):
        barrier = threading.Barrier(4)
        running.set([HandlerContext, "h", 1, None, None, 1, lambda *_: None])
        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(copy_context().run, ask) for _ in range(4)]
        for each in asked:
            wrong += [at for at in each.result() if at is None or at.event_id != 1]
    running.set(None)
    assert wrong == []
