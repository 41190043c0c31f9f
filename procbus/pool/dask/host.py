# SPDX-License-Identifier: MIT
"""In a Dask worker: starts worker processes of procbus, and relays their messages.

Handlers do not run in the Dask worker itself, but in a worker process of procbus that the Dask
worker starts. So a handler can be killed, hold the GIL or crash, and the Dask worker goes on. The
logbook outlives the process, and tells which delivery the process was running.

The code of this module runs on the event loop of the Dask worker, and never blocks that loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import socket
import sys
import time
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from procbus.core.context import Run
from procbus.pool.birth import thread_caps
from procbus.pool.channel import SIZE, Pieces
from procbus.pool.child.ending import LEFT_S, WORKER_STOP_S
from procbus.pool.dask.child import Orders, PipeTokens
from procbus.pool.dask.clock_skew import boot_id
from procbus.pool.dask.engine import packed
from procbus.pool.dask.post_mortem import new_file, sweep
from procbus.pool.logbook import Logbook, Reported
from procbus.pool.script import WorkerSettings
from procbus.pool.stack import StackPage
from procbus.pool.wire import STOP, Tag
from procbus.system.cooperative import TURN_S, Task
from procbus.system.footprint import FootprintMeter
from procbus.system.process import Probe, end_all

if TYPE_CHECKING:
    from procbus.pool.interface import At

#: Interval between two looks at the logbook of a busy process, in seconds.
HOST_LOOK_S = 0.020
#: Interval between two reports of the memory, CPU and so on of the process, in seconds.
DETAILS_S = 5.0
#: Minimum interval between two reports of the progress of a handler, in seconds.
REPORT_S = 0.1
#: Maximum time for a handler to finish when the Dask worker has to end, in seconds.
LEAVE_S = 2.0
#: Maximum wait of finished results for others of their batch, in seconds.
HOST_FLUSH_S = 0.100
#: Maximum time for reading the rest of a dead process's messages, in seconds; because other
#: processes may hold its pipe open.
DRAIN_S = 1.0

#: Size of one read of the process's messages, in bytes.
_CHUNK = 1 << 16
PlainMessage = dict[str, Any]
R = TypeVar("R")


class Comm(Protocol):
    """A connection of Dask's, as it is used here."""

    async def read(self) -> PlainMessage:
        """Wait for a message; OSError when the other end is gone."""

    async def write(self, message: PlainMessage) -> object:
        """Send a message; OSError when the other end is gone."""


class Host:
    """The processes under one Dask worker.

    Args:
        directory: directory of the Dask worker.
        nanny: address of the nanny that started the Dask worker and outlives it; None for no nanny.
        threads: number of the Dask worker's threads.
    """

    def __init__(self, directory: str, nanny: str | None, threads: int) -> None:
        # The parent directory: when a Dask worker dies, its nanny removes the worker's directory.
        self.directory = Path(directory).parent
        sweep(self.directory)
        self.nanny = nanny
        self.threads = threads
        self._processes: set[HostedProcess] = set()

    async def run_process(
        self,
        comm: Comm,
        number: int,
        run: Sequence[Any],
        levels: dict[str, int],
        init: bytes,
        place: int,
        eager: bytes,
    ) -> None:
        """Run one process for the bus at the other end, until the process or the bus is gone."""
        process = HostedProcess(self, comm)
        self._processes.add(process)
        try:
            settings = WorkerSettings(
                number, os.getpid(), None, Run(*run), levels, HOST_FLUSH_S, place=place, eager=eager
            )
            await process.serve(settings, init)
        finally:
            self._processes.discard(process)

    async def leave(self) -> None:
        """Let handlers finish for a moment and say goodbye, because the Dask worker ends."""
        await asyncio.gather(*(process.leave() for process in list(self._processes)))


class HostedProcess:
    """One process, and the connection to the bus that it works for."""

    def __init__(self, host: Host, comm: Comm) -> None:
        self._host = host
        self._comm = comm
        #: Held by the task that sends, so that messages arrive in the order of sending.
        self._telling = asyncio.Lock()
        self._logbook_file = new_file(host.directory)
        self._logbook = _logbook_in(self._logbook_file)
        self._stack = StackPage.create()
        self._tokens = PipeTokens.create()
        #: The delivery during which its memory is watched, and the limit in bytes.
        self._watched: tuple[At, int] | None = None
        self._meter = FootprintMeter()
        #: Large events that may be used again, by number; the bus decides which.
        self._kept: dict[int, bytes] = {}
        #: The processes that handlers had left running when it had to stop.
        self._family: list[Probe] = []
        self._left = False
        self._ended = asyncio.Event()

    async def serve(self, settings: WorkerSettings, init: bytes) -> None:
        """Launch the process, relay messages, and make sure that it is gone at the end."""
        tasks: list[asyncio.Task[None]] = []
        try:
            await self._tell(
                say="started",
                boot=boot_id(),
                now=time.monotonic(),
                nanny=self._host.nanny,
                logbook=str(self._logbook_file),
            )
            await self._launch(settings, init)
            await self._tell(say="pid", pid=self._process.pid)
            relay = asyncio.create_task(_quietly(self._relay()))
            tasks += [
                relay,
                asyncio.create_task(_quietly(self._look())),
                asyncio.create_task(_quietly(self._see_end(relay))),
            ]
            while True:
                await self._obey(await self._comm.read())
        except OSError:
            pass  # the other end is gone, or this one is being closed
        finally:
            await self._clean_up(tasks)

    async def _launch(self, settings: WorkerSettings, init: bytes) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            descriptors = (
                theirs.fileno(),
                self._logbook.fileno(),
                self._stack.fileno(),
                self._tokens.taking,
            )
            orders = Orders(*descriptors, settings, init, sys.path)
            caps = thread_caps(os.cpu_count() or 1, self._host.threads)
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "procbus.pool.dask.child",
                stdin=asyncio.subprocess.PIPE,
                pass_fds=descriptors,
                env={**os.environ, **caps, "PYTHONPATH": os.pathsep.join(sys.path)},
            )
        assert self._process.stdin is not None
        self._process.stdin.write(pickle.dumps(tuple(orders)))
        self._process.stdin.close()
        self._probe = Probe(self._process.pid)
        self._reader, self._writer = await asyncio.open_connection(sock=ours)

    async def _tell(self, **message: Any) -> None:
        async with self._telling:
            await self._comm.write(message)

    # From the process to the bus.

    async def _relay(self) -> None:
        """Relay its messages, in groups as they arrive: each message costs the bus some 0.1 ms."""
        pieces = Pieces()
        whole: list[bytes] = []
        while chunk := await self._reader.read(_CHUNK):
            whole += pieces.take_in(chunk)
            # Measurements are always followed by results at once.
            if whole and whole[-1][:1] != Tag.MEASURED.value:
                await self._tell(say="data", data=[packed(piece) for piece in whole])
                whole = []

    async def _look(self) -> None:
        """Report each delivery that still runs at the second look, and now and then the usage.

        Each message costs the bus some 0.1 ms, so short deliveries are not reported.
        """
        seen: At | None = None
        said: At | None = None
        details_at = time.monotonic() - DETAILS_S + 1.0  # the first report once it has started
        reported: Reported | None = None
        reported_at = 0.0
        set_up: float | None = None
        while True:
            since = self._logbook.set_up_since()
            if since != set_up:
                set_up = since
                await self._tell(say="set up", since=since)
            at = self._logbook.running()
            if at is not None and at == seen and at != said:
                said = at
                await self._tell(say="at", at=at)
            seen = at
            if at is not None and at == said and time.monotonic() - reported_at > REPORT_S:
                newest = self._logbook.reported()
                if newest is not None and newest != reported:
                    reported, reported_at = newest, time.monotonic()
                    await self._tell(say="progress", reported=tuple(newest))
            if self._watched is not None and at == self._watched[0]:
                await self._look_at_memory(*self._watched)
            if time.monotonic() - details_at > DETAILS_S:
                details_at = time.monotonic()
                await self._tell(say="details", details=await asyncio.to_thread(self._details))
            await asyncio.sleep(HOST_LOOK_S)

    async def _look_at_memory(self, at: At, limit: int) -> None:
        """Report the memory of the process and its children, if it is above the limit."""
        if time.monotonic() < self._meter.due_at(limit):
            return
        found = await asyncio.to_thread(self._meter.measure, self._probe, limit)
        if found is not None and found.total > limit:
            await self._tell(say="above", at=at, memory=tuple(found))

    def _details(self) -> tuple[Any, ...] | None:
        details = self._probe.details()
        return None if details is None else tuple(details)

    async def _see_end(self, relay: asyncio.Task[None]) -> None:
        """Wait until the process is dead, and send its last words behind all its messages."""
        code = await self._process.wait()
        await asyncio.wait([relay], timeout=DRAIN_S)
        self._ended.set()
        await self._tell(say="gone", code=code, page=tuple(self._logbook.read()), left=self._left)

    # From the bus to the process.

    async def _obey(self, message: PlainMessage) -> None:
        match message["do"]:
            case "batch":
                self._tokens.release(message["tokens"])
                self._write(message["data"], self._event_of(message))
            case "recall":
                # Taken and reported in one step, so that the bus hears of the returned deliveries
                # before any report of the process that was written after the step.
                await self._tell(say="returned", count=self._tokens.take(message["most"]))
            case "glance":
                page = self._logbook.glance()
                await self._tell(say="page", page=None if page is None else tuple(page))
            case "stack":
                await self._tell(say="stack", stack=await self._stack_now())
            case "cancel":
                self._logbook.cancel(*message["at"][:2])
            case "watch":
                self._watched = tuple(message["at"]), message["limit"]
            case "halt":
                await self._tell(say="halted", **await self._halt(tuple(message["at"])))
            case "resume":
                self._probe.resume()
            case "stop":
                self._family = self._probe.family()
                self._write(STOP)
            case "kill":
                await asyncio.to_thread(self._probe.kill_tree)

    def _event_of(self, message: PlainMessage) -> bytes:
        """Return the large event that a message carries or refers to; empty if it has none."""
        for number in message["gone"]:
            self._kept.pop(number, None)
        if "keep" in message:
            self._kept[message["keep"]] = message["event"]
            return self._kept[message["keep"]]
        return self._kept[message["again"]] if "again" in message else b""

    def _write(self, data: bytes, event: bytes = b"") -> None:
        # This does not wait until the process reads the data, because a kill may follow. At most
        # two batches are kept in this process.
        with contextlib.suppress(OSError):  # the process is dead: its end is reported
            self._writer.writelines((SIZE.pack(len(data) + len(event)), data, event))

    async def _stack_now(self) -> str:
        if self._probe.stopped():
            return ""
        await _in_steps(self._stack.ask(self._probe.send_signal))
        return self._stack.read()

    async def _halt(self, at: At) -> PlainMessage:
        """Have the process write its stack, and halt it if it is still at that delivery."""
        probe = self._probe
        if self._logbook.running() != at:
            return {"still": False, "stack": ""}
        stack = await self._stack_now()
        halted = await _in_steps(probe.stop())
        still = self._logbook.running() == at
        if halted and not still:
            probe.resume()
        return {"still": still, "stack": stack}

    # The end.

    async def leave(self) -> None:
        """Let the process finish its delivery, at most `LEAVE_S`; then its end is reported."""
        self._left = True
        while self._tokens.take(1 << 16):
            pass
        self._write(STOP)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._ended.wait(), LEAVE_S)
            return
        await asyncio.to_thread(self._probe.kill_tree)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._ended.wait(), WORKER_STOP_S)

    async def _clean_up(self, tasks: list[asyncio.Task[None]]) -> None:
        if hasattr(self, "_process"):
            if self._process.returncode is None:
                await asyncio.to_thread(self._probe.kill_tree)
            await self._process.wait()
            if self._family:
                await asyncio.to_thread(end_all, self._family, LEFT_S)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if hasattr(self, "_writer"):
            self._writer.close()
        self._logbook.close()
        self._stack.close()
        self._tokens.close()
        self._logbook_file.unlink(missing_ok=True)


async def _in_steps(steps: Task[R]) -> R:
    """Run a generator that waits in steps, and let other tasks run meanwhile."""
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            result: R = stop.value
            return result
        await asyncio.sleep(TURN_S)


async def _quietly(work: Awaitable[None]) -> None:
    """Await work, and ignore that the other end or the process is gone: other code handles that."""
    with contextlib.suppress(OSError, EOFError):
        await work


def _logbook_in(file: Path) -> Logbook:
    """Make a logbook with a file name, so that any process of this machine can read it."""
    return Logbook.create(os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
