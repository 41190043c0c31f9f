# SPDX-License-Identifier: MIT
"""A handler: a subscribed function with its kind and options, checked when it is made."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any, Literal, TypeAlias, TypedDict, Unpack, get_args

from procbus.core.errors import SubscriptionError, TopicError
from procbus.core.introspection import (
    is_async,
    is_generator,
    name_of,
    same_function,
    signature_of,
    topics_of,
)
from procbus.core.retry import Backoff, exponential, make_backoff
from procbus.core.topic import Topic, check_class, exact, shown_topics, topics_in
from procbus.core.validation import did_you_mean, is_real, is_whole, parse_limit, shown

# The limits and retries of a handler, checked and in one form.


class LimitOptions(TypedDict, total=False):
    """The options of a handler that `make_limits` checks."""

    timeout: float | None
    retries: int
    backoff: float | Sequence[float] | Backoff | None
    retry_on: type[BaseException] | Sequence[type[BaseException]]
    max_crashes: int
    max_memory: int | str | None
    writable: bool


class HandlerOptions(LimitOptions, total=False):
    """The options of a handler, all explained at `procbus.subscribe`."""

    kind: DeclaredKind
    name: str | None
    key: Callable[[Any], Hashable] | None
    priority: int
    concurrency: int | None
    where: Callable[[Any], bool] | None
    once: bool


OPTIONS_OF_A_HANDLER = tuple(HandlerOptions.__annotations__)
OPTIONS_OF_A_BUS = (
    "cpu",
    "cpu_workers",
    "io_workers",
    "max_pending",
    "on_full",
    "worker_init",
    "max_events_per_worker",
    "worker_max_memory",
    "worker_nice",
    "on_failure",
    "shared_memory_limit",
    "shared_memory_threshold",
    "on_oversize",
    "journal",
    "durability",
    "keep",
    "keep_results",
    "journal_codec",
    "on_sigterm",
    "grace",
    "carry",
)

DEFAULT_MAX_CRASHES = 1

_MOST_RETRIES = 1_000
_LONGEST_TIMEOUT = 30 * 86_400


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits and retries of one handler; the fields are those of `Handler`."""

    timeout: float | None
    retries: int
    backoff: Backoff
    retry_on: tuple[type[BaseException], ...]
    max_crashes: int
    max_memory: int | None
    writable: bool


def make_limits(
    kind: str,
    *,
    timeout: float | None = None,
    retries: int = 0,
    backoff: float | Sequence[float] | Backoff | None = None,
    retry_on: type[BaseException] | Sequence[type[BaseException]] = (Exception,),
    max_crashes: int = DEFAULT_MAX_CRASHES,
    max_memory: int | str | None = None,
    writable: bool = False,
) -> Limits:
    """Check the limits and retries of a handler of this kind; for each see `subscribe`.

    Raises:
        ValueError: an option makes no sense; the sentence says how to mend it. If a function for
        `backoff` raised, its exception is the cause.
    """
    if timeout is not None and not (is_real(timeout, 0, _LONGEST_TIMEOUT) and timeout > 0):
        raise ValueError(
            f"timeout must be a number of seconds above 0, {_LONGEST_TIMEOUT} (30 days) at most, "
            f"or None for no limit, not {shown(timeout)}"
        )
    for option, value in (("retries", retries), ("max_crashes", max_crashes)):
        if not is_whole(value, 0, _MOST_RETRIES):
            raise ValueError(
                f"{option} must be a whole number from 0 to {_MOST_RETRIES}, not {shown(value)}"
            )
    if kind != "cpu" and max_crashes != DEFAULT_MAX_CRASHES:
        raise ValueError(
            'max_crashes is for kind="cpu" only: an io handler runs in the process of the script, '
            'and a crash would end that; make it kind="cpu", or leave max_crashes out'
        )
    if writable is not True and writable is not False:
        raise ValueError(f"writable must be True or False, not {shown(writable)}")
    if kind != "cpu" and writable:
        raise ValueError(
            'writable is for kind="cpu" only: an io handler gets the very object that was '
            "published; leave it out, and copy what you change"
        )
    return Limits(
        timeout=None if timeout is None else float(timeout),
        retries=retries,
        backoff=make_backoff(backoff, retries),
        retry_on=_error_classes(retry_on),
        max_crashes=max_crashes,
        max_memory=None if max_memory is None else _memory_limit(kind, max_memory),
        writable=writable,
    )


def _error_classes(retry_on: object) -> tuple[type[BaseException], ...]:
    given = tuple(retry_on) if isinstance(retry_on, Sequence) else (retry_on,)
    classes = tuple(
        each for each in given if isinstance(each, type) and issubclass(each, BaseException)
    )
    if not given or len(classes) < len(given):
        raise ValueError(
            f"retry_on must be an exception class or a tuple of such, for instance "
            f"(OSError, HandlerTimeout), not {shown(retry_on)}; to retry nothing, leave out retries"
        )
    return classes


def _memory_limit(kind: str, max_memory: int | str) -> int:
    if kind != "cpu":
        raise ValueError(
            'max_memory is for kind="cpu" only: io handlers share the process of the script, which '
            'a limit would have to kill; make it kind="cpu", or leave max_memory out'
        )
    try:
        return parse_limit(max_memory)
    except ValueError as error:
        raise ValueError(f"max_memory: {error}") from None


Kind: TypeAlias = Literal["io", "cpu"]
"""What a handler does with the machine: wait (``"io"``) or compute (``"cpu"``)."""

DeclaredKind: TypeAlias = Literal["io", "cpu", "auto"]
"""A kind as it is declared: ``"auto"`` for the one that suits it, by what is measured."""

_numbers = itertools.count(1)  # next() on it is one C call, so two threads never get one number


def new_number() -> int:
    """A number that no other handler of this process has."""
    return next(_numbers)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Handler:
    """One subscription. Immutable, so any thread may read it; equal only to itself.

    Attributes:
        number: unique among the handlers of this process; workers know the handler by it.
        function: the function that is called with the event.
        name: its name in logs, errors and statistics.
        kind: ``"io"`` or ``"cpu"``.
        topics: the topics that it is subscribed to.
        priority: deliveries of handlers with a larger number go first.
        key: a function of the event; deliveries with the same key run one at a time, in order.
        concurrency: maximum of deliveries that run at the same time; None for no limit of its own.
        where: a function of the event that says whether the handler takes it; None takes all.
        is_async: whether calling the function gives a coroutine.
        timeout: maximum duration of one attempt, in seconds; None for no limit.
        retries: maximum number of attempts after the first.
        backoff: a function of the failed attempt's number and outcome: seconds until the next.
        retry_on: the errors after which another attempt is made.
        max_crashes: how often a delivery may kill its worker and still be tried again.
        max_memory: maximum memory of its worker while it runs, in bytes; None for no limit.
        writable: whether it may write to the large buffers of its event; then it gets a copy.
        auto: whether it was declared ``"auto"``; then `kind` is the lane that it runs on now.
        once: whether it takes one event and is then unsubscribed.
        limited: whether its runs have to be watched, for a timeout or a max_memory.
        gated: whether its deliveries may wait for each other: it has a key or a concurrency.
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
    max_crashes: int = DEFAULT_MAX_CRASHES
    max_memory: int | None = None
    writable: bool = False
    auto: bool = False
    once: bool = False
    limited: bool = field(init=False)
    gated: bool = field(init=False)

    def __post_init__(self) -> None:
        """Compute `limited` and `gated` once, since the lanes read them for every event."""
        limited = self.timeout is not None or self.max_memory is not None
        object.__setattr__(self, "limited", limited)  # as the class is frozen
        gated = self.key is not None or self.concurrency is not None
        object.__setattr__(self, "gated", gated)

    def __repr__(self) -> str:
        """Show name, kind and topics."""
        return f"<Handler {self.name} kind={self.kind} topics={shown_topics(self.topics)}>"


def as_kind(handler: Handler, kind: Kind) -> Handler:
    """The same handler for the other lane, with a number of its own."""
    return replace(handler, kind=kind, number=next(_numbers))


def with_topics(handler: Handler, topics: tuple[Topic, ...]) -> Handler:
    """The same handler, with its number, on other topics."""
    return replace(handler, topics=topics)


def alike(one: Handler, other: Handler) -> bool:
    """Whether two handlers are one function under one name, with the same options.

    The comparison runs no code of the user's. Functions among the options must be the same objects,
    and other options are compared only if their types are plain.
    """
    return (
        same_function(one.function, other.function)
        and all(_same(getattr(one, name), getattr(other, name)) for name in _OPTIONS)
        and len(one.retry_on) == len(other.retry_on)
        and all(map(_same, one.retry_on, other.retry_on))
    )


def _same(one: object, other: object) -> bool:
    return one is other or (type(one) is type(other) and type(one) in _PLAIN and one == other)


_PLAIN = (int, float, str)
_OPTIONS = (
    "name",
    "kind",
    "auto",
    "once",
    "priority",
    "key",
    "concurrency",
    "where",
    "timeout",
    "retries",
    "backoff",
    "max_crashes",
    "max_memory",
    "writable",
)


def make_handler(
    function: Callable[..., Any],
    topic: object = None,
    *,
    kind: DeclaredKind = "io",
    name: str | None = None,
    key: Callable[[Any], Hashable] | None = None,
    priority: int = 0,
    concurrency: int | None = None,
    where: Callable[[Any], bool] | None = None,
    once: bool = False,
    **limits: Unpack[LimitOptions],
) -> Handler:
    """Check a subscription and make the handler of it.

    Args:
        function: takes the event as its one argument.
        topic: a class, a dotted string, a tuple or list of those; None takes it from the
            annotation of the first parameter.
        kind: as for `procbus.subscribe`, as are all arguments that follow.
        name: defaults to the function's module and qualified name.
        key: a function of the event; deliveries with the same key run one at a time, in order.
        priority: deliveries of handlers with a larger number go first.
        concurrency: maximum of deliveries that run at the same time.
        where: a function of the event that says whether the handler takes it.
        once: whether it takes one event and is then unsubscribed.
        **limits: its limits and retries. An unknown option is refused with advice.

    Raises:
        SubscriptionError: function or options cannot work; the sentence says what to change.
        TopicError: the topic is neither a class nor a well-formed dotted string.
    """
    _check_function(function)
    problems = itertools.chain(
        _problems_of_call(function),
        _problems_of_kind(function, kind),
        _problems_of_options(name, priority, key, concurrency, where),
        _problems_of_once(once, kind),
        _problems_of_unknown(limits),
    )
    for problem in problems:
        raise SubscriptionError(f"handler {name_of(function)}: {problem}")
    try:
        checked = make_limits(kind, **limits)
    except ValueError as error:
        # The sentence quotes an exception of a backoff function only in part: the cause has the
        # rest.
        raise SubscriptionError(f"handler {name_of(function)}: {error}") from error.__cause__
    return handler_with(
        checked,
        function,
        exact(name) if name is not None else name_of(function),
        "cpu" if kind == "cpu" else "io",
        topics=_topics(function, topic),
        priority=priority,
        key=key,
        concurrency=concurrency,
        where=where,
        auto=kind == "auto",
        once=once,
    )


def handler_with(
    limits: Limits,
    function: Callable[..., Any],
    name: str,
    kind: Kind,
    *,
    topics: tuple[Topic, ...] = (),
    priority: int = 0,
    key: Callable[[Any], Hashable] | None = None,
    concurrency: int | None = None,
    where: Callable[[Any], bool] | None = None,
    auto: bool = False,
    once: bool = False,
) -> Handler:
    """Make a handler of options that are checked already; an executor's calls have no topic.

    The arguments are the attributes of `Handler`.
    """
    return Handler(
        number=next(_numbers),
        function=function,
        name=name,
        kind=kind,
        topics=topics,
        priority=priority,
        key=key,
        concurrency=concurrency,
        where=where,
        is_async=is_async(function),
        auto=auto,
        once=once,
        timeout=limits.timeout,
        retries=limits.retries,
        backoff=limits.backoff,
        retry_on=limits.retry_on,
        max_crashes=limits.max_crashes,
        max_memory=limits.max_memory,
        writable=limits.writable,
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
    if is_generator(function):
        yield (
            "it is a generator function: calling it would only create the generator and run "
            "nothing; return a list, or publish each item with current().publish"
        )
    signature = signature_of(function)
    if signature is None:
        return
    parameters = list(signature.parameters.values())
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
    kinds = get_args(DeclaredKind)
    if kind not in kinds:
        yield (
            f'kind must be "io" (it waits), "cpu" (it computes) or "auto", not {shown(kind)}'
            f"{did_you_mean(kind, kinds)}"
        )
    if kind == "auto" and is_async(function):
        yield "an async handler can only be kind='io', on the event loop; leave kind out"
    if kind == "cpu" and is_async(function):
        yield "an async handler belongs to kind='io'; make it a plain def for kind='cpu'"


def _problems_of_options(
    name: object, priority: object, key: object, concurrency: object, where: object
) -> Iterator[str]:
    if name is not None and not (isinstance(name, str) and name):
        yield f"name must be a string that is not empty, not {shown(name)}"
    if not is_whole(priority, -inf):
        yield f"priority must be an integer, not {shown(priority)}"
    if concurrency is not None and not is_whole(concurrency, 1):
        yield (
            f"concurrency must be a positive integer or None, not {shown(concurrency)}; "
            f"to take no events at all, do not subscribe"
        )
    for option, value in (("key", key), ("where", where)):
        if value is not None and not callable(value):
            yield (
                f"{option} must be a function of the event, such as lambda e: e.id, "
                f"not {shown(value)}"
            )
        elif value is not None and is_async(value):
            yield f"{option} is async, but its answer is needed at once; make it a plain def"


def _problems_of_once(once: object, kind: object) -> Iterator[str]:
    if once is not True and once is not False:
        yield f"once must be True or False, not {shown(once)}"
    elif once and kind == "auto":
        yield 'once leaves kind="auto" nothing to measure; make it kind="io" or kind="cpu"'


def _problems_of_unknown(options: Iterable[str]) -> Iterator[str]:
    for option in options:
        if option in OPTIONS_OF_A_HANDLER:
            continue
        if option in OPTIONS_OF_A_BUS:
            yield f"{option}= is an option of EventBus, not of a handler: EventBus({option}=...)"
        yield (
            f"unknown option {option}={did_you_mean(option, OPTIONS_OF_A_HANDLER)}; "
            f"the options are {', '.join(OPTIONS_OF_A_HANDLER)}"
        )
