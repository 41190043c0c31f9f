# SPDX-License-Identifier: MIT
"""Handlers: accepted functions, and refusals with advice."""

import asyncio
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Protocol

import pytest

from procbus.core.errors import HandlerTimeout, SubscriptionError, TopicError
from procbus.core.handler import make_handler
from procbus.core.outcome import Outcome, OutcomeKind
from procbus.core.retry import exponential

FAILED = Outcome(OutcomeKind.RAISED, error=OSError("down"))


class Unchecked(Protocol):
    name: str


def handle(event: int) -> int:
    return event


async def handle_async(event: int) -> int:
    return event


def with_rate(rate: float, event: int) -> None: ...
async def with_rate_async(rate: float, event: int) -> None: ...


class Store:
    def take(self, event: int) -> None: ...

    async def take_async(self, event: int) -> None: ...


class Called:
    def __call__(self, event: int) -> None: ...


class CalledAsync:
    async def __call__(self, event: int) -> None: ...


def test_handler_has_the_given_options():
    def key(event: int) -> int:
        return event % 2

    def where(event: int) -> bool:
        return event > 0

    handler = make_handler(
        handle,
        ("a.*", int),
        kind="cpu",
        name="mine",
        priority=-3,
        key=key,
        concurrency=2,
        where=where,
        timeout=30,
        retries=3,
        backoff=[0.5, 1],
        retry_on=[OSError, HandlerTimeout],
        max_crashes=0,
        max_memory="512 MiB",
    )
    assert handler.function is handle
    assert handler.topics == ("a.*", int)
    assert handler.kind == "cpu"
    assert handler.name == "mine"
    assert handler.priority == -3
    assert handler.key is key
    assert handler.concurrency == 2
    assert handler.where is where
    assert handler.is_async is False
    assert handler.timeout == 30.0
    assert handler.retries == 3
    assert [handler.backoff(attempt, FAILED) for attempt in (1, 2, 3)] == [0.5, 1, 1]
    assert handler.retry_on == (OSError, HandlerTimeout)
    assert handler.max_crashes == 0
    assert handler.max_memory == 512 * 1024**2


def test_a_handler_has_defaults():
    handler = make_handler(handle)
    assert handler.topics == (int,)
    assert handler.kind == "io"
    assert handler.name == f"{__name__}.handle"
    assert handler.priority == 0
    assert (handler.key, handler.concurrency, handler.where) == (None, None, None)
    assert (handler.timeout, handler.retries, handler.max_memory) == (None, 0, None)
    assert handler.backoff is exponential
    assert handler.retry_on == (Exception,)
    assert handler.max_crashes == 1


@pytest.mark.parametrize(
    ("options", "limited"),
    [
        ({}, False),
        ({"retries": 3, "concurrency": 1}, False),
        ({"timeout": 0.1}, True),
        ({"max_memory": "1 GB"}, True),
        ({"timeout": 1, "max_memory": "1 GB"}, True),
    ],
)
def test_a_handler_with_a_limit_of_time_or_memory_is_limited(options: Any, limited: bool):
    assert make_handler(handle, kind="cpu", **options).limited is limited


def test_each_handler_has_a_number_of_its_own_and_equals_only_itself():
    first, second = make_handler(handle), make_handler(handle)
    assert first.number != second.number
    assert first != second
    assert len({first, second}) == 2


def test_a_handler_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_handler(handle).priority = 1  # type: ignore[misc]


def test_repr_says_name_kind_and_topics():
    handler = make_handler(handle, (int, "a.*"), name="mine")
    assert repr(handler) == "<Handler mine kind=io topics=int, 'a.*'>"


@pytest.mark.parametrize(
    ("function", "is_async"),
    [
        (handle, False),
        (handle_async, True),
        (Store().take, False),
        (Store().take_async, True),
        (Called(), False),
        (CalledAsync(), True),
        (functools.partial(with_rate, 0.5), False),
        (functools.partial(with_rate_async, 0.5), True),
        (functools.partial(CalledAsync()), True),
        (functools.partial(Store().take_async), True),
    ],
)
def test_is_async_says_whether_calling_gives_a_coroutine(
    function: Callable[..., Any], is_async: bool
):
    answer = function(1)
    assert asyncio.iscoroutine(answer) is is_async
    if is_async:
        answer.close()
    assert make_handler(function, "a").is_async is is_async


@pytest.mark.parametrize("function", [print, len, [].append, {}.update, lambda e: e])
def test_builtins_methods_of_builtins_and_lambdas_can_be_handlers(function: Callable[..., Any]):
    assert make_handler(function, "a").function == function


def optional_others(event: int, rate: float = 1.0, *rest: int, deep: bool = False) -> None: ...
def any_arguments(*events: int, **options: int) -> None: ...
def all_optional(event: int = 0) -> None: ...
def positional_only(event: int, /) -> None: ...


@pytest.mark.parametrize(
    "function", [optional_others, any_arguments, all_optional, positional_only]
)
def test_a_function_that_can_be_called_with_one_event_is_taken(function: Callable[..., Any]):
    assert make_handler(function, "a").topics == ("a",)


def refusal(function: Any, topic: object = "a", **options: Any) -> str:
    """Make a handler that must be refused; give the message."""
    with pytest.raises(SubscriptionError) as caught:
        make_handler(function, topic, **options)
    return str(caught.value)


def test_object_that_cannot_be_called_is_refused():
    message = refusal("order.updated")
    assert "must be callable" in message
    assert "'order.updated'" in message


def test_a_class_is_refused():
    message = refusal(Called)
    assert f"{__name__}.Called is a class" in message
    assert "only make an instance" in message


def no_argument() -> None: ...
def keywords_only(*, event: int) -> None: ...
def any_keywords(**options: int) -> None: ...


@pytest.mark.parametrize(
    "function", [no_argument, keywords_only, any_keywords, functools.partial(handle, 1)]
)
def test_a_function_that_takes_no_positional_argument_is_refused(function: Callable[..., Any]):
    assert "takes no positional argument" in refusal(function)


def two_arguments(event: int, rate: float) -> None: ...
def a_needed_keyword(event: int, *, rate: float) -> None: ...
def only_a_needed_keyword(*events: int, rate: float) -> None: ...


@pytest.mark.parametrize("function", [two_arguments, a_needed_keyword, only_a_needed_keyword])
def test_a_function_that_requires_more_than_the_event_is_refused(function: Callable[..., Any]):
    message = refusal(function)
    assert function.__name__ in message
    assert "rate, but is called with the event alone" in message
    assert "functools.partial" in message


def test_error_for_a_method_of_no_instance_names_the_remedy():
    assert "bus.subscribe(topic, instance.method)" in refusal(Store.take)


@pytest.mark.parametrize(
    "function",
    [handle_async, Store().take_async, CalledAsync(), functools.partial(with_rate_async, 0.5)],
)
def test_an_async_handler_is_refused_for_cpu(function: Callable[..., Any]):
    message = refusal(function, kind="cpu")
    assert "an async handler belongs to kind='io'; make it a plain def for kind='cpu'" in message


def generate(event: int) -> Any:
    yield event


async def generate_async(event: int) -> Any:
    yield event


class Generates:
    def __call__(self, event: int) -> Any:
        yield event


@pytest.mark.parametrize("kind", ["io", "cpu"])
@pytest.mark.parametrize(
    "function", [generate, generate_async, Generates(), functools.partial(generate)]
)
def test_a_generator_function_is_refused(function: Callable[..., Any], kind: str):
    assert "would only create the generator" in refusal(function, kind=kind)


@pytest.mark.parametrize(
    ("kind", "advice"),
    [
        ("CPU", "did you mean cpu?"),
        ("ios", "did you mean io?"),
        ("gpu", "did you mean cpu?"),
        ("thread", '"io" (it waits), "cpu" (it computes) or "auto"'),
        (None, "not None"),
        (["cpu"], "not ['cpu']"),
    ],
)
def test_a_wrong_kind_is_refused(kind: object, advice: str):
    message = refusal(handle, kind=kind)
    assert f"handler {__name__}.handle: kind must be" in message
    assert advice in message


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("concurrency", 0),
        ("concurrency", -1),
        ("concurrency", True),
        ("concurrency", 1.5),
        ("concurrency", "2"),
        ("priority", 1.5),
        ("priority", "high"),
        ("priority", True),
        ("priority", None),
        ("key", "id"),
        ("where", True),
        ("name", ""),
        ("name", 7),
    ],
)
def test_an_option_of_the_wrong_type_is_refused(option: str, value: object):
    message = refusal(handle, **{option: value})
    assert f"handler {__name__}.handle: {option} must be" in message
    assert repr(value) in message


@pytest.mark.parametrize("option", ["key", "where"])
def test_an_async_key_or_where_is_refused(option: str):
    # The coroutine it returns would be true whatever its answer.
    assert f"{option} is async" in refusal(handle, **{option: handle_async})


def test_a_limit_that_makes_no_sense_is_refused_by_the_name_of_the_handler():
    message = refusal(handle, timeout=-1)
    assert message.startswith(f"handler {__name__}.handle: timeout must be")


def test_exception_of_a_backoff_is_the_cause_of_its_refusal():
    def broken(attempt: int, outcome: Outcome) -> float:
        raise KeyError("Retry-After")

    with pytest.raises(SubscriptionError, match=r"handle: backoff .*broken.* KeyError") as caught:
        make_handler(handle, backoff=broken)
    assert isinstance(caught.value.__cause__, KeyError)


def test_writable_takes_true_and_is_for_cpu_handlers():
    assert make_handler(handle, kind="cpu", writable=True).writable
    assert not make_handler(handle, kind="cpu").writable
    assert "the very object that was published" in refusal(handle, writable=True)
    assert "must be True or False" in refusal(handle, kind="cpu", writable="yes")


@pytest.mark.parametrize(
    "option",
    [
        "worker_init",
        "max_events_per_worker",
        "worker_max_memory",
        "worker_nice",
        "on_failure",
        "shared_memory_limit",
        "shared_memory_threshold",
        "on_oversize",
    ],
)
def test_an_option_of_the_bus_is_refused_with_where_it_belongs(option: str):
    message = refusal(handle, **{option: None})
    assert f"{option}= is an option of EventBus" in message
    assert f"EventBus({option}=...)" in message


def test_an_unknown_option_is_refused_with_the_known_ones():
    message = refusal(handle, concurency=2)
    assert "unknown option concurency=; did you mean concurrency=?" in message
    assert "the options are timeout, max_memory, grace, retries, backoff, retry_on" in message
    assert "did you mean" not in refusal(handle, zzz=2)


@pytest.mark.parametrize(
    ("topic", "reason"),
    [("a..b", "empty word"), (7, "is not a topic"), (Unchecked, "cannot be tested")],
)
def test_a_wrong_topic_is_a_topic_error_that_names_the_handler(topic: object, reason: str):
    with pytest.raises(TopicError, match=rf"{__name__}\.handle: .*{reason}"):
        make_handler(handle, topic)


def test_a_class_in_the_annotation_is_checked_as_one_given():
    def takes_unchecked(event: Unchecked) -> None: ...

    with pytest.raises(TopicError, match="takes_unchecked: topic Unchecked"):
        make_handler(takes_unchecked)
