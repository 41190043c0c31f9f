"""Every test of this suite runs with every pool."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from procbus.pool.inline import InlinePool
from procbus.pool.loky_pool import LokyPool
from procbus.pool.seam import Pool, Worker
from tests.conformance.drive import Gate

POOLS: dict[str, Callable[[int], Pool]] = {"loky": LokyPool, "inline": InlinePool}


@pytest.fixture(params=POOLS)
def make_pool(request: pytest.FixtureRequest) -> Callable[[int], Pool]:
    return POOLS[request.param]


@pytest.fixture
def worker(make_pool: Callable[[int], Pool]) -> Iterator[Worker]:
    yield from _worker(make_pool(1))


@pytest.fixture
def process_worker() -> Iterator[Worker]:
    """Where only a process will do."""
    yield from _worker(LokyPool(1))


def _worker(pool: Pool) -> Iterator[Worker]:
    worker = pool.start(lambda _: None)
    # pytest keeps what it gives to a test until after the leak check, and a semaphore of the
    # worker lives as long as the worker.
    yield weakref.proxy(worker)
    worker.kill()
    worker.stop()


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(tmp_path)
    yield gate
    gate.open()
