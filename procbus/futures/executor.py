# SPDX-License-Identifier: MIT
"""A bus as a `concurrent.futures.Executor`: each call is a delivery, each callable a handler.

`BusExecutor` is the public executor. `_Desk` holds everything that calls refer to, so that an
executor that is dropped can be freed while calls still run.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, InvalidStateError
from functools import partial
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Never, Protocol, TypeVar

from procbus.core.context import running, running_context
from procbus.core.errors import BusClosed, OptionError, ProcbusError
from procbus.core.handler import OPTIONS_OF_A_HANDLER, CallOptions, Handler, make_parts
from procbus.core.introspection import is_async, name_of
from procbus.core.locks import LOOK_UP_S, Tangled, later
from procbus.core.outcome import Outcome, OutcomeKind
from procbus.core.own_thread import OwnThread
from procbus.core.receipt import WaitedReceipt
from procbus.core.subscription import Subscription
from procbus.core.validation import did_you_mean, is_whole, shown
from procbus.core.waiting import pause
from procbus.futures.call_future import INSTEAD, CallbackSeat, CallFuture
from procbus.futures.call_results import (
    CountedFuture,
    MapCounts,
    chunks_of,
    number_of_rows,
    one_by_one,
    results_of,
)
from procbus.futures.calls import Call, ChunkOfCalls, event_of
from procbus.futures.handlers import CallHandler, CallHandlers
from procbus.futures.thread_set_up import InLoop, InThread, ThreadSetUp
from procbus.progress.bar import Bar
from procbus.progress.show import begin, check_progress, is_wanted
from procbus.system import exit_hooks

if TYPE_CHECKING:
    from procbus.core.delivery import Delivery
    from procbus.core.handler import Kind
    from procbus.dispatch.cancellation import Cancellation
    from procbus.dispatch.dispatcher import Dispatcher
    from procbus.futures.subscriptions import DirectSubscriptions
    from procbus.lanes.lanes import Lanes
    from procbus.progress.bar import BusFacts
    from procbus.progress.show import ShowProgress


T = TypeVar("T")

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
    cancellation: Cancellation
    lanes: Lanes
    direct: DirectSubscriptions
    facts: BusFacts


def _cancelled_call(delivery: Delivery) -> Outcome:
    """The outcome of a call that its future took back, in the words of futures."""
    error = ProcbusError(f"the call of {delivery.handler.name} was cancelled")
    return Outcome(OutcomeKind.CANCELLED, None, error, 0.0, monotonic())


class BusExecutor(Executor):
    """Runs calls on one lane of a bus. All methods may be called from any thread.

    No part of the bus refers to the executor. So the executor is freed as soon as its user drops
    it. If the bus belongs to the executor, the bus then finishes its calls, and ends its workers.

    Example:
        ```python
        from procbus import EventBus

        with EventBus(handlers=[]) as bus, bus.executor("cpu", retries=1) as pool:
            assert pool.submit(pow, 2, 10).result() == 1024
        ```

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
        exit_hooks.close_first()  # so that the executor learns when the script has ended
        self._bus = bus
        self._own = False
        self._parts = parts
        self._kind = kind
        self._desk = _Desk(parts, kind, options)
        self._find = self._desk.calls.find
        self._publish = self._desk.publish

    def own(self, set_up: ThreadSetUp | None) -> None:
        """Make the bus this executor's own: the bus ends with it. Called before the first call.

        Args:
            set_up: sets up each thread before its first call; None for no set-up.
        """
        self._own = True
        self._desk.set_up = set_up

    @property
    def _max_workers(self) -> int:
        """Maximum of calls that run at once. Dask, for example, reads this attribute."""
        lanes = self._parts.lanes
        return lanes.io.size if self._kind == "io" else lanes.cpu_size()

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Have `fn(*args, **kwargs)` called by a worker.

        `submit` waits while `max_pending` deliveries are pending on the bus, unless it is called
        inside a handler or a call of this bus.

        Raises:
            RuntimeError: the executor was shut down, or its bus closed.
            QueueFull: the bus is full and was made with `on_full="raise"`.
            TypeError: `fn` is not callable; or it is async, and the executor is for processes.
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
        progress: ShowProgress = False,
        total: int | None = None,
    ) -> Iterator[T]:
        """Call `fn` in the workers as `map(fn, *iterables)` would; the results come in order.

        Args:
            fn: called with one element of each iterable.
            *iterables: the arguments. They are read at once, as fast as the bus has room; with
                `buffersize` they are read lazily.
            timeout: seconds from now after which waiting for a result raises TimeoutError; None
                for no limit.
            chunksize: number of calls in one delivery. If one of them fails, all fail. It has no
                effect on threads.
            buffersize: number of calls submitted ahead of the result that is waited for; None for
                all.
            progress: show progress until the last result, see `EventBus.stream`.
            total: number of calls for the progress; None for the length of the shortest iterable,
                if all have one.

        Raises:
            ValueError: `chunksize` or `buffersize` is less than 1.
            TypeError: `buffersize` is neither a whole number nor None.
            OptionError: `progress` or `total` makes no sense.
            RuntimeError: as with `submit`.
        """
        end_at = None if timeout is None else timeout + monotonic()
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if buffersize is not None and not is_whole(buffersize, float("-inf")):
            raise TypeError("buffersize must be an integer or None")
        if buffersize is not None and buffersize < 1:
            raise ValueError("buffersize must be None or > 0")
        option = check_progress(progress, total)
        rows = zip(*iterables, strict=False)  # as in map(): the shortest iterable ends it
        size = 1 if self._kind == "io" else chunksize
        bar: Bar | None = None
        make: Callable[[], CallFuture[Any]] = CallFuture
        if is_wanted(option):
            counts = MapCounts(number_of_rows(iterables) if total is None else total, size)
            make = partial(CountedFuture, counts)
            bar = begin(option, name_of(fn), counts.read, self._parts.facts)
        if size == 1:
            submitted = (self._submit(fn, row, make) for row in rows)
            return results_of(submitted, end_at, buffersize, bar)
        ahead = None if buffersize is None else -(-buffersize // size)
        chunks: Iterator[Future[list[T]]] = (
            self._submit_chunk(fn, chunk, make) for chunk in chunks_of(rows, size)
        )
        return one_by_one(results_of(chunks, end_at, ahead, bar))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Refuse further calls. Idempotent.

        Args:
            wait: True waits until all calls are done, and then ends the workers if the bus is the
                executor's own. With False `shutdown` returns at once, and the workers end later.
            cancel_futures: cancel all calls that no worker has begun.

        Raises:
            RuntimeError: called inside a call of this executor, which would wait for itself, or in
                the callback of a call.
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
        cancelled; running calls fail with `WorkerDied`. The method returns without waiting for the
        workers to end.

        Raises:
            RuntimeError: the workers are threads, or belong to a bus with other users.
        """
        self._end_workers(TERMINATE_S, lambda pid: os.kill(pid, signal.SIGTERM))

    def kill_workers(self) -> None:
        """Shut down, and kill all workers, with the processes that they started.

        Calls that no worker has begun are cancelled; running calls fail with `WorkerDied`. The
        method returns without waiting for the workers to end.

        Raises:
            RuntimeError: the workers are threads, or belong to a bus with other users.
        """
        self._end_workers(0.0, None)

    def _end_workers(self, grace_s: float, tell: Callable[[int], None] | None) -> None:
        if self._kind == "io":
            raise RuntimeError(
                "the workers of this executor are threads, which cannot be ended: use "
                'shutdown(wait=False, cancel_futures=True), or executor("cpu")'
            )
        if not self._own:
            raise RuntimeError(
                "the workers belong to the bus, which other code may use too: close the bus by "
                "bus.close(timeout=0), or make an executor with workers of its own by "
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
        """Show the kind, the state, and the number of pending calls."""
        state = "shut down" if self._desk.shut else "open"
        return f"<BusExecutor {self._kind}, {state}: {len(self._desk.open)} calls pending>"

    # Private methods.

    def _submit(
        self, fn: Callable[..., T], args: tuple[Any, ...], make: Callable[[], CallFuture[Any]]
    ) -> Future[T]:
        if self._desk.shut:
            raise RuntimeError(_SHUT)
        found, function, arguments = self._find(fn, args, {})
        return self._publish(found, function, event_of(arguments), make)

    def _submit_chunk(
        self,
        fn: Callable[..., T],
        rows: list[tuple[Any, ...]],
        make: Callable[[], CallFuture[Any]],
    ) -> Future[list[T]]:
        if self._desk.shut:
            raise RuntimeError(_SHUT)
        found, function, common = self._desk.chunks.find(fn, (), {})
        return self._publish(found, function, (common, rows), make)

    def _check_outside(self) -> None:
        context = running_context()
        if context is None or context.owner is not self._parts.dispatcher:
            return
        # Any callback may hold up the thread that settles the calls of this executor.
        in_callback = isinstance(running.get(), CallbackSeat)
        if self._own or in_callback or self._desk.has(context.event_id):
            raise RuntimeError(
                f"shutdown() inside {context.handler} would wait for that call itself: call it "
                "outside, or use shutdown(wait=False)"
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
        self,
        found: CallHandler,
        function: Callable[..., Any],
        event: Any,
        make: Callable[[], CallFuture[Any]] = CallFuture,
    ) -> CallFuture[Any]:
        """Publish a call with its handler; return the future, which `make` made."""
        future = make()
        # Before the check: either a concurrent `shutdown` sees the future, or this method sees the
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
        resume = pause(None, INSTEAD)
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
        self._parts.cancellation.take_back(delivery, _cancelled_call)

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


def _in_background(close: Callable[[], object]) -> None:
    try:
        OwnThread("procbus-shutdown", close).start()
    except RuntimeError:
        return  # the interpreter is ending, which closes the bus
