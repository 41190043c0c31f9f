# SPDX-License-Identifier: MIT
"""A handler: a subscribed function with its kind and options, checked when it is made."""

from __future__ import annotations

import inspect
import itertools
import sys
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, Unpack, get_args

from procbus.core.cancelling import CANCEL_GRACE_S
from procbus.core.errors import SubscriptionError, TopicError
from procbus.core.fitting import problem_of_annotation
from procbus.core.introspection import (
    is_async,
    is_generator,
    name_of,
    signature_of,
    topics_of,
)
from procbus.core.options import (
    checked,
    event_function,
    memory_limit,
    one_of,
    option,
    options_of,
    seconds_up_to,
    shows_options,
    whole,
)
from procbus.core.rate import Rate, parse_rate
from procbus.core.retry import Backoff, RetryOptions, RetryPolicy
from procbus.core.topic import Topic, check_class, exact, shown_topics, topics_in
from procbus.core.validation import did_you_mean, is_real, is_whole, shown

if TYPE_CHECKING:
    from procbus.core.resources import Needs

Kind: TypeAlias = Literal["io", "cpu"]
"""A handler's use of the machine: it waits (``"io"``) or computes (``"cpu"``)."""

DeclaredKind: TypeAlias = Literal["io", "cpu", "auto"]
"""A kind as it is declared. With ``"auto"`` the bus chooses the kind, by measurement."""

_numbers = itertools.count(1)  # next() on it is one C call, so two threads never get one number


def new_number() -> int:
    """A number that no other handler of this process has."""
    return next(_numbers)


# The options of a handler: first as a user writes them, then checked, in the parts of a handler.


class CallOptions(RetryOptions, total=False):
    """The options that make sense without a topic: an executor's calls have these.

    Use this class to annotate the keyword arguments of a function that passes them on.

    Example:
        ```python
        from typing import Unpack

        from procbus import BusExecutor, CallOptions, executor


        def patient(**options: Unpack[CallOptions]) -> BusExecutor:
            options.setdefault("retries", 5)
            return executor("io", **options)


        with patient(timeout=10) as calls:
            assert calls.submit(len, "hello").result() == 5
        ```
    """

    timeout: float | None
    max_memory: int | str | None
    writable: bool
    priority: int


class HandlerOptions(CallOptions, total=False):
    """The options of a handler, all explained at `procbus.subscribe`.

    Use this class to annotate the keyword arguments of a function that passes them on.

    Example:
        ```python
        from collections.abc import Callable
        from typing import Any, Unpack

        from procbus import EventBus, HandlerOptions

        bus = EventBus(handlers=[])


        def computing(topic: str, **options: Unpack[HandlerOptions]) -> Callable[..., Any]:
            options.setdefault("kind", "cpu")
            return bus.subscribe(topic, **options)


        @computing("number", retries=2)
        def square(number: int) -> int:
            return number * number


        with bus:
            assert bus.publish("number", 7).result() == 49
        ```
    """

    kind: DeclaredKind
    name: str | None
    key: Callable[[Any], Hashable] | None
    concurrency: int | None
    where: Callable[[Any], bool] | None
    once: bool
    batch: int | None
    batch_wait: float
    grace: float
    rate: str | None
    rate_key: Callable[[Any], str | int | bytes] | None


_LONGEST_TIMEOUT = 30 * 86_400
_LONGEST_BATCH_WAIT_S = 86_400
_LARGEST_BATCH = 1_000_000


def _kind(name: str, value: Any) -> Any:
    kinds = get_args(DeclaredKind)
    if value not in kinds:
        raise ValueError(
            f'{name} must be "io" (it waits), "cpu" (it computes) or "auto", not {shown(value)}'
            f"{did_you_mean(value, kinds)}"
        )
    return value


def _name(name: str, value: Any) -> str | None:
    if value is None:
        return None
    if not (isinstance(value, str) and value):
        raise ValueError(f"{name} must be a string that is not empty, not {shown(value)}")
    return exact(value)


def _timeout(name: str, value: Any) -> float | None:
    if value is None:
        return None
    if not (is_real(value, 0, _LONGEST_TIMEOUT) and value > 0):
        raise ValueError(
            f"{name} must be a number of seconds above 0, {_LONGEST_TIMEOUT} (30 days) at most, "
            f"or None for no limit, not {shown(value)}"
        )
    return float(value)


def _grace(name: str, value: Any) -> float:
    if not is_real(value, 0, _LONGEST_TIMEOUT):
        raise ValueError(
            f"{name} must be a number of seconds, 0 to {_LONGEST_TIMEOUT} (30 days), not "
            f"{shown(value)}"
        )
    return float(value)


def _priority(name: str, value: Any) -> Any:
    if not is_whole(value, -inf):
        raise ValueError(f"{name} must be an integer, not {shown(value)}")
    return value


def _concurrency(name: str, value: Any) -> Any:
    if value is not None and not is_whole(value, 1):
        raise ValueError(
            f"{name} must be a positive integer or None, not {shown(value)}; "
            f"to take no events at all, do not subscribe"
        )
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The bounds of one run of a handler.

    Attributes:
        timeout: maximum duration of one attempt, in seconds; None for no limit.
        max_memory: maximum memory of the worker during the run, in bytes; None for no limit.
        grace: time that the run has to end once its delivery is cancelled, in seconds.

    Example:
        ```python
        from procbus import EventBus

        bus = EventBus(handlers=[])
        bus.subscribe("word", len, timeout=5)
        assert bus.handlers("word")[0].limits.timeout == 5
        ```
    """

    timeout: float | None = option(None, _timeout)
    max_memory: int | None = option(
        None,
        memory_limit,
        only_cpu="io handlers share the process of the script, which a limit would have to kill; "
        'make it kind="cpu", or leave max_memory out',
        no_threads="a thread shares the memory of the script, which a limit would have to kill",
    )
    grace: float = option(CANCEL_GRACE_S, _grace)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Handler:
    """One subscription. Immutable, so any thread may read it; equal only to itself.

    Example:
        ```python
        from procbus import EventBus

        bus = EventBus(handlers=[])
        bus.subscribe("word", len, kind="cpu", retries=2)
        (handler,) = bus.handlers("word")
        assert (handler.name, handler.kind, handler.retries) == ("builtins.len", "cpu", 2)
        ```

    Attributes:
        number: unique among the handlers of this process; workers know the handler by it.
        function: the function that is called with the event.
        name: the handler's name in logs, errors and statistics.
        kind: ``"io"`` or ``"cpu"``.
        topics: the topics to which the handler is subscribed.
        is_async: whether calling the function gives a coroutine.
        auto: whether the kind was declared as ``"auto"``; then `kind` is the lane that the handler
            runs on now.
        on_threads: whether a bus with ``cpu="auto"`` runs this cpu handler on threads.
        limits: the bounds of one run.
        retry: which failures are followed by another attempt, and when.
        writable: whether the handler may write to the large buffers of its event; then it gets a
            copy of them.
        key: a function of the event; deliveries with the same key run one at a time, in order.
        priority: deliveries of handlers with a larger number go first.
        concurrency: maximum of deliveries that run at the same time; None for no limit of its own.
        where: a function of the event that says whether the handler takes it; None takes all.
        once: whether the handler takes one event and is then unsubscribed.
        batch: maximum of events in one call of a batch handler; None if the handler takes single
            events.
        batch_wait: maximum wait of an event for others of its call, in seconds.
        rate: maximum of runs that begin in any period; None for no limit.
        rate_key: a function of the event; the rate holds for the events of each key.
        limited: whether runs of the handler have to be watched, for a timeout or a max_memory.
        gated: whether deliveries of the handler may wait for each other: it has a key, a
            concurrency or a rate.
        needs: the parameters that are given a resource, and the resources.
        call: the function that workers call with the event. It calls `function` with the event and
            the handler's resources. Without resources it is `function` itself.

    The fields of `limits` and of `retry` are attributes of the handler too.
    """

    number: int = field(default_factory=new_number)
    function: Callable[..., Any]
    kind: Kind = option("io", _kind)
    name: str = option(None, _name)
    topics: tuple[Topic, ...] = ()
    is_async: bool = False
    auto: bool = False
    on_threads: bool = False
    limits: Limits = field(default_factory=Limits)
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    writable: bool = option(
        False,
        one_of(True, False),
        only_cpu="an io handler gets the very object that was published; leave it out, and copy "
        "what you change",
        no_threads="a handler on a thread gets the very object that was published, and no copy",
    )
    key: Callable[[Any], Hashable] | None = option(None, event_function)
    priority: int = option(0, _priority)
    concurrency: int | None = option(None, _concurrency)
    where: Callable[[Any], bool] | None = option(None, event_function)
    once: bool = option(False, one_of(True, False))
    batch: int | None = option(None, whole(1, _LARGEST_BATCH, or_none=True))
    batch_wait: float = option(0.0, seconds_up_to(_LONGEST_BATCH_WAIT_S))
    rate: Rate | None = option(None, parse_rate)
    rate_key: Callable[[Any], str | int | bytes] | None = option(None, event_function)
    needs: Needs = ()
    limited: bool = field(init=False)
    gated: bool = field(init=False)
    call: Callable[..., Any] = field(init=False)

    def __post_init__(self) -> None:
        """Compute `limited`, `gated` and `call` once, since the lanes read them for every event."""
        limited = self.limits.timeout is not None or self.limits.max_memory is not None
        object.__setattr__(self, "limited", limited)  # because the class is frozen
        gated = any(each is not None for each in (self.key, self.concurrency, self.rate))
        object.__setattr__(self, "gated", gated)
        call = self.function
        if self.needs:
            from procbus.core.supplied import supplied  # only now: few handlers have resources

            call = supplied(self.function, self.needs, self.name, is_async=self.is_async)
        object.__setattr__(self, "call", call)

    @property
    def timeout(self) -> float | None:
        """Maximum duration of one attempt, in seconds; None for no limit."""
        return self.limits.timeout

    @property
    def max_memory(self) -> int | None:
        """Maximum memory of the worker during a run, in bytes; None for no limit."""
        return self.limits.max_memory

    @property
    def grace(self) -> float:
        """Time that a run has to end once its delivery is cancelled, in seconds."""
        return self.limits.grace

    @property
    def retries(self) -> int:
        """Maximum number of attempts after the first."""
        return self.retry.retries

    @property
    def backoff(self) -> Backoff:
        """A function of the failed attempt's number and outcome: seconds until the next attempt."""
        return self.retry.backoff

    @property
    def retry_on(self) -> tuple[type[BaseException], ...]:
        """The errors after which another attempt is made."""
        return self.retry.retry_on

    @property
    def max_crashes(self) -> int:
        """How often a delivery may kill its worker and still be tried again."""
        return self.retry.max_crashes

    def __repr__(self) -> str:
        """Show name, kind and topics."""
        return f"<Handler {self.name} kind={self.kind} topics={shown_topics(self.topics)}>"


class CpuPlace(NamedTuple):
    """The workers that run a cpu handler of a bus with ``cpu="auto"``."""

    on_threads: bool
    #: The reason, in words.
    why: str


def calling(handler: Handler, function: Callable[..., Any], **changes: Any) -> Handler:
    """Copy a handler, with a function that calls its `call`, and with other changes."""
    return replace(handler, function=function, needs=(), **changes)


def as_kind(handler: Handler, kind: Kind, *, on_threads: bool = False) -> Handler:
    """Copy a handler for another lane; the copy has its own number."""
    return replace(handler, kind=kind, on_threads=on_threads, number=new_number())


def with_topics(handler: Handler, topics: tuple[Topic, ...]) -> Handler:
    """Copy a handler, with its number, for other topics."""
    return replace(handler, topics=topics)


def options_key(handler: Handler) -> Hashable:
    """Return a key that is equal for two handlers with the same options.

    It runs no code of the user's: an option whose type is not plain, such as a function, is
    represented by its identity. So compare keys only of handlers that both still exist.
    """
    return tuple(_key_of(getattr(handler, name)) for name in _COMPARED)


def _key_of(value: Any) -> Hashable:
    if type(value) is tuple:
        return tuple(map(_key_of, value))
    return (type(value), value) if type(value) in _PLAIN else id(value)


_PLAIN = (int, float, str, Rate)
_DECLARED = options_of(Limits, RetryPolicy, Handler)
_COMPARED = ("auto", *_DECLARED)


def unkept_by_threads(given: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each option that a cpu handler cannot have on a thread, with the reason.

    Args:
        given: options of the handler, by name.
    """
    for name, value in given.items():
        declared = _DECLARED[name]
        if declared.no_threads and value != declared.default:
            yield name, declared.no_threads


def need_of_process(handler: Handler) -> str:
    """The option for which a handler needs a process; "" if a thread keeps all its promises."""
    if handler.limits.timeout is not None:  # a thread goes on after it
        return "timeout"
    given = {name: getattr(handler, name) for name in _DECLARED}
    return next((name for name, _ in unkept_by_threads(given)), "")


OPTIONS_OF_A_HANDLER = tuple(_DECLARED)
"""Names of the options of a handler, in the order of messages."""


shows_handler_options = shows_options(HandlerOptions, Handler, Limits, RetryPolicy)
"""Decorates a function with the options of a handler, so that `help` lists them."""


def make_parts(given: Mapping[str, Any]) -> dict[str, Any]:
    """Check the options of a handler; return the fields of `Handler` made from them.

    Args:
        given: the options that the user wrote, by name.

    Raises:
        ValueError: an option makes no sense; the message says how to mend it. If a function for
            `backoff` raised, its exception is the cause.
    """
    own = checked(Handler, given)
    limits = checked(Limits, given)
    retry = checked(RetryPolicy, given)
    if own["kind"] != "cpu":
        for name, value in {**limits, **retry, **own}.items():
            advice = _DECLARED[name].only_cpu
            if advice and value != _DECLARED[name].default:
                raise ValueError(f'{name} is for kind="cpu" only: {advice}')
    if own["kind"] == "auto" and own["once"]:
        raise ValueError(
            'once leaves kind="auto" nothing to measure; make it kind="io" or kind="cpu"'
        )
    for problem in itertools.chain(_problems_of_batch(own), _problems_of_rate(own)):
        raise ValueError(problem)
    return {**own, "limits": Limits(**limits), "retry": RetryPolicy(**retry)}


def _problems_of_batch(own: Mapping[str, Any]) -> Iterator[str]:
    if own["batch"] is None:
        if own["batch_wait"]:
            yield "batch_wait is the wait for more events of a batch: give batch= too"
        return
    if own["once"]:
        yield "once takes one event, and batch a list of them; leave one of the two out"
    if own["kind"] == "auto":
        yield 'kind="auto" measures calls with one event; make a batch handler "io" or "cpu"'


def _problems_of_rate(own: Mapping[str, Any]) -> Iterator[str]:
    if own["rate"] is None:
        if own["rate_key"] is not None:
            yield "rate_key says which events share a rate: give rate= too"
        return
    if own["batch"] is not None:
        yield "rate counts single events, and batch takes lists of them; leave one of the two out"
    if own["kind"] == "auto":
        yield 'kind="auto" measures how fast it runs; make a handler with a rate "io" or "cpu"'


def make_handler(
    function: Callable[..., Any], topic: object = None, **options: Unpack[HandlerOptions]
) -> Handler:
    """Check a subscription and make its handler.

    Args:
        function: takes the event as its one argument.
        topic: a class, a dotted string, a tuple or list of those; None takes it from the
            annotation of the first parameter.
        **options: as for `procbus.subscribe`. An unknown option is refused with advice.

    Raises:
        SubscriptionError: function or options cannot work; the message says what to change.
        TopicError: the topic is neither a class nor a well-formed dotted string.
    """
    _check_function(function)
    for problem in itertools.chain(_problems_of_call(function), _problems_of_unknown(options)):
        raise SubscriptionError(f"handler {name_of(function)}: {problem}")
    try:
        parts = make_parts(options)
    except ValueError as error:
        # The message quotes an exception of a backoff function only in part: the cause has the
        # rest.
        raise SubscriptionError(f"handler {name_of(function)}: {error}") from error.__cause__
    kind = parts["kind"]
    topics = _topics(function, topic, in_list=parts["batch"] is not None)
    problems = itertools.chain(
        _problems_of_kind(function, kind),
        _problems_of_annotation(function, () if topic is None else topics, parts),
    )
    for problem in problems:
        raise SubscriptionError(f"handler {name_of(function)}: {problem}")
    needs = _needs_of(function)
    made = {
        "needs": needs,
        "name": parts["name"] or name_of(function),
        "kind": "cpu" if kind == "cpu" else "io",
        "auto": kind == "auto",
        "topics": topics,
        "is_async": is_async(function),
    }
    return Handler(function=function, **{**parts, **made})


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


def _topics(function: Callable[..., Any], topic: object, *, in_list: bool) -> tuple[Topic, ...]:
    try:
        named = topics_in(topic)
        if named:
            return named
        found = topics_of(function, in_list=in_list)
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


def _needs_of(function: Callable[..., Any]) -> Needs:
    """The resources that the parameters of a function name."""
    if "procbus.core.resources" not in sys.modules:  # then no parameter can name one
        return ()
    from procbus.core.resources import needs_of, problems_of_use

    needs = needs_of(function)
    for problem in problems_of_use(function, needs, is_async=is_async(function)):
        raise SubscriptionError(f"handler {name_of(function)}: {problem}")
    return needs


def _problems_of_kind(function: Callable[..., Any], kind: str) -> Iterator[str]:
    if kind == "auto" and is_async(function):
        yield "an async handler can only be kind='io', on the event loop; leave kind out"
    if kind == "cpu" and is_async(function):
        yield "an async handler belongs to kind='io'; make it a plain def for kind='cpu'"


def _problems_of_annotation(
    function: Callable[..., Any], topics: Sequence[Topic], parts: Mapping[str, Any]
) -> Iterator[str]:
    """Say which topic has only events that the annotation excludes; `where` may choose others."""
    if parts["where"] is None:
        problem = problem_of_annotation(function, topics, in_list=parts["batch"] is not None)
        if problem:
            yield problem


def _problems_of_unknown(options: Iterable[str]) -> Iterator[str]:
    for name in options:
        if name in OPTIONS_OF_A_HANDLER:
            continue
        if name in _options_of_a_bus():
            yield f"{name}= is an option of EventBus, not of a handler: EventBus({name}=...)"
        from procbus.core.foreign_names import meant_by  # only when something is wrong

        own, bus = (meant_by(name, each) for each in (OPTIONS_OF_A_HANDLER, _options_of_a_bus()))
        if bus and not own:
            yield (
                f"unknown option {name}=; the option of the bus {bus}= is probably meant: "
                f"EventBus({bus}=...)"
            )
        yield (
            f"unknown option {name}={did_you_mean(name, OPTIONS_OF_A_HANDLER, '=')}; "
            f"the options are {', '.join(OPTIONS_OF_A_HANDLER)}"
        )


def _options_of_a_bus() -> Sequence[str]:
    """The names of the options of the public `EventBus`, which this module does not know."""
    import procbus  # only when something is wrong

    return list(inspect.signature(procbus.EventBus).parameters)
