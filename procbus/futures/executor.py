# SPDX-License-Identifier: MIT
"""A bus as a `concurrent.futures.Executor`: each call is a delivery to a handler of its own."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, InvalidStateError
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Never, Protocol, TypeVar

from procbus.core.context import HandlerContext, running, running_context
from procbus.core.delivery import DeliveryState
from procbus.core.errors import BusClosed, OptionError, ProcbusError, WorkerDied
from procbus.core.handler import OPTIONS_OF_A_HANDLER, CallOptions, Handler, make_parts
from procbus.core.introspection import is_async
from procbus.core.locks import LOOK_UP_S
from procbus.core.outcome import Outcome, OutcomeKind
from procbus.core.receipt import WaitedReceipt
from procbus.core.subscription import Subscription
from procbus.core.validation import did_you_mean, is_whole, shown
from procbus.core.waiting import pause
from procbus.futures.calls import Call, ChunkOfCalls, event_of
from procbus.futures.handlers import CallHandler, CallHandlers
from procbus.futures.thread_set_up import InLoop, InThread, ThreadSetUp
from procbus.system import exit_hooks

if TYPE_CHECKING:
    from procbus.core.handler import Kind
    from procbus.dispatch.dispatcher import Dispatcher
    from procbus.dispatch.retry_queue import RetryQueue
    from procbus.dispatch.settlement import Settlement
    from procbus.futures.subscriptions import DirectSubscriptions
    from procbus.lanes.lanes import Lanes


# The future of one call of an executor: a delivery seen as `concurrent.futures` has it.

T = TypeVar("T")

_INSTEAD = "await asyncio.wrap_future(future)"


class _CallbackSeat(list[Any]):
    """What a thread that settles is running, see `running`, while it calls callbacks."""


class CallFuture(Future[T]):
    """The future of one call. Thread-safe."""

    # Defaults of the class: a method to set them would cost every call as much as the look-up of
    # its handler.
    #: Until it is settled; then it is let go, with the callable and its arguments.
    delivery: WaitedReceipt | None = None
    #: Whether somebody wants to be called.
    called_back = False

    def end(self, delivery: WaitedReceipt, context_of: Callable[..., HandlerContext]) -> None:
        """Take over what became of the delivery, in the thread that settles."""
        # As inside the call: what a callback submits must not wait for room, since it is this
        # thread that makes room.
        before = None
        if self.called_back:
            before = running.set(_CallbackSeat((context_of, delivery, delivery)))
        try:
            outcome = delivery.failure
            if outcome is None:
                self.set_result(delivery.value)
            elif outcome.kind is OutcomeKind.CANCELLED and not outcome.started_at:
                super().cancel()
                self.set_running_or_notify_cancel()
            elif outcome.kind is OutcomeKind.CANCELLED and delivery.handler.kind == "cpu":
                # The standard has no word for it but that of a worker that died.
                self.set_exception(WorkerDied(str(outcome.error), handler=delivery.handler.name))
            else:
                self.set_exception(outcome.error)
        finally:
            if before is not None:
                running.reset(before)

    def result(self, timeout: float | None = None) -> T:
        """Wait for what the call returns, as `Future.result`; a handler lends its place then."""
        if self.delivery is None or timeout == 0:
            return super().result(timeout)
        resume = pause(None, _INSTEAD)
        try:
            return super().result(timeout)
        finally:
            resume()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for what the call raises, as `Future.exception`; a handler lends its place then."""
        if self.delivery is None or timeout == 0:
            return super().exception(timeout)
        resume = pause(None, _INSTEAD)
        try:
            return super().exception(timeout)
        finally:
            resume()

    def cancel(self) -> bool:
        """Cancel the call, if no worker has begun it; say whether it is cancelled."""
        delivery = self.delivery
        if delivery is not None:
            delivery.owner.withdraw(delivery)
        return self.cancelled()

    def running(self) -> bool:
        """Whether a worker is in the call just now."""
        delivery = self.delivery
        return delivery is not None and delivery.state is DeliveryState.RUNNING

    def add_done_callback(self, fn: Callable[[Future[T]], object]) -> None:
        """Have `fn` called with this future once it is done, at once if it is.

        It runs in the thread that settles: keep it short. It may submit more; that never waits.
        """
        self.called_back = True
        super().add_done_callback(fn)

    def __repr__(self) -> str:
        """Say which call it is of, and how that stands."""
        delivery: Any = self.delivery
        if delivery is None:
            return super().__repr__()
        return f"<Future of {delivery.handler.name}: {delivery.state.value}>"


#: How long workers may take to end that were told to by SIGTERM, in seconds.
TERMINATE_S = 5.0

#: In the words of the standard.
_SHUT = "cannot schedule new futures after shutdown"


class Bus(Protocol):
    """The bus of an executor."""

    def close(self, timeout: float | None = None, cancel: bool = False) -> None:
        """Finish or cancel, and end all workers."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """As `close`; after Ctrl-C cancel what has not begun."""


class Parts(NamedTuple):
    """The parts of a bus that its executors work with."""

    dispatcher: Dispatcher
    settlement: Settlement
    retries: RetryQueue
    lanes: Lanes
    direct: DirectSubscriptions


class BusExecutor(Executor):
    """Runs calls on one lane of a bus. All methods may be called from any thread.

    Nothing that works for the bus refers to this object. So one that its user drops is gone at
    once, and with it a bus that is its own, which then finishes and ends its workers.

    Args:
        bus: what it is an executor of; kept alive.
        parts: of that bus.
        kind: the lane.
        options: see `CallOptions`.

    Raises:
        OptionError: an option makes no sense.
    """

    def __init__(self, bus: Bus, parts: Parts, kind: Kind, options: CallOptions) -> None:
        if kind not in ("io", "cpu"):
            raise OptionError(
                f'an executor is for "io" (calls that wait) or "cpu" (calls that compute), '
                f"not {shown(kind)}{did_you_mean(kind, ('io', 'cpu'))}"
            )
        exit_hooks.close_first()  # that it is known when the script has ended
        self._bus = bus
        self._own = False
        self._parts = parts
        self._kind = kind
        self._desk = _Desk(parts, kind, options)
        self._find = self._desk.calls.find
        self._publish = self._desk.publish

    def own(self, set_up: ThreadSetUp | None) -> None:
        """The bus belongs to this executor, and ends with it. Before the first call.

        Args:
            set_up: sets up each thread before its first call; None for nothing to set up.
        """
        self._own = True
        self._desk.set_up = set_up

    @property
    def _max_workers(self) -> int:
        """How many calls can run at a time. Others ask the standard's executors for it, as Dask."""
        lanes = self._parts.lanes
        if self._kind == "io":
            return lanes.io.size
        return lanes.machine().cpu_workers if lanes.cpu is None else lanes.cpu.pool.size()

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Have `fn(*args, **kwargs)` called by a worker.

        Waits while `max_pending` deliveries are pending on the bus, unless it is called inside a
        handler or a call of this bus.

        Raises:
            RuntimeError: the executor was shut down, or its bus closed.
            QueueFull: the bus is full and was made with `on_full="raise"`.
            TypeError: `fn` is not callable, or async and this is for processes.
        """
        if self._desk.shut:  # asked here too: a callable that comes too late is not kept
            raise RuntimeError(_SHUT)
        found, function, arguments = self._find(fn, args, kwargs)
        return self._publish(found, function, event_of(arguments))

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Return `map(fn, *iterables)`, called by the workers; results come in order.

        Args:
            fn: called with one element of each iterable.
            *iterables: read at once, as fast as the bus has room; with `buffersize` lazily.
            timeout: seconds from now after which waiting for a result raises TimeoutError; None
                for no limit.
            chunksize: so many calls are one delivery, and fail as one; of no effect on threads.
            buffersize: calls submitted ahead of the result that is waited for; None for all.

        Raises:
            ValueError: `chunksize` or `buffersize` is less than 1.
            TypeError: `buffersize` is neither a whole number nor None.
            RuntimeError: as with `submit`.
        """
        end_at = None if timeout is None else timeout + monotonic()
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if buffersize is not None and not is_whole(buffersize, float("-inf")):
            raise TypeError("buffersize must be an integer or None")
        if buffersize is not None and buffersize < 1:
            raise ValueError("buffersize must be None or > 0")
        rows = zip(*iterables, strict=False)  # as map() has it: the shortest ends it
        if chunksize == 1 or self._kind == "io":
            submitted = (self.submit(fn, *row) for row in rows)
            return _results(submitted, end_at, buffersize)
        ahead = None if buffersize is None else -(-buffersize // chunksize)
        chunks: Iterator[Future[list[T]]] = (
            self._submit_chunk(fn, chunk) for chunk in _chunks(rows, chunksize)
        )
        return _one_by_one(_results(chunks, end_at, ahead))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls. Idempotent.

        Args:
            wait: wait until all calls are through, and end the workers if the bus is this
                executor's own; else that happens when they are, and this returns at once.
            cancel_futures: cancel all calls that no worker has begun.

        Raises:
            RuntimeError: it would wait for the call that it is called in, or it is called in the
                callback of a call.
            ProcbusError: an async handler would wait for calls that it has not awaited.
        """
        if wait:
            self._check_outside()
        self._desk.shut = True
        if cancel_futures:
            self._desk.cancel()
        if wait:
            self._desk.wait()
            if self._own:
                self._bus.close()
        elif self._own:
            _in_background(self._bus.close)
        self._desk.let_go()

    def terminate_workers(self) -> None:
        """Shut down, and send SIGTERM to all workers.

        One that has not ended after some seconds is killed. Calls that no worker has begun are
        cancelled; those that are running fail with `WorkerDied`.
        Returns without waiting for the end of the workers.

        Raises:
            RuntimeError: the workers are threads, or belong to a bus that others use too.
        """
        self._end_workers(TERMINATE_S, lambda pid: os.kill(pid, signal.SIGTERM))

    def kill_workers(self) -> None:
        """Shut down, and kill all workers, with the processes that they started.

        Calls that no worker has begun are cancelled; those that are running fail with `WorkerDied`.
        Returns without waiting for the end of the workers.

        Raises:
            RuntimeError: the workers are threads, or belong to a bus that others use too.
        """
        self._end_workers(0.0, None)

    def _end_workers(self, grace_s: float, tell: Callable[[int], None] | None) -> None:
        if self._kind == "io":
            raise RuntimeError(
                "the workers of this executor are threads, which nothing can end: use "
                'shutdown(wait=False, cancel_futures=True), or executor("cpu")'
            )
        if not self._own:
            raise RuntimeError(
                "the workers belong to the bus, which others may use too: close that, by "
                "bus.close(timeout=0), or make an executor with workers of its own, by "
                "procbus.executor(...)"
            )
        self._desk.shut = True
        lanes = self._parts.lanes
        lanes.cancel()
        for slot in [] if lanes.cpu is None else list(lanes.cpu.batching.slots):
            worker = slot.worker
            if tell is not None and worker is not None and worker.pid is not None:
                with contextlib.suppress(OSError):  # it has ended
                    tell(worker.pid)
        if tell is None:
            lanes.kill()
        _in_background(lambda: self._bus.close(grace_s, cancel=True))
        self._desk.let_go()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Shut down, waiting for all; after Ctrl-C (or SystemExit) cancel what has not begun."""
        if error is None or isinstance(error, Exception):
            self.shutdown()
            return
        self._desk.shut = True
        self._desk.cancel()
        if self._own:
            self._bus.__exit__(kind, error, traceback)

    def __reduce__(self) -> Never:
        """Refuse to travel."""
        raise TypeError(
            "an executor cannot travel to another process; inside a cpu handler publish with "
            "current().publish(...)"
        )

    def __repr__(self) -> str:
        """Say for what it is, and how much is pending."""
        state = "shut down" if self._desk.shut else "open"
        return f"<BusExecutor {self._kind}, {state}: {len(self._desk.open)} calls pending>"

    # Inside.

    def _submit_chunk(self, fn: Callable[..., T], rows: list[tuple[Any, ...]]) -> Future[list[T]]:
        if self._desk.shut:
            raise RuntimeError(_SHUT)
        found, function, common = self._desk.chunks.find(fn, (), {})
        return self._publish(found, function, (common, rows))

    def _check_outside(self) -> None:
        context = running_context()
        if context is None or context.owner is not self._parts.dispatcher:
            return
        # Any callback may hold up the thread that settles the calls of this executor.
        in_callback = isinstance(running.get(), _CallbackSeat)
        if self._own or in_callback or self._desk.has(context.event_id):
            raise RuntimeError(
                f"shutdown() inside {context.handler} would wait for that itself: call it outside, "
                "or use shutdown(wait=False)"
            )


class _Desk:
    """What of an executor the calls refer to. Thread-safe.

    `open` has the futures that are not done, in the order of their submission. Its single
    operations are atomic.

    Args:
        parts: of the bus.
        kind: the lane.
        options: see `CallOptions`.
    """

    def __init__(self, parts: Parts, kind: Kind, options: CallOptions) -> None:
        self._parts = parts
        #: Sets up each thread before its first call; None for nothing to set up.
        self.set_up: ThreadSetUp | None = None
        self._make_handler = _maker(kind, options)
        self._publish_to = parts.dispatcher.publish_to
        self.open: dict[CallFuture[Any], None] = {}
        self.shut = False
        #: Set by the last future that ends after the shutdown.
        self._through = threading.Event()
        self.calls = CallHandlers(kind, Call, self._subscribe, self._retire)
        self.chunks = CallHandlers(kind, ChunkOfCalls, self._subscribe, self._retire)

    def publish(
        self, found: CallHandler, function: Callable[..., Any], event: Any
    ) -> CallFuture[Any]:
        """Publish a call, whose handler was found; give its future."""
        future: CallFuture[Any] = CallFuture()
        # First, so that `shutdown` either sees it or was before the next line.
        self.open[future] = None
        try:
            if self.shut:
                raise RuntimeError(_SHUT)
            if found.carries:
                event = (function, event)
            self._publish_to(found.subscription, event, self, future)
        except BusClosed as error:
            self._close(future)
            raise RuntimeError(f"{_SHUT}: {error}") from error
        except BaseException:
            self._close(future)
            raise
        finally:
            found.pins.pop()
        return future

    def cancel(self) -> None:
        """Cancel all calls that no worker has begun."""
        for future in list(self.open):
            future.cancel()

    def has(self, event_id: int) -> bool:
        """Whether the event is one of its calls that are not through."""
        calls = [future.delivery for future in list(self.open)]
        return any(call is not None and call.id == event_id for call in calls)

    def wait(self) -> None:
        """Wait until all calls are through; `shut` is set. A handler lends its place then."""
        if all(future.done() for future in list(self.open)):
            self._wait_through()  # for callbacks at most
            return
        resume = pause(None, _INSTEAD)
        try:
            self._wait_through()
        finally:
            resume()

    def _wait_through(self) -> None:
        while self.open:
            # Not for ever: the last one may have ended before it could see `shut`.
            self._through.wait(LOOK_UP_S)

    def let_go(self) -> None:
        """Nothing is called any more: let go of all callables that have no calls pending."""
        self.calls.clear()
        self.chunks.clear()

    # What futures and the settlement call.

    def withdraw(self, delivery: WaitedReceipt) -> None:
        """Cancel a call, if no worker has begun it."""
        lane = delivery.subscription.lane
        if self._parts.retries.withdraw(delivery) or lane.withdraw(delivery):
            error = ProcbusError(f"the call of {delivery.handler.name} was cancelled")
            outcome = Outcome(OutcomeKind.CANCELLED, None, error, 0.0, monotonic())
            self._parts.settlement.settle([(delivery, outcome)])

    def settled(self, delivery: WaitedReceipt) -> None:
        """A call has ended: tell its future, in the thread that settles."""
        future: CallFuture[Any] = delivery.waiter
        future.delivery = None
        try:
            if delivery.failure is None and not future.called_back:
                future.set_result(delivery.value)
            else:
                future.end(delivery, self._parts.dispatcher.context_of)
        except InvalidStateError:
            pass  # somebody else gave this future a result
        finally:
            self._close(future)

    # Inside.

    def _close(self, future: CallFuture[Any]) -> None:
        """A future is done, and its callbacks are through."""
        self.open.pop(future, None)
        if self.shut and not self.open:
            self._through.set()
            self.let_go()

    def _subscribe(self, function: Callable[..., Any], name: str) -> Subscription:
        if exit_hooks.over:
            raise RuntimeError(f"{_SHUT}: the script has ended")
        if self.set_up is not None:
            function = (InLoop if is_async(function) else InThread)(function, self.set_up)
        handler = self._make_handler(function, name)
        subscription = Subscription(handler, self._parts.lanes.of(handler), answered=True)
        self._parts.direct.add(subscription)
        return subscription

    def _retire(self, subscription: Subscription) -> None:
        self._parts.direct.retire(subscription)
        self._parts.lanes.forget(subscription.handler)


#: Arguments of the standard's executors, and of `procbus.executor`, that stand elsewhere.
_ELSEWHERE = {
    "max_workers": "the workers are the bus's, so say cpu_workers= or io_workers= to EventBus",
    "initializer": "the workers are the bus's, so say worker_init= to EventBus",
    "initargs": "the workers are the bus's, so say worker_init=partial(function, ...) to EventBus",
    "max_tasks_per_child": "make EventBus([], max_events_per_worker=...), and take bus.executor()",
    "mp_context": "leave it out, since each worker is a fresh process on all systems",
    "thread_name_prefix": "leave it out, since procbus names its threads",
}


def _maker(kind: Kind, options: CallOptions) -> Callable[[Callable[..., Any], str], Handler]:
    """Check the options, and give what makes handlers with them."""
    names = [name for name in OPTIONS_OF_A_HANDLER if name in CallOptions.__annotations__]
    for option in options:
        if option not in names:
            instead = _ELSEWHERE.get(option)
            told = f": {instead}." if instead else did_you_mean(option, names, "=") or "."
            raise OptionError(
                f"an executor has no option {option}={told} It has: {', '.join(names)}"
            )
    # As the standard has it: arguments are a copy, which a call may write to.
    copied: dict[str, Any] = {"writable": True} if kind == "cpu" else {}
    try:
        parts = make_parts({"kind": kind, **copied, **options})
    except ValueError as error:
        raise OptionError(f"executor: {error}") from error.__cause__

    def make(function: Callable[..., Any], name: str) -> Handler:
        made = {"name": name, "is_async": is_async(function)}
        return Handler(function=function, **{**parts, **made})

    return make


def _chunks(rows: Iterable[T], size: int) -> Iterator[list[T]]:
    rows = iter(rows)
    while chunk := list(itertools.islice(rows, size)):
        yield chunk


def _results(
    submitted: Iterator[Future[T]], end_at: float | None, ahead: int | None
) -> Iterator[T]:
    """Submit now, all or so many, and give the iterator of their results."""
    futures = deque(submitted if ahead is None else itertools.islice(submitted, ahead))

    def next_result() -> T:
        future = futures.popleft()
        if ahead is not None:
            futures.extend(itertools.islice(submitted, 1))
        try:
            return future.result(None if end_at is None else end_at - monotonic())
        finally:
            future.cancel()  # where the wait for it was over before it was

    def results() -> Iterator[T]:
        try:
            while futures:
                yield next_result()  # no name here has it: while the caller does, nothing else may
        finally:
            for each in futures:
                each.cancel()

    return results()


def _one_by_one(chunks: Iterator[list[T]]) -> Iterator[T]:
    """Give the elements of each chunk, and keep none that was given."""
    for chunk in chunks:
        chunk.reverse()
        while chunk:
            yield chunk.pop()


def _in_background(close: Callable[[], object]) -> None:
    try:
        threading.Thread(target=close, name="procbus-shutdown", daemon=True).start()
    except RuntimeError:
        return  # the interpreter is ending, which closes the bus
