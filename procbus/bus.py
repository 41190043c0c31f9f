# SPDX-License-Identifier: MIT
"""The event bus: its public methods."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from functools import partial
from os import fspath
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, Never, Self, TypeVar, Unpack, overload

from procbus.assembly import Assembly
from procbus.core.context import NOTHING
from procbus.core.errors import OptionError, SerializationError
from procbus.core.handler import HandlerOptions, make_handler, shows_handler_options
from procbus.core.options import shows_options
from procbus.core.receipt import Receipt
from procbus.core.stats import BusStats
from procbus.core.topic import check_concrete, topics_in
from procbus.core.validation import is_whole, shown
from procbus.dispatch.dead_letters import DeadLetters
from procbus.futures.thread_set_up import ThreadSetUp
from procbus.lifecycle import Lifecycle
from procbus.routing.registry import check_can_travel
from procbus.settings import MOST_WORKERS, BusOptions, Settings, make_settings
from procbus.stream import stream_of
from procbus.system import sigterm

if TYPE_CHECKING:
    from os import PathLike

    from procbus.advice.advice import AdviceList
    from procbus.core.handler import CallOptions, Handler, HandlerOptions, Kind
    from procbus.futures.executor import BusExecutor
    from procbus.journal.resume import ResumeSummary
    from procbus.supervision.health import WorkerHealth


# The life of a bus: the methods that start it, wait for it and end it.


class BusLife:
    """What a bus is from its start to its end. All methods may be called from any thread.

    Threads know the parts of a bus, and nothing of this object: so it is gone once its user lets go
    of it.

    Args:
        parts: of the bus.
    """

    def __init__(self, parts: Assembly) -> None:
        self._start = parts.start
        self._lifecycle = parts.lifecycle

    def __del__(self) -> None:
        """Nobody can use the bus any more: finish what is pending, and end the workers."""
        lifecycle: Lifecycle | None = getattr(self, "_lifecycle", None)
        if lifecycle is not None:  # else it could not be made
            lifecycle.drop()

    def start(self) -> Self:
        """Start all workers of the cpu lane now, in parallel, rather than when needed."""
        self._start()
        return self

    def drain(self, timeout: float | None = None) -> bool:
        """Wait until everything published is settled, also what handlers publish meanwhile.

        Args:
            timeout: at most so many seconds; None waits as long as it takes.

        Returns:
            Whether everything is settled.

        Raises:
            ProcbusError: called inside a handler of this bus, which would wait for itself.
        """
        return self._lifecycle.drain(timeout)

    def close(self, timeout: float | None = None, cancel: bool = False) -> None:
        """Take no more events, finish, and end all workers. Idempotent.

        Args:
            timeout: finish within so many seconds; then what has not begun is cancelled and what
                is running is stopped. None waits as long as it takes.
            cancel: cancel at once what has not begun, and wait only for what is running.

        Raises:
            ProcbusError: called inside a handler of this bus, which would wait for itself.
        """
        self._lifecycle.close(timeout, cancel)

    def __enter__(self) -> Self:
        """Use the bus for the length of a block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Drain and close; after Ctrl-C (or SystemExit) cancel what has not begun."""
        self._lifecycle.leave(error)

    async def __aenter__(self) -> Self:
        """Use the bus for the length of a block."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """As `__exit__`, without blocking the event loop; cancelling the task cancels as Ctrl-C."""
        from procbus import aio  # only now: it imports asyncio

        await aio.in_thread(self._lifecycle.leave, error)
        sigterm.restore()  # which only the main thread can


F = TypeVar("F", bound=Callable[..., Any])


class EventBus(BusLife):
    """An event bus inside this process. All methods may be called from any thread.

    Workers start when the first event needs them. Leaving the `with` (or `async with`) block
    waits until everything published is settled; Ctrl-C in it cancels what has not begun.

    Args:
        handlers: decorated functions, and modules that hold such; None for every handler of the
            default registry, whenever it is added there.
        cpu: where cpu handlers run: a `DaskPool`; None for processes of this machine.
        cpu_workers: processes for cpu handlers; None for as many as this process has cores
            (affinity and cgroup quotas count), or as the Dask cluster has threads.
        io_workers: threads for io handlers that are no coroutines; None for 32.
        max_pending: deliveries that may be pending before publishers have to wait.
        on_full: what `publish` does then: "block" waits for room, "raise" raises QueueFull.
        worker_init: called without arguments, once in each worker process before its first event.
            If it raises, what the worker was started for fails with that error.
        max_events_per_worker: deliveries after which a worker process is replaced; None for any.
        worker_max_memory: a worker process that has more memory than this after a delivery is
            replaced: bytes, or such as "512 MiB" or "1.5 GB", 32 MiB at least; None for no such
            limit. The `max_memory` of `procbus.subscribe` stops a handler while it runs.
        worker_nice: how far worker processes let other processes go first, 0 to 19, on top of how
            nice the script is. With 0 they share the cores with it, and with other programs, as
            equals; with 10 io handlers are quicker where all cores are busy, but programs beside
            the script leave the workers little.
        on_failure: called with the DeadLetter of each delivery that failed for good, in the thread
            that settles it, so it should be quick. What it raises is logged.
        shared_memory_limit: the most memory to share with workers for large events, in flight, kept
            by handlers or waiting for the next event: bytes, or such as "2 GiB"; 1 MiB at least, 0
            for none. None for a quarter of what is free then. When it is full, events wait.
        shared_memory_threshold: a buffer of this size or more goes through shared memory, and cpu
            handlers see it read-only; a smaller one goes through the pipe. Bytes, or such as
            "1 MiB"; 4 KiB at least.
        on_oversize: what becomes of an event that is larger than what handlers leave of the limit:
            "pipe" sends it through the pipe, "fail" fails its deliveries to cpu handlers with
            SerializationError.
        journal: file that makes the bus durable: what is published is in it before it runs, and
            what a run of the script leaves unfinished is run by the next one. None for no journal,
            and then the options below mean nothing.
        durability: what published events survive: "process" for the death of this process, however
            that comes; "power" for a loss of power too: those who publish wait for the disk.
        keep: what the journal keeps of what is finished: "unfinished" for nothing but the ids that
            were given, "all", or for how long: seconds, such as "7 days", or a timedelta. Dead
            letters are kept in any case.
        keep_results: whether the journal keeps what handlers returned, with what it keeps. Without
            it, `result()` of an event that is known by its id alone raises `ProcbusError`.
        journal_codec: how events are written: "pickle", or "json" for dataclasses and plain data
            (needs msgspec: `pip install 'procbus[json]'`).
        on_sigterm: what SIGTERM means. "finish" takes no more events, and gives what is pending
            `grace` seconds to finish; "put_away" cancels at once what has not begun. What is left
            is cancelled, or kept by the journal, and the script ends by SystemExit(143). None
            leaves the signal alone, and it ends the script at once. A handler of your own for the
            signal is left alone too. Make the bus in the main thread.
        grace: seconds, see `on_sigterm`.
        carry: `contextvars.ContextVar`s whose values cpu handlers get as they were where the event
            was published; what they hold has to be picklable. Handlers of kind "io" have the whole
            context of the publisher without it.

    Raises:
        JournalError: the journal cannot be used; the message says what to do.
        OptionError: an option makes no sense.
        SerializationError: `worker_init` holds something that cannot travel to a worker.
        SubscriptionError: one of `handlers` is not subscribed.
    """

    @shows_options(BusOptions, Settings)
    def __init__(
        self,
        handlers: Iterable[Callable[..., Any] | ModuleType] | None = None,
        **options: Unpack[BusOptions],
    ) -> None:
        self._parts = parts = self._assemble(make_settings(options), handlers)
        super().__init__(parts)
        self._subscriptions = parts.subscriptions
        self._publish = parts.dispatcher.publish

    def _assemble(self, settings: Settings, handlers: Any) -> Assembly:
        return Assembly(settings, handlers)

    # Subscribing.

    @overload
    def subscribe(self, topic: object, handler: F, **options: Unpack[HandlerOptions]) -> F: ...

    @overload
    def subscribe(
        self, topic: object = None, **options: Unpack[HandlerOptions]
    ) -> Callable[[F], F]: ...

    @shows_handler_options
    def subscribe(self, topic: object = None, handler: F | None = None, **options: Any) -> Any:
        """Subscribe a handler to this bus alone: a call, or a decorator when no handler is given.

        As with `procbus.subscribe`, an event goes once to a function however often that was
        subscribed, and a definition that is run again takes the place of the old one.

        Args:
            topic: as for `procbus.subscribe`.
            handler: the function; None makes this a decorator.
            **options: as for `procbus.subscribe`.

        Returns:
            The function unchanged, or the decorator.

        Raises:
            SubscriptionError: function or options cannot work; the sentence says what to change.
            SerializationError: a cpu handler holds something that cannot travel to a worker.
        """
        topics = topics_in(topic)  # now: under a bare @bus.subscribe, decorate() is never called

        def decorate(function: F) -> F:
            made = make_handler(function, topics or None, **options)
            check_can_travel(made)
            self._subscriptions.add(made)
            return function

        return decorate if handler is None else decorate(handler)

    def unsubscribe(self, handler: Callable[..., Any], topic: object = None) -> None:
        """Take a function off this bus. What is pending for it still runs.

        Args:
            handler: the function, or an equal bound method.
            topic: the topic to leave, or several, as they were subscribed; None leaves all.

        Raises:
            NoSuchHandler: it is not subscribed to this bus, or not to one of these topics.
            TopicError: the topic is neither a class nor a well-formed dotted string.
        """
        self._subscriptions.remove(handler, topics_in(topic) or None)

    @contextmanager
    def subscribed(
        self, topic: object, handler: F, **options: Unpack[HandlerOptions]
    ) -> Iterator[F]:
        """Subscribe a handler to this bus for the length of a `with` block.

        Where the handler was subscribed before, that subscription is in force again after the
        block. What is pending then still runs.

        Example:
            ```python
            with bus.subscribed("order.paid", print):
                bus.publish("order.paid", 17)
            ```

        Args:
            topic: as for `procbus.subscribe`; None takes it from the annotation.
            handler: the function.
            **options: as for `procbus.subscribe`.

        Raises:
            SubscriptionError: function or options cannot work; the sentence says what to change.
            SerializationError: a cpu handler holds something that cannot travel to a worker.
        """
        made = make_handler(handler, topics_in(topic) or None, **options)
        check_can_travel(made)
        with self._subscriptions.held(made):
            yield handler

    def handlers(self, topic: object = None) -> tuple[Handler, ...]:
        """The handlers that an event would reach, in the order of their subscription.

        `where` is not asked, as that needs the event.

        Args:
            topic: a dotted string without wildcards, or the class of the event; None gives all
                handlers of this bus. Where a class has a string `event_type`, its events are taken
                to be routed by that too.

        Raises:
            TopicError: the topic is malformed, or has wildcards.
        """
        if topic is None:
            return self._subscriptions.handlers()
        return self._subscriptions.reached_by(topic)

    # Publishing.

    def publish(self, event: Any, payload: Any = NOTHING, *, id: str | None = None) -> Receipt:
        """Publish an event: `publish(event)`, or `publish("topic", payload)`.

        `publish(event)` reaches the handlers of its class and of its bases, and, if it has a
        string attribute `event_type`, those of that topic. `publish("topic", payload)` reaches
        those of that topic. Waits while `max_pending` deliveries are pending, unless it is called
        inside a handler of this bus.

        Args:
            event: the event, or the topic of the payload.
            payload: the event, when a topic is given.
            id: where the journal has seen this id, in this run or in one before, nothing is run,
                and the receipt tells how that event ended, or stands.

        Returns:
            The receipt of the event, at once: wait on that for results.

        Raises:
            JournalError: the journal cannot be written: the event was not accepted.
            BusClosed: the bus was closed, or this is a forked child of its process.
            QueueFull: the bus is full and was made with `on_full="raise"`.
            TopicError: the topic is malformed, or has wildcards.
        """
        if id is not None:
            return self._parts.dispatcher.publish_once(*_event_and_topic(event, payload), id)
        if payload is NOTHING:
            return self._publish(event, None)
        if type(event) is not str:
            event = check_concrete(event)  # None must not mean routing by class
        return self._publish(payload, event)

    async def apublish(
        self, event: Any, payload: Any = NOTHING, *, id: str | None = None
    ) -> Receipt:
        """Publish in a running event loop: as `publish`, but it waits without blocking the loop.

        While the bus has room, it returns without giving the loop a turn. In a long loop say
        `await asyncio.sleep(0)` now and then, or use `astream`.
        """
        from procbus import aio  # only now: it imports asyncio

        event, topic = _event_and_topic(event, payload)
        self._lifecycle.check_process()
        parts = self._parts
        await aio.make_ready(self._subscriptions, parts.lanes, parts.dispatcher, event, topic)
        return await aio.publish(parts.dispatcher, event, topic, id)

    def stream(
        self,
        events: Iterable[Any],
        *,
        topic: str | None = None,
        id: Callable[[Any], str] | None = None,
        ordered: bool = False,
        progress: bool = False,
    ) -> Iterator[Receipt]:
        """Publish events and yield their receipts, each once it is settled.

        Takes from `events` only as fast as the bus has room, and keeps no more than `max_pending`
        events, and of large ones as many as take half of the limit of shared memory, so that it
        goes through any number of them in little memory.

        Where `events` raises an exception, or one of them cannot be published, the receipts of all
        that was published come first, and then that exception.

        Args:
            events: any iterable; it is read in the calling thread.
            topic: publishes each event as the payload of this topic; None routes by its class.
            id: gives the id of each event, as for `publish`: those that the journal knows are not
                run again; their receipts come too.
            ordered: yield in the order of the events rather than as they settle.
            progress: show a progress bar on stderr.

        Raises:
            BusClosed: the bus was closed.
            TopicError: the topic is malformed.
        """
        if topic is not None:
            topic = check_concrete(topic)
        dispatcher, window = self._parts.dispatcher, self._parts.window(self)
        source, publish = dispatcher.streaming(events, topic, id)
        count = len(events) if isinstance(events, Sized) else None
        return stream_of(source, publish, window, ordered, progress, count, dispatcher.make_safe)

    def astream(
        self,
        events: Iterable[Any] | AsyncIterable[Any],
        *,
        topic: str | None = None,
        id: Callable[[Any], str] | None = None,
        ordered: bool = False,
    ) -> AsyncIterator[Receipt]:
        """`stream` for a running event loop; `events` may be an asynchronous iterable."""
        from procbus import aio  # only now: it imports asyncio

        def publish(event: Any) -> Any:
            given = NOTHING if topic is None else event
            first = event if topic is None else topic
            return self.apublish(first, given, id=None if id is None else id(event))

        return aio.stream(events, publish, self._parts.window(self), ordered=ordered)

    def executor(self, kind: Kind = "cpu", **options: Unpack[CallOptions]) -> BusExecutor:
        """Make a `concurrent.futures.Executor` of this bus, which goes on after its shutdown.

        Args:
            kind: ``"cpu"`` runs calls in worker processes, ``"io"`` on threads.
            **options: of every call, as for `procbus.executor`.

        Raises:
            OptionError: an option makes no sense.
        """
        # Only now: it imports concurrent.futures.
        from procbus.futures.executor import BusExecutor, Parts

        own = self._parts
        parts = Parts(own.dispatcher, own.settlement, own.retries, own.lanes, own.direct)
        return BusExecutor(self, parts, kind, options)

    # Looking.

    def stats(self) -> BusStats:
        """What the bus has done so far, and how its lanes are just now."""
        return self._parts.stats()

    def advice(self) -> AdviceList:
        """Which kind suits each handler, by what was measured of it so far; `print` it for a table.

        What a handler loses by its kind is also said once in the log, at INFO, or at WARNING where
        that is much. See docs/advice.md for how it is found out and what it does not know.
        """
        return self._parts.advisor.advice()

    def health(self) -> tuple[WorkerHealth, ...]:
        """How each worker is just now: the processes first, then the threads."""
        return self._parts.health()

    @property
    def resume_summary(self) -> ResumeSummary | None:
        """What the journal had from runs before, and what became of that; None without a journal.

        It is resumed by the first of `start`, a publish, `drain` and the end of the `with` block,
        for the handlers that are subscribed then; for others once they are.
        """
        journaled = self._parts.journaled
        return None if journaled is None else journaled.summary()

    def journal_backup(self, path: str | PathLike[str]) -> None:
        """Copy the journal to a new file, while the bus works.

        The copy is a journal of its own: a bus that opens it resumes all that was accepted and not
        finished when this was called.

        Args:
            path: of the file, which must not be there yet.

        Raises:
            JournalError: this bus has no journal, or the file is there or cannot be written.
        """
        self._parts.dispatcher.back_up(fspath(path))

    @property
    def dead_letters(self) -> DeadLetters:
        """The newest deliveries that failed for good, oldest first; 1,000 are kept.

        Look at them, `filter` them, `replay` them, `save` them to a file and `load` them again.
        """
        return self._parts.settlement.dead_letters.snapshot()

    def __repr__(self) -> str:
        """Say what a person wants to know: open or closed, how much is pending, who works."""
        return f"<EventBus {self._parts.state()}>"

    def __reduce__(self) -> Never:
        """Refuse to travel."""
        raise TypeError(
            "an EventBus cannot travel to another process; inside a cpu handler publish with "
            "current().publish(...)"
        )


def _event_and_topic(event: Any, payload: Any) -> tuple[Any, str | None]:
    """Sort out the arguments of `publish`."""
    if payload is NOTHING:
        return event, None
    return payload, check_concrete(event)


# An executor that has a bus of its own.


def executor(
    kind: Kind = "cpu",
    *,
    max_workers: int | None = None,
    initializer: Callable[..., object] | None = None,
    initargs: tuple[Any, ...] = (),
    **options: Unpack[CallOptions],
) -> BusExecutor:
    """Make a `concurrent.futures.Executor` with a bus of its own, which ends with it.

    To replace a `ProcessPoolExecutor` (`"cpu"`) or a `ThreadPoolExecutor` (`"io"`).

    Args:
        kind: ``"cpu"`` runs calls in worker processes, ``"io"`` on threads (an `async def` on an
            event loop).
        max_workers: processes or threads; None for as many as `EventBus` has by default.
        initializer: called once in each worker before its first call. If it raises, the calls that
            the worker was for fail with `WorkerDied`, whose cause tells why.
        initargs: arguments of `initializer`.
        **options: of every call: `timeout`, `max_memory`, `retries`, `backoff`, `retry_on`,
            `max_crashes`, `writable` (True, unless you say otherwise), `priority`, as for
            `procbus.subscribe`.

    Raises:
        OptionError: an option makes no sense.
        SerializationError: `initializer` or `initargs` cannot travel to a worker.
        TypeError: `initializer` is not callable.
    """
    if max_workers is not None and not is_whole(max_workers, 1, MOST_WORKERS):
        raise OptionError(
            f"max_workers must be greater than 0: a whole number to {MOST_WORKERS}, or None for "
            f"the default, not {shown(max_workers)}"
        )
    if initializer is not None and not callable(initializer):
        raise TypeError(f"initializer must be a callable, not {shown(initializer)}")
    set_up = None
    if kind == "io":
        bus = EventBus([], io_workers=max_workers)
        if initializer is not None:
            set_up = ThreadSetUp(initializer, tuple(initargs))
    else:
        init = None if initializer is None else partial(initializer, *initargs)
        bus = _with_initializer(max_workers, init)
    made = bus.executor(kind, **options)
    made.own(set_up)
    return made


def _with_initializer(workers: int | None, init: Callable[[], object] | None) -> EventBus:
    """Make a bus with workers that are set up; its user gave an `initializer`, no `worker_init`."""
    try:
        return EventBus([], cpu_workers=workers, worker_init=init)
    except SerializationError as error:
        text = str(error).replace("worker_init=", "initializer ", 1)
        raise SerializationError(text, error.path) from error.__cause__
    except OptionError as error:
        raise OptionError(str(error).replace("worker_init=", "initializer ", 1)) from None
