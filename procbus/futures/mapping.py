# SPDX-License-Identifier: MIT
"""`bus.map`: the results of a handler for many events, in order.

Events of a plain cpu handler travel in chunks. A chunk is one delivery to a handler that the map
makes, and that calls the user's function for each event. A handler with limits, retries or an order
gets each event as a separate delivery, so that its options hold for each event.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence, Sized
from functools import partial
from itertools import chain, islice
from math import ceil
from typing import TYPE_CHECKING, Any

from procbus.codec.batch_call import InPart
from procbus.codec.chunk import Chunk
from procbus.core.delivery import cancelled, error_to_tell
from procbus.core.errors import QueueFull, SerializationError, WorkerDied
from procbus.core.handler import calling, new_number
from procbus.core.receipt import Receipt, WaitedReceipt
from procbus.core.subscription import Subscription
from procbus.core.waiting import pause

if TYPE_CHECKING:
    from procbus.core.delivery import Delivery
    from procbus.futures.executor import Parts

#: Work in one chunk, in seconds; because a chunk costs some 50 us, and all workers should be busy
#: until the end.
CHUNK_S = 0.010
#: Maximum of events in a chunk; and maximum growth from one chunk to the next, a factor, because
#: the first runs are slow.
_MOST, _GROWTH = 10_000, 4
#: Number of chunks ahead for each worker, and maximum of events ahead of other handlers.
_AHEAD = 3
_EVENTS_AHEAD = 1_000
#: The reason for cancelling the events ahead, as words of an error message.
_UNWANTED = "the loop over the results of bus.map has ended"
#: Number of parts into which a chunk is divided whose worker died: see `Gatherer`.
_DIVIDED_BY = 4


def results_of(
    subscription: Subscription,
    events: Iterable[Any],
    parts: Parts,
    *,
    holds: object,
) -> Generator[Any, None, None]:
    """Call a handler with each event; yield the results in order.

    Args:
        subscription: the handler on its bus.
        events: the events.
        parts: parts of the bus.
        holds: an object that is kept alive until the end: the bus.
    """
    handler = subscription.handler
    plain = handler.kind == "cpu" and subscription.plain and handler.batch is None
    free = not (handler.limited or handler.gated or handler.retry.retries or handler.auto)
    if plain and free and parts.dispatcher.journal is None:
        return _Chunks(subscription, events, parts).results(holds)
    return _one_by_one(subscription, events, parts, holds)


def _take_back(delivery: Delivery, parts: Parts) -> None:
    """Cancel a delivery that no worker has begun, because its result is not wanted any more."""
    parts.cancellation.take_back(delivery, partial(cancelled, why=_UNWANTED))


def _one_by_one(
    subscription: Subscription,
    events: Iterable[Any],
    parts: Parts,
    holds: object,
) -> Generator[Any, None, None]:
    """Yield the results of events that are separate deliveries."""
    refuse_on_a_loop()
    source = iter(events)
    together = subscription.handler.batch or 1
    ahead = max(_EVENTS_AHEAD, 2 * together)
    receipts: deque[Receipt] = deque()
    #: The event that found the bus full; and the error of the source, or of publishing.
    held: list[Any] = []
    failure: Exception | None = None
    try:
        while True:
            # Room for a whole batch: the events of one result at a time would make small batches.
            if len(receipts) <= ahead - together:
                try:
                    events_ahead = chain(held, islice(source, ahead - len(receipts) - len(held)))
                    held = []
                    for event in events_ahead:
                        try:
                            receipts.append(parts.dispatcher.call(event, subscription))
                        except QueueFull:
                            if not receipts:
                                raise  # others fill the bus: no event of this map will make room
                            held = [event]
                            break
                except Exception as error:  # noqa: BLE001 - raised after the results of published events
                    failure, source = error, iter(())
                if len(receipts) < ahead:
                    parts.lanes.flush()  # no event follows that a batch handler could wait for
            if not receipts:
                if failure is not None:
                    raise failure
                return
            yield receipts.popleft().result()
    finally:
        del holds
        failure = None  # its traceback refers to this frame
        for delivery in [each for receipt in receipts for each in receipt.deliveries]:
            _take_back(delivery, parts)


def refuse_on_a_loop() -> None:
    """Refuse to go through results on the event loop of a bus.

    Raises:
        ProcbusError: this is an async handler.
    """
    pause(None, "go through bus.astream(), or await bus.call(handler, event) for each event")()


class _Waiter:
    """Waits for a chunk, for `WaitedReceipt.answer`; the map itself waits for the receipt."""

    delivery: WaitedReceipt | None = None


class _Chunks:
    """The chunks of one map. Belongs to the thread that takes the results.

    Args:
        subscription: the handler on its bus.
        events: the events.
        parts: parts of the bus.
    """

    def __init__(self, subscription: Subscription, events: Iterable[Any], parts: Parts) -> None:
        handler = subscription.handler
        function: Any = Chunk(handler.call, handler.name)
        inner = calling(handler, function, number=new_number())
        self._calls = Subscription(inner, parts.lanes.of(inner), answered=True)
        self._source = iter(events)
        self._left: float = len(events) if isinstance(events, Sized) else _MOST * _MOST
        self._parts = parts
        self.context_of = parts.dispatcher.context_of
        #: Events of each chunk, and its receipt, in order.
        self._open: deque[tuple[Sequence[Any], WaitedReceipt]] = deque()
        self._size = 1
        #: The events that found the bus full; and the error of the source, or of publishing.
        self._held: list[Any] = []
        self._failure: Exception | None = None

    # An owner of receipts.

    def settled(self, delivery: WaitedReceipt) -> None:
        """Do nothing: the map waits for the receipt."""

    def withdraw(self, delivery: WaitedReceipt) -> None:
        """Cancel a chunk that no worker has begun."""
        _take_back(delivery, self._parts)

    def results(self, holds: object) -> Generator[Any, None, None]:
        """Yield the results in order."""
        refuse_on_a_loop()
        self._parts.direct.add(self._calls)
        try:
            while True:
                self._look_ahead()
                if not self._open:
                    if self._failure is not None:
                        raise self._failure
                    return
                events, receipt = self._open.popleft()
                receipt.wait()
                yield from self._results_of(events, receipt)
        finally:
            del holds
            self._failure = None  # its traceback refers to this frame
            for _, receipt in self._open:
                self.withdraw(receipt)
            if self._calls.idle:  # otherwise its last chunks are running
                self._parts.direct.retire(self._calls)
                self._parts.lanes.forget(self._calls.handler)

    def _look_ahead(self) -> None:
        workers = max(1, self._parts.lanes.cpu_size())
        while len(self._open) < _AHEAD * workers:
            chunk, self._held = self._held or self._next_chunk(workers), []
            if not chunk:
                return
            try:
                self._open.append((chunk, self._publish(chunk)))
            except QueueFull:
                if not self._open:
                    raise  # others fill the bus: no event of this map will make room
                self._held = chunk
                return
            except Exception as error:  # noqa: BLE001 - raised after the results of published events
                self._fail(error)
                return

    def _next_chunk(self, workers: int) -> list[Any]:
        """Take events of the next chunk from the source; none at its end."""
        share = ceil(self._left / (2 * workers))
        chunk: list[Any] = []
        try:
            # Not `list(...)`, which would lose the events before an error of the source.
            chunk.extend(islice(self._source, max(1, min(self._size, share))))
        except Exception as error:  # noqa: BLE001 - raised after the results of published events
            self._fail(error)
        self._left -= len(chunk)
        return chunk

    def _fail(self, error: Exception) -> None:
        self._failure, self._source = error, iter(())

    def _publish(self, chunk: Sequence[Any]) -> WaitedReceipt:
        to = (self._calls, self, _Waiter())
        receipt = self._parts.dispatcher.publish(chunk, None, None, True, to)
        assert isinstance(receipt, WaitedReceipt)
        return receipt

    def _results_of(self, events: Sequence[Any], receipt: WaitedReceipt) -> Iterator[Any]:
        error = receipt.exception()
        if error is None:
            self._note(len(events), receipt.run_s or 0.0)
            value = receipt.value
            if not isinstance(value, InPart):
                yield from value
                return
            yield from value.values or ()
            raise error_to_tell(next(iter(value.errors.values())), receipt)
        lost = isinstance(error, WorkerDied) and receipt.run_s is not None
        unsent = isinstance(error, SerializationError) and receipt.run_s is None
        if len(events) == 1 or not (lost or unsent):
            raise error_to_tell(error, receipt)
        size = ceil(len(events) / _DIVIDED_BY)
        parts = [events[at : at + size] for at in range(0, len(events), size)]
        self._open.extendleft((part, self._publish(part)) for part in reversed(parts))

    def _note(self, count: int, run_s: float) -> None:
        """Choose the size of the next chunks by the time that the last chunk took."""
        fitting = int(CHUNK_S * count / run_s) if run_s > 0 else _MOST
        self._size = max(1, min(fitting, _GROWTH * count, _MOST))
