# SPDX-License-Identifier: MIT
"""A worker process under a Dask worker, seen from its companion.

`ParentEnd` does all that does not depend on the machine. Machines share no memory, so the companion
has to ask the worker, and gets its answer a moment later.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, NoReturn

from procbus.codec.encoder import decode
from procbus.core.context import Run
from procbus.core.delivery import Delivery
from procbus.core.errors import ProcbusError, WorkerTraceback
from procbus.core.progress import Progress
from procbus.pool.child.ending import WORKER_STOP_S
from procbus.pool.dask.clock_skew import boot_id, ends_here, progress_here, report_here
from procbus.pool.dask.engine import Client, Connection, Said, last_page, packed
from procbus.pool.dask.event_cache import RemoteEvents
from procbus.pool.dask.remote_state import ANSWER_S, RemoteState
from procbus.pool.forwarding import levels_here
from procbus.pool.handler_cache import Definitions
from procbus.pool.interface import (
    NO_SUCCESSES,
    At,
    LastWords,
    Message,
    Report,
    SetUpFailed,
    WorkerGone,
)
from procbus.pool.logbook import Page
from procbus.pool.memory.events import EventMemory
from procbus.pool.memory.results import ResultReader
from procbus.pool.parent_end import ParentEnd
from procbus.pool.wire import Tag
from procbus.system.cooperative import Task
from procbus.system.footprint import Footprint
from procbus.system.process import Details

#: Maximum of batches on their way ahead of the running one, in bytes.
AHEAD_BYTES = 1 << 20
#: Maximum wait for a Dask worker to start a process, in seconds.
START_S = 30.0


class DaskWorker:
    """One worker process under a Dask worker. See `procbus.pool.interface.Worker`.

    Args:
        definitions: encoded handlers, by number: shared by all workers of a pool.
        memory: memory of the pool, which stays empty, because machines cannot share memory.
        init: the user's set-up, pickled.
        run: the run of the bus, for `current()`.
        on_kill: called when the worker is killed, to wake a thread that waits to begin it.
        place: its number in the lane.
        eager: the functions of handlers with eager resources, pickled.
        connect: makes the connection to the Dask worker.
    """

    #: No process of this machine.
    probe, thread = None, None

    def __init__(
        self,
        definitions: Definitions,
        memory: EventMemory,
        init: bytes,
        run: Run,
        on_kill: Callable[[], object],
        *,
        place: int = 0,
        eager: bytes = b"",
        connect: Callable[..., Connection] = Connection,
    ) -> None:
        self._connect = connect
        self._end = ParentEnd(definitions, memory, ResultReader(memory, 1))
        self._init = init
        self._run = run
        self._on_kill = on_kill
        self._place, self._eager = place, eager
        self._unread_bytes: dict[int, int] = {}
        #: Guards `_offered`, `_recalls`, `_line` and `_closed`: the companion sends and closes,
        #: other threads take back and kill.
        self._lock = threading.Lock()
        #: Batches not sent yet, in order, with the number of deliveries in each that may begin.
        self._offered: dict[int, int] = {}
        #: Number of requests to give deliveries back that are not answered yet.
        self._recalls = 0
        #: Messages of its process that are not read yet. Owned by the companion.
        self._pieces: deque[bytes] = deque()
        self._kept = RemoteEvents()
        self._state = RemoteState(self._say)
        self._client: Client | None = None
        self._line: Connection | None = None
        self._release: Callable[[], object] = _nothing
        self._nanny: str | None = None
        self._logbook = ""
        self.killed = False
        self._closed = False

    def begin(self, client: Client, address: str, release: Callable[[], object]) -> None:
        """Start the process under a Dask worker, and wait until it is ready.

        Args:
            client: a client of the cluster.
            address: address of the Dask worker.
            release: called once the worker has ended there.

        Raises:
            OSError: the Dask worker cannot be reached, or does not answer. Try another one.
            WorkerGone: the process died before it was ready.
        """
        asked_at = monotonic()
        self._client = client
        line = self._connect(
            client,
            address,
            self._state.take,
            number=self._end.number,
            levels=levels_here(),
            init=packed(self._init),
            run=tuple(self._run),
            place=self._place,
            eager=packed(self._eager),
        )
        try:
            self._learn(line.hear(START_S), asked_at)
        except BaseException as error:
            line.close()
            if isinstance(error, EOFError):
                raise OSError(f"{address} hung up") from error
            raise
        with self._lock:
            self._line, self._release = line, release
            if self.killed:
                line.say(do="kill")
        self._read_hello()

    def _read_hello(self) -> None:
        while True:
            message = self._hear(None)
            if message is None or message["say"] != "data":
                continue
            data = message["data"]
            match Tag(data[:1]):
                case Tag.HELLO:
                    self._end.pid = self._state.pid
                    self._state.set_up_since = None
                    return
                case Tag.BROKEN:
                    self._refuse(data[1:])
                case _:
                    self._end.take_aside(data)

    def _learn(self, message: Said | None, asked_at: float) -> None:
        if message is None:
            raise OSError(
                f"no answer in {START_S:.0f} s: is procbus[dask] installed there, in this version?"
            )
        self._nanny, self._logbook = message["nanny"], message["logbook"]
        if not message["boot"] or message["boot"] != boot_id():
            # The time in its answer is taken as halfway between question and answer.
            self._state.ahead_s = (asked_at + monotonic()) / 2 - message["now"]

    def _refuse(self, data: bytes) -> NoReturn:
        summary, traceback = decode(data)
        error = ProcbusError(f"worker_init failed: {summary}")
        error.__cause__ = WorkerTraceback(traceback)
        self._close()
        raise SetUpFailed(None) from error

    @property
    def pid(self) -> int | None:
        """Its process id, on its machine; None until it is ready."""
        return self._state.pid

    @property
    def details(self) -> Details | None:
        """The details of its process that its host reported, some seconds old."""
        return self._state.details

    # From the lane to the worker.

    def prepare(self, batch: int, deliveries: Sequence[Delivery]) -> Message:
        """Encode a batch: each event alone, each handler once for this worker."""
        return self._end.prepare(batch, deliveries)

    def offer(self, message: Message) -> None:
        """Note how many deliveries may begin; the message tells the worker."""
        with self._lock:
            self._offered[message.batch] = len(message.deliveries)

    def fits_ahead(self, message: Message) -> bool:
        """Whether few enough bytes are on their way."""
        return sum(self._unread_bytes.values()) + len(message.data) <= AHEAD_BYTES

    def send(self, message: Message) -> None:
        """Send a batch. If the worker is dead, `receive` finds out."""
        self._end.sent(message)
        self._unread_bytes[message.batch] = len(message.data)
        with self._lock:
            tokens = self._offered.pop(message.batch)
            self._say(do="batch", tokens=tokens, **self._kept.fields(message))

    def wait_for_room(self, timeout_s: float) -> None:
        """Return at once: no memory is shared, so there is always room."""

    def take_back(self, most: int) -> int:
        """Take back unsent deliveries; request the others, which a report will return."""
        taken = 0
        with self._lock:
            if self._closed:
                return 0
            for batch in reversed(self._offered):
                count = min(self._offered[batch], most - taken)
                self._offered[batch] -= count
                taken += count
            if taken < most:
                self._recalls += 1
                self._say(do="recall", most=most - taken)
        return taken

    @property
    def waiting(self) -> bool:
        """Return False: its handlers have no access to the bus, so none can wait for it."""
        return False

    @property
    def recalling(self) -> bool:
        """Whether the worker was asked to give back deliveries, and has not answered yet."""
        return self._recalls > 0 and not self._closed

    # From the worker to the lane.

    def receive(self, patience_s: float | None = None) -> Report:
        """Wait for a report; log records on the way go to the parent's logging."""
        while True:
            message = self._hear(patience_s)
            if message is None:
                self._say(do="glance")
                patience_s = None
                continue
            match message["say"]:
                case "page":
                    page = message["page"]
                    report = self._end.glance(None if page is None else Page(*page))
                    return report_here(report, self._state.ahead_s)
                case "returned":
                    with self._lock:
                        self._recalls -= 1
                    if message["count"] and self._unread_bytes:
                        first = next(iter(self._unread_bytes))
                        return Report(first, NO_SUCCESSES, [], False, returned=message["count"])
                case "data":
                    data = message["data"]
                    if data[:1] == Tag.RESULTS.value:
                        return self._report(data)
                    self._end.take_aside(data)

    def _report(self, data: bytes) -> Report:
        report = self._end.report(data)
        self._unread_bytes[report.batch] = 0
        if report.complete:
            del self._unread_bytes[report.batch]
        at = self._state.at
        if at is not None and at[0][0] == report.batch and report.complete:
            self._state.at = None
        return report_here(report, self._state.ahead_s)

    def _say(self, **message: Any) -> None:
        if self._line is not None:
            self._line.say(**message)

    def _hear(self, timeout_s: float | None) -> Said | None:
        """Return the next message of its host; None if there is none in time."""
        assert self._line is not None
        if self._pieces:
            return {"say": "data", "data": self._pieces.popleft()}
        try:
            message = self._line.hear(timeout_s)
        except EOFError:
            raise self._lost() from None
        if message is not None and message["say"] == "gone":
            page = Page(*message["page"])
            raise self._gone(message["code"], self._words(page), left=message["left"])
        if message is not None and message["say"] == "data":
            self._pieces.extend(message["data"])
            return self._hear(timeout_s)
        return message

    def running(self) -> At | None:
        """The delivery that it reported last."""
        at = self._state.at
        return None if self._closed or at is None else at[0]

    def progress(self, at: At) -> Progress | None:
        """The last report of a handler, as the worker's host has told it."""
        return None if self._closed else self._state.progress(at)

    def set_up_since(self) -> float | None:
        """The start of its set-up, as reported."""
        return None if self._closed else self._state.set_up_since

    def ask_stack(self) -> Task[str]:
        """Have the worker's host read the stack."""
        answer = yield from self._state.ask(do="stack")
        return "" if answer is None else str(answer["stack"])

    def tell_cancelled(self, at: At) -> None:
        """Have the worker's host write into the logbook that the delivery is cancelled."""
        said = self._state.at
        if not self._closed and said is not None and said[0] == at:
            self._say(do="cancel", at=said[1])

    def watch_memory(self, at: At, limit: int) -> Footprint | None:
        """Have the worker's host watch the worker's memory."""
        return None if self._closed else self._state.watch(at, limit)

    def kill_in(self, at: At, condemn: Callable[[str], None]) -> Task[bool]:
        """Have the host halt the worker, and kill it if it still runs that delivery."""
        said = self._state.at
        if self.killed or self._closed or said is None or said[0] != at:
            return False
        answer = yield from self._state.ask(do="halt", at=said[1])
        if answer is None or not answer["still"]:
            return False
        still = False
        try:
            condemn(answer["stack"])
            still = self.killed = True
        finally:
            self._say(do="kill" if still else "resume")
        return True

    # The end.

    def _words(self, page: Page) -> LastWords:
        words = self._end.last_words(page, monotonic() - self._state.ahead_s)
        ahead_s = self._state.ahead_s
        progress = progress_here(words.progress, ahead_s)
        return words._replace(ends=ends_here(words.ends, ahead_s), progress=progress)

    def _lost(self) -> WorkerGone:
        """Describe the death of a worker whose line is dead; its nanny may have the logbook."""
        page = None
        if self._nanny is not None and self._client is not None:
            found = last_page(self._client, self._nanny, self._logbook, self.pid)
            page = None if found is None else Page(*found)
        if page is None:
            page = self._page_by_hearsay()
        return self._gone(None, self._words(page))

    def _page_by_hearsay(self) -> Page:
        """The last reported delivery, because no better source is left."""
        at = self._state.at
        if at is None:
            return Page(0, -1, False, 0.0, 0, 0, b"")
        batch, index, since = at[1]
        reported = self._state.reported
        last = None if reported is None else tuple(reported)
        return Page(batch, index, True, since, index, index, b"", last)

    def _gone(self, code: int | None, words: LastWords, *, left: bool = False) -> WorkerGone:
        if left:
            words = words._replace(ran_s=None)
        gone = WorkerGone(self.pid, code, words, left=left)
        self._close()
        return gone

    def hang_up(self) -> None:
        """Close the line, so that `receive` finds it dead."""
        if self._line is not None:
            self._line.hang_up()

    def stop(self) -> None:
        """Ask the process to end, and wait for it; kill it after `WORKER_STOP_S`."""
        try:
            for what, patience_s in (("stop", WORKER_STOP_S), ("kill", ANSWER_S)):
                self._say(do=what)
                self._hear_out(monotonic() + patience_s)
        except WorkerGone:
            pass
        self._close()

    def _hear_out(self, deadline: float) -> None:
        """Take in measurements and log records after the last report, until it is gone."""
        while not self._closed and self._line is not None and monotonic() < deadline:
            message = self._hear(max(0.0, deadline - monotonic()))
            if message is None or message["say"] != "data":
                continue
            if message["data"][:1] != Tag.RESULTS.value:
                self._end.take_aside(message["data"])

    def kill(self) -> None:
        """Have the process killed with its descendants; the companion finds it gone."""
        with self._lock:
            self.killed = True
            if self._line is not None and not self._closed:
                self._line.say(do="kill")
                self._line.hang_up(ANSWER_S)  # its machine may be cut off
        self._on_kill()

    def _close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._state.forget()
        if self._line is not None:
            self._line.close()
        self._end.close()
        release, self._release = self._release, _nothing
        release()


def _nothing() -> None:
    """Stand in for a release function while there is nothing to release."""
