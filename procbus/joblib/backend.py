# SPDX-License-Identifier: MIT
"""The backend of joblib: each batch of calls is a call of an executor on a bus of its own."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import joblib
from joblib.parallel import (
    AutoBatchingMixin,
    FallbackToBackend,
    ParallelBackendBase,
    SequentialBackend,
)

from procbus.assembly import inline_is_asked_for
from procbus.core.errors import HandlerTimeout, MemoryLimitExceeded, OptionError, WorkerDied
from procbus.core.handler import CallOptions
from procbus.core.introspection import module_of, name_bearer, name_of
from procbus.core.user_objects import short_repr
from procbus.core.validation import did_you_mean
from procbus.joblib.arrays import SharedArrays
from procbus.joblib.calls import Calls, OneCall, run_calls
from procbus.joblib.workers import IDLE, Need

if TYPE_CHECKING:
    from procbus.bus import EventBus
    from procbus.futures.executor import BusExecutor

#: The options that are for each call.
_OPTIONS = tuple(name for name in CallOptions.__annotations__ if name != "writable")
#: Options that joblib gives to every backend.
_OF_JOBLIB = frozenset({"temp_folder", "max_nbytes", "mmap_mode", "verbose", "context"})
#: Size from which joblib has arrays mapped, in bytes, by default.
_LEAST = 1 << 20


class ProcbusBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]  # no types
    """joblib's calls in worker processes of procbus. joblib makes it: see `procbus.joblib`.

    joblib calls `submit` in any thread, under a lock of each `joblib.Parallel`. The lock `_lock`
    guards the workers, and the number of `joblib.Parallel` that use them.
    """

    supports_retrieve_callback = True
    supports_inner_max_num_threads = True
    default_n_jobs = -1

    def __init__(
        self,
        nesting_level: int | None = None,
        inner_max_num_threads: int | None = None,
        **options: Any,
    ) -> None:
        _check(options)
        super().__init__(
            nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads, **options
        )
        self._lock = threading.Lock()
        self._users = 0
        self._need: Need | None = None
        self._options: dict[str, Any] = {}
        self._bus: EventBus | None = None
        self._pool: BusExecutor | None = None
        self._arrays = SharedArrays(None, None)
        #: The calls of each batch that has no result yet.
        self._open: dict[Future[Any], list[OneCall]] = {}
        self._runners: dict[tuple[str, str], Callable[[Calls], list[Any]]] = {}

    # Methods that joblib calls: see `joblib.parallel.ParallelBackendBase`.

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Number of worker processes; -1 for one for each core, -2 for one less."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None:
            return 1
        return max(joblib.cpu_count() + 1 + n_jobs, 1) if n_jobs < 0 else n_jobs

    def configure(
        self,
        n_jobs: int = 1,
        parallel: Any = None,
        prefer: str | None = None,  # noqa: ARG002 - a hint, and the user has named this backend
        require: str | None = None,  # noqa: ARG002 - joblib has looked at it
        **options: Any,
    ) -> int:
        """Take workers for a `joblib.Parallel`; return their number."""
        n_jobs = self.effective_n_jobs(n_jobs)
        given = {name: value for name, value in options.items() if name not in _OF_JOBLIB}
        _check(given)
        given = {**self.backend_kwargs, **given}
        if n_jobs == 1 and given:
            warnings.warn(
                f"n_jobs=1 runs the calls in this process, so {', '.join(given)} has no effect: "
                "use n_jobs=2 or more",
                stacklevel=4,
            )
        if n_jobs == 1 or inline_is_asked_for():
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        self.parallel = parallel
        with self._lock:
            self._users += 1
            if self._bus is None:
                threads = self.inner_max_num_threads
                names = tuple(self.MAX_NUM_THREADS_VARS)
                self._need = Need(n_jobs, os.getpid(), threads, names)
                self._options = given
                self._arrays = SharedArrays(
                    options.get("max_nbytes", _LEAST), options.get("mmap_mode", "r")
                )
                try:
                    self._take_workers(self._need)
                except BaseException:
                    self._users -= 1
                    raise
        return n_jobs

    def compute_batch_size(self) -> int:
        """One if calls have limits, because limits hold for a whole batch; else joblib's choice."""
        return 1 if self._options else int(super().compute_batch_size())

    def submit(
        self, func: Calls, callback: Callable[[Future[Any]], object] | None = None
    ) -> Future[Any]:
        """Have a batch of calls run in a worker."""
        pool = self._pool
        if pool is None:
            raise RuntimeError("the workers of this joblib.Parallel were ended: start a new one")
        calls = list(func.items)
        func.items = self._arrays.share(calls)
        future: Future[Any] = pool.submit(self._runner_for(calls), func)
        self._open[future] = calls
        future.add_done_callback(self._forget if callback is None else callback)
        return future

    def retrieve_result_callback(self, out: Future[Any]) -> Any:
        """Return the results of a batch. The error of a call that was ended names the call."""
        calls = self._open.pop(out, None)
        try:
            return out.result()
        except (WorkerDied, HandlerTimeout, MemoryLimitExceeded) as error:
            if calls is not None:
                _name_call(error, calls)
            raise

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """End all calls and the workers, because one call has failed."""
        self._end_workers()
        if ensure_ready:
            with self._lock:
                if self._need is not None and self._bus is None:
                    self._take_workers(self._need)

    def terminate(self) -> None:
        """Leave the workers to the next `joblib.Parallel`, unless another still uses them."""
        with self._lock:
            self._users = max(0, self._users - 1)
            if self._users:
                return
        if any(not each.done() for each in list(self._open)):
            self._end_workers()  # a generator of results was left early
        with self._lock:
            bus, self._bus, self._pool = self._bus, None, None
            need, arrays = self._need, self._arrays
        self._open.clear()
        self._runners.clear()
        arrays.close()
        if bus is not None and need is not None:
            IDLE.leave(need, bus)
        self.reset_batch_stats()

    # Private methods.

    def _take_workers(self, need: Need) -> None:
        bus = IDLE.take(need)
        self._pool = bus.executor("cpu", **self._options)
        self._bus = bus

    def _end_workers(self) -> None:
        with self._lock:
            bus, pool = self._bus, self._pool
            self._bus = self._pool = None
        if bus is not None and pool is not None:
            pool.own(None)  # because an executor may kill only the workers of its own bus
            pool.kill_workers()
            bus.close(timeout=0, cancel=True)

    def _forget(self, future: Future[Any]) -> None:
        self._open.pop(future, None)

    def _runner_for(self, calls: list[OneCall]) -> Callable[[Calls], list[Any]]:
        """The function that runs a batch in a worker, under the name of the user's function."""
        function = calls[0][0]
        names = module_of(function) or "", name_bearer(function).__qualname__
        found = self._runners.get(names)
        if found is None:
            found = self._runners[names] = _runner(*names)
        return found


def _check(options: Mapping[str, Any]) -> None:
    for name in options:
        if name not in _OPTIONS:
            hint = did_you_mean(name, _OPTIONS, "=") or "."
            raise OptionError(
                f'the joblib backend "procbus" has no option {name}={hint} It has: '
                f"{', '.join(_OPTIONS)}"
            )


def _runner(module: str, name: str) -> Callable[[Calls], list[Any]]:
    def run(calls: Calls) -> list[Any]:
        return run_calls(calls)

    run.__module__, run.__qualname__ = module, name
    return run


def _name_call(error: WorkerDied | HandlerTimeout | MemoryLimitExceeded, calls: Any) -> None:
    """Add the call to the message of an error, which names the function and the batch."""
    index = 0
    if len(calls) > 1:
        if error.progress is None or not 0 <= error.progress.done < len(calls):
            return
        index = int(error.progress.done)
    function, args, kwargs = calls[index]
    given = [short_repr(each) for each in args]
    given += [f"{key}={short_repr(each)}" for key, each in kwargs.items()]
    error.args = (f"{error}; the call was {name_of(function)}({', '.join(given)})",)
