# SPDX-License-Identifier: MIT
"""The workers of a Dask cluster as the pool of a cpu lane."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

from procbus.core.context import ONLY_RUN, Run
from procbus.core.errors import OptionError, ProcbusError
from procbus.core.log import pool_log as log
from procbus.core.own_thread import OwnThread
from procbus.core.stats import NOTHING_SHARED, SharedMemoryStats
from procbus.core.validation import is_whole, shown
from procbus.pool.handler_cache import Definitions
from procbus.pool.interface import NO_WORDS, WorkerGone
from procbus.pool.memory.events import EventMemory

if TYPE_CHECKING:
    from distributed import Client, LocalCluster

    from procbus.pool.dask.worker import DaskWorker

#: Work in one batch, in seconds; because a batch costs about 1 ms there and back, 2 % of that.
DASK_BATCH_S = 0.050
#: Interval between two looks for the members of a cluster, in seconds.
DASK_LOOK_S = 0.5
#: Time for which an unreachable Dask worker is not tried again, in seconds.
SHUN_S = 2.0
#: Time without a scheduler after which the log says that the bus waits for it, in seconds.
SCHEDULER_S = 3.0
#: Maximum wait for the parts of a cluster to end, in seconds.
DASK_JOIN_S = 10.0


class DaskPool:
    """A Dask cluster to run cpu handlers on: `EventBus(cpu=DaskPool("tcp://host:8786"))`.

    Handlers run in worker processes of procbus, beside the Dask workers. Each Dask worker starts
    one such process for each of its threads. The processes end with the bus. Install
    `procbus[dask]` on this machine and on the cluster. This machine must be able to connect to the
    Dask workers.

    Example:
        ```python
        from procbus import DaskPool, EventBus

        bus = EventBus(handlers=[], cpu=DaskPool("tcp://host:8786"))
        bus.subscribe("number", abs, kind="cpu")
        bus.close()
        ```

    Args:
        cluster: address of a scheduler, or a `distributed.Client`. The bus does not close your
            client.

    Raises:
        OptionError: `cluster` is neither an address nor a usable client.
        ProcbusError: Dask is not installed.
    """

    def __init__(self, cluster: str | Client) -> None:
        engine = _engine()
        if isinstance(cluster, str):
            if not cluster:
                raise OptionError('DaskPool needs an address such as "tcp://host:8786"')
        elif not isinstance(cluster, engine.Client):
            raise OptionError(
                "DaskPool takes the address of a Dask scheduler or a distributed.Client, not "
                f"{shown(cluster)}"
            )
        elif cluster.asynchronous:
            raise OptionError("DaskPool needs a Client that is not asynchronous: leave that out")
        self._cluster = cluster

    @staticmethod
    def local(workers: int = 2) -> DaskPool:
        """Make a Dask cluster on this machine, for trials: one that lives as long as a cpu lane.

        Args:
            workers: number of Dask workers, with one thread each.

        Raises:
            OptionError: `workers` is not a whole number from 1 up.
            ProcbusError: Dask is not installed.
        """
        return _LocalPool(workers)

    def open(
        self,
        workers: int | None,
        init: bytes,
        run: Run = ONLY_RUN,
        eager: Callable[[], bytes] = bytes,
    ) -> ClusterPool:
        """Connect, for one bus.

        Args:
            workers: maximum of processes; None for as many as the cluster has threads.
            init: the user's set-up of each process, pickled.
            run: the run of the bus, for `current()` in workers.
            eager: makes the functions of handlers with eager resources, pickled.
        """
        return ClusterPool(self._cluster, workers, init, run, eager=eager)


class _LocalPool(DaskPool):
    """See `DaskPool.local`."""

    def __init__(self, workers: int) -> None:
        if not is_whole(workers, 1, 10_000):
            raise OptionError(f"workers must be a whole number from 1 up, not {shown(workers)}")
        _engine()
        self._workers = workers

    def open(
        self,
        workers: int | None,
        init: bytes,
        run: Run = ONLY_RUN,
        eager: Callable[[], bytes] = bytes,
    ) -> ClusterPool:
        """Start the cluster and connect."""
        cluster = _engine().local_cluster(self._workers)
        return ClusterPool(cluster.scheduler_address, workers, init, run, cluster, eager=eager)


def _engine() -> Any:
    try:
        from procbus.pool.dask import engine
    except ImportError as error:
        raise ProcbusError(
            f"DaskPool needs Dask ({error}): install it with  pip install 'procbus[dask]'"
        ) from error
    return engine


class ClusterPool:
    """Worker processes under the workers of a Dask cluster. See `procbus.pool.interface.Pool`.

    A thread keeps the connection to the scheduler, and asks it for the Dask workers again and
    again. So Dask workers may join and leave, and the scheduler may be away for a while.

    Args:
        cluster: address of a scheduler, or a client.
        workers: maximum of processes.
        init: the user's set-up of each process, pickled.
        run: the run of the bus, for `current()` in workers.
        own_cluster: a cluster on this machine that ends with the pool.
        join_s: maximum wait of `close` for the thread, in seconds.
        engine: the functions and classes that use Dask; None for `procbus.pool.dask.engine`.
        make_worker: makes a worker; None for `DaskWorker`.
    """

    in_processes, left_behind, elastic, batch_s = True, (), True, DASK_BATCH_S

    def __init__(
        self,
        cluster: str | Client,
        workers: int | None,
        init: bytes,
        run: Run = ONLY_RUN,
        own_cluster: LocalCluster | None = None,
        *,
        eager: Callable[[], bytes] = bytes,
        join_s: float = DASK_JOIN_S,
        engine: Any = None,
        make_worker: Callable[..., DaskWorker] | None = None,
    ) -> None:
        self._engine = _engine() if engine is None else engine
        self._make_worker = make_worker
        self._join_s = join_s
        self._cluster = cluster
        self._most = workers
        self.init = init
        self._eager = eager
        self.run = run
        self._own_cluster = own_cluster
        self.local = own_cluster is not None
        self.definitions = Definitions()
        self.memory = EventMemory(0)
        #: Guards all fields below, and wakes threads that wait for a place.
        self._changed = threading.Condition()
        self._client: Client | None = None
        #: Clients that lost their scheduler but are still needed. Owned by the watching thread.
        self._retired: list[Client] = []
        #: By address of a Dask worker: the number of its threads; the number of these that are
        #: taken; and the time until which the Dask worker is not tried.
        self._members: dict[str, int] = {}
        self._taken: Counter[str] = Counter()
        self._shunned: dict[str, float] = {}
        self._waits_for = ""
        #: Whether the members are known, or the reason why not.
        self._looked = False
        #: Whether the workers of the cluster understand procbus. Owned by the watching thread.
        self._prepared = False
        #: The fault of the Dask worker that was tried last; empty if there was none.
        self._trouble = ""
        self._closed = False
        self._wake = threading.Event()
        self._watcher = OwnThread("procbus-dask", self._watch)
        self._watcher.start()

    def size(self) -> int:
        """The number of threads of all Dask workers in the cluster now, at least 1."""
        with self._changed:
            self._changed.wait_for(lambda: self._looked, SCHEDULER_S)
            size = max(1, sum(self._members.values()))
        return size if self._most is None else min(size, self._most)

    @property
    def waits_for(self) -> str:
        """The thing that is missing to start a worker; empty if nothing is."""
        with self._changed:
            return self._waits_for

    def shared_memory(self) -> SharedMemoryStats:
        """Return zeros, because no memory is shared with other machines."""
        return NOTHING_SHARED

    def prepare(self) -> None:
        """Do nothing: the cluster's processes are running already."""

    def start(self, launched: Callable[[DaskWorker], None], place: int = 0) -> DaskWorker:
        """Wait for a free thread of a Dask worker, and start a process there."""
        from procbus.pool.dask.worker import DaskWorker  # only now: it imports distributed

        make = self._make_worker or DaskWorker
        worker = make(
            self.definitions,
            self.memory,
            self.init,
            self.run,
            self._wake_all,
            place=place,
            eager=self._eager(),
        )
        try:
            launched(worker)
            while True:
                client, address = self._take_place(worker)
                try:
                    worker.begin(client, address, partial(self._give_back, address))
                except OSError as error:
                    log.info("no worker process under %s: %s", address, error)
                    self._shun(address, f"{address}: {_words_of(error)}")
                else:
                    with self._changed:
                        self._trouble = ""
                    return worker
        except BaseException:
            worker.stop()
            raise

    def close(self) -> None:
        """Leave the cluster, after the workers have ended. Idempotent."""
        with self._changed:
            closed, self._closed = self._closed, True
            self._changed.notify_all()
        self._wake.set()
        self._watcher.join(self._join_s)
        if closed:
            return
        if self._own_cluster is not None:
            self._own_cluster.close()
        self.memory.close()

    # Places: threads of Dask workers.

    def _take_place(self, worker: DaskWorker) -> tuple[Client, str]:
        with self._changed:
            while True:
                if worker.killed or self._closed:
                    raise WorkerGone(None, None, NO_WORDS)
                address = self._freest()
                if address is not None and self._client is not None:
                    self._taken[address] += 1
                    return self._client, address
                self._changed.wait(DASK_LOOK_S)  # shunned workers return by time alone

    def _freest(self) -> str | None:
        now = monotonic()
        free = {
            address: threads - self._taken[address]
            for address, threads in self._members.items()
            if self._shunned.get(address, 0.0) <= now
        }
        address = max(free, key=free.__getitem__, default=None)
        return address if address is not None and free[address] > 0 else None

    def _give_back(self, address: str) -> None:
        with self._changed:
            self._taken[address] -= 1
            self._changed.notify_all()

    def _shun(self, address: str, trouble: str) -> None:
        with self._changed:
            self._trouble = trouble
            self._shunned[address] = monotonic() + SHUN_S
            self._prepared = False
        self._give_back(address)

    def _wake_all(self) -> None:
        with self._changed:
            self._changed.notify_all()

    # Methods of the thread that watches the cluster.

    def _watch(self) -> None:
        while not self._closed:
            try:
                self._look()
            except Exception as error:  # noqa: BLE001 - whatever is wrong there, it is tried again
                self._lose(error)
            self._wake.wait(DASK_LOOK_S)
        # This thread closes its client, because `close` does not wait for a look that takes long,
        # such as one that waits for a connection.
        if self._client is not None and self._client is not self._cluster:
            self._retired.append(self._client)
        self._close_retired()

    def _look(self) -> None:
        from procbus.pool.dask.host import Host  # only now: they import distributed, and psutil
        from procbus.pool.dask.post_mortem import last_page_in

        engine, client = self._engine, self._client
        if client is None:
            cluster = self._cluster
            client = (
                engine.connect_to(cluster, SCHEDULER_S) if isinstance(cluster, str) else cluster
            )
            self._prepared = False
            self._client = client
            if not any(self._taken.values()):
                self._close_retired()
        members = engine.members(client)
        if members and not self._prepared:
            try:
                engine.prepare_worker(
                    client, engine.HostPlugin(Host), engine.WitnessPlugin(last_page_in)
                )
            except OSError:
                raise
            except Exception as error:  # noqa: BLE001 - any error with which a Dask worker imports us
                self._say_waits_for(f"Dask workers that have procbus[dask] ({_words_of(error)})")
                return
            self._prepared = True
        self._note(members)

    def _note(self, members: dict[str, int]) -> None:
        with self._changed:
            self._members = members
            for known in (self._taken, self._shunned):
                for address in [a for a in known if a not in members and not self._taken[a]]:
                    del known[address]
            self._changed.notify_all()
            useless = self._trouble if not any(self._taken.values()) else ""
        if not members:
            self._say_waits_for(f"a Dask worker to join the scheduler {self._name()}")
        else:
            self._say_waits_for(f"a Dask worker that can be used ({useless})" if useless else "")

    def _close_retired(self) -> None:
        retired, self._retired = self._retired, []
        for client in retired:
            with contextlib.suppress(Exception):  # the client may be broken in any way
                self._engine.disconnect(client)

    def _lose(self, error: Exception) -> None:
        with self._changed:
            client, self._client, self._members = self._client, None, {}
        if client is not None and client is not self._cluster:
            self._retired.append(client)  # its event loop still drives the open lines
        self._say_waits_for(f"the Dask scheduler {self._name()} ({_words_of(error)})")

    def _say_waits_for(self, what: str) -> None:
        """Log the missing thing each time it changes, but not before the first look."""
        with self._changed:
            before, self._waits_for = self._waits_for, what
            self._looked = True
            self._changed.notify_all()
        if what and not before.startswith(what.split(" (")[0]):
            log.warning("the cpu lane waits for %s", what)
        elif before and not what:
            log.info("the cpu lane has Dask workers again")

    def _name(self) -> str:
        return f"at {self._cluster}" if isinstance(self._cluster, str) else "of its client"


def _words_of(error: Exception) -> str:
    return str(error) or type(error).__name__
