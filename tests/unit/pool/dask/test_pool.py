"""Refusals of a pool on Dask, before there is a cluster."""

import re
import socket
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from procbus.core.errors import OptionError
from tests.clusters import HAS_DASK, NO_DASK
from tests.waits import BOUND_S, eventually

pytestmark = pytest.mark.skipif(not HAS_DASK, reason=NO_DASK)


@pytest.mark.parametrize("cluster", [None, 8786, b"tcp://host:8786", object()])
def test_object_that_is_no_cluster_is_refused(cluster: Any) -> None:
    from procbus import DaskPool

    with pytest.raises(OptionError, match=r"takes the address .* or a distributed\.Client, not"):
        DaskPool(cluster)


@pytest.mark.parametrize("workers", [0, -1, 1.5, "2", None])
def test_a_local_cluster_has_a_number_of_workers(workers: Any) -> None:
    from procbus import DaskPool

    with pytest.raises(OptionError, match="workers must be a whole number from 1 up, not"):
        DaskPool.local(workers)


def test_a_local_cluster_begins_with_the_lane_and_not_before() -> None:
    from procbus import DaskPool, EventBus

    with EventBus(handlers=[], cpu=DaskPool.local(1)) as bus:
        bus.subscribe("number", len, kind="io")


def test_only_the_workers_of_a_local_cluster_have_the_memory_of_this_machine() -> None:
    from procbus.pool.dask.pool import ClusterPool

    class OwnCluster:
        closed = 0

        def close(self) -> None:
            self.closed += 1

    own: Any = OwnCluster()
    elsewhere = ClusterPool("tcp://127.0.0.1:1", None, b"")
    here = ClusterPool("tcp://127.0.0.1:1", None, b"", own_cluster=own)
    assert (elsewhere.local, here.local) == (False, True)
    for pool in (elsewhere, here, here):
        pool.close()
    assert own.closed == 1


def test_an_address_is_not_empty() -> None:
    from procbus import DaskPool

    with pytest.raises(OptionError, match="needs an address such as"):
        DaskPool("")


def test_a_pool_waits_for_a_scheduler_that_is_not_there_and_can_be_closed() -> None:
    from procbus import DaskPool

    pool = DaskPool("tcp://127.0.0.1:1").open(None, b"")
    assert pool.size() == 1
    eventually(lambda: "the Dask scheduler at tcp://127.0.0.1:1" in pool.waits_for)
    pool.close()
    pool.close()


def test_program_that_does_not_answer_is_no_scheduler() -> None:
    from procbus.pool.dask import engine

    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(OSError, match=f"at {address} does not answer"):
            engine.connect_to(address, 0.1, shake_hands_s=0.1)


def test_client_that_cannot_connect_ends_its_event_loop() -> None:
    from procbus.pool.dask import engine

    async def answer(_address: str, _timeout_s: float) -> None:
        """Answer as a scheduler does that ends before the client connects."""

    with pytest.raises(OSError, match=re.escape("tcp://127.0.0.1:1")):
        engine.connect_to("tcp://127.0.0.1:1", 0.1, knock=answer)
    eventually(lambda: all(thread.name != "IO loop" for thread in threading.enumerate()))


def test_connection_that_comes_too_late_for_a_closed_pool_is_closed() -> None:
    from procbus.pool.dask.pool import ClusterPool

    class LateClient:
        status = "running"

    client, connected, closed = LateClient(), threading.Event(), threading.Event()
    began = threading.Event()

    def connect_to(_address: str, _timeout_s: float) -> LateClient:
        began.set()
        assert connected.wait(BOUND_S)
        return client

    engine = SimpleNamespace(
        connect_to=connect_to,
        members=lambda _: {},
        disconnect=lambda late: closed.set() if late is client else None,
    )
    pool = ClusterPool("tcp://127.0.0.1:1", None, b"", join_s=0.01, engine=engine)
    assert began.wait(BOUND_S)
    pool.close()
    connected.set()
    assert closed.wait(BOUND_S)
