# SPDX-License-Identifier: MIT
"""The loop of a worker: take a batch, run it, send the results, take the next.

The first result waits for the imports of this module. So it imports only the codec and a few nouns.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
from collections.abc import Callable, Sequence
from contextvars import Context
from functools import partial
from math import inf
from time import monotonic, sleep
from typing import Any, Protocol

from procbus.codec.encoder import ClassNumber, Encoder, decode, encode_alone, encode_atom
from procbus.codec.in_head import Maker, size_in_head
from procbus.codec.script_globals import start_anew
from procbus.core.context import (
    ONLY_RUN,
    THREADS_INHERIT,
    HandlerContext,
    Run,
    another,
    keep_event,
    run_seated,
    running,
)
from procbus.core.frames import useful_cause
from procbus.core.log import pool_log as log
from procbus.core.unfinished import complete, unfinished
from procbus.core.user_objects import bases_of, full_name, is_a, text_of, traceback_of
from procbus.core.worker import CurrentWorker
from procbus.pool.child.self import described, flush_output, resident_bytes
from procbus.pool.child.usage import TIMED, Tally
from procbus.pool.child.user_code import UserCode
from procbus.pool.logbook import CAPACITY, ENDED, Logbook
from procbus.pool.memory.batches import load_parts
from procbus.pool.memory.shared_file import LOADERS, PLAIN, Form
from procbus.pool.memory.worker_side import WorkerMemory
from procbus.pool.wire import (
    FIRST_SHAPE,
    FLUSH_S,
    GREATEST_INT,
    IN_HEAD,
    IS_FLOAT,
    IS_INT,
    LEAST_INT,
    REST,
    STOP,
    CommonHead,
    Ending,
    Tag,
    Variables,
    pack_bare,
    pack_definition,
    pack_end,
    pack_float,
    pack_int,
    pack_success,
    results_head,
    shared_results,
    unpack_batch,
)
from procbus.system import forked_children

# The end of a delivery, laid out for the parent: its result, or the reason why there is none.


class Ends:
    """Lays out ends of deliveries, with their times. Only the worker's main thread uses it.

    `Worker` itself lays out small results whose encoding cannot fail, without a call of this class.

    Args:
        encoder: the encoder of the worker, for results.
        memory: memory for large results.
    """

    def __init__(self, encoder: Encoder, memory: WorkerMemory) -> None:
        self._encoder = encoder
        self._memory = memory

    def succeeded(
        self,
        value: Any,
        published: Sequence[tuple[str | None, Any]],
        started_at: float,
        ended_at: float,
        function: object = None,
        given: Any = None,
    ) -> tuple[bytes, float]:
        """Lay out the result and the events of a handler; a failure if these cannot travel.

        Args:
            value: the result.
            published: the events.
            started_at: start of the delivery, in seconds of `time.monotonic()`.
            ended_at: its end.
            function: the function that returned the result; if it answers for several events, only
                the ones whose results cannot travel fail.
            given: the argument of that function.
        """
        try:
            if value.__class__ in PLAIN and not published:
                if ahead := self._memory.put_plain(value):
                    return ahead + pack_end(started_at, ended_at, REST), ended_at
                return pack_success(started_at, ended_at, encode_atom(value)), ended_at
            whole = (int(Ending.SUCCEEDED), value, published) if published else value
            frame = self._encoder.encode(whole)
            # Taken from the encoder, because a view of the event would count as kept by the
            # handler.
            ahead = b""
            if self._encoder.buffers or len(frame) >= self._memory.least_result:
                buffers, self._encoder.buffers = self._encoder.buffers, []
                ahead, frame = self._memory.put(
                    frame, buffers, partial(self._encoder.encode_whole, whole)
                )
        except BaseException as error:  # noqa: BLE001 - pickling runs the user's code
            from procbus.codec.batch_call import CallForMany  # only now: these are rarely needed
            from procbus.codec.fault_path import path_of_fault

            if isinstance(function, CallForMany):
                in_part = function.in_part(value, given)
                if in_part is not None:
                    return self.succeeded(in_part, published, started_at, ended_at)
            path = path_of_fault(value, "result") or path_of_fault(
                [event for _, event in published], "published"
            )
            return self.failed(Ending.NO_RESULT, error, started_at, len(published), path)
        if made := self._encoder.take_definitions():
            ahead = _packed(made) + ahead
        pack = pack_end if published else pack_success
        return ahead + pack(started_at, ended_at, frame), ended_at

    def failed(
        self, ending: Ending, error: BaseException, started_at: float, dropped: int, path: str = ""
    ) -> tuple[bytes, float]:
        """Lay out why a delivery failed; it ends now.

        Args:
            ending: the step that failed.
            error: the error.
            started_at: start of the delivery, in seconds of `time.monotonic()`.
            dropped: number of events that the handler published, which are dropped.
            path: place of the object that cannot travel, if known.
        """
        ended_at = monotonic()
        missing, text, summary = described(error)
        travelling: bytes | None = None
        kinds: tuple[str, ...] = ()
        if ending is Ending.RAISED:
            travelling = self._travelling(error)
            if travelling is None:
                kinds = tuple(map(full_name, bases_of(type(error))))
        else:  # the parent describes the error by the summary
            cause = useful_cause(error)
            text = "" if cause is None else text_of(cause, traceback_of(cause))
        value = (travelling, summary, text, path, missing if type(missing) is str else None, kinds)
        frame = self._encoder.encode_whole((int(ending), value, dropped))
        made = _packed(self._encoder.take_definitions())
        return made + pack_end(started_at, ended_at, frame), ended_at

    def _travelling(self, error: BaseException) -> bytes | None:
        """Return a handler's exception pickled; None if it does not pickle or does not unpickle.

        Many exceptions pickle but do not unpickle. The worker tries to unpickle, because a failure
        in the worker harms no other delivery.
        """
        for reduced_to_what_travels in (False, True):
            with contextlib.suppress(BaseException):  # pickling runs the user's code
                data = self._encoder.encode_error(error, reduced_to_what_travels)
                if is_a(decode(data), BaseException):
                    return data
        return None


def _packed(definitions: Sequence[tuple[ClassNumber, bytes]]) -> bytes:
    return b"".join(pack_definition(number, definition) for number, definition in definitions)


#: Minimum size of results that stay in the logbook for the parent to read there, in bytes.
LEFT_BYTES = 8 << 10
#: Maximum of checks whether the parent has read the results that the next ones would overwrite, and
#: the interval between two checks, in seconds.
LOOKS, LOOK_AGAIN_S = 200, 100e-6

#: Maximum time for loading a handler before its first run, in seconds. This time covers the imports
#: of the handler's module, and does not count as the handler's own time. Otherwise a handler with a
#: short timeout would never run, because each worker would be killed while it imports.
LOAD_S = 60.0

#: Maximum share of a handler's `max_memory` that a worker may use when the handler begins; a worker
#: that uses more leaves the delivery to a new worker.
GROWN = 0.9

#: Minimum interval between two readings of the memory for such handlers, in seconds.
MEMORY_LOOK_S = 0.001


_BUFFERS = int(Form.BUFFERS)
#: Number of variables in the context of a batch while no handler has left any: only `running`.
_CLEAN = 1


class Tokens(Protocol):
    """A semaphore shared with the parent: one token for each delivery that may still begin."""

    def acquire(self, block: bool = True) -> bool:
        """Take a token; with `block=False` only if there is one."""


class Worker:
    """The work of one worker. It belongs to the worker's main thread.

    Args:
        send: sends a message, given in parts, to the parent.
        logbook: the worker's logbook.
        tokens: one token for each delivery that may begin.
        number: number of the worker, unique in the parent.
        run: the run of the bus, for `current()`.
        flush_s: maximum wait of finished results for others, in seconds.
        worker: the worker's number in the lane, and its resources.
        looks: maximum of checks whether the parent has read results.
        ran_s: returns the time that the present handler has been running, in seconds; None for the
            time that really passes.
    """

    def __init__(
        self,
        send: Callable[..., object],
        logbook: Logbook,
        memory: WorkerMemory,
        tokens: Tokens,
        number: int,
        run: Run = ONLY_RUN,
        flush_s: float = FLUSH_S,
        worker: CurrentWorker | None = None,
        *,
        looks: int = LOOKS,
        ran_s: Callable[[], float] | None = None,
    ) -> None:
        self.send = send
        self._looks = looks
        self._ran_s = ran_s
        self._flush_s = flush_s
        self._run_of_bus = run
        self._here = CurrentWorker() if worker is None else worker
        #: The functions of handlers with eager resources, pickled.
        self.eager = b""
        self._logbook = logbook
        self._memory = memory
        self._claim = tokens.acquire
        self._encoder = Encoder(number, memory.large)
        self._ends = Ends(self._encoder, memory)
        start_anew()
        self._code = UserCode(self._encoder)
        #: A field, because every delivery uses it.
        self._loaded = self._code.functions.get
        #: Whether a delivery was run. A delivery is refused only because of memory that earlier
        #: deliveries left behind.
        self._used = False
        self._tally = Tally()
        #: Not empty in a child that the user's code forked in this worker: the child is no worker.
        self._forked: list[bool] = []
        self._strays_logged = 0
        #: The context that each handler begins with, with the variables that the set-up has left,
        #: usually none; and the context of batches. While no handler has left a variable in the
        #: context of batches, handlers run in that context.
        self._base, self._own = Context(), Context()
        #: Length of the context of batches while no handler has left a variable in it; a length
        #: that it never has if the set-up left variables.
        self._clean = _CLEAN

    def set_up(self, init: bytes) -> bool:
        """Run the user's set-up, then open the eager resources.

        If the set-up fails, tell the parent, and return False. If a resource fails, log that.
        """
        try:
            if init:
                self._logbook.begin_set_up(monotonic())
                function = decode(init)
                self._base.run(function)
                if self._base:
                    self._clean = -1
                self._check_here(None)
                self._code.keep_set_up(function)
                self._logbook.end_set_up()
            if self.eager:
                self._open_eager()
        except BaseException as error:  # noqa: BLE001 - it is the user's code
            self._check_here(error)
            _, text, summary = described(error)
            self.send(Tag.BROKEN.value, encode_alone((summary, text)))
            return False
        return True

    def _open_eager(self) -> None:
        self._logbook.begin_set_up(monotonic())
        try:
            functions = decode(self.eager)
        except Exception:  # noqa: BLE001 - loading runs the user's code
            log.exception("eager resources could not be loaded: the first event tries again")
            functions = ()
        for function in functions:
            function.open_eager(self._here)
            self._check_here(None)
        self._logbook.end_set_up()

    def serve(self, receive: Callable[[], bytes | bytearray | None]) -> None:
        """Greet the parent, then run batches until it says stop or is gone."""
        self.send(Tag.HELLO.value + str(os.getpid()).encode())
        while True:
            try:
                message = receive() or STOP
            except (EOFError, OSError):
                os._exit(1)  # the parent is gone, so a report has no reader
            if message == STOP:
                self._tell_sums(self._tally.rest())
                self._here.close()
                self._logbook.open_batch(ENDED)  # before the look: later strays log themselves
                if self._logbook.strays() != self._strays_logged:
                    self._tell_strays()
                return
            self.run_batch(message)
            message = b""  # the message may be large, and the next may be long in coming
            del message  # it may be large, and the next one may be long in coming

    def run_batch(self, message: bytes | bytearray) -> None:
        """Run the deliveries of a batch that have tokens, and send their ends."""
        try:
            self._own.run(self._run_batch, message)
        finally:
            if len(self._own) != _CLEAN:  # a handler has left a variable in it
                self._own = Context()

    def _run_batch(self, message: bytes | bytearray) -> None:
        head, events = unpack_batch(message)
        events = self._memory.begin(head, events)
        self._code.learn(head)
        if self._forked:
            self._check_here(None)
        self._encoder.look_again()
        logbook, claim, forked = self._logbook, self._claim, self._forked
        flush_s = self._flush_s
        logbook.open_batch(head.number)
        done, position, at = 0, 0, -1
        count, places = len(head.ids), head.large
        atoms, sizes, parts = iter(head.atoms), iter(head.sizes), iter(head.parts)
        makers = [Maker(shape) for shape in head.shapes]
        careful = self._code.limits if head.careful else {}
        # Only in these cases can a handler keep a view of a large event, or drop one that it kept.
        watched = bool(places) or self._memory.keeps
        ended_at = sent_at = monotonic()
        looked_at, resident = 0.0, 0
        for event_id, which, form in zip(head.ids, head.which, head.forms, strict=True):
            if careful:
                if ended_at - looked_at > MEMORY_LOOK_S:
                    looked_at, resident = ended_at, resident_bytes()
                # Memory that other handlers left behind would count for a handler with a limit.
                limit = careful.get(head.kinds[which][0], inf)
                if resident > GROWN * limit and (done or self._used):
                    # The worker takes the tokens of the deliveries it leaves. The next batch must
                    # not use those tokens.
                    for _ in head.ids[done:]:
                        claim(False)
                    break
            # Without a token the parent has taken the rest of the batch back.
            if not claim(False):
                break
            if which != at:
                kind = head.kinds[which]
                self._tally.turn(kind[0], done)
                at = which
            started_at = monotonic()
            logbook.begin(done, started_at)
            load: Callable[[Any], Any] | None
            large = None
            if form >= IN_HEAD:
                event = next(atoms)
                load = None if form == IN_HEAD else makers[form - FIRST_SHAPE]
            else:
                size = next(sizes)
                event = events[position : position + size]
                position += size
                if places and (large := places.get(done)) is not None:
                    load = partial(self._memory.load, large=large)
                elif form == _BUFFERS:
                    load = partial(load_parts, next(parts))
                else:
                    load = LOADERS[form]
            result, ended_at = self._run(kind, event_id, load, event, started_at, done)
            if forked:
                self._check_here(None)
            done += 1
            if watched:
                result = self._memory.note_end(large) + result
            if not logbook.finish(done, result):
                # The logbook has no room for this result. Results go out before the next delivery.
                self._make_room(head.number, done, result)
                sent_at = ended_at
            elif ended_at - sent_at > flush_s and done < count:
                self._flush(head.number, done, complete=False)
                sent_at = ended_at
        self._used = self._used or done > 0
        self._tally.turn(None, done)
        self._tell_sums(self._tally.due())
        if logbook.strays() != self._strays_logged:
            self._tell_strays()
        flush_output()
        self._flush(head.number, done, complete=True)

    def note_fork(self) -> None:
        """Note that the user's code forked this process, which must end once that code returns."""
        self._forked.append(True)

    def _check_here(self, error: BaseException | None) -> None:
        """End this process if the user's code forked it.

        Args:
            error: the error that ended the user's code; None if it returned.
        """
        if self._forked:
            is_read = self._logbook.note_stray()  # by the worker
            forked_children.end_child(error, "" if is_read else "a worker")

    def _tell_strays(self) -> None:
        """Log the number of forked children that returned into this loop since the last log."""
        came_back = self._logbook.strays()
        log.warning(
            "%s of the processes that handlers or worker_init forked in worker %s came back from "
            "there and were ended: end such a child with os._exit()",
            came_back - self._strays_logged,
            os.getpid(),
        )
        self._strays_logged = came_back

    def _tell_sums(self, sums: dict[int, tuple[float, ...]]) -> None:
        if sums:
            self.send(Tag.MEASURED.value, pickle.dumps(sums))

    def _flush(self, batch: int, done: int, *, complete: bool) -> None:
        """Send the kept results, or leave them in the logbook and send their place."""
        logbook = self._logbook
        unsent = logbook.unsent()
        if logbook.shares and len(unsent) >= LEFT_BYTES and (place := self._place()) is not None:
            unsent.release()
            self.send(shared_results(batch, done, complete, place))
            logbook.sent(done, left=True)
            return
        self.send(results_head(batch, done, complete), unsent)
        unsent.release()
        logbook.sent(done)

    def _place(self) -> tuple[int, int] | None:
        """Place of the results in the logbook; None if the parent is behind in reading.

        In that case the results are sent through the pipe, which waits for the parent.
        """
        for _ in range(self._looks):
            if (place := self._logbook.place()) is not None:
                return place
            sleep(LOOK_AGAIN_S)
        return None

    def _make_room(self, batch: int, done: int, result: bytes) -> None:
        """Make room in the logbook for the result of the last finished delivery."""
        if len(result) <= CAPACITY:  # only the earlier results take up the room
            self._flush(batch, done - 1, complete=False)
            self._logbook.finish(done, result)
            return
        unsent = self._logbook.unsent()
        self.send(results_head(batch, done, False), unsent, result)
        unsent.release()
        self._logbook.sent(done)

    def _run(
        self,
        kind: CommonHead,
        event_id: int,
        load: Callable[[Any], Any] | None,
        event: Any,
        started_at: float,
        index: int,
    ) -> tuple[bytes, float]:
        """Run one delivery; return its end, laid out for the parent, and the time of its end.

        Args:
            kind: the properties that the delivery shares with others.
            event_id: id of its event.
            load: makes the event from its encoded form; None for a number or string.
            event: the encoded event.
            started_at: start of the delivery, in seconds of `time.monotonic()`.
            index: place of the delivery in the batch.
        """
        handler = kind[0]
        published: list[tuple[str | None, Any]] = []
        known = self._loaded(handler)
        if known is None:
            # A start in the future, because the handler's time limit counts from this start.
            self._logbook.begin(index, started_at + LOAD_S)
        try:
            function = known or self._code.load(handler)
        except BaseException as error:  # noqa: BLE001 - loading runs the user's code
            self._check_here(error)
            return self._ends.failed(Ending.NO_HANDLER, error, started_at, 0)
        if load is not None:
            try:
                event = load(event)
                if not index % TIMED:
                    self._tally.unpacking_s += monotonic() - started_at
            except BaseException as error:  # noqa: BLE001 - decoding runs the user's code
                self._check_here(error)
                return self._ends.failed(Ending.NO_EVENT, error, started_at, 0)
        if known is None:
            if "procbus.core.supplied" in sys.modules:  # a handler with resources has arrived
                try:
                    self._open_ahead(function, kind, event_id)
                except BaseException as error:  # noqa: BLE001 - it runs the user's code
                    self._check_here(error)
                    del self._code.functions[handler]  # so that the next delivery tries again
                    return self._ends.failed(Ending.RAISED, error, started_at, 0)
            self._tally.begin_anew(handler, index)
            started_at = monotonic()
            self._logbook.begin(index, started_at)
            if self._forked:  # the event forked while it was unpickled: this is no worker
                self._check_here(None)
        seat = [self._make_context, kind, event_id, published]
        running.set(seat)
        context = None
        if kind[4] is not None or len(self._own) != self._clean:
            try:
                context = self._context_for(kind[4])
            except BaseException as error:  # noqa: BLE001 - decoding runs the user's code
                self._check_here(error)
                return self._ends.failed(Ending.NO_EVENT, error, started_at, 0)
        try:
            if context is None:
                value = function(event)
            else:
                value = context.run(run_seated, seat, function, event)
        except BaseException as error:  # noqa: BLE001 - any exception of a handler is its outcome
            self._check_here(error)
            if published:
                from procbus.core.no_receipt import explain_missing_receipt  # few runs fail

                explain_missing_receipt(error)
            return self._ends.failed(Ending.RAISED, error, started_at, len(published))
        finally:
            running.set(None)
            if THREADS_INHERIT:
                seat.clear()
        ended_at = monotonic()
        if not published:
            if value is None:
                return pack_bare(started_at, ended_at, 0), ended_at
            returned = type(value)
            if returned is int and LEAST_INT <= value <= GREATEST_INT:
                return pack_int(started_at, ended_at, IS_INT, value), ended_at
            if returned is float:
                return pack_float(started_at, ended_at, IS_FLOAT, value), ended_at
            if size_in_head(value):  # such a value cannot fail to be encoded
                return pack_success(started_at, ended_at, encode_atom(value)), ended_at
        if id(type(value)) not in complete and (
            wrong := unfinished(self._code.names[handler], value)
        ):
            return self._ends.failed(Ending.RAISED, wrong, started_at, len(published))
        end = self._ends.succeeded(value, published, started_at, ended_at, function, event)
        if not index % TIMED:
            self._tally.unpacking_s += monotonic() - ended_at
        return end

    def _open_ahead(self, function: Callable[..., Any], kind: CommonHead, event_id: int) -> None:
        """Open the resources that a newly arrived handler needs, before its first run."""
        from procbus.core.supplied import supplied_in  # loaded with it

        found = supplied_in(function)
        if found is not None:
            running.set([self._make_context, kind, event_id, []])
            try:
                found.open_ahead(self._here)
            finally:
                running.set(None)

    def _context_for(self, variables: Variables | None) -> Context:
        """Make a handler's own context, with the variables from the publisher."""
        context = another(self._base)
        if variables is not None:
            number, data = variables
            known = self._code.variables(number)
            for place, value in decode(data):
                context.run(known[place].set, value)
        return context

    def _make_context(
        self, kind: CommonHead, event_id: int, published: list[tuple[str | None, Any]]
    ) -> HandlerContext:
        """Make the return value of `current()` in a handler."""
        handler, parent_id, topic, attempt, _ = kind
        publish = partial(keep_event, published)
        name, run = self._code.names[handler], self._run_of_bus
        about = name, event_id, parent_id, topic, attempt
        state = _RunInWorker(self._logbook, self._code.timeouts.get(handler), self._ran_s)
        return HandlerContext(*about, publish, None, run, state, self._here)


class _RunInWorker:
    """The run of a handler in this worker, as its `current()` sees it.

    Args:
        logbook: the logbook, in which the run has begun.
        timeout: time limit of the run, in seconds; None for no limit.
        ran_s: returns the time that the handler has been running, in seconds; None for the time
            that really passes.
    """

    def __init__(
        self, logbook: Logbook, timeout: float | None, ran_s: Callable[[], float] | None
    ) -> None:
        self.begin_reports = logbook.begin_reports
        self.cancelled = logbook.watch_cancelled()
        self._timeout = timeout
        self._began_at = 0.0 if timeout is None else logbook.began_at()
        self._ran_s = ran_s

    def remaining_s(self) -> float | None:
        """Seconds until the run's time limit; None without a limit."""
        if self._timeout is None:
            return None
        ran_s = monotonic() - self._began_at if self._ran_s is None else self._ran_s()
        return max(0.0, self._timeout - ran_s)
