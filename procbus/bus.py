# SPDX-License-Identifier: MIT
"""The event bus: its public methods."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from os import fspath
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, Never, Self, TypeVar, Unpack, overload

from procbus.assembly import Assembly, usual_makers
from procbus.core.context import NOTHING
from procbus.core.errors import JournalError, OptionError
from procbus.core.handler import HandlerOptions, make_handler, shows_handler_options
from procbus.core.introspection import is_function
from procbus.core.options import shows_options
from procbus.core.receipt import Receipt
from procbus.core.stats import BusStats
from procbus.core.topic import Topic, Topics, check_concrete, topics_in
from procbus.core.validation import is_whole, shown
from procbus.core.when import when_of
from procbus.dispatch.choosing import Choice
from procbus.dispatch.dead_letters import DeadLetters
from procbus.lifecycle import Lifecycle
from procbus.settings import BusOptions, Settings, make_settings
from procbus.stream import Feed, Leaving, shown_results, stream_of
from procbus.system import sigterm
from procbus.system.uncounted import leave_uncounted

if TYPE_CHECKING:
    from datetime import datetime, tzinfo
    from os import PathLike

    from procbus.advice.advice import AdviceList
    from procbus.core.handler import CallOptions, Handler, HandlerOptions, Kind
    from procbus.core.listeners import Listening
    from procbus.core.when import Duration
    from procbus.futures.executor import BusExecutor
    from procbus.jobs.expected import Expected
    from procbus.jobs.job import Job
    from procbus.jobs.schedule import Schedule
    from procbus.journal.resume import ResumeSummary
    from procbus.progress.show import ShowProgress
    from procbus.supervision.health import BusHealth


F = TypeVar("F", bound=Callable[..., Any])
E = TypeVar("E")
R = TypeVar("R")


class EventBus:
    """An event bus inside this process. All methods may be called from any thread.

    Workers start when an event first needs them. If there is a handler of kind "cpu", the first
    worker process starts earlier: when you enter a `with` block or begin a stream. Leaving the
    `with` (or `async with`) block waits until all published events are settled. Ctrl-C in the
    block cancels deliveries that have not begun.

    Example:
        ```python
        from procbus import EventBus

        bus = EventBus(handlers=[], cpu_workers=2)


        @bus.subscribe("number", kind="cpu")
        def square(number: int) -> int:
            return number * number


        with bus:
            assert bus.publish("number", 7).result() == 49
        ```

    Args:
        handlers: decorated functions, and modules with such functions; None for every handler of
            the default registry, including handlers that are added to it later.
        cpu: where cpu handlers run. "processes": worker processes of this machine. "threads":
            threads of the script, for a Python without a GIL; threads share your objects, and
            cannot be killed. "auto": the bus chooses one of the two for each handler. A `DaskPool`:
            the workers of a Dask cluster. See docs/pools.md.
        cpu_workers: number of workers for cpu handlers. None is one worker for each core that this
            process may use (affinity and cgroup quotas count), or for each thread of the Dask
            cluster. ``cpu="auto"`` may start this number of processes and of threads.
        io_workers: number of threads for io handlers that are not `async def`; None for 32.
        max_pending: maximum of pending deliveries. At the maximum, the bus is full.
        on_full: what `publish` does when the bus is full: "block" waits for room, "raise" raises
            QueueFull.
        worker_init: called without arguments, once in each worker process before its first event.
            If it raises, the deliveries for which the worker was started fail with that error.
        max_events_per_worker: number of deliveries after which a worker process is replaced; None
            for no limit.
        worker_max_memory: a worker process with more memory than this after a delivery is replaced:
            bytes, or a string such as "512 MiB" or "1.5 GB", 32 MiB at least; None for no limit.
            The `max_memory` of `procbus.subscribe`, in contrast, stops a handler while it runs.
        worker_nice: how far worker processes give way to other processes, 0 to 19, added to the
            script's own niceness. With 0 the workers share the cores equally with the script and
            other programs. With 10, io handlers are quicker when all cores are busy, but other
            programs may leave the workers little time.
        worker_env: a function of a worker's number, which returns the environment variables of that
            worker process: a dict of strings. It is called in the script before each start. The
            numbers begin at 0, and the replacement of a dead worker has its number. See
            docs/resources.md.
        on_failure: called with the DeadLetter of each delivery that failed for good, in the thread
            that settles it, so it should be quick. An exception from it is logged.
        shared_memory_limit: maximum of memory shared with workers for large events. It includes
            the memory of events in flight, of events that handlers keep, and memory kept for the
            next event. Bytes, or a string such as "2 GiB"; 1 MiB at least, 0 for no shared memory.
            None is a quarter of the memory that is free when shared memory is first needed. At the
            limit, events wait.
        shared_memory_threshold: a buffer of this size or more goes through shared memory, and cpu
            handlers see it read-only; a smaller one goes through the pipe. Bytes, or such as
            "1 MiB"; 4 KiB at least.
        on_oversize: the fate of an event that is too large for `shared_memory_limit`, less the
            memory of events that handlers keep: "pipe" sends the event through the pipe, "fail"
            fails its deliveries to cpu handlers with SerializationError.
        journal: path of a file that makes the bus durable: an event is written to it before it
            runs, and the next run of the script runs the events that this run leaves unfinished.
            None for no journal; then `durability`, `keep`, `keep_results` and `journal_codec` have
            no effect.
        durability: the accident that published events survive. "process": the death of this
            process, for whatever reason. "power": a loss of power too; publishers then wait for
            the disk.
        keep: which finished deliveries the journal keeps. "unfinished" keeps only the ids that
            you gave to events, and how those events ended. "all" keeps all. A time keeps all for
            that time: seconds, a string such as "7 days", or a timedelta. Dead letters are kept in
            any case.
        keep_results: whether the journal keeps the return values of finished deliveries. Without
            it, `result()` of an event that is known only by its id raises `ProcbusError`.
        journal_codec: the format of events: "pickle", or "json" for dataclasses and plain data
            (needs msgspec: `pip install 'procbus[json]'`).
        on_sigterm: the reaction to SIGTERM. "finish" refuses further events, and gives pending
            deliveries `grace` seconds to finish. "put_away" refuses further events, cancels
            deliveries that have not begun, and gives running ones a second. Deliveries that are
            unfinished then are cancelled, or kept by the journal. The script ends by
            SystemExit(143). None leaves the signal alone, so SIGTERM ends the script at once. If
            you have set a handler for the signal, the bus leaves that handler alone. To use this
            option, make the bus in the main thread.
        grace: seconds that `on_sigterm="finish"` gives pending deliveries.
        carry: `contextvars.ContextVar`s whose values cpu handlers get, as they were when the event
            was published; the values must be picklable. Handlers of kind "io" need no such list:
            they always have the publisher's whole context.
        live: let your other terminals look at this bus while it works, with `procbus ps` and
            `procbus top`; the environment variable `PROCBUS_LIVE=1` does so for all buses of a
            script. The bus listens on a socket that only you may open, and on no port. See
            docs/live.md.

    Raises:
        JournalError: the journal cannot be used; the message says what to do.
        OptionError: an option makes no sense; the message says how to mend it.
        SerializationError: `worker_init` holds something that cannot travel to a worker.
        SubscriptionError: one of `handlers` is not subscribed.
    """

    @shows_options(BusOptions, Settings)
    def __init__(
        self,
        handlers: Iterable[Callable[..., Any] | ModuleType] | None = None,
        **options: Unpack[BusOptions],
    ) -> None:
        self._take(Assembly(make_settings(options), handlers, usual_makers()))

    def _take(self, parts: Assembly) -> None:
        """Take the parts of this bus. A bus for tests makes other parts."""
        self._parts = parts
        self._lifecycle = parts.lifecycle
        self._subscriptions = parts.subscriptions
        self._publish = parts.dispatcher.publish
        leave_uncounted(self._publish)

    # Starting, waiting and ending. Threads refer to the parts of a bus, and never to the EventBus.
    # So the EventBus is freed once its user drops it.

    def __del__(self) -> None:
        """Finish pending deliveries and end the workers, because the user has dropped the bus."""
        lifecycle: Lifecycle | None = getattr(self, "_lifecycle", None)
        if lifecycle is not None:  # None if the bus could not be made
            lifecycle.drop()

    def start(self) -> Self:
        """Start all workers of the cpu lane now, in parallel, rather than when an event needs them.

        Example:
            ```python
            from procbus import EventBus

            bus = EventBus(handlers=[], cpu_workers=1)
            bus.subscribe("number", abs, kind="cpu")
            with bus.start():  # the workers start before the first event
                assert bus.publish("number", -7).result() == 7
            ```
        """
        self._parts.start()
        return self

    def drain(self, timeout: float | None = None, *, progress: ShowProgress = False) -> bool:
        """Wait until all published events are settled, including events published meanwhile.

        Example:
            ```python
            from procbus import EventBus

            with EventBus(handlers=[]) as bus:
                bus.subscribe("word", print)
                bus.publish("word", "hello")
                assert bus.drain(timeout=10)  # "hello" is printed now
            ```

        Args:
            timeout: maximum wait in seconds; None waits as long as it takes.
            progress: show the progress of the deliveries meanwhile, see `stream`.

        Returns:
            Whether everything is settled.

        Raises:
            ProcbusError: called inside a handler of this bus, which would wait for itself.
        """
        with self._parts.view.progress(progress, "drain"):
            return self._lifecycle.drain(timeout)

    def close(self, timeout: float | None = None, cancel: bool = False) -> None:
        """Refuse further events, finish the pending ones, and end all workers. Idempotent.

        Example:
            ```python
            from procbus import EventBus

            bus = EventBus(handlers=[])
            bus.subscribe("word", print)
            bus.publish("word", "hello")
            bus.close(timeout=10)
            ```

        Args:
            timeout: maximum time to finish, in seconds. After that time, deliveries that have not
                begun are cancelled, and running ones are stopped. None waits as long as it takes.
            cancel: at once cancel the deliveries that have not begun, and wait only for the running
                ones.

        Raises:
            ProcbusError: called inside a handler of this bus, which would wait for itself.
        """
        self._lifecycle.close(timeout, cancel)

    def __enter__(self) -> Self:
        """Use the bus in a `with` block. If a handler is for processes, a worker starts now."""
        self._parts.enter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Drain and close; after Ctrl-C (or SystemExit) cancel deliveries that have not begun."""
        self._lifecycle.leave(error)

    async def __aenter__(self) -> Self:
        """Use the bus in an `async with` block, as in a `with` block."""
        if self._subscriptions.need_processes():
            from procbus import aio  # only now: it imports asyncio

            await aio.in_thread(self._parts.enter)  # its imports take time
        else:
            self._parts.enter()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Exit without blocking the event loop; cancelling the task cancels as Ctrl-C does."""
        from procbus import aio  # only now: it imports asyncio

        await aio.in_thread(self._lifecycle.leave, error)
        sigterm.restore()  # only the main thread can

    # Subscribing.

    @overload
    def subscribe(self, topic: Topics, handler: F, **options: Unpack[HandlerOptions]) -> F: ...

    @overload
    def subscribe(
        self, topic: Topics = None, **options: Unpack[HandlerOptions]
    ) -> Callable[[F], F]: ...

    @overload
    def subscribe(self, handler: F, /, **options: Unpack[HandlerOptions]) -> F: ...

    @shows_handler_options
    def subscribe(self, topic: Any = None, handler: Any = None, **options: Any) -> Any:
        """Subscribe a handler to this bus alone: a call, or a decorator when no handler is given.

        As with `procbus.subscribe`, a function gets each event once, however often it was
        subscribed, and a definition that is run again replaces the old one. Without a topic, as
        ``@bus.subscribe`` or ``bus.subscribe(function)``, the annotation gives the topic.

        Example:
            ```python
            from procbus import EventBus

            bus = EventBus(handlers=[])


            @bus.subscribe("page.*", retries=2)
            def store(page: str) -> None:
                print("stored", page)


            bus.subscribe("page.fetched", len, kind="cpu")
            with bus:
                bus.publish("page.fetched", "<html>")
            ```

        Args:
            topic: as for `procbus.subscribe`.
            handler: the function; None makes this a decorator.
            **options: as for `procbus.subscribe`.

        Returns:
            The function unchanged, or the decorator.

        Raises:
            SubscriptionError: function or options cannot work; the message says what to change.
            SerializationError: a cpu handler holds something that cannot travel to a worker.
        """
        if handler is None and is_function(topic):
            topic, handler = None, topic
        topics = topics_in(topic)  # now: a wrong one is told at the decorator's line

        def decorate(function: F) -> F:
            made = make_handler(function, topics or None, **options)
            self._parts.check(made)
            self._subscriptions.add(made)
            if made.kind == "cpu" and self._parts.entered:
                self._parts.expect_events()
            return function

        return decorate if handler is None else decorate(handler)

    def unsubscribe(self, handler: Callable[..., Any], topic: Topics = None) -> None:
        """End the subscription of a function to this bus. Its pending deliveries still run.

        Example:
            ```python
            from procbus import EventBus

            with EventBus(handlers=[]) as bus:
                bus.subscribe("word", print)
                bus.unsubscribe(print)
                assert bus.handlers("word") == ()
            ```

        Args:
            handler: the function, or an equal bound method.
            topic: the topic to leave, or several, as they were subscribed; None leaves all.

        Raises:
            NoSuchHandler: the function is not subscribed to this bus, or not to one of the topics.
            TopicError: the topic is neither a class nor a well-formed dotted string.
        """
        self._subscriptions.remove(handler, topics_in(topic) or None)

    @contextmanager
    def subscribed(
        self, topic: Topics, handler: F, **options: Unpack[HandlerOptions]
    ) -> Iterator[F]:
        """Subscribe a handler to this bus for the length of a `with` block.

        If the handler was subscribed before the block, its old subscription is in force again after
        the block. Deliveries that are pending at the end of the block still run.

        Example:
            ```python
            from procbus import EventBus

            with EventBus(handlers=[]) as bus, bus.subscribed("order.paid", print):
                bus.publish("order.paid", 17)
            ```

        Args:
            topic: as for `procbus.subscribe`; None takes it from the annotation.
            handler: the function.
            **options: as for `procbus.subscribe`.

        Raises:
            SubscriptionError: function or options cannot work; the message says what to change.
            SerializationError: a cpu handler holds something that cannot travel to a worker.
        """
        made = make_handler(handler, topics_in(topic) or None, **options)
        self._parts.check(made)
        with self._subscriptions.held(made):
            yield handler

    def handlers(self, topic: Topic | None = None) -> tuple[Handler, ...]:
        """The handlers that an event would reach, in the order of their subscription.

        `where` is not called, because it needs the event.

        Example:
            ```python
            from procbus import EventBus

            bus = EventBus(handlers=[])
            bus.subscribe("order.*", print)
            assert [handler.name for handler in bus.handlers("order.paid")] == ["builtins.print"]
            ```

        Args:
            topic: a dotted string without wildcards, or the class of the event; None gives all
                handlers of this bus. If the class has a string attribute `event_type`, the handlers
                of that topic are given too.

        Raises:
            TopicError: the topic is malformed, or has wildcards.
        """
        if topic is None:
            return self._subscriptions.handlers()
        return self._subscriptions.reached_by(topic)

    # Publishing.

    @overload
    def publish(
        self,
        event: E,
        *,
        id: str | None = None,
        delay: Duration | None = None,
        at: datetime | None = None,
    ) -> Receipt[E, Any]: ...

    @overload
    def publish(
        self,
        event: str,
        payload: E,
        *,
        id: str | None = None,
        delay: Duration | None = None,
        at: datetime | None = None,
    ) -> Receipt[E, Any]: ...

    def publish(
        self,
        event: Any,
        payload: Any = NOTHING,
        *,
        id: str | None = None,
        delay: Duration | None = None,
        at: datetime | None = None,
    ) -> Receipt:
        """Publish an event: `publish(event)`, or `publish("topic", payload)`.

        `publish(event)` reaches the handlers of the event's class and base classes. If the event
        has a string attribute `event_type`, it also reaches the handlers of that topic.
        `publish("topic", payload)` reaches the handlers of the topic. `publish` waits while
        `max_pending` deliveries are pending, unless it is called inside a handler of this bus.

        Example:
            ```python
            from procbus import EventBus

            with EventBus(handlers=[]) as bus:
                bus.subscribe(str, len)
                bus.subscribe("word", str.upper)
                assert bus.publish("hello").result() == 5  # by its class
                assert bus.publish("word", "hello").result() == "HELLO"  # by the topic
            ```

        Args:
            event: the event, or the topic of the payload.
            payload: the event, when a topic is given.
            id: a name of the event for the journal. If the journal has seen this id, in this run or
                an earlier one, no handler runs, and the receipt tells the state of the first event
                with this id.
            delay: how long handlers wait before they run the event: seconds, a text such as
                "5 min", or a timedelta. See docs/schedules.md.
            at: the time from which handlers run the event: a datetime, in local time if it has no
                time zone. If the time is past, they run it at once. With a journal, events with
                `delay` or `at` survive a restart.

        Returns:
            The receipt of the event, at once: wait on the receipt for results.

        Raises:
            JournalError: the journal cannot be written, and the event was not accepted.
            BusClosed: the bus was closed, or this is a forked child of its process.
            OptionError: the delay is negative, or is no duration; or both `delay` and `at` are
                given.
            QueueFull: the bus is full and was made with `on_full="raise"`.
            TopicError: the topic is malformed, or has wildcards.
        """
        if id is not None or delay is not None or at is not None:
            return self._publish_with(*_event_and_topic(event, payload), id, delay, at)
        if payload is NOTHING:
            return self._publish(event, None)
        if type(event) is not str:
            event = check_concrete(event)  # None must not mean routing by class
        return self._publish(payload, event)

    def _publish_with(
        self,
        event: Any,
        topic: str | None,
        id: str | None,
        delay: Duration | None,
        at: datetime | None,
    ) -> Receipt:
        """Publish an event with an id or a delay."""
        dispatcher = self._parts.dispatcher
        if delay is not None or at is not None:
            return dispatcher.publish_delayed(event, topic, when_of(delay, at), id)
        assert id is not None
        return dispatcher.publish_once(event, topic, id)

    @overload
    async def apublish(
        self,
        event: E,
        *,
        id: str | None = None,
        delay: Duration | None = None,
        at: datetime | None = None,
    ) -> Receipt[E, Any]: ...

    @overload
    async def apublish(
        self,
        event: str,
        payload: E,
        *,
        id: str | None = None,
        delay: Duration | None = None,
        at: datetime | None = None,
    ) -> Receipt[E, Any]: ...

    async def apublish(
        self,
        event: Any,
        payload: Any = NOTHING,
        *,
        id: str | None = None,
        delay: Duration | None = None,
        at: datetime | None = None,
    ) -> Receipt:
        """Publish like `publish`, but wait for room without blocking the running event loop.

        While the bus has room, `apublish` returns without giving the event loop a turn. If you
        publish many events in a row, call `await asyncio.sleep(0)` now and then, or use `astream`.

        Example:
            ```python
            import asyncio

            from procbus import EventBus


            async def main() -> None:
                async with EventBus(handlers=[]) as bus:
                    bus.subscribe("word", len)
                    receipt = await bus.apublish("word", "hello")
                    assert await receipt == 5


            asyncio.run(main())
            ```
        """
        from procbus import aio  # only now: it imports asyncio

        event, topic = _event_and_topic(event, payload)
        self._lifecycle.check_process()
        parts = self._parts
        await aio.make_ready(self._subscriptions, parts.lanes, parts.dispatcher, event, topic)
        if delay is not None or at is not None:
            return await aio.publish_delayed(parts.dispatcher, event, topic, when_of(delay, at), id)
        may_wait = parts.journal is not None and parts.journal.may_wait
        return await aio.publish(parts.dispatcher, event, topic, id, may_wait)

    @overload
    def every(
        self,
        times: Duration,
        event: object,
        *,
        name: str | None = None,
        tz: str | tzinfo | None = None,
    ) -> Schedule: ...

    @overload
    def every(
        self,
        times: Duration,
        event: str,
        payload: object,
        *,
        name: str | None = None,
        tz: str | tzinfo | None = None,
    ) -> Schedule: ...

    def every(
        self,
        times: Duration,
        event: Any,
        payload: Any = NOTHING,
        *,
        name: str | None = None,
        tz: str | tzinfo | None = None,
    ) -> Schedule:
        """Publish an event again and again: `every(times, event)`, or with a topic and a payload.

        A tick publishes nothing while the event of the previous tick is not settled. The schedule
        ends with the bus, and `drain` does not wait for its next tick. With a journal the schedule
        goes on after a restart. If ticks were missed meanwhile, one tick makes up for all of them,
        at once. Subscribe the handlers before you call `every`.

        Example:
            ```python
            from procbus import EventBus

            with EventBus(handlers=[]) as bus:
                bus.subscribe("report", print)
                bus.every("1 day", "report", "sales")
                bus.every("5 min", "report", "errors", name="errors")
            ```

        Args:
            times: the interval, given as the `delay` of `publish` is; the first tick comes after
                one interval. Or a line of cron, such as "0 9 * * mon-fri" or "@daily" (needs
                cronsim: `pip install 'procbus[cron]'`).
            event: the event, or the topic of the payload. Each tick publishes the same object.
            payload: the event, when a topic is given.
            name: the name under which the journal knows the schedule; None for a name made of its
                topic and its times. No two schedules of a bus may have the same name.
            tz: the time zone of a cron line: a name such as "Europe/Berlin", or a `tzinfo`. None
                for local time.

        Returns:
            The schedule. Its `cancel()` ends it.

        Raises:
            OptionError: the times or the zone make no sense, or the bus has this name already.
            BusClosed: the bus was closed.
            TopicError: the topic is malformed.
        """
        from procbus.core.ticks import parse_ticks  # only now: few scripts need it

        if payload is NOTHING and isinstance(event, str):
            raise OptionError(
                f"every({shown(times)}, {shown(event)}) needs a payload for the topic, which may "
                f"be None: every({shown(times)}, {shown(event)}, None)"
            )
        from procbus.jobs.schedule import check_name

        check_name(name)
        ticks = parse_ticks(times, tz)
        return self._parts.schedules().add(ticks, *_event_and_topic(event, payload), name)

    def cancel(
        self,
        *,
        handler: Callable[..., Any] | Handler | str | None = None,
        topic: Topics = None,
        where: Callable[[Any], object] | None = None,
    ) -> int:
        """Cancel the open deliveries of this bus that match, see `Delivery.cancel`.

        Without arguments, all open deliveries are cancelled.

        Example:
            ```python
            from procbus import EventBus

            with EventBus(handlers=[]) as bus:
                bus.subscribe("image.added", print)
                bus.publish("image.added", "ann.png")
                bus.cancel(handler=print, where=lambda image: image.startswith("ann"))
            ```

        Args:
            handler: only the deliveries to this function, or to the handler of this name; None for
                all handlers.
            topic: only events of this class or dotted string (``*`` is one word, ``#`` zero or
                more), or of several in a tuple or list; None for all.
            where: only events for which this function is true; None for all.

        Returns:
            The number of deliveries that are cancelled, or will be unless their handlers succeed
            first.

        Raises:
            NoSuchHandler: the handler is not subscribed to this bus.
            TopicError: the topic is malformed.
            OptionError: `where` is no plain function of the event.
        """
        return self._parts.chosen.cancel(Choice(handler, topic, where))

    def stream(
        self,
        events: Iterable[E],
        *,
        topic: str | None = None,
        id: Callable[[E], str] | None = None,
        ordered: bool = False,
        progress: ShowProgress = False,
        total: int | None = None,
        batch: int | None = None,
        stop_on_error: bool = False,
    ) -> Iterator[Receipt[E, Any]]:
        """Publish events and yield their receipts, each once it is settled.

        A stream takes events from `events` only as fast as the bus has room, and keeps at most
        `max_pending` of them. If events or results are large, it keeps at most about 64 MB of them.
        So it passes any number of events in little memory.

        If `events` raises, or an event cannot be published, the receipts of all published events
        come first, and then that exception.

        If you leave the loop early, by `break` or an exception, the published events that no worker
        has begun are cancelled.

        Example:
            ```python
            from procbus import EventBus

            with EventBus(handlers=[]) as bus:
                bus.subscribe("word", len)
                words = ["one", "three", "eleven"]
                receipts = bus.stream(words, topic="word", ordered=True)
                assert [receipt.result() for receipt in receipts] == [3, 5, 6]
            ```

        Args:
            events: any iterable; it is read in the calling thread.
            topic: publishes each event as the payload of this topic; None routes by its class.
            id: returns the id of each event, as for `publish`. An event that the journal knows is
                not run again; its receipt comes too.
            ordered: yield in the order of the events, and not as they settle.
            progress: True shows progress: bars in a terminal, a widget in a notebook, a plain line
                on stderr every few seconds elsewhere. Or a callable that makes a bar when it is
                called with `total=`, such as `tqdm.tqdm`. See docs/progress.md.
            total: number of events for the progress; None for `len(events)`, if it has a length.
            batch: number of events that batch handlers get together, whatever their `batch_wait`:
                see docs/batches.md. Each event still has its own receipt. With None each handler
                decides by its own options.
            stop_on_error: end with the first receipt of an event that failed, and cancel the events
                that no worker has begun. If `ordered`, the receipts of all events before the failed
                one come first.

        Raises:
            BusClosed: the bus was closed.
            OptionError: `progress`, `total` or `batch` makes no sense.
            TopicError: the topic is malformed.
        """
        if topic is not None:
            topic = check_concrete(topic)
        _check_batch(batch)
        parts, journal = self._parts, self._parts.journal
        counts, show = self._parts.view.counting(progress, topic, events, total)
        parts.expect_events()
        source, publish, publish_run = parts.dispatcher.streaming(events, topic, id)
        make_safe = None if journal is None else journal.make_safe
        seal, flush = parts.lanes.seal, parts.lanes.flush
        feed = Feed(source, topic, publish, publish_run, batch, seal, flush)
        leave = Leaving(parts.chosen.cancel_waiting, stop_on_error)
        return stream_of(feed, parts.window(self, batch), ordered, make_safe, leave, counts, show)

    @overload
    def call(self, handler: Callable[[E], Coroutine[Any, Any, R]], event: E) -> Receipt[E, R]: ...

    @overload
    def call(self, handler: Callable[[E], R], event: E) -> Receipt[E, R]: ...

    @overload
    def call(
        self, handler: Callable[[list[E]], Coroutine[Any, Any, list[R]]], event: E
    ) -> Receipt[E, R]: ...

    @overload
    def call(self, handler: Callable[[list[E]], list[R]], event: E) -> Receipt[E, R]: ...

    @overload
    def call(self, handler: Callable[[list[E]], object], event: E) -> Receipt[E, Any]: ...

    def call(self, handler: Callable[[Any], object], event: Any) -> Receipt:
        """Publish an event for one handler of this bus, whatever its topics and its `where`.

        Example:
            ```python
            from procbus import EventBus

            with EventBus(handlers=[]) as bus:
                bus.subscribe("word", len)
                bus.subscribe("word", print)
                assert bus.call(len, "hello").result() == 5  # print does not get it
            ```

        Args:
            handler: the function, as it was subscribed.
            event: the event. A batch handler gets it in a list.

        Returns:
            The receipt of the event, at once: its `result()` is the handler's.

        Raises:
            NoSuchHandler: the function is not subscribed to this bus.
            BusClosed: the bus was closed.
            QueueFull: the bus is full and was made with `on_full="raise"`.
        """
        return self._parts.dispatcher.call(event, self._subscriptions.of_function(handler))

    @overload
    def map(
        self,
        handler: Callable[[E], Coroutine[Any, Any, R]],
        events: Iterable[E],
        *,
        progress: ShowProgress = False,
        total: int | None = None,
    ) -> Iterator[R]: ...

    @overload
    def map(
        self,
        handler: Callable[[E], R],
        events: Iterable[E],
        *,
        progress: ShowProgress = False,
        total: int | None = None,
    ) -> Iterator[R]: ...

    @overload
    def map(
        self,
        handler: Callable[[list[E]], Coroutine[Any, Any, list[R]]],
        events: Iterable[E],
        *,
        progress: ShowProgress = False,
        total: int | None = None,
    ) -> Iterator[R]: ...

    @overload
    def map(
        self,
        handler: Callable[[list[E]], list[R]],
        events: Iterable[E],
        *,
        progress: ShowProgress = False,
        total: int | None = None,
    ) -> Iterator[R]: ...

    @overload
    def map(
        self,
        handler: Callable[[list[E]], object],
        events: Iterable[E],
        *,
        progress: ShowProgress = False,
        total: int | None = None,
    ) -> Iterator[Any]: ...

    def map(
        self,
        handler: Callable[[Any], Any],
        events: Iterable[Any],
        *,
        progress: ShowProgress = False,
        total: int | None = None,
    ) -> Iterator[Any]:
        """Call a handler of this bus with each event; yield the results in the order of the events.

        Events are taken from `events` only as fast as you take results, and none before you take
        the first. Events of a short cpu handler go to the workers in chunks of some milliseconds of
        work. If the handler fails for an event, its exception is raised after the results of the
        events before that one. If `events` raises, or an event cannot be published, the results of
        all published events come first, and then that exception.

        Example:
            ```python
            from procbus import EventBus


            def square(number: int) -> int:
                return number * number


            with EventBus(handlers=[]) as bus:
                bus.subscribe("number", square, kind="cpu")
                assert sum(bus.map(square, range(1000))) == 332833500
            ```

        Args:
            handler: the function, as it was subscribed.
            events: any iterable; it is read in the calling thread.
            progress: show the number of results that were taken, see `stream`.
            total: number of events for the progress; None for `len(events)`, if it has a length.

        Raises:
            NoSuchHandler: the function is not subscribed to this bus.
            OptionError: `progress` or `total` makes no sense.
        """
        from procbus.futures.mapping import results_of  # only now: few scripts need it

        subscription = self._subscriptions.of_function(handler)
        counts, show = self._parts.view.counting(progress, subscription.handler.name, events, total)
        self._parts.expect_events()
        results = results_of(subscription, events, self._parts.for_calls(), holds=self)
        return results if counts is None else shown_results(results, counts, show)

    def astream(
        self,
        events: Iterable[E] | AsyncIterable[E],
        *,
        topic: str | None = None,
        id: Callable[[E], str] | None = None,
        ordered: bool = False,
        progress: ShowProgress = False,
        total: int | None = None,
        batch: int | None = None,
        stop_on_error: bool = False,
    ) -> AsyncIterator[Receipt[E, Any]]:
        """`stream` for a running event loop; `events` may be an asynchronous iterable.

        Example:
            ```python
            import asyncio

            from procbus import EventBus


            async def main() -> None:
                async with EventBus(handlers=[]) as bus:
                    bus.subscribe("word", len)
                    words = ["one", "three"]
                    receipts = bus.astream(words, topic="word", ordered=True)
                    assert [receipt.result() async for receipt in receipts] == [3, 5]


            asyncio.run(main())
            ```
        """
        from procbus import aio  # only now: it imports asyncio

        _check_batch(batch)
        counts, show = self._parts.view.counting(progress, topic, events, total)

        def publish(event: Any) -> Any:
            given = NOTHING if topic is None else event
            first = event if topic is None else topic
            return self.apublish(first, given, id=None if id is None else id(event))

        window = self._parts.window(self, batch)
        leave = Leaving(self._parts.chosen.cancel_waiting, stop_on_error)
        streamed = aio.stream(
            events,
            publish,
            window,
            leave,
            self._parts.lanes.seal,
            self._parts.lanes.flush,
            ordered=ordered,
            counts=counts,
            batch=batch,
        )
        return streamed if counts is None else aio.shown(streamed, counts, show)

    def job(
        self,
        name: str,
        *,
        id: str | None = None,
        max_failed: int | None = None,
        keep_results: int = 10_000,
    ) -> Job:
        """Make a job: all that a `with` block publishes, and all that comes of it.

        The events that the block publishes belong to the job, and so do the events that their
        handlers publish, however deep. Leaving the block waits until all deliveries of these events
        are settled. Then the bus publishes `JobDone`, so that a handler can go on from there. After
        an exception in the block, deliveries that have not begun are cancelled. See docs/jobs.md.

        Example:
            ```python
            from procbus import EventBus, JobDone

            bus = EventBus(handlers=[])


            @bus.subscribe
            def finish(done: JobDone) -> None:
                print(done.name, "has", done.succeeded, "results")


            with bus:
                bus.subscribe("word", len)
                with bus.job("count", max_failed=3) as job:
                    for word in ["one", "three"]:
                        bus.publish("word", word)
                assert sorted(job.results(len)) == [3, 5]
            ```

        Args:
            name: a name for `JobDone` and for messages. With a journal a restarted script goes on
                with the job of this name.
            id: with a journal, the id by which a restarted script knows the job. The default is the
                job's name. For a job that is made in a handler, the default also names the handler
                and its event.
            max_failed: maximum of failed deliveries. With more, the job is cancelled, and leaving
                the block raises JobFailed; None for no limit.
            keep_results: number of results of each handler that are kept until `Job.results` takes
                them.

        Raises:
            OptionError: an option makes no sense.
            BusClosed: the bus was closed.
        """
        from procbus.jobs.job import Job  # only now: few scripts need it

        def name_of(function: Callable[..., Any]) -> str:
            return self._subscriptions.of_function(function).handler.name

        if id is not None and self._parts.journal is None:
            raise OptionError(
                f"the id {id!r} of the job {name!r} is remembered by a journal, and this bus has "
                "none: make it with EventBus(journal=...), or leave out id="
            )
        self._parts.lifecycle.check_open()
        return Job(self._parts.job_book(), name, id, max_failed, keep_results, name_of)

    @overload
    def expect(
        self,
        topic: type[E],
        where: Callable[[E], object] | None = None,
        timeout: float | None = None,
    ) -> Expected[E]: ...

    @overload
    def expect(
        self,
        topic: str,
        where: Callable[[Any], object] | None = None,
        timeout: float | None = None,
    ) -> Expected[Any]: ...

    def expect(
        self,
        topic: Any,
        where: Callable[[Any], object] | None = None,
        timeout: float | None = None,
    ) -> Expected[Any]:
        """Wait for the first event of a topic that is published from now on.

        The `result()` of the returned object waits for the event and returns it. You may also
        `await` the object, or use it in a `with` or `async with` block, which waits at its end. The
        event reaches its handlers as ever. It is caught when it is published, before its handlers
        have run.

        Example:
            ```python
            from procbus import EventBus, current


            def pay(order: int) -> None:
                current().publish("order.paid", order)


            with EventBus(handlers=[]) as bus:
                bus.subscribe("order", pay)
                with bus.expect("order.*", where=lambda order: order > 5, timeout=10) as paid:
                    bus.publish("order", 3)
                    bus.publish("order", 7)
                assert paid.result() == 7
            ```

        Args:
            topic: a class, or a dotted string (``*`` is one word, ``#`` zero or more).
            where: a function of the event that says whether it is wanted; None takes the first. It
                is called by the thread that publishes. If it raises, `result()` raises the same
                exception.
            timeout: maximum wait in seconds; None waits as long as it takes.

        Raises:
            OptionError: an option makes no sense.
            TopicError: the topic is malformed.
            BusClosed: the bus was closed.
        """
        from procbus.jobs.expected import Expected  # only now: few scripts need it

        lifecycle = self._parts.lifecycle
        lifecycle.check_open()
        topics = topics_in(topic)
        return Expected(self._subscriptions.held, topics, where, timeout, lambda: lifecycle.closed)

    def executor(self, kind: Kind = "cpu", **options: Unpack[CallOptions]) -> BusExecutor:
        """Make a `concurrent.futures.Executor` that runs its calls on this bus.

        The bus goes on after the shutdown of the executor.

        Example:
            ```python
            from procbus import EventBus

            with EventBus(handlers=[]) as bus, bus.executor("io") as pool:
                assert pool.submit(pow, 2, 10).result() == 1024
            ```

        Args:
            kind: ``"cpu"`` runs calls in worker processes, ``"io"`` on threads.
            **options: options of each call, as for `procbus.executor`.

        Raises:
            OptionError: an option makes no sense.
        """
        # Imported here because it imports concurrent.futures, which takes time.
        from procbus.futures.executor import BusExecutor

        self._parts.settings.check_calls(kind, options)
        return BusExecutor(self, self._parts.for_calls(), kind, options)

    # Observing.

    def progress(
        self, progress: ShowProgress = True, *, total: int | None = None
    ) -> AbstractContextManager[None]:
        """Show the progress of deliveries for the length of a `with` block.

        The bar counts the deliveries that are pending when the block begins, and all that are
        published during the block, also by handlers and executors.

        Example:
            ```python
            from procbus import EventBus

            with EventBus(handlers=[]) as bus, bus.progress():
                bus.subscribe("file.found", len)
                for path in ["a.txt", "b.txt"]:
                    bus.publish("file.found", path)
                bus.drain()
            ```

        Args:
            progress: a callable to make the bar, see `stream`; False shows nothing.
            total: expected number of deliveries; None for those published so far.

        Raises:
            OptionError: an argument makes no sense.
        """
        return self._parts.view.progress(progress, "deliveries", total)

    def stats(self) -> BusStats:
        """The counters and times of the bus so far, and the present state of its lanes.

        Example:
            ```python
            from procbus import EventBus

            with EventBus(handlers=[]) as bus:
                bus.subscribe("word", len)
                bus.publish("word", "hello").wait()
                print(bus.stats())  # a table
                assert bus.stats().handlers["builtins.len"].succeeded == 1
            ```
        """
        return self._parts.view.stats()

    def listen(self, listener: object) -> Listening:
        """Call the methods of an object at the moments of each delivery, and of workers.

        The object has one or more of the methods `published`, `accepted`, `started`, `retried`,
        `settled`, `worker_started`, `worker_ended` and `worker_stalled`, see `procbus.Listener`.
        Each method is called with one record, in a thread of the bus. So the methods should be
        quick; see docs/listeners.md. An exception from a method is logged once, and harms no
        delivery.

        Example:
            ```python
            from json import loads

            from procbus import EventBus, Settled


            class Failures:
                def settled(self, moment: Settled) -> None:
                    if moment.letter is not None:
                        print(moment.letter)


            with EventBus(handlers=[]) as bus, bus.listen(Failures()):
                bus.subscribe("number", loads)
                bus.publish("number", "seven")
            ```

        Args:
            listener: the object.

        Returns:
            An object whose method `stop` ends the listening. As a `with` block, the object ends the
            listening at the end of the block.

        Raises:
            OptionError: the object has none of the methods.
        """
        return self._parts.listen(listener)

    def advice(self) -> AdviceList:
        """Advise on the kind of each handler, by the measurements so far.

        `print` the advice for a table. If the wrong kind costs time, that is also logged once for
        each handler, at INFO, or at WARNING if the loss is large. See docs/advice.md for the method
        and its limits.

        Example:
            ```python
            from procbus import EventBus

            with EventBus(handlers=[]) as bus:
                bus.subscribe("number", abs, kind="cpu")
                for number in range(100):
                    bus.publish("number", number)
                bus.drain()
                print(bus.advice())
            ```
        """
        return self._parts.advisor.advice()

    def health(self) -> BusHealth:
        """The present state of each worker: the processes first, then the threads.

        The return value is a tuple of records; `print` it for a table.

        Example:
            ```python
            from procbus import EventBus

            with EventBus(handlers=[]) as bus:
                bus.subscribe("word", print)
                bus.publish("word", "hello").wait()
                print(bus.health())  # a table
            ```
        """
        return self._parts.view.health()

    @property
    def resume_summary(self) -> ResumeSummary | None:
        """The journal's deliveries of earlier runs, and their fate; None without a journal.

        The deliveries are resumed by `start`, a publish, `drain` or the end of the `with` block,
        whichever comes first. Deliveries to a handler that is not subscribed then are resumed once
        the handler is subscribed.

        Example:
            ```python
            from procbus import EventBus

            with EventBus(handlers=[], journal="run.db") as bus:
                bus.subscribe("word", print)
                bus.publish("word", "hello")
                print(bus.resume_summary)
            ```
        """
        journal = self._parts.journal
        return None if journal is None else journal.summary()

    def journal_backup(self, path: str | PathLike[str]) -> None:
        """Copy the journal to a new file, while the bus works.

        The copy is a journal of its own: a bus that opens it resumes all events that were accepted
        and not finished when you called `journal_backup`.

        Example:
            ```python
            from procbus import EventBus

            with EventBus(handlers=[], journal="run.db") as bus:
                bus.subscribe("word", print)
                bus.publish("word", "hello")
                bus.journal_backup("copy.db")
            ```

        Args:
            path: path of the new file, which must not exist.

        Raises:
            JournalError: this bus has no journal, or the new file exists already or cannot be
                written.
        """
        journal, dest = self._parts.journal, fspath(path)
        if journal is None:
            raise JournalError(
                f"there is no journal to be copied to {dest}: give the bus journal=..."
            )
        journal.back_up(dest)

    @property
    def dead_letters(self) -> DeadLetters:
        """The newest deliveries that failed for good, oldest first; 1,000 are kept.

        Look at them, `filter` them, `replay` them, `save` them to a file and `load` them again.

        Example:
            ```python
            from json import loads

            from procbus import EventBus

            with EventBus(handlers=[]) as bus:
                bus.subscribe("number", loads)
                bus.publish("number", "seven").wait()
                (letter,) = bus.dead_letters
                assert isinstance(letter.error, ValueError)
            ```
        """
        return self._parts.settlement.dead_letters.snapshot()

    def __repr__(self) -> str:
        """Show the state of the bus: open or closed, pending deliveries, workers."""
        return f"<EventBus {self._parts.view.state()}>"

    def __reduce__(self) -> Never:
        """Refuse to be pickled."""
        raise TypeError(
            "an EventBus cannot travel to another process; inside a cpu handler publish with "
            "current().publish(...)"
        )


def parts_of(bus: EventBus) -> Assembly:
    """The parts of a bus, for an object that outlives it. The parts do not keep the bus open."""
    return bus._parts  # noqa: SLF001 - its own module


def _event_and_topic(event: Any, payload: Any) -> tuple[Any, str | None]:
    """Sort out the arguments of `publish`."""
    if payload is NOTHING:
        return event, None
    return payload, check_concrete(event)


def _check_batch(batch: int | None) -> None:
    if batch is not None and not is_whole(batch, 1):
        raise OptionError(f"batch must be a whole number from 1 up, not {shown(batch)}")
