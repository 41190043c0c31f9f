# SPDX-License-Identifier: MIT
"""Traces: a span for each event that is published, and for each attempt of a handler.

`instrument(bus)` needs `pip install 'procbus[otel]'`, which is the API of OpenTelemetry alone.
"""

from __future__ import annotations

import threading
from time import monotonic, time_ns
from typing import TYPE_CHECKING, Any

from procbus.bus import EventBus, parts_of
from procbus.core.carry import Carried
from procbus.core.listeners import Listening
from procbus.core.locks import Lock
from procbus.core.outcome import Outcome, OutcomeKind
from procbus.core.trace_context import CurrentTrace, TraceContext, departing
from procbus.core.user_objects import class_name, text_of, traceback_of

try:
    from opentelemetry import context as otel_context
    from opentelemetry import trace
except ImportError as error:
    raise ImportError("procbus.otel needs OpenTelemetry: pip install 'procbus[otel]'") from error

if TYPE_CHECKING:
    from procbus.core.delivery import Delivery
    from procbus.core.moments import Accepted, Retried, Settled, Started
    from procbus.core.receipt import Receipt


def instrument(bus: EventBus, *, tracer_provider: Any = None) -> Listening:
    """Make spans of all events and attempts of a bus, from now on.

    An event that you publish is a span of kind PRODUCER, and a child of your current span. Each
    attempt of a handler is a span of kind CONSUMER, and a child of the event's span. Spans that the
    handler makes, and events that it publishes, are children of the attempt's span, in a worker
    process too.

    Example:
        ```python
        from procbus import EventBus
        from procbus.otel import instrument

        with EventBus(handlers=[]) as bus, instrument(bus):
            bus.publish("page.fetched", "<html>")
        ```

    Args:
        bus: the bus.
        tracer_provider: makes the tracer; None for the global provider of OpenTelemetry.

    Returns:
        An object whose method `stop` ends the tracing. As a `with` block, the object ends the
        tracing at the end of the block.
    """
    return parts_of(bus).listen(_Tracing(tracer_provider), carried=CurrentTrace())


class _Ids:
    """The generator of ids of a tracer, but for a span whose id was planned.

    Args:
        own: the generator that the tracer has.
    """

    def __init__(self, own: Any) -> None:
        self._own = own
        self._here = threading.local()

    def plan(self, span_id: int) -> None:
        """Have the next span of this thread get an id."""
        self._here.planned = span_id

    def generate_span_id(self) -> int:
        """Return the planned id, or a new one."""
        planned: int | None = getattr(self._here, "planned", None)
        if planned is None:
            planned = int(self._own.generate_span_id())
        self._here.planned = None
        return planned

    def __getattr__(self, name: str) -> Any:
        """Take any other method from the generator."""
        return getattr(self._own, name)


class _Event:
    """An event on its way: the context that its PRODUCER span began, and its open deliveries."""

    def __init__(self, context: Any, count: int) -> None:
        self.context = context
        self.open = count


class _Call:
    """A call of a batch handler: its start, and its events whose attempts have ended so far."""

    def __init__(self, at: float, pid: int | None) -> None:
        self.at = at
        self.pid = pid
        #: Number of events whose attempt has not ended.
        self.open = 0
        self.ended_at = at
        self.kinds: set[OutcomeKind] = set()
        self.links: list[Any] = []


class _Tracing:
    """Makes the spans of one bus, as its listener. Thread-safe.

    The span of an attempt is made at its end, by the clock of the worker. Handlers and events that
    the attempt publishes refer to that span before it is made, so its id is planned: see `_Ids`. A
    tracer without a generator of ids gives the span an unplanned id; then those handlers and events
    are children of the event's span.

    An event of a batch handler has an attempt like any other. The call has a span of its own, with
    a link to each attempt. A thread tells of the start of all events of a call one after the other,
    with the same time.

    The lock `_lock` guards the dicts and the objects in them.

    Args:
        provider: see `instrument`.
    """

    def __init__(self, provider: Any) -> None:
        self._provider = provider
        self._tracer: Any = None
        self._ids: _Ids | None = None
        self._lock = Lock()
        #: Events with open deliveries, by id; and the span id of the next attempt of each delivery.
        self._events: dict[int, _Event] = {}
        self._planned: dict[Delivery, int] = {}
        #: The call of each running delivery to a batch handler; and by handler and thread the last
        #: call whose start was told.
        self._calls: dict[Delivery, _Call] = {}
        self._begun: dict[tuple[str, int], _Call] = {}

    # The moments.

    def accepted(self, moment: Accepted) -> None:
        """Make the span of the event, and the context of its handler."""
        delivery, receipt = moment.delivery, moment.receipt
        with self._lock:
            event = self._events.get(receipt.id)
        if event is None:
            event = self._publish(receipt, moment.at)
            with self._lock:
                self._events[receipt.id] = event
        departed = self._plan(event, delivery)
        departing.set(departed)
        otel_context.attach(departed)

    def started(self, moment: Started) -> None:
        """Note which call an event of a batch handler is in."""
        delivery = moment.delivery
        if delivery.handler.batch is None:
            return
        key = delivery.handler.name, threading.get_ident()
        with self._lock:
            call = self._begun.get(key)
            if call is None or (call.at, call.pid) != (moment.at, moment.pid):
                call = self._begun[key] = _Call(moment.at, moment.pid)
            call.open += 1
            self._calls[delivery] = call

    def retried(self, moment: Retried) -> None:
        """Make the span of the failed attempt, and the context of the next one."""
        delivery = moment.delivery
        event = self._end_attempt(delivery, moment.receipt, moment.outcome, moment.attempt)
        if event is None:
            return
        departed = self._plan(event, delivery)
        found = delivery.context
        if isinstance(found, Carried):
            delivery.context = found.exchanged(departing, departed)
        elif found is not None:
            found.run(otel_context.attach, departed)

    def settled(self, moment: Settled) -> None:
        """Make the span of the last attempt."""
        delivery, receipt = moment.delivery, moment.receipt
        attempt = len(delivery.earlier) + 1
        event = self._end_attempt(delivery, receipt, moment.outcome, attempt)
        if event is not None:
            with self._lock:
                event.open -= 1
                if not event.open:
                    self._events.pop(receipt.id, None)

    # The spans.

    def _publish(self, receipt: Receipt, at: float) -> _Event:
        destination = _destination(receipt)
        above = None
        if not trace.get_current_span().get_span_context().is_valid:
            # A batch handler runs in no context. The parent is the first event of its list.
            with self._lock:
                parent = self._events.get(receipt.parent_id or 0)
            above = None if parent is None else parent.context
        span = self._tracer_now().start_span(
            f"publish {destination}",
            context=above,
            kind=trace.SpanKind.PRODUCER,
            attributes={**_about(receipt, destination), **_operation("publish", "send")},
            start_time=_time_of_day(at),
        )
        context = trace.set_span_in_context(span)
        span.end()
        return _Event(context, len(receipt.deliveries))

    def _plan(self, event: _Event, delivery: Delivery) -> TraceContext:
        """Plan the span of the next attempt; return the context for its handler."""
        above = trace.get_current_span(event.context).get_span_context()
        if self._ids is None or not above.is_valid:
            return TraceContext(event.context)
        span_id = self._ids.generate_span_id()
        with self._lock:
            self._planned[delivery] = span_id
        planned = trace.SpanContext(
            above.trace_id, span_id, False, above.trace_flags, above.trace_state
        )
        span = trace.NonRecordingSpan(planned)
        return TraceContext(trace.set_span_in_context(span, event.context))

    def _end_attempt(
        self, delivery: Delivery, receipt: Receipt, outcome: Outcome, attempt: int
    ) -> _Event | None:
        """Make the span of an attempt, if it began; return its event, if that is known."""
        with self._lock:
            event = self._events.get(receipt.id)
            planned = self._planned.pop(delivery, None)
        if event is None or not outcome.started_at:
            return event
        handler, destination = delivery.handler, _destination(receipt)
        attributes = {
            **_about(receipt, destination),
            **_operation("process", "process"),
            "messaging.consumer.group.name": handler.name,
            "procbus.handler.kind": handler.kind,
            "procbus.attempt": attempt,
            "procbus.outcome": outcome.kind.value,
        }
        if outcome.worker_pid is not None:
            attributes["procbus.worker.pid"] = outcome.worker_pid
        if outcome.error is not None:
            attributes["error.type"] = class_name(outcome.error)
        tracer = self._tracer_now()
        if self._ids is not None and planned is not None:
            self._ids.plan(planned)
        span = tracer.start_span(
            f"process {destination}",
            context=event.context,
            kind=trace.SpanKind.CONSUMER,
            attributes=attributes,
            start_time=_time_of_day(outcome.started_at),
        )
        ended_at = _time_of_day(outcome.ended_at)
        if outcome.kind is not OutcomeKind.SUCCEEDED:
            _note_failure(span, outcome, ended_at)
        span.end(ended_at)
        if handler.batch is not None:
            self._end_in_call(delivery, destination, outcome, span)
        return event

    def _end_in_call(
        self, delivery: Delivery, destination: str, outcome: Outcome, attempt: Any
    ) -> None:
        """Note the attempt at an event of a call; make the span of the call with the last one."""
        with self._lock:
            call = self._calls.pop(delivery, None)
            if call is None:
                return
            call.links.append(trace.Link(attempt.get_span_context()))
            call.kinds.add(outcome.kind)
            call.ended_at = max(call.ended_at, outcome.ended_at)
            call.open -= 1
            if call.open:
                return
        handler = delivery.handler
        attributes = {
            "messaging.system": "procbus",
            "messaging.destination.name": destination,
            **_operation("process batch", "process"),
            "messaging.batch.message_count": len(call.links),
            "messaging.consumer.group.name": handler.name,
            "procbus.handler.kind": handler.kind,
        }
        if call.pid is not None:
            attributes["procbus.worker.pid"] = call.pid
        span = self._tracer_now().start_span(
            f"process batch {destination}",
            context=otel_context.Context(),
            kind=trace.SpanKind.CONSUMER,
            attributes=attributes,
            links=call.links,
            start_time=_time_of_day(call.at),
        )
        if failed := sorted(kind.value for kind in call.kinds - {OutcomeKind.SUCCEEDED}):
            span.set_status(trace.Status(trace.StatusCode.ERROR, ", ".join(failed)))
        span.end(_time_of_day(call.ended_at))

    def _tracer_now(self) -> Any:
        """The tracer. The global provider may be set after the bus was instrumented."""
        if self._ids is not None:
            return self._tracer
        tracer = (self._provider or trace.get_tracer_provider()).get_tracer("procbus")
        with self._lock:
            own = getattr(tracer, "id_generator", None)
            if own is not None and self._ids is None:
                ids = own if isinstance(own, _Ids) else _Ids(own)
                tracer.id_generator = ids
                self._tracer, self._ids = tracer, ids
        return tracer


def _note_failure(span: Any, outcome: Outcome, ended_at: int) -> None:
    error = outcome.error
    message = ""
    if error is not None:
        stack = text_of(error, traceback_of(error))
        message = stack.strip().rpartition("\n")[2]
        about = {
            "exception.type": class_name(error),
            "exception.message": message,
            "exception.stacktrace": stack,
        }
        span.add_event("exception", about, ended_at)
    span.set_status(trace.Status(trace.StatusCode.ERROR, message or outcome.kind.value))


def _destination(receipt: Receipt) -> str:
    """The topic of an event; its class, or the function that an executor calls."""
    if receipt.topic is not None:
        return receipt.topic
    deliveries = receipt.deliveries
    if deliveries and deliveries[0].subscription.answered:
        return deliveries[0].handler.name
    return type(receipt.event).__qualname__


def _about(receipt: Receipt, destination: str) -> dict[str, Any]:
    return {
        "messaging.system": "procbus",
        "messaging.destination.name": destination,
        "messaging.message.id": str(receipt.id),
    }


def _operation(name: str, kind: str) -> dict[str, str]:
    return {"messaging.operation.name": name, "messaging.operation.type": kind}


def _time_of_day(at: float) -> int:
    """Turn a time of `monotonic()` into nanoseconds since 1970."""
    return time_ns() - int((monotonic() - at) * 1e9)
