"""Every way of running one cpu handler on many events, behind one small interface.

Each contender is set up as its own documentation would have it for many small independent calls,
with the same number of worker processes. The comparison is one publish or submit per event:
chunked maps (`Pool.map(chunksize=)`, mpire's `map`, ...) are faster for a list that is known
beforehand, and are another thing than a bus. joblib has nothing else, so it stands here with that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Self

from .model import PROCBUS

Handler = Callable[[Any], Any]


@dataclass(frozen=True)
class Contender(AbstractContextManager["Contender"]):
    """A running pool, or bus, with one handler; leaving the `with` block ends its processes.

    Attributes:
        submit: hands over one event and returns what `result` takes.
        result: waits for the result of one event, with an optional maximum in seconds; raises a
            TimeoutError of its library at the maximum.
        close: ends every process that was started.
        run_all: does the work of `run`, if one submit at a time is not the peer's way.
    """

    submit: Callable[[Any], Any]
    result: Callable[..., Any]
    close: Callable[[], object]
    run_all: Callable[[Iterable[Any]], object] | None = None

    def run(self, events: Sequence[Any]) -> None:
        """Submit the events one by one, then wait until every result is in the parent."""
        if self.run_all is not None:
            self.run_all(events)
            return
        submit, result = self.submit, self.result
        for handle in [submit(event) for event in events]:
            result(handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


# Opens a contender for one module-level handler of one argument, on a number of worker processes.
Opener = Callable[[Handler, int], Contender]


def procbus(handler: Handler, workers: int, **options: Any) -> Contender:
    """Open an isolated bus and one cpu handler for every event, with the defaults but for options.

    Args:
        handler: of every event.
        workers: processes.
        **options: options of `EventBus`.
    """
    from procbus import EventBus, Receipt

    bus = EventBus([], cpu_workers=workers, **options)
    bus.subscribe(object, handler, kind="cpu")
    bus.start()
    return Contender(bus.publish, Receipt.result, bus.close)


def stdlib_executor(handler: Handler, workers: int) -> Contender:
    """Open `concurrent.futures`, start method of the platform (fork on Linux up to 3.13)."""
    from concurrent.futures import Future, ProcessPoolExecutor

    pool = ProcessPoolExecutor(workers)
    return Contender(lambda event: pool.submit(handler, event), Future.result, pool.shutdown)


def stdlib_pool(handler: Handler, workers: int) -> Contender:
    """Open `multiprocessing.Pool`, start method of the platform."""
    from multiprocessing import Pool
    from multiprocessing.pool import AsyncResult

    pool = Pool(workers)

    def close() -> None:
        pool.close()
        pool.join()

    return Contender(lambda event: pool.apply_async(handler, (event,)), AsyncResult.get, close)


def loky(handler: Handler, workers: int) -> Contender:
    """Open one plain executor: the reusable one adds only a look-up."""
    from concurrent.futures import Future

    from loky import ProcessPoolExecutor

    pool = ProcessPoolExecutor(workers)
    return Contender(lambda event: pool.submit(handler, event), Future.result, pool.shutdown)


def joblib(handler: Handler, workers: int) -> Contender:
    """Open a `Parallel` that keeps its workers and sizes its batches by itself.

    It has no submit: it takes calls from a list that exists beforehand, batch by batch, so its
    rates are the rates of a chunked map. `pre_dispatch="all"` would hand everything over before the
    first batch has been timed, and so without batches.
    """
    from joblib import Parallel, delayed
    from joblib.externals.loky import get_reusable_executor

    parallel = Parallel(n_jobs=workers, backend="loky", batch_size="auto", pre_dispatch="10*n_jobs")
    call = delayed(handler)
    parallel.__enter__()

    def close() -> None:
        parallel.__exit__(None, None, None)
        get_reusable_executor().shutdown()

    return Contender(
        lambda event: parallel([call(event)])[0],
        lambda result: result,
        close,
        run_all=lambda events: parallel(call(event) for event in events),
    )


def mpire(handler: Handler, workers: int) -> Contender:
    """Open a `WorkerPool` by fork, its fastest start, kept alive between calls."""
    from mpire.async_result import AsyncResult
    from mpire.pool import WorkerPool

    pool = WorkerPool(n_jobs=workers, start_method="fork", keep_alive=True)

    def close() -> None:
        pool.stop_and_join()
        pool.terminate()

    return Contender(lambda event: pool.apply_async(handler, (event,)), AsyncResult.get, close)


def pebble(handler: Handler, workers: int) -> Contender:
    """Open a `ProcessPool` with its defaults: no time limit, no recycling."""
    from concurrent.futures import Future

    from pebble import ProcessPool

    pool: Any = ProcessPool(max_workers=workers)  # half of its methods have no types

    def close() -> None:
        pool.close()
        pool.join()

    return Contender(lambda event: pool.schedule(handler, args=(event,)), Future.result, close)


def distributed(handler: Handler, workers: int) -> Contender:
    """Open a Dask `LocalCluster` with one thread per worker process and no dashboard."""
    dask: Any = import_module("distributed")  # installed only for this figure
    cluster = dask.LocalCluster(
        n_workers=workers, threads_per_worker=1, dashboard_address=None, silence_logs=False
    )
    client = dask.Client(cluster)

    def close() -> None:
        client.close()
        cluster.close()

    return Contender(
        lambda event: client.submit(handler, event, pure=False), dask.Future.result, close
    )


CPU_CONTENDERS: dict[str, Opener] = {
    PROCBUS: procbus,
    "ProcessPoolExecutor": stdlib_executor,
    "mp.Pool": stdlib_pool,
    "loky": loky,
    "joblib": joblib,
    "mpire": mpire,
    "pebble": pebble,
}
# Contenders that are asked how a dead worker affects the others' work.
CRASH_CONTENDERS: dict[str, Opener] = {**CPU_CONTENDERS, "distributed": distributed}
