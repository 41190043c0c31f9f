# SPDX-License-Identifier: MIT
"""The parent's end of the line to one worker: batches are laid out here, and reports read.

It does not care how the bytes get there and back: that is what pools differ in.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from time import thread_time
from typing import Any

from procbus import blame
from procbus.codec import (
    PARENT,
    ClassNumber,
    Encoder,
    define_class,
    encode_alone,
    forget_classes,
)
from procbus.delivery import Delivery
from procbus.handler import Handler
from procbus.outcome import Outcome, OutcomeKind
from procbus.pool import outcomes
from procbus.pool.blocks import Block, EventMemory
from procbus.pool.costs import Costs
from procbus.pool.definitions import Definitions
from procbus.pool.large import PLAIN, Form, plain
from procbus.pool.logbook import Page
from procbus.pool.result_memory import ResultReader
from procbus.pool.room import CannotMap
from procbus.pool.seam import NO_SUCCESSES, NO_WORDS, Ended, LastWords, Message, Report
from procbus.pool.wire import (
    IN_HEAD,
    BatchHead,
    Kind,
    Large,
    Successes,
    each_end,
    pack_batch,
    read_successes,
    size_in_head,
    unpack_results,
)
from procbus.receipt import Receipt
from procbus.wear import may_replace

#: Events of one batch take at most so many bytes, but for a single one that is larger: two
#: batches have to fit into a pipe that nobody reads.
BATCH_BYTES = 48 * 1024

_numbers = itertools.count(1)


class ParentEnd:
    """What the parent knows of one worker's codec and batches. It belongs to the companion.

    Args:
        definitions: handlers pickled before, by number: shared by all workers of a pool.
        events: memory for the large buffers of events: shared by all workers of a pool.
        results: memory for the large buffers of this worker's results.
    """

    def __init__(
        self, definitions: Definitions, events: EventMemory, results: ResultReader
    ) -> None:
        #: Number of the worker, unique in this process.
        self.number = next(_numbers)
        #: Its process, for the outcomes; None until it is known.
        self.pid: int | None = None
        self._events = events
        self._results = results
        events.join(self.number)
        self._encoder = Encoder(PARENT, events.large)
        self._definitions = definitions
        #: Handlers that were put into a message, and what is in none yet that was sent: a message
        #: without deliveries never is.
        self._known_handlers: set[int] = set()
        self.costs = Costs()
        self._handlers_due: list[tuple[int, str, bytes, int | None]] = []
        self._classes_due: list[tuple[ClassNumber, bytes]] = []
        #: Likewise blocks of events that are no more, and of results that nobody has.
        self._gone_due: list[int] = []
        self._freed_due: list[tuple[int, int]] = []
        self._forgotten = 0
        self._forgotten_due: list[int] = []
        #: Deliveries of the batches that the worker has, in their order; how many results of the
        #: first have come in messages; and how many in any way.
        self._batches: dict[int, list[Delivery]] = {}
        self._told = 0
        self._received = 0
        #: Blocks of events pinned for the batches that the worker has, and for the message prepared
        #: last, which it may never get; and what `openings` was before that found no room.
        self._pins: dict[int, list[Block]] = {}
        self._pinned: list[Block] = []
        self._openings = 0
        self._in_line = False

    # To the worker.

    def prepare(self, batch: int, deliveries: Sequence[Delivery]) -> Message:
        """Encode a batch: each event alone, each handler and class once for this worker.

        The last message prepared has to be sent, or dropped for good, before the next is prepared.
        """
        began_s = thread_time()
        if self._definitions.forgotten != self._forgotten:
            self._forget()
        if self._pinned:
            self._unpin()
        self._encoder.look_again()
        message = Message(batch)
        indices: dict[Kind, int] = {}
        which: list[int] = []
        ids: list[int] = []
        sizes: list[int] = []
        atoms: list[Any] = []
        events: list[bytes] = []
        places: dict[int, Large] = {}
        index_of_kind, subscription, topic, parent_id = 0, None, None, None
        total = 0
        for index, delivery in enumerate(deliveries):
            receipt = delivery.receipt
            if receipt is None:  # cancelled meanwhile
                continue
            event, data, large, room = receipt.event, b"", None, True
            size = size_in_head(event)
            try:
                if (
                    delivery.subscription is not subscription
                    or receipt.topic is not topic
                    or receipt.parent_id is not parent_id
                    or delivery.earlier
                ):
                    kind = self._kind_of(delivery, receipt)
                    index_of_kind = indices.setdefault(kind, len(indices))
                    subscription = None if delivery.earlier else delivery.subscription
                    topic, parent_id = receipt.topic, receipt.parent_id
                if not size:
                    data, large, room = self._encode(delivery, receipt)
            except Exception as error:  # noqa: BLE001 - pickling runs the user's code
                message.failed.append((delivery, outcomes.cannot_travel(delivery, error)))
                continue
            total += size or len(data)
            if not room or (total > BATCH_BYTES and ids):
                message.no_room = not room and not ids
                message.rest.extend(deliveries[index:])
                break
            if size:
                atoms.append(event)
                sizes.append(IN_HEAD)
            else:
                events.append(data)
                sizes.append(len(data))
                if large is not None:
                    places[len(ids)] = large
            ids.append(delivery.event_id)
            which.append(index_of_kind)
            message.deliveries.append(delivery)
        if self._in_line and not message.no_room:
            self._in_line = False
            self._events.leave_line(self.number)
        self._classes_due.extend(self._encoder.take_definitions())
        if ids:
            self._gone_due += self._events.gone(self.number)
            self._freed_due += self._results.freed()
            head = BatchHead(
                batch,
                self._classes_due,
                self._handlers_due,
                list(indices),
                which,
                ids,
                sizes,
                atoms,
                places,
                may_replace(),
                self._gone_due,
                (self._results.idle_limit(), self._freed_due) if self._freed_due else None,
                self._forgotten_due,
            )
            message.data = pack_batch(head, events)
            self.costs.note_sent(message.deliveries, thread_time() - began_s)
        return message

    def _kind_of(self, delivery: Delivery, receipt: Receipt) -> Kind:
        """What a delivery has in common with others, its handler made known to the worker."""
        handler = delivery.subscription.handler
        if handler.number not in self._known_handlers:
            self._define(handler)
            self.costs.know(delivery.subscription)
        return handler.number, receipt.parent_id, receipt.topic, delivery.attempts + 1

    def _encode(self, delivery: Delivery, receipt: Receipt) -> tuple[bytes, Large | None, bool]:
        """Encode an event.

        Returns:
            What goes through the pipe; where the rest is, if it is large; and whether there was
            room for that.
        """
        encoder, least, event = self._encoder, self._events.large, receipt.event
        if type(event) in PLAIN and len(event) >= least:
            return self._encode_large(delivery, receipt, b"")
        data = encoder.encode(event)
        if len(data) >= least or encoder.buffers:
            return self._encode_large(delivery, receipt, data)
        return data, None, True

    def _encode_large(
        self, delivery: Delivery, receipt: Receipt, data: bytes
    ) -> tuple[bytes, Large | None, bool]:
        """Put what is large of an event into shared memory.

        Args:
            delivery: what is to be sent.
            receipt: its receipt, which has the event.
            data: the event as encoded; empty where it is content alone.

        Returns:
            What goes through the pipe, where the rest is, and whether there was room for that.
        """
        encoder = self._encoder
        if not data:
            found = plain(receipt.event, self._events.large)
            assert found is not None
            return self._share(delivery, receipt, found[0], [found[1]], b"")
        if encoder.buffers:
            buffers, encoder.buffers = encoder.buffers, []
            return self._share(delivery, receipt, Form.BUFFERS, buffers, data)
        return self._share(delivery, receipt, Form.PICKLED, [memoryview(data)], b"")

    def _share(
        self,
        delivery: Delivery,
        receipt: Receipt,
        form: Form,
        buffers: Sequence[memoryview],
        rest: bytes,
    ) -> tuple[bytes, Large | None, bool]:
        """Put the large part of an event where workers can see it, unless it is there already."""
        events = self._events
        with events.copying:  # so that a second worker waits for the copy, and does not make one
            block = receipt.block
            if block is None or not events.pin(block):
                if not events.fits(buffers):
                    events.check_oversize(delivery.handler.name, receipt.id, buffers)
                    return self._encoder.encode_whole(receipt.event), None, True
                self._openings = events.openings
                try:
                    block = events.put(buffers, form, self.number)
                except CannotMap:
                    return self._encoder.encode_whole(receipt.event), None, True
                if block is None:
                    return b"", None, False
                _hand_to(receipt, block)
            self._pinned.append(block)
        return rest, (tuple(block.place), delivery.subscription.handler.writable), True

    def wait_for_room(self, timeout_s: float) -> None:
        """Wait until there may be room for what had none in the message prepared last."""
        self._in_line = True
        self._events.wait_for_room(self.number, self._openings, timeout_s)

    def _unpin(self) -> None:
        pinned, self._pinned = self._pinned, []
        self._events.unpin(pinned)

    def _define(self, handler: Handler) -> None:
        definition = self._definitions.get(handler.number)
        if definition is None:
            try:
                definition = encode_alone(handler.function)
            except Exception as error:
                raise blame.handler_fault(handler, error) from error
            self._definitions.add(handler.number, definition)
        self._known_handlers.add(handler.number)
        self._handlers_due.append((handler.number, handler.name, definition, handler.max_memory))

    def _forget(self) -> None:
        """Tell the worker of handlers that are not needed any more."""
        self._forgotten = self._definitions.forgotten
        gone = self._definitions.gone(self._known_handlers)
        self._known_handlers.difference_update(gone)
        self.costs.forget(gone)
        self._handlers_due = [due for due in self._handlers_due if due[0] not in gone]
        self._forgotten_due.extend(gone)

    def sent(self, message: Message) -> None:
        """Take note that the worker gets this message."""
        self._batches[message.batch] = message.deliveries
        if self._pinned:
            self._pins[message.batch], self._pinned = self._pinned, []
        self._handlers_due.clear()
        self._gone_due.clear()
        self._freed_due.clear()
        self._classes_due.clear()
        self._forgotten_due.clear()

    # From the worker.

    def report(self, message: bytes | bytearray) -> Report:
        """Read a results message."""
        began_s = thread_time()
        results = unpack_results(message)
        told, received = self._told, self._received
        (times, values), position = read_successes(results, told, received)
        first = told + len(times)
        if received > told:  # some were received in another way before
            times, values = times[received - told :], values[received - told :]
        self._received = max(received, first)
        rest, _ = self._ends(results.data[position:], self._batches[results.batch], first)
        self._told = results.done
        self._received = max(self._received, self._told)
        deliveries = self._batches[results.batch][told : results.done]
        self.costs.note_received(deliveries, thread_time() - began_s)
        if results.complete:
            self._told = self._received = 0
            del self._batches[results.batch]
            if self._pins:
                self._events.unpin(self._pins.pop(results.batch, ()))
        return Report(results.batch, Successes(times, values), rest, results.complete)

    def glance(self, page: Page | None) -> Report:
        """Take what a logbook has of the first batch, without waiting for the worker to send it."""
        batch, deliveries = next(iter(self._batches.items()))
        if page is None or page.batch != batch or page.sent > self._received:
            return Report(batch, NO_SUCCESSES, [], False)  # what it sent has to be read first
        ends, end = self._ends(page.unsent, deliveries, page.sent)
        self._received = max(self._received, end)
        return Report(batch, NO_SUCCESSES, ends, False)

    def last_words(self, page: Page, noticed_at: float) -> LastWords:
        """Read the logbook of a dead worker whose reports have all been read.

        Args:
            page: the logbook.
            noticed_at: when its death was noticed, in seconds of `time.monotonic()`.
        """
        deliveries = self._batches.get(page.batch)
        if deliveries is None:
            return NO_WORDS
        # The worker may have sent results and died before it noted so: those are skipped.
        ends, end = self._ends(page.unsent, deliveries, page.sent)
        done = max(self._received, end)
        in_handler = page.running and page.at >= done
        ran_s = max(0.0, noticed_at - page.since)  # it begins once the handler is loaded
        return LastWords(page.batch, ends, ran_s if in_handler else None)

    def _ends(
        self, data: bytes | memoryview, deliveries: list[Delivery], first: int
    ) -> tuple[list[Ended], int]:
        """Read results of the first batch that begin with that of its delivery `first`.

        Returns:
            Those that were not received in some other way before, and the number of the delivery
            after the last.
        """
        ends: list[Ended] = []
        pid, new, outcome, succeeded = self.pid, tuple.__new__, Outcome, OutcomeKind.SUCCEEDED
        number = first - 1
        for number, end in enumerate(each_end(data, self._take_definition), first):
            if number < self._received:
                continue
            started_at, ended_at, frame, _, place, kept = end
            if kept is not None:
                self._events.note_kept(self.number, *kept)
            if frame:
                views = self._results.views(place) if place is not None else ()
                ends.append(outcomes.outcome_of(end, views, deliveries[number], pid))
            else:  # it returned None and published nothing; written out, for it is most of them
                values = (succeeded, None, None, started_at, ended_at, pid, 0)
                ends.append((new(outcome, values), None))
        return ends, number + 1

    def _take_definition(self, number: ClassNumber, definition: bytes) -> None:
        cls = define_class(number, definition)
        if cls is not None:
            self._encoder.know(cls, number)

    def close(self) -> None:
        """Forget the classes that the worker defined, and what it kept: it is gone."""
        forget_classes(self.number)
        for pinned in self._pins.values():
            self._pinned += pinned
        self._pins.clear()
        self._unpin()
        self._events.leave(self.number)
        self._results.close()


def _hand_to(receipt: Receipt, block: Block) -> None:
    """Let the settlement release a block with the last delivery of its event that a worker runs."""
    with receipt.lock:
        deliveries = receipt.deliveries
        block.users = sum(d.receipt is not None and d.handler.kind == "cpu" for d in deliveries)
        receipt.block = block
    if not block.users:  # cancelled meanwhile
        block.release()
