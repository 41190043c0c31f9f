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

# How many events a stream may have under way: fewer where they are large.

#: The share of the limit of shared memory that the events of a stream may take in the script: what
#: is on its way to workers takes as much again there, for a moment.
_SHARE = 0.5
#: How often it is asked what was copied in, in seconds.
_LOOK_S = 0.002


class Window:
    """How many receipts one stream may have open. Belongs to the thread that runs the stream.

    A stream of small events has `most`. Where events turn out to be large, those under way are to
    take no more memory in the script than `_SHARE` of what may be shared with workers: so many as
    that is by the mean of those that are settled. Before any is copied in nothing is known.

    Args:
        most: receipts that may be open, whatever their events are.
        workers: how many there are for what is large: that many may be at work, and as many be on
            their way, however large they are.
        shared_memory: tells how much has been copied in so far, and how much there may be.
        holds: is kept alive with this.
    """

    def __init__(
        self,
        most: int,
        workers: Callable[[], int],
        shared_memory: Callable[[], SharedMemoryStats],
        holds: object = None,
    ) -> None:
        self._holds = holds
        self._most = most
        self._workers = workers
        self._shared_memory = shared_memory
        self._before = shared_memory().sent
        self._size = most
        self._look_at = 0.0

    def size(self, settled: int) -> int:
        """How many may be open, after so many of the stream are settled."""
        now = monotonic()
        if now >= self._look_at:
            self._look_at = now + _LOOK_S
            self._size = self._look(settled)
        return self._size

    def _look(self, settled: int) -> int:
        memory = self._shared_memory()
        sent = memory.sent - self._before
        if not sent:
            return self._most
        mean = sent / max(1, settled)
        return min(self._most, max(2 * self._workers(), int(_SHARE * memory.limit / mean)))


#: Events published in a row before looking for settled receipts: at most so many, and about so many
#: as take so long, in seconds. Where the source is slow, or events are large, settled receipts
#: neither wait for it nor pile up with their events.
_STRIDE = 256
_STRIDE_S = 0.001
#: The clock is looked at after so many.
_LOOK = 16


def stream_of(
    events: Iterable[Any],
    publish: Callable[[Any], Receipt],
    window: Window,
    ordered: bool,
    progress: bool,
    count: int | None,
    make_safe: Callable[[], object],
) -> Iterator[Receipt]:
    """Publish events and yield their receipts, settled; see `EventBus.stream`.

    An error of the source, or of publishing, comes after the receipts of all that was published.

    Args:
        events: taken one by one, as there is room.
        publish: publishes one event; may wait for room, or raise QueueFull.
        window: how many receipts may be open, or settled and not yet taken by the consumer.
        ordered: yield in the order of the events.
        progress: show a progress bar.
        count: how many events there are; None if that is not known.
        make_safe: is called before receipts are yielded, once for several: what was published
            before then has to survive what the journal is for.
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
    """In a notebook: where a cell is interrupted in the stream, what that published is given up."""
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
    make_safe: Callable[[], object],
) -> Iterator[Receipt]:
    """Publish events and yield their receipts as they settle."""
    settled: SimpleQueue[Receipt] = SimpleQueue()
    source = iter(events)
    outstanding = taken = 0
    exhausted = False
    held: list[Any] = []  # an event that found the bus full
    failure: Exception | None = None
    stride = 1
    while outstanding or not exhausted:
        began, published, most = monotonic(), 0, window.size(taken)
        while published < stride and outstanding < most and not exhausted:
            try:
                event = held.pop() if held else next(source)
            except StopIteration:
                exhausted = True
                break
            except Exception as error:  # noqa: BLE001 - told once the rest is through
                failure, exhausted = error, True
                break
            try:
                receipt = publish(event)
            except QueueFull:
                if not outstanding:
                    raise  # others fill the bus: nothing of ours will make room
                held.append(event)
                break
            except Exception as error:  # noqa: BLE001 - as above
                failure, exhausted = error, True
                break
            receipt.when_done(settled.put)
            del event, receipt
            outstanding += 1
            published += 1
            if not published % _LOOK and monotonic() - began > _STRIDE_S:
                break
        if published:
            stride = min(2 * stride, _STRIDE) if monotonic() - began < _STRIDE_S else 1
            if settled.empty() and not held:
                continue
        if outstanding:
            receipt = _next(settled)
            more = settled.qsize()  # nobody else takes from it
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
            failure = None  # its traceback has this frame


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
    make_safe: Callable[[], object],
) -> Iterator[Receipt]:
    """Publish events and yield their receipts, settled, in the order of the events."""
    open_receipts: deque[Receipt] = deque()
    safe = 0  # so many of them, the first, are settled and safe
    taken = 0

    def first_settled() -> Receipt:
        nonlocal safe, taken
        if not safe:
            open_receipts[0].wait()
            safe = sum(1 for _ in takewhile(lambda each: each.done, open_receipts))
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
        except Exception as error:  # noqa: BLE001 - told once the rest is through
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
            failure = None  # its traceback has this frame
