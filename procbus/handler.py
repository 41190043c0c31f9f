# SPDX-License-Identifier: MIT
"""A handler: a subscribed function with its kind and options, checked when it is made."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

from procbus.annotation import name_of, topics_of, without_partial
from procbus.backoff import Backoff, exponential
from procbus.errors import SubscriptionError, TopicError
from procbus.topic import Topic, check_class, topics_in

Kind: TypeAlias = Literal["io", "cpu"]
"""What a handler does with the machine: wait (``"io"``) or compute (``"cpu"``)."""

_OPTIONS = ("kind", "name", "priority", "key", "concurrency", "where")
# Options that later versions know; here each is taken only at the value that asks for nothing.
_NEUTRAL = {"timeout": None, "retries": 0, "backoff": None, "max_memory": None}
_LATER = (*_NEUTRAL, "retry_on", "max_crashes", "writable", "worker_init")

_numbers = itertools.count(1)  # next() on it is one C call, so two threads never get one number


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Handler:
    """One subscription. Immutable, so any thread may read it; equal only to itself.

    Attributes:
        number: unique among the handlers of this process; workers know the handler by it.
        function: what is called with the event.
        name: what people call it, in logs, errors and statistics.
        kind: ``"io"`` or ``"cpu"``.
        topics: what it is subscribed to.
        priority: among waiting deliveries, the larger goes first.
        key: of an event, the key whose deliveries go one at a time, first in, first out.
        concurrency: most deliveries that may run at the same time; None for no limit of its own.
        where: of an event, whether the handler takes it; None takes all.
        is_async: whether calling the function gives a coroutine.
        timeout: seconds that one attempt may run; None for as long as it takes.
        retries: attempts that may follow the first.
        backoff: seconds to wait before the next attempt, by the one that failed and its outcome.
        retry_on: the errors after which there is another attempt.
        max_crashes: how often a delivery may kill its worker and still be tried again.
        max_memory: bytes that its worker may have while it runs; None for no limit.
        limited: whether a run has to be watched: it has a timeout or a max_memory.
    """

    number: int
    function: Callable[..., Any]
    name: str
    kind: Kind
    topics: tuple[Topic, ...]
    priority: int = 0
    key: Callable[[Any], Hashable] | None = None
    concurrency: int | None = None
    where: Callable[[Any], bool] | None = None
    is_async: bool = False
    timeout: float | None = None
    retries: int = 0
    backoff: Backoff = exponential
    retry_on: tuple[type[BaseException], ...] = (Exception,)
    max_crashes: int = 1
    max_memory: int | None = None
    limited: bool = field(init=False)

    def __post_init__(self) -> None:
        """Say once whether there is a limit: lanes ask for every event."""
        limited = self.timeout is not None or self.max_memory is not None
        object.__setattr__(self, "limited", limited)  # as the class is frozen

    def __repr__(self) -> str:
        """Show name, kind and topics."""
        topics = ", ".join(repr(t) if isinstance(t, str) else t.__qualname__ for t in self.topics)
        return f"<Handler {self.name} kind={self.kind} topics={topics}>"


def make_handler(
    function: Callable[..., Any],
    topic: object = None,
    *,
    kind: Kind = "io",
    name: str | None = None,
    priority: int = 0,
    key: Callable[[Any], Hashable] | None = None,
    concurrency: int | None = None,
    where: Callable[[Any], bool] | None = None,
    **others: object,
) -> Handler:
    """Check a subscription and make the handler of it.

    Args:
        function: takes the event as its one argument.
        topic: a class, a dotted string, a tuple or list of those; None takes it from the
            annotation of the first parameter.
        kind: ``"io"`` or ``"cpu"``.
        name: defaults to the function's module and qualified name.
        priority: among waiting deliveries, the larger goes first.
        key: of an event, the key whose deliveries go one at a time, in order.
        concurrency: most deliveries that may run at the same time.
        where: of an event, whether the handler takes it.
        **others: options of later versions, at their neutral value; anything else is refused.

    Raises:
        SubscriptionError: function or options cannot work; the sentence says what to change.
        TopicError: the topic is neither a class nor a well-formed dotted string.
    """
    _check_function(function)
    problems = itertools.chain(
        _problems_of_call(function),
        _problems_of_kind(function, kind),
        _problems_of_options(name, priority, key, concurrency, where),
        _problems_of_others(others),
    )
    for problem in problems:
        raise SubscriptionError(f"handler {name_of(function)}: {problem}")
    return Handler(
        number=next(_numbers),
        function=function,
        name=name or name_of(function),
        kind=kind,
        topics=_topics(function, topic),
        priority=priority,
        key=key,
        concurrency=concurrency,
        where=where,
        is_async=_is(function, inspect.iscoroutinefunction),
    )


def _check_function(function: object) -> None:
    if isinstance(function, type):
        raise SubscriptionError(
            f"handler {name_of(function)} is a class: calling it would only make an instance and "
            f"drop it; give a function, or an instance that has __call__"
        )
    if not callable(function):
        raise SubscriptionError(
            f"a handler must be callable, but {function!r} is of type {type(function).__name__}; "
            f"give a function that takes the event"
        )


def _topics(function: Callable[..., Any], topic: object) -> tuple[Topic, ...]:
    try:
        named = topics_in(topic)
        if named:
            return named
        found = topics_of(function)
        for each in found:
            check_class(each)
    except TopicError as error:
        raise TopicError(f"handler {name_of(function)}: {error}") from error
    return found


def _problems_of_call(function: Callable[..., Any]) -> Iterator[str]:
    """Say why the function cannot be called with one event."""
    if _is(function, inspect.isgeneratorfunction) or _is(function, inspect.isasyncgenfunction):
        yield (
            "it is a generator function: calling it would only create the generator and run "
            "nothing; return a list, or publish each item with current().publish"
        )
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (ValueError, TypeError):
        return  # some builtins have no signature to check
    positional = [
        p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if not positional and not any(p.kind is p.VAR_POSITIONAL for p in parameters):
        yield "it takes no positional argument, so it cannot be given the event; add a parameter"
    required = [
        p.name
        for p in parameters
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    surplus = [each for each in required if each not in positional[:1]]
    if surplus:
        advice = "give the others defaults, or bind them with functools.partial"
        if positional[:1] == ["self"]:
            advice = "subscribe the method of an instance: bus.subscribe(topic, instance.method)"
        yield f"it requires {', '.join(required)}, but is called with the event alone; {advice}"


def _problems_of_kind(function: Callable[..., Any], kind: object) -> Iterator[str]:
    kinds = get_args(Kind)
    if kind not in kinds:
        yield (
            f'kind must be "io" (it waits) or "cpu" (it computes), not {kind!r}'
            f"{_did_you_mean(kind, kinds)}"
        )
    if kind == "cpu" and _is(function, inspect.iscoroutinefunction):
        yield "an async handler belongs to kind='io'; make it a plain def for kind='cpu'"


def _problems_of_options(
    name: object, priority: object, key: object, concurrency: object, where: object
) -> Iterator[str]:
    if name is not None and not (isinstance(name, str) and name):
        yield f"name must be a string that is not empty, not {name!r}"
    if not isinstance(priority, int) or isinstance(priority, bool):
        yield f"priority must be an integer, not {priority!r}"
    if concurrency is not None and not (
        isinstance(concurrency, int) and not isinstance(concurrency, bool) and concurrency >= 1
    ):
        yield (
            f"concurrency must be a positive integer or None, not {concurrency!r}; "
            f"to take no events at all, do not subscribe"
        )
    for option, value in (("key", key), ("where", where)):
        if value is not None and not callable(value):
            yield f"{option} must be a function of the event, such as lambda e: e.id, not {value!r}"
        elif value is not None and _is(value, inspect.iscoroutinefunction):
            yield f"{option} is async, but its answer is needed at once; make it a plain def"


def _problems_of_others(others: dict[str, object]) -> Iterator[str]:
    for option, value in others.items():
        if option in _NEUTRAL and value == _NEUTRAL[option]:
            continue
        if option in _LATER:
            yield f"{option}= is not supported by this version of procbus; leave it out"
        yield (
            f"unknown option {option}={_did_you_mean(option, _OPTIONS)}; "
            f"the options are {', '.join(_OPTIONS)}"
        )


def _is(function: Callable[..., Any], asked: Callable[[Any], bool]) -> bool:
    """Ask it of the function, or of a callable object's ``__call__``, beneath any partial."""
    inner = without_partial(function)
    return asked(inner) or (not inspect.isroutine(inner) and asked(type(inner).__call__))


def _did_you_mean(given: object, known: tuple[str, ...]) -> str:
    import difflib  # only when something is wrong

    close = difflib.get_close_matches(str(given).lower(), known, n=1)
    return f"; did you mean {close[0]}?" if close else ""
