# SPDX-License-Identifier: MIT
"""Everything that procbus uses of Dask: a client, connections to its workers, and plugins.

Only Dask's own servers listen, with the security that the user has set up. procbus teaches a Dask
worker one more message, and the nanny another one, which reads one file.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import dask
from distributed import Client, LocalCluster
from distributed.comm import connect
from distributed.diagnostics.plugin import NannyPlugin, WorkerPlugin
from distributed.protocol import to_serialize
from distributed.security import Security

if TYPE_CHECKING:
    from distributed import Nanny
    from distributed import Worker as DaskWorker

#: A message: from a Dask worker, `say` names its kind; to a Dask worker, it is an order.
Said = dict[str, Any]
#: The contents of a logbook, as a plain tuple.
PlainPage = tuple[Any, ...]

__all__ = [
    "Client",
    "Connection",
    "LocalCluster",
    "connect_to",
    "last_page",
    "local_cluster",
    "members",
    "packed",
    "prepare_worker",
]

#: The messages that start a worker process, and that ask for the logbook of a dead one.
_PROCESS, _PAGE = "procbus-process", "procbus-page"
#: Maximum wait for a connection, in seconds.
CONNECT_S = 10.0
#: Maximum wait for the first message over a new connection, in seconds; because Dask sets no limit.
_SHAKE_HANDS_S = 3.0
#: Maximum wait for the last words of a Dask worker, in seconds.
_PAGE_S = 5.0
#: Minimum size of bytes that travel as a frame of their own, which is not copied.
_FRAME_BYTES = 1 << 16
#: Maximum of unread messages of a line; more are not read from the connection. And the pause then,
#: in seconds.
_MOST_UNHEARD = 1_000
_PAUSE_S = 0.010
#: Settings that stop Dask's observation of itself and its tasks, by default 50 times a second and
#: more in each process; because a small machine notices that, and on the cluster of one bus no task
#: runs.
_AT_REST = {
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "500ms",
    "distributed.admin.system-monitor.interval": "5s",
}


def packed(data: bytes) -> Any:
    """Wrap bytes in the form that suits a message best: large ones are not copied."""
    return to_serialize(data) if len(data) >= _FRAME_BYTES else data


class HostPlugin(WorkerPlugin):  # type: ignore[misc] # mypy skips distributed
    """Makes a Dask worker a host for worker processes of procbus."""

    idempotent = True  # a second bus must not have the first one's processes torn down

    def __init__(self, make_host: Callable[[str, str | None, int], Any]) -> None:
        self.name = f"procbus-host-{version('procbus')}"
        self._make_host = make_host

    def setup(self, worker: DaskWorker) -> None:
        """Teach the Dask worker the message that starts a worker process."""
        host = self._make_host(worker.local_directory, worker.nanny, worker.state.nthreads)
        self._host = host

        async def host_process(comm: Any, **order: Any) -> None:
            await host.run_process(comm, **order)

        worker.handlers[_PROCESS] = host_process

    async def teardown(self, worker: DaskWorker) -> None:  # noqa: ARG002 - as Dask calls it
        """Let the processes finish before the Dask worker ends."""
        await self._host.leave()


class WitnessPlugin(NannyPlugin):  # type: ignore[misc] # as above
    """Has a nanny read the logbook that its dead Dask worker left behind."""

    idempotent = True

    def __init__(self, last_page_in: Callable[[str, int | None], PlainPage | None]) -> None:
        self.name = f"procbus-witness-{version('procbus')}"
        self._last_page_in = last_page_in

    def setup(self, nanny: Nanny) -> None:
        """Teach the nanny the message that asks for a logbook."""
        last_page_in = self._last_page_in

        async def page(file: str, pid: int | None) -> PlainPage | None:
            return await asyncio.to_thread(last_page_in, file, pid)

        nanny.handlers[_PAGE] = page


async def _knock(address: str, timeout_s: float) -> None:
    arguments = Security().get_connection_args("client")
    comm = await connect(address, timeout=timeout_s, **arguments)
    await comm.close()


def connect_to(
    address: str,
    timeout_s: float,
    *,
    knock: Callable[[str, float], Coroutine[None, None, None]] = _knock,
    shake_hands_s: float = _SHAKE_HANDS_S,
) -> Client:
    """Connect to a scheduler.

    Args:
        address: of the scheduler.
        timeout_s: maximum wait for the connection, in seconds.
        knock: asks the scheduler for a first answer; called with `address` and `timeout_s`.
        shake_hands_s: maximum wait for that answer beyond `timeout_s`, in seconds.

    Raises:
        OSError: it cannot be reached.
    """
    # Tested first, because a client would wait without end for a program that does not answer.
    try:
        asyncio.run(asyncio.wait_for(knock(address, timeout_s), timeout_s + shake_hands_s))
    except TimeoutError as error:
        raise OSError(f"the program at {address} does not answer as a scheduler") from error
    return _Client(address, timeout_s)


class _Client(Client):  # type: ignore[misc] # as above
    """A client that ends its event loop if it cannot connect."""

    def __init__(self, address: str, timeout_s: float) -> None:
        try:
            super().__init__(address, timeout=timeout_s, set_as_default=False)
        except BaseException:
            if self.status != "newly-created":  # then there is no event loop yet
                disconnect(self)
            raise


def disconnect(client: Client) -> None:
    """Close a client and end its event loop.

    A client that gave up its scheduler, could not connect, or cannot close in time leaves its event
    loop running.
    """
    loop = client.loop.asyncio_loop
    try:
        client.close()
    finally:
        client.status = "closed"  # otherwise its `__del__` would close it again
        with contextlib.suppress(RuntimeError):  # the usual case: the loop has ended
            loop.call_soon_threadsafe(_cancel_tasks, loop)


def _cancel_tasks(loop: asyncio.AbstractEventLoop) -> None:
    for task in asyncio.all_tasks(loop):
        task.cancel()


def local_cluster(workers: int) -> LocalCluster:
    """Start a cluster on this machine, of Dask workers with one thread each."""
    with dask.config.set(_AT_REST):
        return LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            dashboard_address=None,
            memory_limit=0,  # it would watch the Dask workers, in which no handler runs
        )


def members(client: Client) -> dict[str, int]:
    """Ask a scheduler for its Dask workers: the address and the number of threads of each.

    Raises:
        OSError: it cannot be reached.
    """
    if client.status != "running":
        raise OSError(f"its client is {client.status}")
    asked = asyncio.run_coroutine_threadsafe(
        asyncio.wait_for(client.scheduler.ncores(workers=None), CONNECT_S),
        client.loop.asyncio_loop,
    )
    return dict(asked.result(CONNECT_S + 1))


def prepare_worker(client: Client, host: HostPlugin, witness: WitnessPlugin) -> None:
    """Have all workers of a cluster, present and future, understand procbus's messages."""
    client.register_plugin(host)
    client.register_plugin(witness)


class Connection:
    """A connection to a Dask worker, for one worker process. Thread-safe, but one thread listens.

    Args:
        client: a client whose event loop drives the connection.
        address: address of the Dask worker.
        route: called on that loop with each message; if it refuses a message, `hear` returns the
            message later.
        order: settings of the process.

    Raises:
        OSError: the Dask worker cannot be reached.
    """

    def __init__(self, client: Client, address: str, route: Any, **order: Any) -> None:
        self._loop: asyncio.AbstractEventLoop = client.loop.asyncio_loop
        self._route = route
        self._unheard: queue.SimpleQueue[Said | None] = queue.SimpleQueue()
        self._unsaid: asyncio.Queue[Said] = asyncio.Queue()
        self.closed = False
        opened = asyncio.run_coroutine_threadsafe(self._open(client, address, order), self._loop)
        try:
            self._comm = opened.result(CONNECT_S + 1)
        except TimeoutError as error:
            raise OSError(f"no connection to {address}") from error
        self._run: Future[None] = asyncio.run_coroutine_threadsafe(self._drive(), self._loop)

    async def _open(self, client: Client, address: str, order: Said) -> Any:
        comm = await connect(address, timeout=CONNECT_S, **client.connection_args)
        await comm.write({"op": _PROCESS, "reply": False, **order})
        return comm

    def say(self, **message: Any) -> None:
        """Send a message; never blocks. Nothing happens once the line is dead."""
        with contextlib.suppress(RuntimeError):  # the client is closed
            self._loop.call_soon_threadsafe(self._unsaid.put_nowait, message)

    def hear(self, timeout_s: float | None = None) -> Said | None:
        """Wait for the next message; return None if there is none within `timeout_s` seconds.

        Raises:
            EOFError: the line is dead, and nothing is left to hear.
        """
        try:
            message = self._unheard.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if message is None:
            self._unheard.put(None)  # for the next call
            raise EOFError
        return message

    def close(self) -> None:
        """Hang up, and wait until the connection is closed. Idempotent; not on the event loop."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._comm.abort)
        with contextlib.suppress(TimeoutError):
            self._run.exception(CONNECT_S)

    def hang_up(self, after_s: float = 0.0) -> None:
        """Declare the line dead after some seconds, if it is not dead by then. Never blocks."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._loop.call_later, after_s, self._comm.abort)

    async def _drive(self) -> None:
        speaking = asyncio.ensure_future(self._speak())
        try:
            while True:
                message = await self._comm.read()
                if not self._route(message):
                    self._unheard.put(message)
                while self._unheard.qsize() > _MOST_UNHEARD and not self._comm.closed():
                    await asyncio.sleep(_PAUSE_S)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self.closed = True
            self._comm.abort()
            speaking.cancel()
            self._unheard.put(None)

    async def _speak(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                await self._comm.write(await self._unsaid.get())


def last_page(client: Client, nanny: str, file: str, pid: int | None) -> PlainPage | None:
    """Ask a nanny for the logbook of a process of its dead Dask worker; None without an answer."""

    async def ask() -> PlainPage | None:
        comm = await connect(nanny, timeout=_PAGE_S, **client.connection_args)
        try:
            await comm.write({"op": _PAGE, "file": file, "pid": pid})
            answer = await comm.read()
        finally:
            comm.abort()
        return tuple(answer) if isinstance(answer, list | tuple) else None

    asking = ask()
    try:
        asked = asyncio.run_coroutine_threadsafe(asking, client.loop.asyncio_loop)
        return asked.result(_PAGE_S)
    except (OSError, TimeoutError):
        return None
    except RuntimeError:  # the client is closed
        asking.close()
        return None
