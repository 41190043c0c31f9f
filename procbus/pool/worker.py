# SPDX-License-Identifier: MIT
"""What runs in a worker process: take a batch, run it, send the results, next.

Its start-up time is the time to the first result: it imports only the codec and a few nouns.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from math import inf
from multiprocessing.connection import Connection
from time import monotonic
from typing import Any, NamedTuple, Protocol

from procbus.codec import Encoder, decode, define_class, encode_alone, encode_atom
from procbus.context import ONLY_RUN, HandlerContext, Run, running
from procbus.pool.channel import Channel
from procbus.pool.large import PLAIN
from procbus.pool.logbook import Logbook
from procbus.pool.outlet import Outlet
from procbus.pool.process import end_with_parent, flush_output, resident_bytes, told
from procbus.pool.room import Room
from procbus.pool.set_up import SetUp
from procbus.pool.stack import StackPage
from procbus.pool.tally import Tally
from procbus.pool.wire import (
    IN_HEAD,
    REST,
    STOP,
    BatchHead,
    Ending,
    Kind,
    Large,
    Tag,
    pack_definition,
    pack_end,
    pack_success,
    results_head,
    size_in_head,
    unpack_batch,
)
from procbus.pool.worker_log import Forward, forward_logging, print_by_line
from procbus.pool.worker_memory import WorkerMemory

#: Finished results are sent once they have waited so long, in seconds, and with the batch's last.
FLUSH_S = 0.010

#: A worker that runs a handler for the first time may take so long, in seconds, to load it: to
#: import its module, and all that this imports. The handler's own time begins after that. Else
#: one with a short timeout would never run: each worker would be killed while it imports.
LOAD_S = 60.0

#: A worker that was told to stop has so long, in seconds, before it is killed.
STOP_S = 5.0

#: A worker that has more than this share of a handler's `max_memory` when that is to begin leaves
#: it to a new one.
GROWN = 0.9

#: Between deliveries of such handlers it looks at its memory so often at most, in seconds.
LOOK_S = 0.001


class Tokens(Protocol):
    """A semaphore shared with the parent: one token for each delivery that may still be begun."""

    def acquire(self, block: bool = True) -> bool:
        """Take a token; with `block=False` only if there is one."""


class WorkerSettings(NamedTuple):
    """What a worker has to know from the start."""

    #: Number of the worker, unique in the parent.
    number: int
    parent_pid: int
    nice: int | None
    #: Of the bus, for `current()`.
    run: Run
    #: Level of each logger that has one in the parent.
    log_levels: dict[str, int]


#: A delivery as it came: its kind, the id of its event, and that itself if it was in the head; else
#: the event as encoded, and where the large part of it lies.
_Delivery = tuple[Kind, int, Any, "memoryview | None", "Large | None"]

_worker: Worker | None = None
_forward: Forward
_receive: Callable[[], bytes | bytearray | None]


def prepare(
    pipe: Connection,
    logbook: Logbook,
    stack: StackPage,
    memory: tuple[Room, Room, float],
    tokens: Tokens,
    settings: WorkerSettings,
) -> None:
    """Set the process up. loky runs it once, before anything else."""
    # loky offers no other way from the initializer to the task.
    global _worker, _receive, _forward
    # Ctrl-C reaches the whole process group; what it means is the parent's decision. Not SIG_IGN:
    # programs that a handler starts would inherit that, and be left behind.
    signal.signal(signal.SIGINT, lambda *_: None)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    end_with_parent(settings.parent_pid)
    if settings.nice is not None:
        os.setpriority(os.PRIO_PROCESS, 0, settings.nice)
    channel = Channel(pipe, stay_awake=True)
    _forward = forward_logging(Outlet(channel.send, pipe.fileno()), settings.log_levels)
    print_by_line()
    _worker = Worker(
        _forward.report, logbook, WorkerMemory(*memory), tokens, settings.number, settings.run
    )
    _receive = channel.receive
    stack.listen()


def serve(init: bytes) -> None:
    """Work until told to stop: the one long task of the executor. Later calls do nothing.

    Args:
        init: the user's set-up of each worker, pickled; empty for none.
    """
    global _worker
    if _worker is not None:
        if _worker.set_up(init):
            _worker.serve(_receive)
            _forward.tell_the_rest()
        _worker = None
        # The interpreter waits for threads that a handler left behind, which may be for ever.
        threading.Thread(target=_end_in_time, name="procbus-stop", daemon=True).start()


def _end_in_time() -> None:
    time.sleep(STOP_S)
    os._exit(0)


class Worker:
    """The loop of one worker. Everything here belongs to its main thread.

    Args:
        send: sends a message, given in parts, to the parent.
        logbook: where to write down what it is at.
        tokens: one for each delivery that may be begun.
        number: of the worker, unique in the parent.
        run: of the bus, for `current()`.
    """

    def __init__(
        self,
        send: Callable[..., object],
        logbook: Logbook,
        memory: WorkerMemory,
        tokens: Tokens,
        number: int,
        run: Run = ONLY_RUN,
    ) -> None:
        self.send = send
        self._run_of_bus = run
        self._logbook = logbook
        self._memory = memory
        self._claim = tokens.acquire
        self._encoder = Encoder(number, memory.large)
        #: Definitions are loaded at the first delivery: what a broken one does is charged to it.
        self._definitions: dict[int, bytes] = {}
        self._functions: dict[int, Callable[[Any], Any]] = {}
        self._names: dict[int, str] = {}
        #: Memory in bytes that handlers with such a limit may have.
        self._limits: dict[int, int] = {}
        #: Whether a delivery was run: only what deliveries left behind is a reason to refuse one.
        self._used = False
        self._tally = Tally()
        self._sent_at = 0.0
        self._set_up: SetUp | None = None

    def set_up(self, init: bytes) -> bool:
        """Run the user's set-up; when it fails tell the parent so, and return False."""
        try:
            if init:
                self._logbook.begin_set_up(monotonic())
                function = decode(init)
                function()
                self._set_up = SetUp(function)
                self._logbook.end_set_up()
        except BaseException as error:  # noqa: BLE001 - it is the user's code
            _, text, summary = told(error)
            self.send(Tag.BROKEN.value, encode_alone((summary, text)))
            return False
        return True

    def serve(self, receive: Callable[[], bytes | bytearray | None]) -> None:
        """Greet the parent, then run batches until it says stop or is gone."""
        self.send(Tag.HELLO.value + str(os.getpid()).encode())
        while True:
            try:
                message = receive() or STOP
            except (EOFError, OSError):
                os._exit(1)  # the parent is gone: there is nobody to tell
            if message == STOP:
                return
            self.run_batch(message)

    def run_batch(self, message: bytes | bytearray) -> None:
        """Run a batch as far as there are tokens, and send what became of it."""
        head, events = unpack_batch(message)
        self._learn(head)
        self._memory.learn(head)
        self._encoder.look_again()
        logbook, claim = self._logbook, self._claim
        logbook.open_batch(head.number)
        self._sent_at = monotonic()
        done, position, at = 0, 0, -1
        atoms = iter(head.atoms)
        careful = self._limits if head.careful else {}
        ended_at, looked_at, resident = self._sent_at, 0.0, 0
        for event_id, which, size in zip(head.ids, head.which, head.sizes, strict=True):
            kind = head.kinds[which]
            if careful:
                if ended_at - looked_at > LOOK_S:
                    looked_at, resident = ended_at, resident_bytes()
                # What others left behind would be charged to a handler with a limit.
                if resident > GROWN * careful.get(kind[0], inf) and self._used:
                    # It has the tokens of what it leaves, or they would count for the next batch.
                    for _ in head.ids[done:]:
                        claim(False)
                    break
            # Without a token the parent has taken the rest of the batch back.
            if not claim(False):
                break
            if which != at:
                self._tally.turn(kind[0], done)
                at = which
            started_at = monotonic()
            logbook.begin(done, started_at)
            large = head.large.get(done) if head.large else None
            if size == IN_HEAD:
                atom, data = next(atoms), None
            else:
                atom, data = None, events[position : position + size]
                position += size
            delivery = kind, event_id, atom, data, large
            result, ended_at = self._run(delivery, started_at, done)
            done += 1
            self._used = True
            if large is not None or self._memory.keeps:
                result = self._memory.note_end(large) + result
            if not logbook.finish(done, result):
                # Too much to keep: send it at once, before the next delivery begins.
                unsent = logbook.unsent()
                self.send(results_head(head.number, done, False), unsent, result)
                unsent.release()
                logbook.sent(done)
                self._sent_at = ended_at
            elif ended_at - self._sent_at > FLUSH_S and done < len(head.ids):
                self._flush(head.number, done, complete=False)
                self._sent_at = ended_at
        self._tally.turn(None, done)
        if sums := self._tally.due():
            self.send(Tag.MEASURED.value, sums)
        flush_output()
        self._flush(head.number, done, complete=True)

    def _flush(self, batch: int, done: int, *, complete: bool) -> None:
        unsent = self._logbook.unsent()
        self.send(results_head(batch, done, complete), unsent)
        unsent.release()
        self._logbook.sent(done)

    def _learn(self, head: BatchHead) -> None:
        for number, definition in head.classes:
            cls = define_class(number, definition)
            if cls is not None:
                self._encoder.know(cls, number)
                if self._set_up is not None:
                    self._set_up.hand_on(cls)
        for handler in head.forgotten:
            for known in (self._names, self._definitions, self._functions, self._limits):
                known.pop(handler, None)
        for handler, name, definition, max_memory in head.handlers:
            self._names[handler] = name
            self._definitions[handler] = definition
            if max_memory is not None:
                self._limits[handler] = max_memory

    def _run(self, delivery: _Delivery, started_at: float, index: int) -> tuple[bytes, float]:
        """Run one delivery; return its end as laid out for the parent, and when that was."""
        kind, event_id, event, data, large = delivery
        handler = kind[0]
        published: list[tuple[str | None, Any]] = []
        known = self._functions.get(handler)
        if known is None:
            # In the future: a time limit counts from there.
            self._logbook.begin(index, started_at + LOAD_S)
        try:
            function = known or self._load(handler)
        except BaseException as error:  # noqa: BLE001 - loading runs the user's code
            return self._failed(Ending.NO_HANDLER, error, started_at, 0)
        if data is not None:
            try:
                event = decode(data) if large is None else self._memory.load(data, large)
                self._tally.unpacking_s += monotonic() - started_at
            except BaseException as error:  # noqa: BLE001 - decoding runs the user's code
                return self._failed(Ending.NO_EVENT, error, started_at, 0)
        if known is None:
            self._tally.spoil()
            started_at = monotonic()
            self._logbook.begin(index, started_at)
        # As take_seat, without the call.
        running.set([self._make_context, kind, event_id, published])
        try:
            value = function(event)
        except BaseException as error:  # noqa: BLE001 - all that a handler raises is its outcome
            return self._failed(Ending.RAISED, error, started_at, len(published))
        finally:
            running.set(None)
        ended_at = monotonic()
        if not published:
            if value is None:
                return pack_end(started_at, ended_at, b""), ended_at
            if size_in_head(value):  # nothing can go wrong with it
                return pack_success(started_at, ended_at, encode_atom(value)), ended_at
        try:
            if (
                value.__class__ in PLAIN
                and not published
                and (ahead := self._memory.put_plain(value))
            ):
                return ahead + pack_end(started_at, ended_at, REST), ended_at
            whole = (int(Ending.SUCCEEDED), value, published) if published else value
            frame = self._encoder.encode(whole)
            # Taken away from the encoder: a view of the event would count as kept by the handler.
            ahead = b""
            if self._encoder.buffers or len(frame) >= self._memory.large:
                buffers, self._encoder.buffers = self._encoder.buffers, []
                ahead, frame = self._memory.put(
                    frame, buffers, partial(self._encoder.encode_whole, whole)
                )
        except BaseException as error:  # noqa: BLE001 - pickling runs the user's code
            from procbus.blame import path_of_fault  # only now: it is rarely needed

            path = path_of_fault(value, "result") or path_of_fault(
                [event for _, event in published], "published"
            )
            return self._failed(Ending.NO_RESULT, error, started_at, len(published), path)
        self._tally.unpacking_s += monotonic() - ended_at
        pack = pack_end if published else pack_success
        return self._definitions_made() + ahead + pack(started_at, ended_at, frame), ended_at

    def _make_context(
        self, kind: Kind, event_id: int, published: list[tuple[str | None, Any]]
    ) -> HandlerContext:
        """Make what `current()` returns in a handler."""
        handler, parent_id, topic, attempt = kind

        def publish(event: Any, topic: str | None) -> None:
            if topic is not None:
                from procbus.topic import check_concrete  # only now: inspect takes time to import

                check_concrete(topic)
            published.append((topic, event))

        name, run = self._names[handler], self._run_of_bus
        return HandlerContext(name, event_id, parent_id, topic, attempt, publish, run=run)

    def _load(self, handler: int) -> Callable[[Any], Any]:
        function: Callable[[Any], Any] = decode(self._definitions[handler])
        if self._set_up is not None:
            self._set_up.hand_on(function)
        self._functions[handler] = function
        return function

    def _failed(
        self, ending: Ending, error: BaseException, started_at: float, dropped: int, path: str = ""
    ) -> tuple[bytes, float]:
        ended_at = monotonic()
        missing, text, summary = told(error)
        travelling: bytes | None = None
        if ending is Ending.RAISED:
            # Many exceptions pickle but do not unpickle: find out here, where it harms nobody.
            with contextlib.suppress(BaseException):
                data = self._encoder.encode_whole(error)
                travelling = data if isinstance(decode(data), BaseException) else None
        value = (travelling, summary, text, path, missing if isinstance(missing, str) else None)
        frame = self._encoder.encode_whole((int(ending), value, dropped))
        return self._definitions_made() + pack_end(started_at, ended_at, frame), ended_at

    def _definitions_made(self) -> bytes:
        made = self._encoder.take_definitions()
        return b"".join(pack_definition(n, d) for n, d in made) if made else b""
