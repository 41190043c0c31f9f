# SPDX-License-Identifier: MIT
"""Streaming: from an iterator of events to an iterator of settled receipts, in bounded memory."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import takewhile
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any

from procbus.core.errors import QueueFull
from procbus.core.locks import LOOK_UP_S
from procbus.core.notebook import cell_number, when_interrupted
from procbus.core.receipt import Receipt
from procbus.core.stats import SharedMemoryStats
from procbus.core.waiting import pause

# The number of open events of a stream: smaller if they are large.

#: Maximum share of the shared memory's limit that a stream's events may take in the script; because
#: their copies for workers take as much again for a moment.
_SHARE = 0.5
#: Interval between two readings of the shared memory's statistics, in seconds.
WINDOW_LOOK_S = 0.002


class Window:
    """The number of receipts that one stream may have open. Belongs to the stream's thread.

    A stream of small events may have `most`. Large events in progress may take no more memory in
    the script than `_SHARE` of the shared memory's limit. Their number follows from the mean size
    of the settled events. Until the first large event has been copied, the size is not known.

    Args:
        most: maximum of open receipts, for events of any size.
        workers: returns the number of workers: that many large events may be running, and as many
            be on their way, whatever their size.
        shared_memory: returns the bytes copied so far, and their limit.
        holds: an object that is kept alive with this one.
        look_s: interval between two readings of the shared memory's statistics, in seconds.
    """

    def __init__(
        self,
        most: int,
        workers: Callable[[], int],
        shared_memory: Callable[[], SharedMemoryStats],
        holds: object = None,
        *,
        look_s: float = WINDOW_LOOK_S,
    ) -> None:
        self._holds = holds
        self._look_s = look_s
        self._most = most
        self._workers = workers
        self._shared_memory = shared_memory
        self._before = shared_memory().sent
        self._size = most
        self._look_at = 0.0

    def size(self, settled: int) -> int:
        """The maximum of open receipts, after `settled` events of the stream are settled."""
        now = monotonic()
        if now >= self._look_at:
            self._look_at = now + self._look_s
            self._size = self._look(settled)
        return self._size

    def _look(self, settled: int) -> int:
        memory = self._shared_memory()
        sent = memory.sent - self._before
        if not sent:
            return self._most
        mean = sent / max(1, settled)
        return min(self._most, max(2 * self._workers(), int(_SHARE * memory.limit / mean)))


#: Maximum number of events published in a row before a look for settled receipts, and maximum time
#: for them, in seconds; because settled receipts should neither wait for a slow source, nor pile up
#: with large events.
_STRIDE = 256
_STRIDE_S = 0.001
#: Number of events between two looks at the clock.
_LOOK = 16


def stream_of(
    events: Iterable[Any],
    publish: Callable[[Any], Receipt],
    window: Window,
    ordered: bool,
    progress: bool,
    count: int | None,
    make_safe: Callable[[], object] | None,
) -> Iterator[Receipt]:
    """Publish events and yield their receipts, settled; see `EventBus.stream`.

    An error of the source, or of publishing, is raised after the receipts of all published events.

    Args:
        events: the events, taken one by one as there is room.
        publish: publishes one event; may wait for room, or raise QueueFull.
        window: bounds receipts that are open, or settled and not yet taken by the consumer.
        ordered: whether to yield in the order of the events.
        progress: whether to show a progress bar.
        count: number of events; None if it is unknown.
        make_safe: called before receipts are yielded, once for several: it waits until the events
            published so far survive the accident that the journal is for. None without a journal.
    """
    run = in_order if ordered else as_settled
    if cell_number() is None:
        streamed = run(iter(events), publish, window, make_safe)
    else:
        streamed = _interruptible(run, iter(events), publish, window, make_safe)
    if not progress:
        return streamed
    from procbus.progress import with_progress  # only now: it imports rich

    return with_progress(streamed, count)


def _interruptible(
    run: Callable[..., Iterator[Receipt]],
    events: Iterator[Any],
    publish: Callable[[Any], Receipt],
    *about: Any,
) -> Iterator[Receipt]:
    """Give up the stream's events if the notebook cell is interrupted in it."""
    open_receipts: dict[int, Receipt] = {}

    def publish_and_note(event: Any) -> Receipt:
        receipt = publish(event)
        open_receipts[id(receipt)] = receipt
        return receipt

    def give_up() -> None:
        for receipt in open_receipts.values():
            receipt.give_up()

    try:
        for receipt in run(events, publish_and_note, *about):
            open_receipts.pop(id(receipt), None)
            yield receipt
    except KeyboardInterrupt:
        when_interrupted(give_up)
        raise


def as_settled(
    events: Iterable[Any],
    publish: Callable[[Any], Receipt],
    window: Window,
    make_safe: Callable[[], object] | None,
    clock: Callable[[], float] = monotonic,
) -> Iterator[Receipt]:
    """Publish events and yield their receipts as they settle; `clock` replaces `monotonic`."""
    settled: SimpleQueue[Receipt] = SimpleQueue()
    put = (settled.put,)
    source = iter(events)
    outstanding = taken = 0
    exhausted = False
    held: list[Any] = []  # at most one event, which found the bus full
    failure: Exception | None = None
    stride = 1
    while outstanding or not exhausted:
        began, published, most = clock(), 0, window.size(taken)
        while published < stride and outstanding < most and not exhausted:
            try:
                event = held.pop() if held else next(source)
            except StopIteration:
                exhausted = True
                break
            except Exception as error:  # noqa: BLE001 - raised after the other receipts
                failure, exhausted = error, True
                break
            try:
                receipt = publish(event)
            except QueueFull:
                if not outstanding:
                    raise  # others fill the bus: no event of this stream will make room
                held.append(event)
                break
            except Exception as error:  # noqa: BLE001 - as above
                failure, exhausted = error, True
                break
            if not receipt.tell(put):
                settled.put(receipt)
            del event, receipt
            outstanding += 1
            published += 1
            if not published % _LOOK and clock() - began > _STRIDE_S:
                break
        if published:
            stride = min(2 * stride, _STRIDE) if clock() - began < _STRIDE_S else 1
            if settled.empty() and not held:
                continue
        if outstanding:
            receipt = _next(settled)
            more = settled.qsize()  # only this thread takes from it
            if make_safe is not None:
                make_safe()
            taken += 1 + more
            outstanding -= 1
            yield receipt
            for _ in range(more):
                outstanding -= 1
                yield settled.get()
    if failure is not None:
        try:
            raise failure
        finally:
            failure = None  # its traceback refers to this frame


def _next(settled: SimpleQueue[Receipt]) -> Receipt:
    with contextlib.suppress(Empty):
        return settled.get_nowait()
    resume = pause(None, "go through bus.astream()")
    try:
        while True:
            with contextlib.suppress(Empty):
                return settled.get(timeout=LOOK_UP_S)
    finally:
        resume()


def in_order(
    events: Iterable[Any],
    publish: Callable[[Any], Receipt],
    window: Window,
    make_safe: Callable[[], object] | None,
) -> Iterator[Receipt]:
    """Publish events and yield their receipts, settled, in the order of the events."""
    open_receipts: deque[Receipt] = deque()
    safe = 0  # number of receipts at the front that are settled and safe
    taken = 0

    def first_settled() -> Receipt:
        nonlocal safe, taken
        if not safe:
            open_receipts[0].wait()
            safe = sum(1 for _ in takewhile(lambda each: each.done, open_receipts))
            if make_safe is not None:
                make_safe()
        safe -= 1
        taken += 1
        return open_receipts.popleft()

    failure: Exception | None = None
    source = iter(events)
    while failure is None:
        try:
            event = next(source)
        except StopIteration:
            break
        except Exception as error:  # noqa: BLE001 - raised after the other receipts
            failure = error
            break
        while True:
            try:
                open_receipts.append(publish(event))
                break
            except QueueFull:
                if not open_receipts:
                    raise
                yield first_settled()
            except Exception as error:  # noqa: BLE001 - as above
                failure = error
                break
        while open_receipts and (len(open_receipts) >= window.size(taken) or open_receipts[0].done):
            yield first_settled()
    while open_receipts:
        yield first_settled()
    if failure is not None:
        try:
            raise failure
        finally:
            failure = None  # its traceback refers to this frame
