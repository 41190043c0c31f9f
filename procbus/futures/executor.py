# SPDX-License-Identifier: MIT
"""A bus as a `concurrent.futures.Executor`: each call is a delivery to a handler of its own.

`CallFuture` is the future of one call, `BusExecutor` the public executor. `_Desk` holds everything
that calls refer to, so that an executor that is dropped can be freed while calls still run.
"""

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

from procbus.core.context import running, running_context
from procbus.core.delivery import DeliveryState
from procbus.core.errors import BusClosed, OptionError, ProcbusError, WorkerDied
from procbus.core.handler import OPTIONS_OF_A_HANDLER, CallOptions, Handler, make_parts
from procbus.core.introspection import is_async
from procbus.core.locks import LOOK_UP_S, Lock, Tangled, later
from procbus.core.outcome import Outcome, OutcomeKind
from procbus.core.own_thread import OwnThread
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


# The future of one call: a delivery in the form of `concurrent.futures`.

T = TypeVar("T")

_INSTEAD = "await asyncio.wrap_future(future)"

#: Guards the making of a future's standard part: either the end of the call goes into that, or the
#: part is made with it. One for all futures, since it is held for less than a microsecond.
_making = Lock()


class _CallbackSeat(list[Any]):
    """The value of `running` in a thread that settles, while it calls a callback."""


class _Callback:
    """Calls a callback as inside the call.

    An event that it submits must not wait for room, because the thread that settles makes room.
    """

    def __init__(self, function: Callable[[Any], object], delivery: WaitedReceipt) -> None:
        self._function = function
        self._delivery = delivery

    def __call__(self, future: object) -> None:
        delivery = self._delivery
        seat = _CallbackSeat((delivery.owner.context_of, delivery, delivery))
        before = running.set(seat)
        try:
            self._function(future)
        finally:
            running.reset(before)


class CallFuture(Future[T]):
    """The future of one call. Thread-safe.

    Its standard part (a condition and three lists) costs more than all of procbus's work on a call.
    Most futures are only asked for their result, so the standard part is made when other code first
    needs it: Python does not find the attribute, and calls `__getattr__`.
    """

    # Defaults of the class: setting them would cost each call as much as finding its handler.
    #: The delivery until it is settled; then it is dropped, with the callable and its arguments.
    delivery: WaitedReceipt | None = None
    #: The delivery while it is being settled: then it is no longer in `delivery`.
    ending: WaitedReceipt | None = None

    # Guarded by `_making`:
    #: Whether the standard part is there. From then on it alone has the outcome.
    made = False
    #: Whether the call succeeded before that; and its return value.
    succeeded = False
    value: Any = None

    def __init__(self) -> None:
        """Make it without the standard part."""

    def __getattr__(self, name: str) -> Any:
        """Make the standard part, for the first of its attributes that is asked for."""
        mine = vars(self)
        while not self.made:
            part: Future[T] = Future()
            succeeded = self.succeeded
            if succeeded:
                part.set_result(self.value)
            its = vars(part)
            with _making:
                if "made" not in mine and self.succeeded is succeeded:
                    mine.update(its, made=True)  # in one step, because Ctrl-C may come between two
        return object.__getattribute__(self, name)

    def succeed(self, value: T) -> None:
        """Take the result, in the thread that settles."""
        with _making:
            if not self.made:
                self.value = value
                self.succeeded = True
        if not self.succeeded:
            self.set_result(value)

    def fail(self, delivery: WaitedReceipt, outcome: Outcome) -> None:
        """Take an outcome other than success, in the thread that settles."""
        if outcome.kind is not OutcomeKind.CANCELLED:
            self.set_exception(outcome.error)
        elif not outcome.started_at:
            super().cancel()
            self.set_running_or_notify_cancel()
        elif delivery.handler.kind == "cpu":
            # The standard library's word for it is the one for a dead worker.
            self.set_exception(WorkerDied(str(outcome.error), handler=delivery.handler.name))
        else:
            self.set_exception(outcome.error)

    def result(self, timeout: float | None = None) -> T:
        """Wait for the call's result, see `Future.result`; a handler lends its place meanwhile."""
        if self.succeeded:
            return self.value  # type: ignore[no-any-return] # the value of a T
        if self.delivery is None or timeout == 0:
            return super().result(timeout)
        resume = pause(None, _INSTEAD)
        try:
            return super().result(timeout)
        finally:
            resume()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the call's exception, see `Future.exception`; a handler lends its place."""
        if self.succeeded:
            return None
        if self.delivery is None or timeout == 0:
            return super().exception(timeout)
        resume = pause(None, _INSTEAD)
        try:
            return super().exception(timeout)
        finally:
            resume()

    def cancel(self) -> bool:
        """Cancel the call, if no worker has begun it; return whether it is cancelled."""
        delivery = self.delivery
        if delivery is not None:
            delivery.owner.withdraw(delivery)
        return self.cancelled()

    def cancelled(self) -> bool:
        """Whether the call was cancelled."""
        return self.made and super().cancelled()

    def done(self) -> bool:
        """Whether the call was cancelled, or has ended."""
        return self.succeeded or (self.made and super().done())

    def running(self) -> bool:
        """Whether a worker is running the call now."""
        delivery = self.delivery
        return delivery is not None and delivery.state is DeliveryState.RUNNING

    def add_done_callback(self, fn: Callable[[Future[T]], object]) -> None:
        """Have `fn` called with this future when it is done; at once if it is already.

        It runs in the thread that settles: keep it short. It may submit more; that never waits.
        """
        delivery = self.delivery or self.ending
        super().add_done_callback(fn if delivery is None else _Callback(fn, delivery))

    def __reduce__(self) -> Never:
        """Refuse to be pickled, as every future does."""
        raise TypeError("a future cannot travel to another process: pass its result()")

    def __repr__(self) -> str:
        """Say which call it belongs to, and the state of that."""
        delivery: Any = self.delivery
        if delivery is None:
            return super().__repr__()
        return f"<Future of {delivery.handler.name}: {delivery.state.value}>"


#: Maximum time for workers to end after SIGTERM, in seconds.
TERMINATE_S = 5.0

#: The words of the standard library.
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
        """Close; after Ctrl-C cancel deliveries that have not begun."""


class Parts(NamedTuple):
    """The parts of a bus that its executors use."""

    dispatcher: Dispatcher
    settlement: Settlement
    retries: RetryQueue
    lanes: Lanes
    direct: DirectSubscriptions


class BusExecutor(Executor):
    """Runs calls on one lane of a bus. All methods may be called from any thread.

    No part of the bus refers to this object. So it is freed as soon as its user drops it. A bus of
    its own then finishes, and ends its workers.

    Args:
        bus: the bus that runs the calls; kept alive.
        parts: parts of that bus.
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
        exit_hooks.close_first()  # so that it learns when the script has ended
        self._bus = bus
        self._own = False
        self._parts = parts
        self._kind = kind
        self._desk = _Desk(parts, kind, options)
        self._find = self._desk.calls.find
        self._publish = self._desk.publish

    def own(self, set_up: ThreadSetUp | None) -> None:
        """Make the bus this executor's own, to end with it. Called before the first call.

        Args:
            set_up: sets up each thread before its first call; None for no set-up.
        """
        self._own = True
        self._desk.set_up = set_up

    @property
    def _max_workers(self) -> int:
        """Maximum of calls that run at once. Dask, for example, reads it of an executor."""
        lanes = self._parts.lanes
        return lanes.io.size if self._kind == "io" else lanes.cpu_size()

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Have `fn(*args, **kwargs)` called by a worker.

        Waits while `max_pending` deliveries are pending on the bus, unless it is called inside a
        handler or a call of this bus.

        Raises:
            RuntimeError: the executor was shut down, or its bus closed.
            QueueFull: the bus is full and was made with `on_full="raise"`.
            TypeError: `fn` is not callable, or async and this is for processes.
        """
        if self._desk.shut:  # checked here too, so that a late callable is not kept
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
            chunksize: number of calls that make one delivery, and fail as one; of no effect on
                threads.
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
        rows = zip(*iterables, strict=False)  # as in map(): the shortest iterable ends it
        if chunksize == 1 or self._kind == "io":
            submitted = (self.submit(fn, *row) for row in rows)
            return _results(submitted, end_at, buffersize)
        ahead = None if buffersize is None else -(-buffersize // chunksize)
        chunks: Iterator[Future[list[T]]] = (
            self._submit_chunk(fn, chunk) for chunk in _chunks(rows, chunksize)
        )
        return _one_by_one(_results(chunks, end_at, ahead))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Refuse further calls. Idempotent.

        Args:
            wait: wait until all calls are done, and end the workers if the bus is this executor's
                own. With False that happens later, and this returns at once.
            cancel_futures: cancel all calls that no worker has begun.

        Raises:
            RuntimeError: called inside a call that it would wait for, or in the callback of a call.
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

        A worker that has not ended after some seconds is killed. Calls that no worker has begun are
        cancelled; running calls fail with `WorkerDied`. It returns without waiting for the workers
        to end.

        Raises:
            RuntimeError: the workers are threads, or belong to a bus with other users.
        """
        self._end_workers(TERMINATE_S, lambda pid: os.kill(pid, signal.SIGTERM))

    def kill_workers(self) -> None:
        """Shut down, and kill all workers, with the processes that they started.

        Calls that no worker has begun are cancelled; running calls fail with `WorkerDied`. It
        returns without waiting for the workers to end.

        Raises:
            RuntimeError: the workers are threads, or belong to a bus with other users.
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
        for slot in [slot for lane in lanes.cpu_lanes for slot in list(lane.batching.slots)]:
            worker = slot.worker
            if tell is not None and worker is not None and worker.pid is not None:
                with contextlib.suppress(OSError):  # the process has ended
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
        """Shut down and wait; after Ctrl-C (or SystemExit) cancel calls that have not begun."""
        if error is None or isinstance(error, Exception):
            self.shutdown()
            return
        self._desk.shut = True
        self._desk.cancel()
        if self._own:
            self._bus.__exit__(kind, error, traceback)

    def __reduce__(self) -> Never:
        """Refuse to be pickled."""
        raise TypeError(
            "an executor cannot travel to another process; inside a cpu handler publish with "
            "current().publish(...)"
        )

    def __repr__(self) -> str:
        """Show its kind, its state, and the number of pending calls."""
        state = "shut down" if self._desk.shut else "open"
        return f"<BusExecutor {self._kind}, {state}: {len(self._desk.open)} calls pending>"

    # Private methods.

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
    """The part of an executor that its calls refer to. Thread-safe.

    `open` has the unfinished futures, in the order of their submission. Its single operations are
    atomic.

    Args:
        parts: parts of the bus.
        kind: the lane.
        options: see `CallOptions`.
    """

    def __init__(self, parts: Parts, kind: Kind, options: CallOptions) -> None:
        self._parts = parts
        #: Sets up each thread before its first call; None for no set-up.
        self.set_up: ThreadSetUp | None = None
        self._make_handler = _maker(kind, options)
        self._publish = parts.dispatcher.publish
        self.context_of = parts.dispatcher.context_of
        self.open: dict[CallFuture[Any], None] = {}
        self.shut = False
        #: Set by the last future that is done after the shutdown.
        self._through = threading.Event()
        self.calls = CallHandlers(kind, Call, self._subscribe, self._retire)
        self.chunks = CallHandlers(kind, ChunkOfCalls, self._subscribe, self._retire)

    def publish(
        self, found: CallHandler, function: Callable[..., Any], event: Any
    ) -> CallFuture[Any]:
        """Publish a call with its handler; return the future."""
        future: CallFuture[Any] = CallFuture()
        # Before the check, so that a concurrent `shutdown` sees the future, or this sees the
        # shutdown.
        self.open[future] = None
        try:
            if self.shut:
                raise RuntimeError(_SHUT)
            if found.carries:
                event = (function, event)
            self._publish(event, None, None, True, (found.subscription, self, future))
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
        """Whether the event belongs to an unfinished call of this executor."""
        calls = [future.delivery for future in list(self.open)]
        return any(call is not None and call.id == event_id for call in calls)

    def wait(self) -> None:
        """Wait until all calls are done, after `shut` is set; a handler lends its place."""
        if all(future.done() for future in list(self.open)):
            self._wait_through()  # at most for callbacks
            return
        resume = pause(None, _INSTEAD)
        try:
            self._wait_through()
        finally:
            resume()

    def _wait_through(self) -> None:
        while self.open:
            # With a timeout: the last future may have ended before it could see `shut`.
            self._through.wait(LOOK_UP_S)

    def let_go(self) -> None:
        """Drop all callables without pending calls, because no call follows."""
        self.calls.clear()
        self.chunks.clear()

    # Called by futures and the settlement.

    def withdraw(self, delivery: WaitedReceipt) -> None:
        """Cancel a call, if no worker has begun it."""
        lane = delivery.subscription.lane
        if self._parts.retries.withdraw(delivery) or lane.withdraw(delivery):
            error = ProcbusError(f"the call of {delivery.handler.name} was cancelled")
            outcome = Outcome(OutcomeKind.CANCELLED, None, error, 0.0, monotonic())
            self._parts.settlement.settle([(delivery, outcome)])

    def settled(self, delivery: WaitedReceipt) -> None:
        """Pass the outcome to the call's future, in the thread that settles."""
        future: CallFuture[Any] = delivery.waiter
        future.ending = delivery  # first, for a callback that is added meanwhile
        future.delivery = None
        try:
            if delivery.failure is None:
                future.succeed(delivery.value)
            else:
                future.fail(delivery, delivery.failure)
        except InvalidStateError:
            pass  # other code gave this future a result
        except Tangled:
            later(self.settled, delivery)
            return
        except BaseException:  # of a callback: the standard library catches exceptions alone
            self._close(future)
            raise
        self._close(future)

    # Private methods.

    def _close(self, future: CallFuture[Any]) -> None:
        """Remove a future that is done, after its callbacks."""
        future.ending = None
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


#: Options of standard executors, and of `procbus.executor`, that are given elsewhere.
_ELSEWHERE = {
    "max_workers": "the workers are the bus's, so give cpu_workers= or io_workers= to EventBus",
    "initializer": "the workers are the bus's, so give worker_init= to EventBus",
    "initargs": "the workers are the bus's, so give worker_init=partial(function, ...) to EventBus",
    "max_tasks_per_child": "make EventBus([], max_events_per_worker=...), and take bus.executor()",
    "mp_context": "leave it out, since each worker is a fresh process on all systems",
    "thread_name_prefix": "leave it out, since procbus names its threads",
}


def _maker(kind: Kind, options: CallOptions) -> Callable[[Callable[..., Any], str], Handler]:
    """Check the options; return the function that makes handlers with them."""
    names = [name for name in OPTIONS_OF_A_HANDLER if name in CallOptions.__annotations__]
    for option in options:
        if option not in names:
            instead = _ELSEWHERE.get(option)
            advice = f": {instead}." if instead else did_you_mean(option, names, "=") or "."
            raise OptionError(
                f"an executor has no option {option}={advice} It has: {', '.join(names)}"
            )
    # As in the standard library, arguments are a copy that a call may write to.
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
    """Submit now, all or `ahead` of them; return the iterator of the results."""
    futures = deque(submitted if ahead is None else itertools.islice(submitted, ahead))

    def next_result() -> T:
        future = futures.popleft()
        if ahead is not None:
            futures.extend(itertools.islice(submitted, 1))
        try:
            return future.result(None if end_at is None else end_at - monotonic())
        finally:
            future.cancel()  # if the wait for it timed out before it was done

    def results() -> Iterator[T]:
        try:
            while futures:
                yield next_result()  # without a name here, so that only the caller holds it
        finally:
            for each in futures:
                each.cancel()

    return results()


def _one_by_one(chunks: Iterator[list[T]]) -> Iterator[T]:
    """Yield the elements of each chunk, without keeping one that was yielded."""
    for chunk in chunks:
        chunk.reverse()
        while chunk:
            yield chunk.pop()


def _in_background(close: Callable[[], object]) -> None:
    try:
        OwnThread("procbus-shutdown", close).start()
    except RuntimeError:
        return  # the interpreter is ending, which closes the bus
