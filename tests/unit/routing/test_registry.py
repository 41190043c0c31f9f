# SPDX-License-Identifier: MIT
"""The registry, `@subscribe`, and the look-up of handlers for a bus."""

import functools
import subprocess
import sys
import threading
import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from procbus.core.errors import NoSuchHandler, SerializationError, SubscriptionError
from procbus.core.handler import make_handler
from procbus.core.outcome import Outcome, OutcomeKind
from procbus.core.redefinition import provenance_of
from procbus.core.topic import Topic, without
from procbus.routing.registry import Registry, default_registry, handlers_from, subscribe


@pytest.fixture(autouse=True)
def _default_registry_as_before() -> Iterator[None]:
    before = default_registry.handlers
    yield
    for handler in default_registry.handlers:
        if handler not in before:
            default_registry.remove(handler)


def handle(event: int) -> int:
    return event


class Store:
    def take(self, event: int) -> None: ...


def test_handlers_are_kept_in_order_of_subscription():
    registry = Registry()
    first, second, third = (make_handler(handle) for _ in range(3))
    for handler in (first, second, third):
        registry.add(handler)
    registry.remove(second)
    assert registry.handlers == (first, third)


def test_handlers_taken_before_a_change_do_not_change():
    registry = Registry()
    registry.add(first := make_handler(handle))
    before = registry.handlers
    registry.add(make_handler(handle))
    registry.remove(first)
    assert before == (first,)


def test_the_version_increases_with_each_change_and_only_then():
    registry = Registry()
    handler = make_handler(handle)
    versions = [registry.version]
    registry.add(handler)
    versions.append(registry.version)
    registry.add(handler)
    assert registry.version == versions[-1]
    registry.remove(handler)
    versions.append(registry.version)
    assert versions == sorted(set(versions))


def test_a_handler_added_twice_is_there_once():
    registry = Registry()
    handler = make_handler(handle)
    registry.add(handler)
    registry.add(handler)
    assert registry.handlers == (handler,)


def test_removing_a_handler_that_is_not_there_is_refused():
    registry = Registry()
    registry.add(handler := make_handler(handle))
    registry.remove(handler)
    with pytest.raises(NoSuchHandler, match=r"test_registry\.handle is not subscribed here"):
        registry.remove(handler)


@pytest.fixture
def _threads_switch_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("_threads_switch_often")
def test_no_change_is_lost_between_threads():
    registry = Registry()
    threads, each = 8, 50
    together = threading.Barrier(threads, timeout=150)

    def change(_: int) -> list[Any]:
        together.wait()
        kept = []
        for _ in range(each):
            registry.add(passing := make_handler(handle))
            registry.add(handler := make_handler(handle))
            registry.remove(passing)
            kept.append(handler)
        return kept

    with ThreadPoolExecutor(threads) as pool:
        kept = [handler for part in pool.map(change, range(threads)) for handler in part]
    assert len(registry.handlers) == threads * each
    assert set(registry.handlers) == set(kept)
    assert registry.version == 3 * threads * each


def test_handlers_are_found_by_function_and_by_equal_bound_method():
    registry = Registry()
    store, other = Store(), Store()
    registry.add(of_handle := make_handler(handle))
    registry.add(of_method := make_handler(store.take))
    registry.add(again := make_handler(handle, "a"))
    assert registry.of_function(handle) == (of_handle, again)
    assert registry.of_function(store.take) == (of_method,)
    assert registry.of_function(other.take) == ()


def test_handlers_are_found_by_the_module_that_their_function_was_written_in():
    registry = Registry()
    registry.add(plain := make_handler(handle))
    registry.add(partial := make_handler(functools.partial(handle), "a"))
    registry.add(make_handler(print, "a"))
    assert registry.of_module(sys.modules[__name__]) == (plain, partial)
    assert registry.of_module(types.ModuleType("elsewhere")) == ()


def test_subscribe_returns_the_function_and_adds_to_the_default_registry():
    decorated = subscribe(kind="cpu", name="mine", priority=2, concurrency=1)(handle)
    assert decorated is handle
    (handler,) = default_registry.of_function(handle)
    assert (handler.kind, handler.name, handler.priority) == ("cpu", "mine", 2)
    assert handler.concurrency == 1
    assert handler.topics == (int,)


def test_subscribe_takes_topics_key_and_where():
    @subscribe((str, "a.*"), key=len, where=bool)
    def take(event: object) -> None: ...

    (handler,) = default_registry.of_function(take)
    assert handler.topics == (str, "a.*")
    assert handler.key is len
    assert handler.where is bool


def test_subscribe_takes_limits_and_retries():
    subscribe(
        kind="cpu",
        timeout=30,
        retries=2,
        backoff=1.5,
        retry_on=(OSError,),
        max_crashes=0,
        max_memory="1 GiB",
    )(handle)
    (handler,) = default_registry.of_function(handle)
    assert (handler.timeout, handler.retries, handler.retry_on) == (30.0, 2, (OSError,))
    assert handler.backoff(1, Outcome(OutcomeKind.RAISED)) == 1.5
    assert (handler.max_crashes, handler.max_memory) == (0, 1024**3)


def test_function_can_be_subscribed_more_than_once():
    subscribe("a")(subscribe("b", priority=1)(handle))
    assert [h.topics for h in default_registry.of_function(handle)] == [("b",), ("a",)]


def test_a_function_on_many_topics_is_compared_with_handlers_of_the_same_topic_only(
    monkeypatch: pytest.MonkeyPatch,
):
    compared: list[tuple[Topic, ...]] = []

    def recorded(topics: tuple[Topic, ...], gone: tuple[Topic, ...]) -> tuple[Topic, ...]:
        compared.append(topics + gone)
        return without(topics, gone)

    monkeypatch.setattr("procbus.routing.registry.without", recorded)
    registry = Registry()
    for number in range(100):
        registry.subscribe(make_handler(handle, f"topic{number}"), provenance_of(handle))
    assert len(registry.handlers) == 100
    assert compared == []
    registry.subscribe(make_handler(handle, "topic99"), provenance_of(handle))
    assert len(registry.handlers) == 100
    assert set(compared) == {("topic99", "topic99")}


def test_a_function_subscribed_as_before_is_new_again_after_other_options():
    registry = Registry()
    for timeout in (1.0, 2.0, 1.0, 1.0):
        registry.subscribe(make_handler(handle, "one", timeout=timeout), provenance_of(handle))
    (last,) = registry.handlers
    assert last.timeout == 1.0


def test_a_function_taken_off_a_topic_can_be_subscribed_to_it_again():
    registry = Registry()
    registry.subscribe(make_handler(handle, ["one", "two"]), provenance_of(handle))
    registry.take_off(handle, ["one"])
    registry.subscribe(make_handler(handle, "one"), provenance_of(handle))
    registry.subscribe(make_handler(handle, "one"), provenance_of(handle))
    assert [each.topics for each in registry.handlers] == [("two",), ("one",)]


def test_subscribe_without_parentheses_takes_the_topic_from_the_annotation():
    @subscribe
    def bare(event: int) -> int:
        return event + 1

    (handler,) = default_registry.of_function(bare)
    assert handler.topics == (int,)
    assert bare(1) == 2


def test_subscribe_takes_a_function_with_options():
    assert subscribe(handle, kind="cpu", priority=3) is handle
    (handler,) = default_registry.of_function(handle)
    assert (handler.kind, handler.priority) == ("cpu", 3)


def test_subscribe_without_parentheses_needs_an_annotation():
    with pytest.raises(SubscriptionError, match="has no annotation"):
        subscribe(lambda event: None)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"kind": "gpu"}, "did you mean cpu"),
        ({"timeout": 0}, "timeout must be"),
        ({"retries": -2}, "retries must be"),
        ({"backoff": -1.0}, "backoff must be"),
        ({"retry_on": int}, "retry_on must be"),
        ({"max_crashes": -1}, "max_crashes must be"),
        ({"max_memory": "1 GB"}, 'max_memory is for kind="cpu" only'),
        ({"on_failure": print}, "on_failure= is an option of EventBus"),
        ({"prioritty": 1}, "did you mean priority"),
        ({"retry": 3}, "did you mean retries"),
    ],
)
def test_wrong_options_are_refused_and_nothing_is_subscribed(options: Any, reason: str):
    with pytest.raises(SubscriptionError, match=reason):
        subscribe("a", **options)(handle)
    assert default_registry.of_function(handle) == ()


def test_handlers_come_from_decorated_functions_and_from_modules_each_once():
    def other(event: int) -> None: ...

    other.__module__ = "elsewhere"
    subscribe("a")(handle)
    subscribe("b")(other)
    this = sys.modules[__name__]
    of_this, of_other = default_registry.of_module(this), default_registry.of_function(other)
    assert len(of_this) == len(of_other) == 1
    assert handlers_from([other, handle, this]) == of_other + of_this
    assert handlers_from([]) == ()


def test_a_function_that_is_not_decorated_is_refused():
    with pytest.raises(SubscriptionError, match=r"handle is not subscribed: decorate it.*or make"):
        handlers_from([handle])


def test_a_module_without_handlers_is_refused():
    with pytest.raises(SubscriptionError, match="the module elsewhere has no handlers"):
        handlers_from([types.ModuleType("elsewhere")])


@pytest.mark.parametrize("items", [["a"], [None], "a", 7, sys, handle])
def test_object_that_is_neither_function_nor_module_is_refused(items: Any):
    with pytest.raises(SubscriptionError, match="handlers= takes"):
        handlers_from(items)


def test_a_local_cpu_handler_that_can_travel_is_subscribed():
    rate = 2

    @subscribe(kind="cpu")
    def scale(event: int) -> int:
        return event * rate

    assert len(default_registry.of_function(scale)) == 1


def test_a_local_cpu_handler_that_cannot_travel_is_refused_and_not_subscribed():
    lock = threading.Lock()

    def locked(event: int) -> None:
        with lock:
            ...

    with pytest.raises(SerializationError, match="lock"):
        subscribe(kind="cpu")(locked)
    assert default_registry.of_function(locked) == ()
    subscribe(kind="io")(locked)  # nothing travels to a thread
    assert len(default_registry.of_function(locked)) == 1


def run(script: str) -> str:
    """Run a script as the main program; return its output."""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=150, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_cpu_handler_of_the_main_program_is_checked():
    answer = run(
        "import threading\n"
        "from procbus.core.errors import SerializationError\n"
        "from procbus.routing.registry import subscribe\n"
        "lock = threading.Lock()\n"
        "def locked(event: int): return lock\n"
        "try: subscribe(kind='cpu')(locked)\n"
        "except SerializationError: print('refused')\n"
    )
    assert answer == "refused\n"


def test_an_importable_cpu_handler_is_subscribed_without_anything_heavy():
    answer = run(
        "import sys, json\n"
        "from procbus.routing.registry import default_registry, subscribe\n"
        "subscribe('a', kind='cpu')(json.loads)\n"
        "heavy = {'asyncio', 'cloudpickle', 'loky', 'multiprocessing', 'psutil', 'rich'}\n"
        "print(len(default_registry.handlers), sorted(heavy & set(sys.modules)))\n"
    )
    assert answer == "1 []\n"
