# SPDX-License-Identifier: MIT
"""The parent's end of the line to one worker: it encodes batches and reads reports.

Each pool sends the bytes in its own way.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from time import thread_time
from typing import Any

from procbus.codec import fault_path
from procbus.codec.encoder import PARENT, ClassNumber, Encoder, decode, define_class, forget_classes
from procbus.codec.in_head import Shapes, size_in_head
from procbus.core.carry import Carried
from procbus.core.delivery import Delivery
from procbus.core.frames import useful_cause
from procbus.core.outcome import Outcome, OutcomeKind
from procbus.core.receipt import Receipt
from procbus.core.subscription import Subscription
from procbus.pool import outcomes
from procbus.pool.child.usage import Sums
from procbus.pool.forwarding import take_in
from procbus.pool.handler_cache import Definitions, KnownHandlers
from procbus.pool.interface import NO_SUCCESSES, NO_WORDS, Ended, LastWords, Message, Report
from procbus.pool.logbook import Page, Reported
from procbus.pool.memory.batches import LEAST_BYTES, BatchWriter, EventParts, PartSize
from procbus.pool.memory.event_writer import BYTES, EventWriter
from procbus.pool.memory.events import EventMemory
from procbus.pool.memory.results import ResultReader
from procbus.pool.wire import (
    FIRST_SHAPE,
    IN_HEAD,
    BatchHead,
    CommonHead,
    Large,
    Successes,
    Tag,
    Variables,
    each_end,
    pack_batch,
    read_successes,
    unpack_results,
    unpack_shared,
)
from procbus.system.exit_hooks import may_replace

# The cost of one worker's handlers: the worker's sums, and the parent's own time.

#: Maximum number of results in a report from which the time between two runs is measured.
LOOKED_AT = 9


class Costs:
    """Passes measurements on to the meters. The costs belong to the companion of one worker."""

    def __init__(self) -> None:
        #: Subscriptions by number of the handler.
        self._subscriptions: dict[int, Subscription] = {}

    def know(self, subscription: Subscription) -> None:
        """Note which subscription has the number of its handler."""
        self._subscriptions[subscription.handler.number] = subscription

    def forget(self, handlers: Iterable[int]) -> None:
        """Drop handlers that are no longer needed."""
        for handler in handlers:
            self._subscriptions.pop(handler, None)

    def note_sent(
        self, deliveries: Sequence[Delivery], kinds: int, cpu_s: float, *, anew: bool = False
    ) -> None:
        """Note the cost of making a batch.

        Args:
            deliveries: the batch.
            kinds: the number of different kinds of its deliveries.
            cpu_s: CPU seconds that encoding took.
            anew: whether handlers or classes were encoded, which happens once.
        """
        subscription = deliveries[0].subscription
        # The cost of each of several handlers is unknown. Comparing each delivery takes long.
        if kinds == 1 or all(delivery.subscription is subscription for delivery in deliveries):
            subscription.meter.note_sent(cpu_s / len(deliveries))
            if not anew:
                subscription.note_before(cpu_s / len(deliveries))

    def note_received(
        self,
        first: Delivery,
        count: int,
        cpu_s: float,
        times: Sequence[tuple[float, float, int]] = (),
    ) -> None:
        """Note the cost of the results of some deliveries.

        Args:
            first: the first of these deliveries.
            count: the number of these deliveries.
            cpu_s: CPU seconds that reading them took.
            times: start and end of the first runs, if all of these are of one handler.
        """
        subscription, received_s = first.subscription, cpu_s / count
        subscription.meter.note_received(received_s)
        # The worker may have paused in between for other reasons too, so the median counts.
        apart_s = sorted(next_[0] - last[1] for last, next_ in itertools.pairwise(times))
        if apart_s:
            subscription.note_after(received_s + apart_s[len(apart_s) // 2])

    def take_in(self, message: bytes | bytearray) -> bool:
        """Take in a message with the worker's sums; return False for any other message."""
        if message[:1] != Tag.MEASURED.value:
            return False
        for handler, sums in decode(memoryview(message)[1:]).items():
            subscription = self._subscriptions.get(handler)
            if subscription is not None:
                subscription.note_sums(*Sums(*sums))
        return True


#: Maximum of a batch's events in the pipe, in bytes, unless a single event is larger; because two
#: batches have to fit into a pipe while its worker does not read.
BATCH_BYTES = 48 * 1024

#: Minimum number of deliveries in a batch whose plain instances travel in its head; because the
#: look at their class costs as much as pickling a few of them.
SHAPED_FROM = 8

_numbers = itertools.count(1)


def _leave_whole(_: Any) -> None:
    """Take no event apart."""


class ParentEnd:
    """The parent's knowledge of one worker's codec and batches, for the companion alone.

    Args:
        definitions: encoded handlers, by number: shared by all workers of a pool.
        events: memory for the large buffers of events: shared by all workers of a pool.
        results: memory for the large buffers of this worker's results.
        batches: memory for events that are not large; None if all such events take the pipe.
    """

    def __init__(
        self,
        definitions: Definitions,
        events: EventMemory,
        results: ResultReader,
        batches: BatchWriter | None = None,
    ) -> None:
        #: Number of the worker, unique in this process.
        self.number = next(_numbers)
        #: Its process id, for the outcomes; None until it is known.
        self.pid: int | None = None
        self._results = results
        self._slots = batches
        self._encoder = Encoder(PARENT, events.large)
        self._events = EventWriter(self.number, events, self._encoder)
        self._handlers = KnownHandlers(definitions)
        self.costs = Costs()
        #: Classes, and freed blocks of results, that no sent message has reported yet. (A message
        #: without deliveries is never sent.)
        self._classes_due: list[tuple[ClassNumber, bytes]] = []
        self._freed_due: list[tuple[int, int]] = []
        #: Deliveries of the worker's batches, in order. Then, for the first batch: the number of
        #: results that came in messages, and the number that came in any way.
        self._batches: dict[int, list[Delivery]] = {}
        #: The batches in `_batches` whose deliveries are all of one kind.
        self._of_one_handler: set[int] = set()
        self._told = 0
        self._received = 0
        #: The context variables encoded last. Kept only within one batch, since values may change.
        self._carried: tuple[Carried, Variables] | None = None

    # To the worker.

    def prepare(self, batch: int, deliveries: Sequence[Delivery]) -> Message:
        """Encode a batch: each event alone, each handler and class once for this worker.

        The last prepared message must be sent or dropped for good before the next one is prepared.
        """
        began_s = thread_time()
        if gone := self._handlers.begin():
            self.costs.forget(gone)
        slots = self._slots
        shared_bytes = slots.begin() if slots is not None else 0
        self._events.begin(shared_bytes)
        self._encoder.look_again()
        encode, least = self._events.encode, self._events.least
        message = Message(batch)
        indices: dict[CommonHead, int] = {}
        which: list[int] = []
        ids: list[int] = []
        data: bytes | EventParts
        forms: list[int] = []
        sizes: list[int] = []
        atoms: list[Any] = []
        events: list[bytes | memoryview] = []
        places: dict[int, Large] = {}
        parts: list[Sequence[PartSize]] = []
        shapes = Shapes(self._encoder.encode_whole)
        take_apart = shapes.take if len(deliveries) >= SHAPED_FROM else _leave_whole
        index_of_kind, subscription, topic, parent_id, context = 0, None, None, None, None
        most = shared_bytes or BATCH_BYTES
        total = in_head = held = 0
        for index, delivery in enumerate(deliveries):
            receipt = delivery.receipt
            if receipt is None:  # the delivery was cancelled meanwhile
                continue
            event = receipt.event
            size = size_in_head(event)
            try:
                if (
                    delivery.subscription is not subscription
                    or receipt.topic is not topic
                    or receipt.parent_id is not parent_id
                    or delivery.context is not context
                    or delivery.earlier
                ):
                    kind = self._kind_of(delivery, receipt)
                    index_of_kind = indices.setdefault(kind, len(indices))
                    subscription = None if delivery.earlier else delivery.subscription
                    topic, parent_id = receipt.topic, receipt.parent_id
                    context = delivery.context
                if size:
                    form = IN_HEAD
                elif type(event) is bytes and len(event) < least:  # frequent, so written out
                    data, form, large, room = event, BYTES, None, True
                elif type(event) is not str and (taken := take_apart(event)) is not None:
                    shape, event, size = taken
                    form = FIRST_SHAPE + shape
                else:
                    data, form, large, room = encode(delivery, receipt)
            except BaseException as error:  # noqa: BLE001 - pickling runs the user's code
                fault = outcomes.cannot_travel(delivery, receipt, error)
                message.failed.append((delivery, fault))
                continue
            if size:
                in_head += size
                if in_head > BATCH_BYTES and ids:
                    message.rest.extend(deliveries[index:])
                    break
                atoms.append(event)
            else:
                length = len(data)
                total += length
                if not room or (total > most and ids):
                    message.no_room = not room and not ids
                    message.rest.extend(deliveries[index:])
                    break
                sizes.append(length)
                if isinstance(data, EventParts):
                    parts.append(data.sizes)
                    events.extend(data.parts)
                else:
                    events.append(data)
                held += length
                if held > LEAST_BYTES and total <= shared_bytes and slots is not None:
                    # Copied at once, while the event is in the CPU's caches. The next event then
                    # gets the memory that this one had.
                    slots.put(events)
                    events.clear()
                    held = 0
                if large is not None:
                    places[len(ids)] = large
            forms.append(form)
            ids.append(delivery.event_id)
            which.append(index_of_kind)
            message.deliveries.append(delivery)
        self._carried = None
        self._classes_due.extend(self._encoder.take_definitions())
        shared = None
        if slots is not None and (shared := slots.stretch()) is not None and events:
            slots.put(events)
            shared = slots.stretch()
            events.clear()
        if not message.no_room:
            self._events.leave_line()
        if ids:
            self._freed_due += self._results.freed()
            head = BatchHead(
                batch,
                self._classes_due,
                self._handlers.due,
                list(indices),
                which,
                ids,
                sizes,
                atoms,
                places,
                may_replace(),
                self._events.gone(),
                (self._results.idle_limit(), self._freed_due) if self._freed_due else None,
                self._handlers.forgotten_due,
                self._handlers.globals_due,
                shared,
                forms,
                shapes.found,
                parts,
            )
            message.data = pack_batch(head, events)
            message.encoding_s = thread_time() - began_s
            message.kinds = len(indices)
            anew = bool(self._classes_due or self._handlers.due)
            self.costs.note_sent(message.deliveries, message.kinds, message.encoding_s, anew=anew)
        return message

    def _kind_of(self, delivery: Delivery, receipt: Receipt) -> CommonHead:
        """Return the properties that deliveries share; have the worker know the handler."""
        handler = delivery.subscription.handler
        if handler.number not in self._handlers.numbers:
            self._handlers.define(handler)
            self.costs.know(delivery.subscription)
        attempt, context = delivery.attempts + 1 if delivery.earlier else 1, delivery.context
        variables = self._variables_of(context) if isinstance(context, Carried) else None
        return handler.number, receipt.parent_id, receipt.topic, attempt, variables

    def _variables_of(self, carried: Carried) -> Variables:
        """Encode context variables, once for deliveries in a row; have the worker know them."""
        if self._carried is not None and self._carried[0].same(carried):
            return self._carried[1]
        carry = carried.carry
        if carry.number not in self._handlers.numbers:
            self._handlers.define_variables(carry)
        pairs = carried.pairs()
        try:
            data = self._encoder.encode_whole(pairs)
        except BaseException as error:  # noqa: BLE001 - the user's code
            named = [(carry.variables[place].name, value) for place, value in pairs]
            fault = fault_path.variable_fault(named, error)
            raise fault from useful_cause(error)
        self._carried = carried, (carry.number, data)
        return self._carried[1]

    def wait_for_room(self, timeout_s: float) -> None:
        """Wait until the last message, which found no room, may find some."""
        self._events.wait_for_room(timeout_s)

    def sent(self, message: Message) -> None:
        """Note that the worker gets this message."""
        self._batches[message.batch] = message.deliveries
        if message.kinds == 1:
            self._of_one_handler.add(message.batch)
        self._events.sent(message.batch)
        if self._slots is not None:
            self._slots.sent(message.batch)
        self._handlers.sent()
        self._classes_due.clear()
        self._freed_due.clear()

    # From the worker.

    def report(
        self,
        message: bytes | bytearray,
        left: Callable[[int, int], memoryview] | None = None,
    ) -> Report:
        """Read a results message.

        Args:
            message: the message.
            left: returns the results in the logbook at a place, if the message has only the place.
        """
        began_s = thread_time()
        results = unpack_results(message) if left is None else unpack_shared(message, left)
        told, received = self._told, self._received
        (times, values), position = read_successes(results, told, received)
        first = told + len(times)
        if received > told:  # some came from the logbook before
            times, values = times[received - told :], values[received - told :]
        self._received = max(received, first)
        rest: list[Ended] = []
        if position < len(results.data):
            rest, _ = self._ends(results.data[position:], self._batches[results.batch], first)
        self._told = results.done
        self._received = max(self._received, self._told)
        if results.done > told:
            deliveries = self._batches[results.batch]
            looked = times[:LOOKED_AT] if results.batch in self._of_one_handler else ()
            spent_s = thread_time() - began_s
            self.costs.note_received(deliveries[told], results.done - told, spent_s, looked)
        if results.complete:
            self._told = self._received = 0
            del self._batches[results.batch]
            self._of_one_handler.discard(results.batch)
            self._events.done(results.batch)
            if self._slots is not None:
                self._slots.done(results.batch)
        return Report(results.batch, Successes(times, values), rest, results.complete)

    def take_aside(self, message: bytes | bytearray) -> None:
        """Take in a message that has no results, but sums, a log record or a warning."""
        if not self.costs.take_in(message):
            take_in(Tag(message[:1]), memoryview(message)[1:])

    def glance(self, page: Page | None) -> Report:
        """Take the logbook's results of the first batch, without waiting for a message."""
        batch, deliveries = next(iter(self._batches.items()))
        if page is None or page.batch != batch or page.sent > self._received:
            return Report(batch, NO_SUCCESSES, [], False)  # read its messages first
        ends, end = self._ends(page.unsent, deliveries, page.sent)
        self._received = max(self._received, end)
        return Report(batch, NO_SUCCESSES, ends, False)

    def last_words(self, page: Page, noticed_at: float) -> LastWords:
        """Read the logbook of a dead worker whose reports have all been read.

        Args:
            page: the logbook.
            noticed_at: time when its death was noticed, in seconds of `time.monotonic()`.
        """
        deliveries = self._batches.get(page.batch)
        if deliveries is None:
            return NO_WORDS
        # The worker may have sent results, and died before it noted the sending. Such results are
        # skipped.
        ends, end = self._ends(page.unsent, deliveries, page.sent)
        done = max(self._received, end)
        in_handler = page.running and page.at >= done
        ran_s = max(0.0, noticed_at - page.since)  # `since` may lie ahead: see `At`
        if not in_handler:
            return LastWords(page.batch, ends, None)
        reported = None if page.reported is None else Reported(*page.reported)
        progress = None if reported is None else reported.during(page.batch, page.at)
        return LastWords(page.batch, ends, ran_s, progress)

    def _ends(
        self, data: bytes | memoryview, deliveries: list[Delivery], first: int
    ) -> tuple[list[Ended], int]:
        """Read results of the first batch, from its delivery `first` on.

        Returns:
            The ends that have not come in another way before, and the index after the last
            delivery.
        """
        ends: list[Ended] = []
        pid, new, outcome, succeeded = self.pid, tuple.__new__, Outcome, OutcomeKind.SUCCEEDED
        views = self._results.views
        number = first - 1
        for number, end in enumerate(each_end(data, self._take_definition), first):
            if number < self._received:
                continue
            started_at, ended_at, frame, _, _, kept = end
            if kept is not None:
                self._events.note_kept(kept)
            if frame:
                ends.append(outcomes.outcome_of(end, views, deliveries[number], pid))
            else:  # it returned None and published nothing: the most frequent case, so written out
                values = (succeeded, None, None, started_at, ended_at, pid, 0)
                ends.append((new(outcome, values), None))
        return ends, number + 1

    def _take_definition(self, number: ClassNumber, definition: bytes) -> None:
        cls = define_class(number, definition)
        if cls is not None:
            self._encoder.know(cls, number)

    def close(self) -> None:
        """Forget the worker's classes and kept blocks, because the worker is gone."""
        forget_classes(self.number)
        self._events.close()
        self._results.close()
        if self._slots is not None:
            self._slots.close()
