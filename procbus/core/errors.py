# SPDX-License-Identifier: MIT
"""Every error that procbus raises, in one tree. Each says who has to act.

If the standard library has an error with the same meaning, the procbus error inherits from it. So
code written for an executor of the standard library also catches the errors of procbus.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import BrokenExecutor, CancelledError
from pickle import PicklingError
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from procbus.core.progress import Progress


class ProcbusError(Exception):
    """Base class of all errors of procbus. Also raised for misuse of a receipt or of `current()`.

    Example:
        ```python
        from procbus import EventBus, ProcbusError

        try:
            EventBus(cpu_workers=0)
        except ProcbusError as error:
            print(error)
        ```
    """


class SubscriptionError(ProcbusError):
    """A handler cannot be subscribed as written. Change the handler or its options.

    Example:
        ```python
        from procbus import EventBus, SubscriptionError

        try:
            EventBus(handlers=[]).subscribe("word", print, timeout=-1)
        except SubscriptionError as error:
            print(error)
        ```
    """


class TopicError(SubscriptionError):
    """A topic is neither a class nor a well-formed dotted string. Change the topic.

    Example:
        ```python
        from procbus import EventBus, TopicError

        try:
            EventBus(handlers=[]).subscribe("order..paid", print)
        except TopicError as error:
            print(error)
        ```
    """


class OptionError(ProcbusError, ValueError):
    """An option of the bus, or an argument of a method, makes no sense. Change the call.

    Example:
        ```python
        from procbus import EventBus, OptionError

        try:
            EventBus(cpu_workers=0)
        except OptionError as error:
            print(error)
        ```
    """


class NoSuchHandler(ProcbusError):
    """The named handler is not subscribed to this bus.

    Example:
        ```python
        from procbus import EventBus, NoSuchHandler

        try:
            EventBus(handlers=[]).unsubscribe(print)
        except NoSuchHandler as error:
            print(error)
        ```
    """


class BusClosed(ProcbusError, RuntimeError):
    """The bus takes no more events: it was closed, or belongs to another process.

    Example:
        ```python
        from procbus import BusClosed, EventBus

        with EventBus(handlers=[]) as bus:
            pass
        try:
            bus.publish("word", "hello")
        except BusClosed as error:
            print(error)
        ```
    """


class QueueFull(ProcbusError):
    """`max_pending` deliveries are pending, and the bus has `on_full="raise"`. Publish later.

    Example:
        ```python
        import threading

        from procbus import EventBus, QueueFull

        gate = threading.Event()
        with EventBus(handlers=[], max_pending=1, on_full="raise") as bus:
            bus.subscribe("word", lambda word: gate.wait())
            bus.publish("word", "one")
            try:
                bus.publish("word", "two")
            except QueueFull as error:
                print(error)
            gate.set()
        ```
    """


class SerializationError(ProcbusError, PicklingError):
    """A handler, event or result cannot travel between processes.

    Example:
        ```python
        import threading

        from procbus import EventBus, SerializationError

        with EventBus(handlers=[]) as bus:
            bus.subscribe("thing", repr, kind="cpu")
            try:
                bus.publish("thing", threading.Lock()).result()
            except SerializationError as error:
                print(error)
        ```

    Attributes:
        path: the place of the object that cannot travel, for instance ``event.rows[3].lock``; empty
            when unknown.
        raised: for a handler's exception that could not travel, the full names of its class and its
            base classes; empty otherwise.
    """

    def __init__(self, message: str, path: str = "", raised: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.path = path
        self.raised = raised

    def __reduce__(
        self,
    ) -> tuple[type[SerializationError], tuple[str, str, tuple[str, ...]]]:
        """Keep the attributes when the error itself is pickled."""
        return type(self), (str(self), self.path, self.raised)


class HandlerExited(ProcbusError):
    """A handler raised an exception that would end the caller of `result()`: the script or a task.

    Such exceptions are SystemExit (`sys.exit()`), KeyboardInterrupt, GeneratorExit, and asyncio's
    CancelledError. Raised again by `result()`, the exception would end the caller, and after
    `sys.exit(0)` even with a status of success. So `result()` raises this error instead, with the
    original as its `__cause__`.

    Example:
        ```python
        import sys

        from procbus import EventBus, HandlerExited


        def stop(word: str) -> None:
            sys.exit(0)


        with EventBus(handlers=[]) as bus:
            bus.subscribe("word", stop)
            try:
                bus.publish("word", "last").result()
            except HandlerExited as error:
                assert isinstance(error.__cause__, SystemExit)
        ```

    Attributes:
        handler: name of the handler.
        event_id: id of the event.
    """

    def __init__(self, message: str, *, handler: str = "", event_id: int = 0) -> None:
        super().__init__(message)
        self.handler = handler
        self.event_id = event_id


class BatchFailed(ProcbusError):
    """Raised by a batch handler to fail some of its events; the others succeed.

    Example:
        ```python
        from procbus import BatchFailed, EventBus

        bus = EventBus(handlers=[])


        @bus.subscribe("row", batch=500)
        def store(rows: list[str]) -> None:
            errors: dict[int, Exception] = {}
            for index, row in enumerate(rows):
                try:
                    int(row)
                except ValueError as error:
                    errors[index] = error
            if errors:
                raise BatchFailed(errors)


        with bus:
            states = [receipt.has_failure for receipt in bus.stream(["1", "x"], topic="row")]
        assert sorted(states) == [False, True]
        ```

    Args:
        errors: the exception of each event that failed, by its index in the list of events. If it
            is empty, all events succeed.
        results: the results of the batch, one for each event; None if there are no results. A
            result at the index of a failed event is ignored.

    Raises:
        OptionError: `errors` is no mapping.
    """

    def __init__(
        self, errors: Mapping[int, BaseException], results: Sequence[object] | None = None
    ) -> None:
        if not isinstance(errors, Mapping):
            raise OptionError(
                "BatchFailed takes the exception of each event that failed, by its index in the "
                f"list, such as BatchFailed({{3: error}}), and not a {type(errors).__qualname__}; "
                "to fail all events of the batch, raise any other exception"
            )
        super().__init__(errors, results)
        self.errors = errors
        self.results = results

    def __str__(self) -> str:
        """Say how many events failed, and why the first one did."""
        first = next(iter(self.errors.items()), None)
        told = "" if first is None else f"; index {first[0]}: {first[1]!r}"
        count = len(self.errors)
        return f"{count} event{'' if count == 1 else 's'} of the batch failed{told}"


class Cancelled(ProcbusError, CancelledError):
    """A delivery was cancelled. `result()` raises this error, and `current().check()` in a handler.

    Code that catches the `CancelledError` of `concurrent.futures` catches this error too. This
    error is not asyncio's `CancelledError`, which would end the task that waits for the result.

    Example:
        ```python
        import threading

        from procbus import Cancelled, EventBus

        gate = threading.Event()
        with EventBus(handlers=[], io_workers=1) as bus:
            bus.subscribe("word", lambda word: gate.wait())
            bus.publish("word", "one")
            second = bus.publish("word", "two")
            second.cancel()
            gate.set()
            try:
                second.result()
            except Cancelled as error:
                print(error)
        ```

    Attributes:
        handler: name of the handler.
        event_id: id of the event.
    """

    def __init__(self, message: str, *, handler: str = "", event_id: int = 0) -> None:
        super().__init__(message)
        self.handler = handler
        self.event_id = event_id


class HandlerTimeout(ProcbusError, TimeoutError):
    """A handler ran longer than its time limit.

    Example:
        ```python
        import time

        from procbus import EventBus, HandlerTimeout

        with EventBus(handlers=[]) as bus:
            bus.subscribe("seconds", time.sleep, kind="cpu", timeout=0.2)
            try:
                bus.publish("seconds", 60).result()
            except HandlerTimeout as error:
                print(error)
        ```

    Attributes:
        handler: name of the handler.
        event_id: id of the event.
        limit_s: the limit in seconds.
        stack: the Python stack of the handler just before it was stopped, as text; empty when it
            could not be read.
        progress: the last `current().progress()` of the handler; None if it reported none.
    """

    def __init__(
        self,
        message: str,
        *,
        handler: str = "",
        event_id: int = 0,
        limit_s: float = 0.0,
        stack: str = "",
        progress: Progress | None = None,
    ) -> None:
        super().__init__(message)
        self.handler = handler
        self.event_id = event_id
        self.limit_s = limit_s
        self.stack = stack
        self.progress = progress


class MemoryLimitExceeded(ProcbusError):
    """A handler's worker, with the processes that it started, grew above its memory limit.

    Example:
        ```python
        import time

        from procbus import EventBus, MemoryLimitExceeded


        def fill(size: int) -> int:
            memory = bytearray(size)
            time.sleep(60)
            return len(memory)


        with EventBus(handlers=[]) as bus:
            bus.subscribe("size", fill, kind="cpu", max_memory="200 MiB")
            try:
                bus.publish("size", 1 << 29).result()
            except MemoryLimitExceeded as error:
                print(error)
        ```

    Attributes:
        handler: name of the handler.
        event_id: id of the event.
        limit_bytes: the limit.
        peak_bytes: the most resident memory that was measured, without memory that the processes
            share.
        stack: the Python stack of the handler just before it was stopped, as text; empty when it
            could not be read.
        progress: the last `current().progress()` of the handler; None if it reported none.
    """

    def __init__(
        self,
        message: str,
        *,
        handler: str = "",
        event_id: int = 0,
        limit_bytes: int = 0,
        peak_bytes: int = 0,
        stack: str = "",
        progress: Progress | None = None,
    ) -> None:
        super().__init__(message)
        self.handler = handler
        self.event_id = event_id
        self.limit_bytes = limit_bytes
        self.peak_bytes = peak_bytes
        self.stack = stack
        self.progress = progress


class CircuitOpen(ProcbusError):
    """Workers died one after the other without a success, so the cpu lane takes no new work now.

    Example:
        ```python
        from procbus import CircuitOpen, EventBus

        with EventBus(handlers=[]) as bus:
            bus.subscribe("number", abs, kind="cpu")
            try:
                print(bus.publish("number", -7).result())
            except CircuitOpen as error:
                print("the workers die: ", error)
        ```
    """


class JournalError(ProcbusError):
    """The journal cannot be opened, read or written.

    Example:
        ```python
        from pathlib import Path

        from procbus import EventBus, JournalError

        Path("notes.txt").write_text("no journal" * 100)
        try:
            EventBus(handlers=[], journal="notes.txt")
        except JournalError as error:
            print(error)
        ```
    """


class WorkerDied(ProcbusError, BrokenExecutor):
    """The worker process ended while it ran this delivery, or no worker could be started for it.

    Example:
        ```python
        import os

        from procbus import EventBus, WorkerDied

        with EventBus(handlers=[]) as bus:
            bus.subscribe("code", os._exit, kind="cpu")
            try:
                bus.publish("code", 1).result()
            except WorkerDied as error:
                print(error.exit_code, error)
        ```

    Attributes:
        handler: name of the handler.
        event_id: id of the event.
        pid: process id of the dead worker; None when none could be started.
        exit_code: exit code, negative for a signal, as in `subprocess`; None when unknown.
        ran_s: seconds that the handler had been running.
        out_of_memory: whether the kernel probably killed the process for want of memory.
        progress: the last `current().progress()` of the handler; None if it reported none.
    """

    def __init__(
        self,
        message: str,
        *,
        handler: str = "",
        event_id: int = 0,
        pid: int | None = None,
        exit_code: int | None = None,
        ran_s: float = 0.0,
        out_of_memory: bool = False,
        progress: Progress | None = None,
    ) -> None:
        super().__init__(message)
        self.handler = handler
        self.event_id = event_id
        self.pid = pid
        self.exit_code = exit_code
        self.ran_s = ran_s
        self.out_of_memory = out_of_memory
        self.progress = progress


class JobFailed(ProcbusError):
    """More deliveries of a job failed than its `max_failed` allows, so the job was cancelled.

    The first error of a handler is the `__cause__`.

    Example:
        ```python
        from json import loads

        from procbus import EventBus, JobFailed

        with EventBus(handlers=[]) as bus:
            bus.subscribe("number", loads)
            try:
                with bus.job("numbers", max_failed=0):
                    bus.publish("number", "seven")
            except JobFailed as error:
                print(error)
        ```
    """


class ExpectTimeout(ProcbusError, TimeoutError):
    """The event that `EventBus.expect` waits for was not published in time.

    Example:
        ```python
        from procbus import EventBus, ExpectTimeout

        with EventBus(handlers=[]) as bus:
            try:
                bus.expect("word").result(timeout=0.01)
            except ExpectTimeout as error:
                print(error)
        ```
    """


class WorkerTraceback(Exception):
    """The traceback that a handler's exception had in its worker, as text.

    It is the `__cause__` of an exception that came back from a worker process. Its text begins at
    the handler.

    Example:
        ```python
        from json import loads

        from procbus import EventBus, WorkerTraceback

        with EventBus(handlers=[]) as bus:
            bus.subscribe("number", loads, kind="cpu")
            try:
                bus.publish("number", "seven").result()
            except ValueError as error:
                assert isinstance(error.__cause__, WorkerTraceback)
        ```
    """

    def __str__(self) -> str:
        """Set the text off: it is shown above the traceback of this process."""
        return f'\n"""\n{self.args[0]}"""'


for _found in (*globals().values(),):
    if isinstance(_found, type) and issubclass(_found, ProcbusError | WorkerTraceback):
        _found.__module__ = "procbus"  # the name that tracebacks show is the one to import
