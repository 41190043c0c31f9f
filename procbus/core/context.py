# SPDX-License-Identifier: MIT
"""`current()`: the facts that a handler can ask for about the delivery that it is running."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context, ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar, overload

from procbus.core.errors import Cancelled, ProcbusError
from procbus.core.progress import Amount, NoteProgress
from procbus.core.worker import NO_WORKER, CurrentWorker

if TYPE_CHECKING:
    from datetime import datetime

    from procbus.core.receipt import Receipt
    from procbus.core.when import Duration, When

E = TypeVar("E")

#: Stands for an argument that was not given, where None is a legal value.
NOTHING: Any = object()


class Run(NamedTuple):
    """One run of a bus. It tells the deliveries of this run from the deliveries of all others."""

    #: Id of the journal, the same for all runs on it. Without a journal, id of the bus.
    id: str
    #: Id of the first event of this run. Smaller ids belong to earlier runs.
    first_id: int


#: The run of a context that was given none, as in tests.
ONLY_RUN = Run("0", 1)


class RunState(Protocol):
    """The run of a handler, as its `current()` sees it."""

    def begin_reports(self) -> NoteProgress:
        """Make the function that notes reports of the run."""

    def cancelled(self) -> bool:
        """Whether the delivery was cancelled."""

    def remaining_s(self) -> float | None:
        """Seconds until the run's time limit; None without a limit."""


class _NoRun:
    """Stands in for the run where no handler is running."""

    def begin_reports(self) -> NoteProgress:
        """Make a function that notes nothing."""
        return _unheard

    def cancelled(self) -> bool:
        """Return False."""
        return False

    def remaining_s(self) -> None:
        """Return None: there is no limit."""


_NO_RUN = _NoRun()


class HandlerContext:
    """The running delivery, as its handler sees it: the return value of `current()`.

    Each run of a handler has its own object.

    Example:
        ```python
        from procbus import EventBus, current


        def split(text: str) -> None:
            for word in text.split():
                current().publish("word", word)


        with EventBus(handlers=[]) as bus:
            bus.subscribe("text", split, kind="cpu")
            bus.subscribe("word", print)
            bus.publish("text", "two words")
        ```
    """

    __slots__ = (
        "_publish",
        "_report",
        "_state",
        "attempt",
        "event_id",
        "event_ids",
        "handler",
        "owner",
        "parent_id",
        "run",
        "topic",
        "worker",
    )

    def __init__(
        self,
        handler: str,
        event_id: int,
        parent_id: int | None,
        topic: str | None,
        attempt: int,
        publish: Callable[..., Receipt | None],
        owner: object = None,
        run: Run = ONLY_RUN,
        state: RunState = _NO_RUN,
        worker: CurrentWorker = NO_WORKER,
    ) -> None:
        #: Name of the handler.
        self.handler = handler
        #: Id of the event; in a batch handler, of the first event of the list.
        self.event_id = event_id
        #: In a batch handler the id of each event of the list, in its order; else `event_id` alone.
        self.event_ids: tuple[int, ...] = (event_id,)
        #: Id of the event whose handler published this event; None if no handler published it.
        self.parent_id = parent_id
        self.topic = topic
        #: 1 at the first attempt.
        self.attempt = attempt
        self._publish = publish
        self.run = run
        #: The dispatcher that this handler runs for; None in a worker process.
        self.owner = owner
        self._state = state
        #: The worker that runs the handler. Its `number` is 0 for the first worker of the lane.
        self.worker = worker
        #: Notes the progress of this run; made once needed.
        self._report: NoteProgress | None = None

    @property
    def delivery_id(self) -> str:
        """A name for this delivery, unique among all buses, and the same at each attempt.

        With a journal the name stays the same when the delivery is run again after a crash. So a
        handler can store the name together with its effect. If it finds the name there at a later
        run, it already had that effect.
        """
        return f"{self.run.id}-{self.event_id}-{self.handler}"

    @property
    def redelivered(self) -> bool:
        """Whether an earlier run of the script may have begun this delivery."""
        return self.event_id < self.run.first_id

    @overload
    def publish(
        self, event: E, *, delay: Duration | None = None, at: datetime | None = None
    ) -> Receipt[E, Any] | None: ...

    @overload
    def publish(
        self, event: str, payload: E, *, delay: Duration | None = None, at: datetime | None = None
    ) -> Receipt[E, Any] | None: ...

    def publish(
        self,
        event: Any,
        payload: Any = NOTHING,
        *,
        delay: Duration | None = None,
        at: datetime | None = None,
    ) -> Receipt | None:
        """Publish an event from inside a handler: `publish(event)` or `publish("topic", payload)`.

        From an io handler the event is published at once. From a cpu handler the event leaves the
        worker together with the handler's success, and is dropped if the handler fails. The call
        never blocks.

        Args:
            event: the event, or the topic of the payload.
            payload: the event, when a topic is given.
            delay: as for `EventBus.publish`. From a cpu handler the delay begins with the handler's
                success.
            at: as for `EventBus.publish`.

        Returns:
            The receipt of the event, in a handler of kind ``"io"``. None in a handler of kind
            ``"cpu"``, because its event is published only after the handler has succeeded.

        Raises:
            QueueFull: far too many deliveries are pending (io handlers only; a cpu handler's
                delivery fails with this error instead).
            OptionError: the delay makes no sense.
            TopicError: the topic is malformed.
        """
        topic = None
        if payload is not NOTHING:
            if type(event) is not str:
                # Imported here because a worker rarely needs it, and starts faster without it.
                from procbus.core.topic import check_concrete

                event = check_concrete(event)  # None must not mean routing by class
            topic, event = event, payload
        # In a thread that the handler started, this line makes the handler the event's publisher.
        before = running.set(self)
        try:
            if delay is not None or at is not None:
                from procbus.core.when import when_of  # only now, as above

                return self._publish(event, topic, when=when_of(delay, at))
            return self._publish(event, topic)
        finally:
            running.reset(before)

    def progress(self, done: Amount, total: Amount | None = None, note: str = "") -> None:
        """Report how far this handler is, for people and for the supervisor to see.

        A report takes less than a microsecond and sends no message, so you may report after each
        row. The script sees the last report within 0.2 s in `Delivery.progress`, `bus.health()` and
        the progress bar. A handler that reports does not count as stalled. If its worker dies, or
        its time runs out, the error tells how far the handler was.

        Example:
            ```python
            from procbus import EventBus, current


            def load(rows: list[str]) -> int:
                for done, row in enumerate(rows):
                    current().progress(done, len(rows), note=f"parsing {row}")
                return len(rows)


            with EventBus(handlers=[]) as bus:
                bus.subscribe("table", load, kind="cpu")
                assert bus.publish("table", ["a", "b"]).result() == 2
            ```

        Args:
            done: amount of work done, in any unit: an int or a float, 0 or more.
            total: amount of work in all; None if you do not know it.
            note: a few words, such as the name of the present step. At most 200 bytes of UTF-8 are
                kept; a longer note is cut at a character.

        Raises:
            TypeError: `done` or `total` is no number, or `note` is no string.
            ValueError: `done` or `total` is negative, not finite, or 2**64 or more.
        """
        report = self._report
        if report is None:
            report = self._report = self._state.begin_reports()
        report(done, total, note)

    @property
    def cancelled(self) -> bool:
        """Whether this delivery was cancelled, so that the handler should end.

        A look takes less than a microsecond, so you may look in each step of a loop. `check` looks,
        and raises `Cancelled` if the delivery was cancelled.
        """
        return self._state.cancelled()

    def check(self) -> None:
        """Raise `Cancelled` if this delivery was cancelled. Call it in each step of a long loop.

        Example:
            ```python
            from procbus import EventBus, current


            def load(rows: list[str]) -> int:
                for _ in rows:
                    current().check()  # raises Cancelled if the delivery was cancelled
                return len(rows)


            with EventBus(handlers=[]) as bus:
                bus.subscribe("table", load, kind="cpu")
                assert bus.publish("table", ["a", "b"]).result() == 2
            ```

        Raises:
            Cancelled: the delivery was cancelled. Tidy up, and let the exception pass.
        """
        if self._state.cancelled():
            raise Cancelled(
                f"{self.handler} stopped with event #{self.event_id}, which was cancelled",
                handler=self.handler,
                event_id=self.event_id,
            )

    @property
    def remaining_s(self) -> float | None:
        """Seconds until the time limit of this attempt, 0 at least; None without a `timeout`."""
        return self._state.remaining_s()

    def __repr__(self) -> str:
        """Say which handler runs which event."""
        return f"<current: {self.handler} with event #{self.event_id}, attempt {self.attempt}>"


def _unheard(done: Amount, total: Amount | None, note: str) -> None:
    """Stand in for the function that notes progress, where no handler runs."""


#: Whether a thread begins in a copy of the context of the code that starts it: the default of
#: free-threaded builds, `-X thread_inherit_context=1` elsewhere.
THREADS_INHERIT = bool(getattr(sys.flags, "thread_inherit_context", 0))

#: The delivery of the calling thread or task: its `HandlerContext`, or a seat for one.
#:
#: A seat is a list. At first it holds a function and its arguments, which make the context. Once a
#: handler asks, the context takes the function's place. Most handlers never ask, and making a
#: context costs as much as a short handler. Copies of the `contextvars` context share the seat. If
#: threads inherit it, the seat is cleared at the end of the handler, because threads that the
#: handler started may go on.
running: ContextVar[list[Any] | HandlerContext | None] = ContextVar("procbus_running", default=None)
#: Reads `running`. One object for all threads: see `procbus.system.uncounted`.
running_now = running.get


def kept(context: Context) -> Context | None:
    """Turn a copy of the publisher's context into the context that the event's handler runs in.

    None if the context is empty. The variable `running` is cleared, because it would keep alive the
    event whose handler was the publisher.

    Args:
        context: a copy that nothing else refers to.
    """
    own = running in context
    if len(context) == own:
        return None
    if own:
        context.run(running.set, None)
    _copy_decimals(context)
    return context


def another(context: Context) -> Context:
    """Copy a context that `kept` returned, for the next of several attempts."""
    copy = context.copy()
    _copy_decimals(copy)
    return copy


def run_seated(seat: list[Any], function: Callable[[Any], Any], event: Any) -> Any:
    """Call a handler with its seat, see `running`: for `Context.run`."""
    running.set(seat)
    return function(event)


def made_on(
    worker: CurrentWorker, make: Callable[..., HandlerContext]
) -> Callable[..., HandlerContext]:
    """Make a function that makes contexts for handlers of one worker."""

    def made(*about: Any) -> HandlerContext:
        context = make(*about)
        context.worker = worker
        return context

    return made


def _copy_decimals(context: Context) -> None:
    """Give a context a decimal context of its own, if it has one.

    The module `decimal` keeps its context in a ContextVar, so copies share one mutable object.
    """
    decimal: Any = sys.modules.get("decimal")
    get = getattr(decimal, "getcontext", None)  # not there while it is being imported
    if get is None:
        return
    if not _decimal_variable:
        probe = Context()
        probe.run(get)
        _decimal_variable.extend(probe)
    for variable in _decimal_variable:
        if variable in context:
            context.run(decimal.setcontext, context[variable].copy())


#: The context variable of the module `decimal`, once it was needed.
_decimal_variable: list[ContextVar[Any]] = []


def keep_event(
    published: list[tuple[str | None, Any]],
    event: Any,
    topic: str | None,
    when: When | None = None,
) -> None:
    """Keep an event that a cpu handler publishes until the handler has succeeded.

    Args:
        published: the kept events of the handler.
        event: the event.
        topic: its topic; None routes it by its class.
        when: when its handlers run; None for now.

    Raises:
        TopicError: the topic is malformed.
    """
    if topic is not None:
        from procbus.core.topic import check_concrete  # only now: inspect takes time to import

        check_concrete(topic)
    if when is not None:
        from procbus.core.when import Delayed  # only now, as above

        event = Delayed(event, when)
    published.append((topic, event))


def running_context() -> HandlerContext | None:
    """The return value of `current()`, or None outside a handler."""
    seat = running.get()
    if not isinstance(seat, list):
        return seat
    # Threads that run in copies of the context share the seat, so each look and each change is one
    # step: without the GIL too, where unpacking a list is several.
    try:
        first = seat[0]
        if isinstance(first, HandlerContext):
            return first
        about = seat.copy()
    except IndexError:
        return None
    if not about:
        return None
    context: HandlerContext = first(*about[1:])
    with suppress(IndexError):  # the seat was cleared meanwhile
        seat[0] = context
    return context


def current() -> HandlerContext:
    """Return the delivery that the calling handler is running.

    Example:
        ```python
        from procbus import EventBus, current


        def shout(word: str) -> str:
            print("event", current().event_id)
            return word.upper()


        with EventBus(handlers=[]) as bus:
            bus.subscribe("word", shout)
            assert bus.publish("word", "hello").result() == "HELLO"
        ```

    Raises:
        ProcbusError: called outside a handler, or in a thread that the handler started. (If
            threads inherit the context of the code that starts them, `current()` works in such a
            thread until the handler ends.)
    """
    try:  # the usual case from the second call on
        if isinstance(first := running.get()[0], HandlerContext):  # type: ignore[index]
            return first
    except (IndexError, TypeError):  # outside a handler, or after its end
        pass
    context = running_context()
    if context is None:
        raise ProcbusError(
            "current() works only inside a running handler (in a thread that the handler started, "
            "take current() in the handler and pass it on)"
        )
    return context
