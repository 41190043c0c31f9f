"""Libraries with threads of their own share the cores with the other workers."""

import pytest

from procbus import EventBus
from tests.integration.conftest import Run
from tests.integration.helpers import PATIENCE_S


def threads_of_numpy(_: object) -> list[int]:
    import numpy as np
    import threadpoolctl

    np.ones((50, 50)) @ np.ones((50, 50))
    return [library["num_threads"] for library in threadpoolctl.threadpool_info()]


def test_blas_threads_are_capped_in_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numpy")
    pytest.importorskip("threadpoolctl")
    import loky

    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    cores = loky.cpu_count()
    with EventBus([], cpu_workers=cores) as bus:
        bus.subscribe("n", threads_of_numpy, kind="cpu")
        threads = bus.publish("n", 0).result(PATIENCE_S)
    assert threads, "numpy has no library with threads of its own"
    assert set(threads) == {1}


def test_thread_cap_set_by_the_user_is_left_alone(run: Run) -> None:
    ended = run(
        """
        import os
        from procbus import EventBus
        with EventBus([], cpu_workers=64) as bus:
            bus.subscribe("n", lambda name: os.environ.get(name), kind="cpu")
            names = ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"]
            print([bus.publish("n", name).result() for name in names])
        print([os.environ.get(name) for name in names])
        """,
        OMP_NUM_THREADS="3",
    )
    assert ended.check() == "['3', '1']\n['3', None]\n"
