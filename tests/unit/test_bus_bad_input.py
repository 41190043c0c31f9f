# SPDX-License-Identifier: MIT
"""Bad input is refused by the call at fault, with a sentence that names the remedy."""

import asyncio
import pickle
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from procbus import (
    EventBus,
    NoSuchHandler,
    OptionError,
    SerializationError,
    SubscriptionError,
    TopicError,
    current,
    executor,
)
from tests.parts import BOUND_S, Held, double


@dataclass
class Event:
    event_type: str


@dataclass(frozen=True)
class Order:
    number: int


@pytest.fixture
def bus() -> Iterator[EventBus]:
    with EventBus([]) as bus:
        yield bus


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"cpu_workers": 0}, "cpu_workers must be a whole number"),
        ({"cpu_workers": -1}, "cpu_workers"),
        ({"cpu_workers": True}, "cpu_workers"),
        ({"cpu_workers": 1.5}, "cpu_workers"),
        ({"io_workers": "4"}, "io_workers"),
        ({"io_workers": 10**6}, "io_workers"),
        ({"max_pending": 0}, "max_pending"),
        ({"max_pending": None}, "max_pending"),
        ({"on_full": "drop"}, 'on_full must be "block" or "raise"'),
        ({"on_full": []}, "on_full"),
        ({"journal": 5}, "journal must be the path of a file"),
        ({"workers": 4}, "no option workers=; did you mean cpu_workers="),
        ({"max_workers": 4}, "did you mean cpu_workers="),
        ({"n_jobs": 4}, "did you mean cpu_workers="),
        ({"processes": 4}, "did you mean cpu_workers="),
        ({"initializer": print}, "did you mean worker_init="),
        ({"maxtasksperchild": 4}, "did you mean max_events_per_worker="),
        ({"callback": print}, "did you mean on_failure="),
        ({"max_retries": 4}, r"no option max_retries=; .* retries= is .*: @subscribe\(retries"),
        ({"time_limit": 4}, r"@subscribe\(timeout="),
        ({"max_pendng": 4}, "did you mean max_pending="),
        ({"timeout": 4}, r"an option of a handler, not of EventBus: @subscribe\(timeout"),
        ({"worker_init": 5}, "worker_init must be a function"),
        ({"on_failure": print.__name__}, "on_failure must be a function"),
        ({"max_events_per_worker": 0}, "max_events_per_worker must be a whole number"),
        ({"worker_max_memory": "1G"}, 'worker_max_memory: .* did you mean "1 GB" or "1 GiB"'),
        ({"worker_nice": -1}, "worker_nice must be a whole number from 0 to 19, not -1"),
        ({"worker_nice": 20}, "worker_nice must be a whole number from 0 to 19, not 20"),
        ({"worker_nice": None}, "worker_nice must be a whole number from 0 to 19, not None"),
        ({"worker_nice": True}, "worker_nice must be a whole number from 0 to 19, not True"),
        ({"shared_memory_limit": 4096}, "must be 1 MiB at least, or 0 for none, not 4096"),
        ({"shared_memory_limit": "2G"}, 'shared_memory_limit: .* did you mean "2 GB" or "2 GiB"'),
        ({"shared_memory_limit": True}, "shared_memory_limit: True is no amount"),
        ({"shared_memory_threshold": None}, "shared_memory_threshold: None is no amount"),
        ({"shared_memory_threshold": 0}, "shared_memory_threshold must be 4 KiB at least, not 0"),
        ({"on_oversize": "wait"}, 'on_oversize must be "pipe" or "fail", not \'wait\''),
        ({"writable": True}, r"an option of a handler, not of EventBus: @subscribe\(writable"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, says):
    with pytest.raises(OptionError, match=says):
        EventBus([], **options)


@pytest.mark.parametrize("handlers", [5, double, "handlers", [5], [None], [sys]])
def test_handlers_that_are_none_are_refused(handlers):
    with pytest.raises(SubscriptionError):
        EventBus(handlers)


@pytest.mark.parametrize(
    ("topic", "handler", "options"),
    [
        ("a", 5, {}),
        ("a", Order, {}),
        ("a", lambda: None, {}),
        ("a", lambda a, b: None, {}),
        ("a..b", double, {}),
        ("", double, {}),
        (".a", double, {}),
        ("a b", double, {}),
        ("a.b*", double, {}),
        (5, double, {}),
        (double, double, {}),
        ([], double, {}),
        ("a", double, {"kind": "gpu"}),
        ("a", double, {"kind": None}),
        ("a", double, {"concurrency": 0}),
        ("a", double, {"priority": "high"}),
        ("a", double, {"key": "id"}),
        ("a", double, {"where": True}),
        ("a", double, {"name": ""}),
        ("a", double, {"timeout": 0}),
        ("a", double, {"timeout": "30 s"}),
        ("a", double, {"retries": -2}),
        ("a", double, {"retry_on": "OSError"}),
        ("a", double, {"backoff": -1.0}),
        ("a", double, {"backoff": lambda attempt, outcome: outcome.value["wait"]}),
        ("a", double, {"max_crashes": 2}),
        ("a", double, {"max_memory": "1 GB"}),
        ("a", double, {"max_memory": "1 lightyear", "kind": "cpu"}),
        ("a", double, {"max_memory": 1, "kind": "cpu"}),
        ("a", double, {"worker_init": print}),
        ("a", double, {"writable": True}),
        ("a", double, {"writable": 1, "kind": "cpu"}),
        ("a", double, {"shared_memory_limit": "1 GiB", "kind": "cpu"}),
        ("a", double, {"speed": 1}),
    ],
)
def test_subscriptions_that_cannot_work_are_refused_and_leave_nothing(bus, topic, handler, options):
    with pytest.raises(SubscriptionError) as caught:
        bus.subscribe(topic, handler, **options)
    assert len(str(caught.value).split()) > 4  # a sentence
    assert bus.stats().handlers == {}


def test_a_worker_init_that_cannot_travel_is_refused():
    lock = threading.Lock()

    def set_up() -> None:
        lock.acquire()

    with pytest.raises(SerializationError, match="closure variable 'lock'"):
        EventBus([], worker_init=set_up)


def test_limits_that_ask_for_nothing_are_fine(bus):
    bus.subscribe("a", double, timeout=None, retries=0, backoff=None, max_memory=None)
    assert bus.publish("a", 2).result(BOUND_S) == 4


def test_a_decorator_without_parentheses_needs_an_annotation(bus):
    with pytest.raises(SubscriptionError, match="has no annotation"):
        bus.subscribe(lambda event: None)


def test_a_function_in_place_of_the_topic_is_refused_with_the_right_order(bus):
    with pytest.raises(TopicError, match=r'the topic comes first, as in bus.subscribe\("my.topic"'):
        bus.subscribe(print, "order.paid")


def test_an_annotation_that_no_event_of_the_topic_can_be_is_refused(bus):
    def shout(text: str) -> str:
        return text.upper()

    with pytest.raises(SubscriptionError, match=r"subscribed to int, but .* annotated str"):
        bus.subscribe(int, shout)
    assert bus.handlers() == ()


def test_an_async_cpu_handler_is_refused(bus):
    async def compute(event: int) -> None: ...

    with pytest.raises(SubscriptionError, match="plain def"):
        bus.subscribe("a", compute, kind="cpu")


def test_a_cpu_handler_that_cannot_travel_names_the_closure_variable(bus):
    lock = threading.Lock()

    def compute(event: int) -> None:
        with lock:
            pass

    with pytest.raises(SerializationError, match="closure variable 'lock'") as caught:
        bus.subscribe("a", compute, kind="cpu")
    assert "'lock'" in caught.value.path
    assert bus.stats().handlers == {}


@pytest.mark.parametrize("topic", ["", "a..b", ".a", "a.", "a b", "a.*", "#", "a.b#", None, 5, []])
def test_topics_that_cannot_be_published_to_are_refused(bus, topic):
    bus.subscribe("#", double)
    for publish in (
        lambda: bus.publish(topic, 1),
        lambda: asyncio.run(bus.apublish(topic, 1)),
    ):
        with pytest.raises(TopicError):
            publish()
    assert bus.stats().pending == 0


def test_a_malformed_event_type_is_refused_at_publish(bus):
    bus.subscribe("order.*", double)
    with pytest.raises(TopicError):
        bus.publish(Event("order..new"))


def test_error_of_an_event_type_property_comes_through_and_nothing_stays_pending(bus):
    class Odd:
        @property
        def event_type(self) -> str:
            raise RuntimeError("odd")

    bus.subscribe("#", double)
    with pytest.raises(RuntimeError, match="odd"):
        bus.publish(Odd())
    assert bus.drain(0)


def test_a_topic_that_a_handler_publishes_to_is_checked_there(bus):
    bus.subscribe("a", lambda e: current().publish("b..c", e))
    with pytest.raises(TopicError, match="empty word"):
        bus.publish("a", 1).result(BOUND_S)


@pytest.mark.parametrize("nobody", [double, len, None, "double"])
def test_unsubscribing_an_unknown_handler_is_refused(bus, nobody):
    with pytest.raises(NoSuchHandler, match="is not subscribed to this bus"):
        bus.unsubscribe(nobody)


def test_a_bus_cannot_travel(bus):
    with pytest.raises(TypeError, match=r"current\(\)\.publish"):
        pickle.dumps(bus)


def test_repr_tells_state_pending_and_workers(bus):
    held = Held()
    bus.subscribe("a", held)
    bus.publish("a", 1)
    held.wait_begun()
    text = "<EventBus open: 1 handlers, 1 pending, 0 cpu workers, 1 io workers>"
    assert repr(bus) == text
    held.go.set()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"retry": 3}, "unknown option retry=; did you mean retries="),
        ({"attempts": 3}, "did you mean retries="),
        ({"max_retries": 3}, "did you mean retries="),
        ({"time_limit": 3}, "did you mean timeout="),
        ({"filter": bool}, "did you mean where="),
        ({"autoretry_for": OSError}, "did you mean retry_on="),
        (
            {"workers": 3},
            r"option of the bus cpu_workers= is probably meant: EventBus\(cpu_workers",
        ),
        ({"initializer": print}, r"EventBus\(worker_init="),
        ({"callback": print}, r"EventBus\(on_failure="),
        ({"cpu_workers": 3}, "cpu_workers= is an option of EventBus, not of a handler"),
    ],
)
def test_options_of_a_handler_by_the_names_of_other_libraries_are_refused(bus, options, says):
    with pytest.raises(SubscriptionError, match=says):
        bus.subscribe("number", double, **options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"workers": 3}, "did you mean max_workers="),
        ({"n_jobs": 3}, "did you mean max_workers="),
        ({"worker_init": print}, "did you mean initializer="),
        ({"attempts": 3}, "did you mean retries="),
    ],
)
def test_options_of_an_executor_by_the_names_of_other_libraries_are_refused(options, says):
    with pytest.raises(OptionError, match=says):
        executor("cpu", **options)
