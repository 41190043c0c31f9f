# SPDX-License-Identifier: MIT
"""Streaming: from an iterator of events to an iterator of settled receipts, in bounded memory."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import islice, takewhile
from math import inf
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any, Protocol

from procbus.core.delivery import DeliveryState
from procbus.core.errors import QueueFull
from procbus.core.locks import LOOK_UP_S
from procbus.core.notebook import cell_number, when_interrupted
from procbus.core.receipt import Callbacks, Receipt
from procbus.core.user_objects import short_repr
from procbus.core.waiting import here, pause, refuse_endless
from procbus.dispatch.dispatcher import PublishOne, PublishRun
from procbus.dispatch.window import Window
from procbus.progress.bar import Standing

#: Maximum number of events published in a row before a look for settled receipts, and maximum time
#: for publishing them, in seconds; because settled receipts should not wait for a slow source, and
#: receipts of large events should not pile up.
_STRIDE = 256
_STRIDE_S = 0.001
#: Number of events between two looks at the clock.
_LOOK = 16

#: Types of sources that hold all their events. The stream never has to wait for the next event of
#: such a source, so it can publish several events at once.
_WHOLE = frozenset((list, tuple, range, deque))


class Feed:
    """Publishes the events of a stream, some at a time. Belongs to the stream's thread.

    Args:
        events: the events, taken one by one as there is room.
        topic: the topic that each is published to.
        publish: publishes one event; may wait for room, or raise QueueFull.
        publish_run: publishes the first of several events, one at least; None for one at a time.
        batch: number of events that batch handlers get together; None leaves it to the handlers.
        seal: has batch handlers called with the events gathered so far, and with no others.
        flush: has batch handlers called with the events gathered so far. The stream calls it before
            it waits for room, because no other event of the stream can fill a batch then.
        clock: replaces `monotonic`.

    Attributes:
        tell: called with each receipt once it is settled; None if nothing is to be called.
        full: whether the last event found the bus full.
    """

    def __init__(
        self,
        events: Iterable[Any],
        topic: str | None,
        publish: PublishOne,
        publish_run: PublishRun | None = None,
        batch: int | None = None,
        seal: Callable[[], object] = lambda: None,
        flush: Callable[[], object] = lambda: None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._source = _iterator_of(events)
        self._topic = topic
        self.publish = publish
        self.publish_run = publish_run
        self._in_runs = publish_run is not None and type(events) in _WHOLE
        self._clock = clock
        self._stride = 1
        self._seal = seal
        self.flush = flush
        #: Size of a batch, and number of events that it still lacks.
        self._batch = self._lacking = inf if batch is None else batch
        #: Events that were taken from the source and not published, in order.
        self._held: list[Any] = []
        #: Whether the source has ended; and its error, or an error of publishing.
        self._ended = False
        self._failure: Exception | None = None
        self.tell: Callbacks | None = None
        self.full = False

    @property
    def exhausted(self) -> bool:
        """Whether no event is left, or none can be published any more."""
        return self._ended and not self._held

    def some(self, room: int) -> Sequence[Receipt]:
        """Publish events, `room` at most; fewer if they come slowly, or if the bus is full.

        Raises:
            QueueFull: the bus is full, and no event was published.
        """
        receipts: list[Receipt] = []
        began = self._clock()
        self.full = False
        try:
            publish_some = self._runs if self._in_runs else self._each
            publish_some(receipts, int(min(room, self._stride, self._lacking)), began)
        except QueueFull as error:
            self.full = bool(self._held)
            if not self.full:
                self._fail(error)  # the source itself raised it
            elif not receipts:
                raise
        except Exception as error:  # noqa: BLE001 - raised after the receipts of published events
            self._fail(error)
        self._lacking -= len(receipts)
        if self._lacking <= 0 or self.exhausted:
            self._lacking = self._batch
            self._seal()
        quick = self._clock() - began < _STRIDE_S
        self._stride = min(2 * self._stride, _STRIDE) if quick else 1
        return receipts

    def _fail(self, error: Exception) -> None:
        self._failure, self._ended = error, True
        self._held.clear()

    def _each(self, receipts: list[Receipt], most: int, began: float) -> None:
        """Publish events one by one, because the next one may be long in coming."""
        publish, topic, tell, held = self.publish, self._topic, self.tell, self._held
        # No call waits for the disk: the receipts are made safe many at a time.
        if held:
            receipts.append(publish(held[0], topic, tell, False))
            held.clear()
        while (count := len(receipts)) < most:
            until = min(count + _LOOK, most)
            for event in islice(self._source, until - count):
                try:
                    receipts.append(publish(event, topic, tell, False))
                except QueueFull:
                    held.append(event)
                    raise
            if len(receipts) < until:
                self._ended = True
                return
            if self._clock() - began > _STRIDE_S:
                return

    def _runs(self, receipts: list[Receipt], most: int, began: float) -> None:
        """Publish events in runs: consecutive events for the same handler in one call."""
        publish_run, tell, held = self.publish_run, self.tell, self._held
        assert publish_run is not None
        if len(held) < most and not self._ended:
            held.extend(islice(self._source, most - len(held)))
            self._ended = len(held) < most
        while held and len(receipts) < most:
            published = publish_run(held[: most - len(receipts)], self._topic, tell)
            receipts += published
            del held[: len(published)]
            if self._clock() - began > _STRIDE_S:
                return

    def finish(self) -> None:
        """Raise the error of the source or of publishing, after all receipts."""
        failure, self._failure = self._failure, None
        if failure is not None:
            try:
                raise failure
            finally:
                failure = None  # its traceback refers to this frame


def _iterator_of(events: Iterable[Any]) -> Iterator[Any]:
    try:
        return iter(events)
    except TypeError:
        if hasattr(type(events), "__aiter__"):
            raise TypeError(
                f"{short_repr(events)} can only be gone through in an event loop: use "
                "bus.astream(events) in a coroutine"
            ) from None
        raise


class Leaving:
    """The early end of a stream, by its consumer or by a failure.

    Args:
        cancel_waiting: cancels the open deliveries that no worker has begun, for each receipt of
            which a given function is true.
        on_error: whether the stream ends with the first failure.

    Attributes:
        failed: the receipt of the first failure, once there is one and the stream ends with it.
    """

    def __init__(
        self, cancel_waiting: Callable[[Callable[[Receipt], bool]], object], on_error: bool = False
    ) -> None:
        self._cancel_waiting = cancel_waiting
        self.on_error = on_error
        self.failed: Receipt | None = None

    def looking(
        self, tell: Callable[[Receipt], object], *, ordered: bool = False
    ) -> Callable[[Receipt], object]:
        """Return a function to call with each settled receipt: `tell`, or one that calls it.

        Args:
            tell: the function to call.
            ordered: whether events that were published before the failed one go on.
        """
        if not self.on_error:
            return tell

        def look(receipt: Receipt) -> None:
            tell(receipt)
            if self.failed is None and receipt.has_failure:
                self.failed = receipt
                after = receipt.id if ordered else 0
                self.cancel(look, after)

        return look

    def cancel(self, told: Callable[[Receipt], object], after: int = 0) -> None:
        """Cancel the events that no worker has begun.

        Args:
            told: the function that is called with each settled receipt of the stream.
            after: only events with a larger id.
        """

        def is_own(receipt: Receipt) -> bool:
            return receipt.id > after and any(each is told for each in receipt.callbacks or ())

        self._cancel_waiting(is_own)

    def cancel_these(self, receipts: Iterable[Receipt]) -> None:
        """Cancel the events of these receipts that no worker has begun."""
        numbers = {id(each) for each in receipts}
        if numbers:
            self._cancel_waiting(lambda receipt: id(receipt) in numbers)


# The progress of a stream.


class CountsFailures(Protocol):
    """The part of a bus that counts failures."""

    #: Number of deliveries that failed for good, or more.
    failures: int


class StreamCounts:
    """The counters of a stream whose progress is shown. Written by the stream's thread.

    Nothing is done for an event that succeeds. While the bus has failures that were not found in
    this stream, each of its receipts is looked at.

    Args:
        total: number of events; None if it is not known.
        bus: counts the failures of the bus.
    """

    def __init__(self, total: int | None, bus: CountsFailures) -> None:
        self._total = total
        self.bus = bus
        #: Number of failures of the bus that happened before the stream, or were found in it.
        self.known = bus.failures
        #: Number of settled events, and of the failed ones of these.
        self.taken = 0
        self._failed = 0

    def read(self) -> Standing:
        """The counters now. From any thread."""
        return Standing(self.taken, self._total, self._failed)

    def look(self, receipt: Receipt) -> Receipt:
        """Count a receipt if it failed; return it."""
        failed = sum(each.state is DeliveryState.FAILED for each in receipt.deliveries)
        self.known += failed
        self._failed += failed > 0
        return receipt

    def note(self, taken: int, receipts: Iterable[Receipt]) -> None:
        """Note that `taken` events are settled so far; `receipts` are of the new ones."""
        self.taken = taken
        if self.known != self.bus.failures:
            for receipt in receipts:
                self.look(receipt)


#: Shows progress for the length of a block; it is given a function that reads the counters.
ShowCounts = Callable[[Callable[[], Standing]], AbstractContextManager[None]]


def stream_of(
    feed: Feed,
    window: Window,
    ordered: bool,
    make_safe: Callable[[], object] | None,
    leave: Leaving,
    counts: StreamCounts | None = None,
    show: ShowCounts | None = None,
) -> Iterator[Receipt]:
    """Publish events and yield their receipts, settled; see `EventBus.stream`.

    An error of the source, or of publishing, is raised after the receipts of all published events.

    Args:
        feed: publishes the events.
        window: bounds receipts that are open, or settled and not yet taken by the consumer.
        ordered: whether to yield in the order of the events.
        make_safe: called before receipts are yielded, once for several: it waits until the events
            published so far survive the accident that the journal is for. None without a journal.
        leave: ends the stream early.
        counts: the counters to be shown; None for none.
        show: shows them.
    """
    run = in_order if ordered else as_settled
    if cell_number() is None:
        streamed = run(feed, window, make_safe, leave, counts)
    else:
        streamed = _interruptible(run, feed, window, make_safe, leave, counts)
    if counts is None or show is None:
        return streamed
    return _shown(streamed, counts, show)


def _shown(
    receipts: Iterator[Receipt], counts: StreamCounts, show: ShowCounts
) -> Iterator[Receipt]:
    """Show the progress of a stream."""
    with show(counts.read):
        yield from receipts


def shown_results(
    results: Generator[Any, None, None], counts: StreamCounts, show: ShowCounts
) -> Iterator[Any]:
    """Show the progress of a map: the number of results that were taken from it."""
    with show(counts.read), contextlib.closing(results):
        for result in results:
            counts.taken += 1
            yield result


def _interruptible(
    run: Callable[..., Iterator[Receipt]],
    feed: Feed,
    *about: Any,
) -> Iterator[Receipt]:
    """Give up the stream's events if the notebook cell is interrupted during the stream."""
    open_receipts: dict[int, Receipt] = {}
    publish, publish_run = feed.publish, feed.publish_run

    def note(receipts: Sequence[Receipt]) -> Sequence[Receipt]:
        open_receipts.update((id(receipt), receipt) for receipt in receipts)
        return receipts

    def give_up() -> None:
        for receipt in open_receipts.values():
            receipt.give_up()

    feed.publish = lambda *event: note((publish(*event),))[0]
    if publish_run is not None:
        feed.publish_run = lambda *events: note(publish_run(*events))
    try:
        for receipt in run(feed, *about):
            open_receipts.pop(id(receipt), None)
            yield receipt
    except KeyboardInterrupt:
        when_interrupted(give_up)
        raise


def as_settled(
    feed: Feed,
    window: Window,
    make_safe: Callable[[], object] | None,
    leave: Leaving,
    counts: StreamCounts | None = None,
) -> Iterator[Receipt]:
    """Publish events and yield their receipts as they settle."""
    settled: SimpleQueue[Receipt] = SimpleQueue()
    told = leave.looking(settled.put)
    feed.tell = (told,)
    take: Callable[[], Receipt] = settled.get
    outstanding = taken = 0
    on_error, left_early = leave.on_error, True
    try:
        while outstanding or not feed.exhausted:
            room = window.size(taken) - outstanding
            if room > 0 and not feed.exhausted and leave.failed is None:
                try:
                    receipts = feed.some(room)
                    published = len(receipts)
                    if here.runner is not None:  # this loop is in a handler
                        refuse_endless(partial(iter, receipts))
                    if window.wants_event and published:
                        window.weigh_event(receipts[-1])
                    del receipts
                except QueueFull:
                    if not outstanding:
                        raise  # others fill the bus: no event of this stream will make room
                    published = 0
                outstanding += published
                if published and not feed.full and settled.empty():
                    continue
            if outstanding:
                if settled.empty():
                    feed.flush()
                receipt = _next(settled)
                if window.wants_result:
                    window.weigh_result(receipt)
                more = settled.qsize()  # only this thread takes from it
                if make_safe is not None:
                    make_safe()
                taken += 1 + more
                outstanding -= 1 + more
                if counts is not None:
                    counts.taken = taken
                    take = settled.get
                    if counts.known != counts.bus.failures:
                        counts.look(receipt)
                        take = partial(_looked_at, counts, take)
                yield receipt
                if on_error and receipt is leave.failed:
                    return
                for _ in range(more):
                    receipt = take()
                    yield receipt
                    if on_error and receipt is leave.failed:
                        return
        left_early = False
    finally:
        if left_early:
            leave.cancel(told)
    feed.finish()


def _looked_at(counts: StreamCounts, get: Callable[[], Receipt]) -> Receipt:
    return counts.look(get())


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
    feed: Feed,
    window: Window,
    make_safe: Callable[[], object] | None,
    leave: Leaving,
    counts: StreamCounts | None = None,
) -> Iterator[Receipt]:
    """Publish events and yield their receipts, settled, in the order of the events."""
    open_receipts: deque[Receipt] = deque()
    if leave.on_error:
        feed.tell = (leave.looking(note_nothing, ordered=True),)
    safe = 0  # number of receipts at the front that are settled and safe
    taken = 0
    try:
        while open_receipts or not feed.exhausted:
            room = window.size(taken) - len(open_receipts)
            stopped = leave.failed is not None
            if room > 0 and not feed.exhausted and not stopped:
                try:
                    open_receipts.extend(feed.some(room))
                    if window.wants_event and open_receipts:
                        window.weigh_event(open_receipts[-1])
                except QueueFull:
                    if not open_receipts:
                        raise  # as above
            full = feed.full or len(open_receipts) >= window.size(taken)
            must_wait = full or feed.exhausted or stopped
            while open_receipts and (must_wait or open_receipts[0].done):
                if not safe:
                    if not open_receipts[0].done:
                        feed.flush()
                    open_receipts[0].wait()
                    safe = sum(1 for _ in takewhile(lambda each: each.done, open_receipts))
                    if make_safe is not None:
                        make_safe()
                    if counts is not None:
                        counts.note(taken + safe, islice(open_receipts, safe))
                safe -= 1
                taken += 1
                must_wait = feed.exhausted or leave.failed is not None
                receipt = open_receipts.popleft()
                if window.wants_result:
                    window.weigh_result(receipt)
                yield receipt
                if leave.on_error and receipt.has_failure:
                    return
    finally:
        leave.cancel_these(open_receipts)
    feed.finish()


def note_nothing(_: Receipt) -> None:
    """Note nothing of a settled receipt."""
