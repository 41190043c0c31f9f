# SPDX-License-Identifier: MIT
"""`current()`: the facts about the running delivery."""

import threading
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
        text = f"<current: look with event {receipt.id}, attempt 1>"
        assert receipt.result(BOUND_S) == (receipt.id, None, "a", 1, "look", text)


def test_thread_has_no_context_between_two_deliveries():
    seen: list[object] = []

    def look(event: Any) -> None:
        thread = threading.Thread(target=lambda: seen.append(running.get()))
        thread.start()
        thread.join(BOUND_S)

    with EventBus([], io_workers=1) as bus:
        bus.subscribe("a", look)
        bus.publish("a", 1).result(BOUND_S)
    assert seen == [None]


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
    other = HandlerContext("h", 1, None, None, 1, lambda *_: None)

    class Seat(list[Any]):
        def __getitem__(self, index: Any) -> Any:
            looked_at = super().__getitem__(index)
            self[:] = [other]  # the other thread is through with it right after this one looked
            return looked_at

    def ask() -> HandlerContext | None:
        running.set(Seat([HandlerContext, "h", 1, None, None, 1, lambda *_: None]))
        return running_context()

    context = copy_context().run(ask)
    assert context is not None
    assert (context.handler, context.event_id) == ("h", 1)
