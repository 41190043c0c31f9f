"""Every test of this suite runs with every pool."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator

import pytest

from procbus.codec.encoder import decode
from procbus.pool import stack
from procbus.pool.inline import InlinePool
from procbus.pool.interface import Pool, Worker
from procbus.pool.loky import LokyPool
from procbus.pool.threads import ThreadPool
from tests.clusters import HAS_DASK, NO_DASK, cluster, warm_up
from tests.conformance import handlers

#: Makes a pool of a number of workers, with a pickled set-up.
MakePool = Callable[..., Pool]

_DASK = pytest.param("dask", marks=pytest.mark.skipif(not HAS_DASK, reason=NO_DASK))


@pytest.fixture(scope="session", autouse=True)
def dask_cluster(request: pytest.FixtureRequest) -> Iterator[str]:
    """A cluster for all tests: one for each would take seconds. Before any test is watched."""
    if not HAS_DASK or not any("dask" in item.name for item in request.session.items):
        yield ""
        return
    with cluster(workers=1, threads=2) as address:
        warm_up(address)
        yield address


@pytest.fixture(autouse=True)
def patience_for_stacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give a worker on a busy machine the time to write its stack before it is killed."""
    monkeypatch.setattr(stack, "PATIENCE_S", 10.0)


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    """Forget what handlers have kept in this process, where workers are threads of it."""
    yield
    handlers.kept.clear()


def _maker(kind: str, address: str) -> Iterator[MakePool]:
    made: list[Pool] = []

    def make(workers: int, init: bytes = b"") -> Pool:
        pool: Pool
        if kind == "loky":
            pool = LokyPool(workers, init)
        elif kind == "inline":
            assert not init
            pool = InlinePool(workers)
        elif kind == "threads":
            pool = ThreadPool(workers, decode(init) if init else None)
        else:
            from procbus.pool.dask.pool import DaskPool

            pool = DaskPool(address).open(workers, init)
        made.append(pool)
        return pool

    yield make
    for pool in made:
        pool.close()


@pytest.fixture(params=["loky", "inline", "threads", _DASK])
def make_pool(request: pytest.FixtureRequest, dask_cluster: str) -> Iterator[MakePool]:
    yield from _maker(request.param, dask_cluster)


@pytest.fixture(params=["loky", "inline", _DASK])
def make_coding_pool(request: pytest.FixtureRequest, dask_cluster: str) -> Iterator[MakePool]:
    """Skip pools that hand over objects as they are."""
    yield from _maker(request.param, dask_cluster)


@pytest.fixture(params=["loky", "threads", _DASK])
def make_set_up_pool(request: pytest.FixtureRequest, dask_cluster: str) -> Iterator[MakePool]:
    """Skip pools without a set-up."""
    yield from _maker(request.param, dask_cluster)


@pytest.fixture(params=["loky", _DASK])
def make_process_pool(request: pytest.FixtureRequest, dask_cluster: str) -> Iterator[MakePool]:
    """Skip pools without processes."""
    yield from _maker(request.param, dask_cluster)


@pytest.fixture
def worker(make_pool: MakePool) -> Iterator[Worker]:
    yield from _worker(make_pool(1))


@pytest.fixture
def coding_worker(make_coding_pool: MakePool) -> Iterator[Worker]:
    """Skip pools that hand over objects as they are."""
    yield from _worker(make_coding_pool(1))


@pytest.fixture
def process_worker(make_process_pool: MakePool) -> Iterator[Worker]:
    """Skip pools without processes."""
    yield from _worker(make_process_pool(1))


def _worker(pool: Pool) -> Iterator[Worker]:
    worker = pool.start(lambda _: None)
    # pytest keeps a fixture's value until after the leak check, and a semaphore of the worker lives
    # as long as the worker.
    yield weakref.proxy(worker)
    worker.kill()
    worker.stop()
