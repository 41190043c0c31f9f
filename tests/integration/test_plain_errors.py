# SPDX-License-Identifier: MIT
"""Errors as a user reads them: one message, and frames of the user's own code."""

import threading
import traceback
from dataclasses import dataclass
from typing import Any

import pytest

from procbus import (
    EventBus,
    OptionError,
    SerializationError,
    SubscriptionError,
    TopicError,
    executor,
)
from procbus.core.errors import NoSuchHandler


@dataclass
class Page:
    lock: Any


class Refusing:
    def __reduce__(self) -> Any:
        raise RuntimeError("it refuses")


def take(page: Page) -> None: ...


def take_any(thing: object) -> None: ...


def give(_: int) -> Any:
    return {"rows": [1, (x for x in "ab")]}


def give_refusing(_: int) -> Any:
    return [Refusing()]


def fail(_: int) -> None:
    raise ValueError("no")


def text_of(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def files_in(text: str) -> set[str]:
    frames = [line.split('"')[1] for line in text.splitlines() if line.startswith('  File "')]
    return {name.rpartition("/")[2] for name in frames}


def failure_of(handler: Any, event: Any) -> BaseException | None:
    """The error of a cpu handler that gets this event."""
    with EventBus([]) as bus:
        bus.subscribe(type(event), handler, kind="cpu")
        delivery = bus.publish(event).deliveries[0]
        bus.drain()
        return delivery.exception()


@pytest.mark.parametrize(
    ("handler", "event", "path"),
    [(take, Page(threading.Lock()), "event.lock"), (give, 1, "result['rows'][1]")],
    ids=["event", "result"],
)
def test_an_object_that_cannot_travel_gives_one_error_without_a_chain(
    handler: Any, event: Any, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    error = failure_of(handler, event)
    assert isinstance(error, SerializationError)
    assert error.path == path
    assert text_of(error) == f"procbus.SerializationError: {error}\n"
    assert error.__cause__ is None
    (record,) = caplog.records
    assert "During handling" not in record.getMessage()


@pytest.mark.parametrize(
    ("handler", "event"), [(take_any, Refusing()), (give_refusing, 1)], ids=["event", "result"]
)
def test_an_error_of_a_users_reduce_is_the_cause_with_its_frames_alone(
    handler: Any, event: Any
) -> None:
    error = failure_of(handler, event)
    assert isinstance(error, SerializationError)
    assert error.__cause__ is not None
    assert "in __reduce__" in str(error.__cause__) + text_of(error)
    assert files_in(text_of(error)) == {"test_plain_errors.py"}
    assert "During handling" not in text_of(error)


@pytest.mark.parametrize(
    ("args", "kwargs", "path"),
    [
        ((1, [threading.Lock()]), {}, "args[1][0]"),
        ((), {"page": threading.Lock()}, "kwargs['page']"),
    ],
)
def test_an_argument_of_a_call_that_cannot_travel_is_named_as_an_argument(
    args: Any, kwargs: Any, path: str
) -> None:
    with executor(max_workers=1) as pool, pytest.raises(SerializationError) as caught:
        pool.submit(take_all, *args, **kwargs).result()
    assert caught.value.path == path
    assert f"a call of {__name__}.take_all cannot travel" in str(caught.value)
    assert "event" not in str(caught.value)
    assert caught.value.__cause__ is None


def take_all(*args: Any, **kwargs: Any) -> None: ...


def test_a_handler_that_cannot_travel_gives_one_error_without_a_chain() -> None:
    lock = threading.Lock()

    def guard(_: int) -> None:
        lock.locked()

    fault = pytest.raises(SerializationError, match="closure variable 'lock'")
    with EventBus([]) as bus, fault as caught:
        bus.subscribe(int, guard, kind="cpu")
    assert "direct cause" not in text_of(caught.value)
    assert "During handling" not in text_of(caught.value)


@pytest.mark.parametrize("kind", ["io", "cpu"])
@pytest.mark.parametrize("cpu", ["processes", "threads"])
def test_the_frames_of_a_handlers_error_are_the_users(kind: Any, cpu: Any) -> None:
    with EventBus([], cpu=cpu) as bus:
        bus.subscribe(int, fail, kind=kind)
        delivery = bus.publish(1).deliveries[0]
        bus.drain()
        error = delivery.exception()
    assert isinstance(error, ValueError)
    assert files_in(text_of(error)) == {"test_plain_errors.py"}


async def fail_later(_: int) -> None:
    fail(_)


def fail_all(numbers: list[int]) -> None:
    fail(numbers[0])


@pytest.mark.parametrize(("handler", "options"), [(fail_later, {}), (fail_all, {"batch": 3})])
def test_the_frames_of_async_and_batch_handlers_are_the_users(handler: Any, options: Any) -> None:
    with EventBus([]) as bus:
        bus.subscribe(int, handler, **options)
        delivery = bus.publish(1).deliveries[0]
        bus.drain()
        error = delivery.exception()
    assert isinstance(error, ValueError)
    assert files_in(text_of(error)) == {"test_plain_errors.py"}


def _any(thing: Any) -> Any:
    return thing


WRONG: list[tuple[Any, type[BaseException], str]] = [
    (lambda bus: EventBus(_any(4)), SubscriptionError, r"EventBus\(cpu_workers=4\)"),
    (lambda bus: EventBus(_any(take)), SubscriptionError, "put it into a list"),
    (
        lambda bus: EventBus(_any("page")),
        SubscriptionError,
        "takes a list of functions and modules",
    ),
    (lambda bus: bus.publish(Page, 4), TopicError, "its class is its topic"),
    (lambda bus: bus.publish(4, "page"), TopicError, "the topic comes first"),
    (lambda bus: bus.publish(take, 4), TopicError, r"bus\.call\(handler, event\)"),
    (lambda bus: bus.call(4, take), NoSuchHandler, "the handler comes first"),
    (lambda bus: bus.map([4], take), NoSuchHandler, "the handler comes first"),
    (lambda bus: bus.drain("4"), OptionError, "timeout must be a number of seconds"),
    (lambda bus: bus.close("4"), OptionError, "timeout must be a number of seconds"),
]


@pytest.mark.parametrize(("call", "error", "says"), WRONG)
def test_arguments_in_the_wrong_place_are_told_their_place(
    call: Any, error: type[BaseException], says: str
) -> None:
    with EventBus([]) as bus, pytest.raises(error, match=says):
        call(bus)


def test_publishing_a_class_is_told_from_publishing_an_object(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with EventBus([]) as bus:
        bus.subscribe(Page, take)
        bus.publish(Page)
    assert "the class Page itself was published" in caplog.text
