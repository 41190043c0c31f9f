# SPDX-License-Identifier: MIT
"""Traces: a span for each event, and for each attempt, with the right parents wherever it runs."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from procbus import BatchFailed, EventBus, current
from procbus.bus import parts_of
from procbus.testing import InlineBus
from tests.clusters import HAS_DASK, NO_DASK, cluster, warm_up
from tests.parts import BOUND_S

pytest.importorskip("opentelemetry.sdk")

from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from procbus.otel import instrument


class Spans:
    """A provider whose finished spans the test can look at."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    def all(self) -> list[Any]:
        return list(self._exporter.get_finished_spans())

    def of(self, name: str) -> list[Any]:
        return [span for span in self.all() if span.name == name]

    def path_to(self, span: Any) -> list[str]:
        """Names of the spans above a span, and its own."""
        by_id = {each.context.span_id: each for each in self.all()}
        path = [span.name]
        while span.parent is not None:
            span = by_id[span.parent.span_id]
            path.insert(0, span.name)
        return path


@pytest.fixture
def spans() -> Iterator[Spans]:
    made = Spans()
    yield made
    made.provider.shutdown()


def span_here() -> tuple[int, int]:
    """The trace and the span that a handler's own spans would be children of."""
    above = trace.get_current_span().get_span_context()
    return above.trace_id, above.span_id


def first(number: int) -> tuple[int, int]:
    current().publish("second", number)
    return span_here()


def second(number: int) -> tuple[int, int]:
    current().publish("third", number)
    return span_here()


async def third(number: int) -> tuple[int, int]:
    current().publish("fourth", number)
    return span_here()


def fourth(number: int) -> tuple[int, int]:
    return span_here()


def bus_of(how: str, address: str) -> EventBus:
    if how == "inline":
        return InlineBus([], pickling=True)
    if how in ("threads", "auto"):
        return EventBus([], cpu="auto" if how == "auto" else "threads", cpu_workers=1)
    if how == "dask":
        from procbus import DaskPool

        return EventBus([], cpu=DaskPool(address))
    return EventBus([], cpu_workers=1)


@pytest.fixture(scope="module")
def address(request: pytest.FixtureRequest) -> Iterator[str]:
    if not HAS_DASK:
        yield ""
        return
    with cluster() as started:
        warm_up(started)
        yield started


HOW = [
    *("processes", "threads", "inline", "auto"),
    pytest.param("dask", marks=pytest.mark.skipif(not HAS_DASK, reason=NO_DASK)),
]


@pytest.mark.parametrize("how", HOW)
def test_cascade_through_all_lanes_is_one_trace_with_the_right_parents(
    how, address, spans, monkeypatch
):
    if how == "auto":  # chooses threads, as it does without a GIL
        monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)
    with bus_of(how, address) as bus, instrument(bus, tracer_provider=spans.provider):
        seen: dict[str, tuple[int, int]] = {}

        class Results:
            def settled(self, moment: Any) -> None:
                seen[moment.receipt.topic] = moment.outcome.value

        bus.listen(Results())
        bus.subscribe("first", first)
        bus.subscribe("second", second, kind="cpu")
        bus.subscribe("third", third)
        bus.subscribe("fourth", fourth, kind="cpu")
        with spans.provider.get_tracer("script").start_as_current_span("script"):
            bus.publish("first", 1)
        assert bus.drain(BOUND_S)
    names = ["script"]
    for topic in ("first", "second", "third", "fourth"):
        names += [f"publish {topic}", f"process {topic}"]
        (attempt,) = spans.of(f"process {topic}")
        assert seen[topic] == (attempt.context.trace_id, attempt.context.span_id)
        assert attempt.kind is trace.SpanKind.CONSUMER
    assert spans.path_to(spans.of("process fourth")[0]) == names
    assert len({span.context.trace_id for span in spans.all()}) == 1
    assert len(spans.all()) == len(names)


def fail_once(number: int) -> tuple[int, int]:
    if current().attempt == 1:
        raise LookupError(f"no {number}")
    return span_here()


@pytest.mark.parametrize("kind", ["io", "cpu"])
def test_retry_is_a_second_span_and_the_handler_is_in_that_one(kind, spans):
    with EventBus([], cpu_workers=1) as bus, instrument(bus, tracer_provider=spans.provider):
        bus.subscribe("n", fail_once, kind=kind, retries=1, backoff=0.001)
        receipt = bus.publish("n", 5)
        found = receipt.result(BOUND_S)
        assert bus.drain(BOUND_S)
    failed, succeeded = spans.of("process n")
    assert (succeeded.context.trace_id, succeeded.context.span_id) == found
    assert [each.attributes["procbus.attempt"] for each in (failed, succeeded)] == [1, 2]
    assert failed.parent.span_id == succeeded.parent.span_id
    assert not failed.status.is_ok
    assert succeeded.status.is_ok
    (event,) = failed.events
    assert event.attributes["exception.type"] == "LookupError"
    assert "in fail_once" in event.attributes["exception.stacktrace"]
    assert failed.attributes["error.type"] == "LookupError"
    times = [failed.start_time, failed.end_time, succeeded.start_time, succeeded.end_time]
    assert times == sorted(times)


def test_each_handler_of_an_event_has_a_span_of_its_own_below_one_publishing(spans):
    with EventBus([], cpu_workers=1) as bus, instrument(bus, tracer_provider=spans.provider):
        for name in ("a", "b"):
            bus.subscribe("n", fourth, name=name)
        bus.subscribe("n", second, kind="cpu", name="c")
        bus.publish("n", 5)
        assert bus.drain(BOUND_S)
    (published,) = spans.of("publish n")
    attempts = spans.of("process n")
    assert {span.parent.span_id for span in attempts} == {published.context.span_id}
    groups = [span.attributes["messaging.consumer.group.name"] for span in attempts]
    assert sorted(groups) == ["a", "b", "c"]
    assert published.attributes["messaging.message.id"] == "1"


def test_baggage_reaches_worker_processes(spans):
    with EventBus([], cpu_workers=1) as bus, instrument(bus, tracer_provider=spans.provider):
        bus.subscribe("n", lambda _: baggage.get_baggage("tenant"), kind="cpu")
        token = context.attach(baggage.set_baggage("tenant", "t1"))
        try:
            receipt = bus.publish("n", 1)
        finally:
            context.detach(token)
        assert receipt.result(BOUND_S) == "t1"


def test_publisher_keeps_its_own_span(spans):
    with InlineBus([]) as bus, instrument(bus, tracer_provider=spans.provider):
        bus.subscribe("n", fourth)
        before = span_here()
        bus.publish("n", 1)
        assert span_here() == before


def test_variables_that_the_bus_carries_are_carried_too(spans):
    from tests.conformance.handlers import who

    def look(_: int) -> tuple[Any, bool]:
        return who.get(), span_here()[0] != 0

    with EventBus([], cpu_workers=1, carry=[who]) as bus:
        bus.subscribe("n", look, kind="cpu")
        token = who.set("me")
        try:
            assert bus.publish("n", 1).result(BOUND_S) == ("me", False)
            with instrument(bus, tracer_provider=spans.provider):
                assert bus.publish("n", 1).result(BOUND_S) == ("me", True)
            assert bus.publish("n", 1).result(BOUND_S) == ("me", False)
        finally:
            who.reset(token)


def test_call_of_an_executor_is_named_by_its_function(spans):
    with EventBus([], cpu_workers=1) as bus, instrument(bus, tracer_provider=spans.provider):
        with bus.executor("io") as pool:
            assert pool.submit(fourth, 1).result(BOUND_S)[0]
        assert bus.drain(BOUND_S)
    (attempt,) = [span for span in spans.all() if span.kind is trace.SpanKind.CONSUMER]
    assert attempt.name.endswith("fourth")


def test_bus_without_a_provider_runs_as_ever():
    with EventBus([], cpu_workers=1) as bus, instrument(bus):
        bus.subscribe("n", fourth, kind="cpu")
        assert bus.publish("n", 1).result(BOUND_S) == (0, 0)


def odd_fails(numbers: list[int]) -> None:
    current().publish("sum", sum(numbers))
    raise BatchFailed({numbers.index(3): ValueError("odd")})


@pytest.mark.parametrize("kind", ["io", "cpu"])
def test_call_of_a_batch_handler_is_a_span_with_a_link_to_each_attempt(kind, spans):
    with EventBus([], cpu_workers=1) as bus, instrument(bus, tracer_provider=spans.provider):
        bus.subscribe("n", odd_fails, kind=kind, batch=3, batch_wait=BOUND_S, name="h")
        bus.subscribe("sum", fourth)
        with spans.provider.get_tracer("script").start_as_current_span("script"):
            for number in (2, 3, 4):
                bus.publish("n", number)
        assert bus.drain(BOUND_S)
    attempts = spans.of("process n")
    assert sorted(span.status.is_ok for span in attempts) == [False, True, True]
    for attempt in attempts:
        assert spans.path_to(attempt) == ["script", "publish n", "process n"]
    (call,) = spans.of("process batch n")
    assert call.kind is trace.SpanKind.CONSUMER
    assert call.parent is None
    assert {link.context.span_id for link in call.links} == {
        span.context.span_id for span in attempts
    }
    assert call.attributes["messaging.batch.message_count"] == 3
    assert call.attributes["messaging.operation.type"] == "process"
    assert not call.status.is_ok
    if kind == "io":  # a cpu handler that fails publishes nothing
        (published,) = spans.of("publish sum")
        assert spans.path_to(published) == ["script", "publish n", "publish sum"]


def sum_up(numbers: list[int]) -> None:
    current().publish("sum", sum(numbers))


@pytest.mark.parametrize("kind", ["io", "cpu"])
def test_events_that_a_batch_handler_publishes_belong_to_the_trace_of_its_first_event(kind, spans):
    with EventBus([], cpu_workers=1) as bus, instrument(bus, tracer_provider=spans.provider):
        bus.subscribe("n", sum_up, kind=kind, batch=2, batch_wait=BOUND_S)
        bus.subscribe("sum", fourth)
        first, _ = [bus.publish("n", number) for number in range(2)]
        assert bus.drain(BOUND_S)
    (summed,) = spans.of("process sum")
    assert spans.path_to(summed) == ["publish n", "publish sum", "process sum"]
    (producer,) = [
        span
        for span in spans.of("publish n")
        if span.attributes["messaging.message.id"] == str(first.id)
    ]
    assert summed.context.trace_id == producer.context.trace_id


def test_nothing_of_a_settled_event_is_kept(spans):
    with InlineBus([]) as bus, instrument(bus, tracer_provider=spans.provider):
        bus.subscribe("n", fail_once, retries=1, name="a")
        bus.subscribe("n", fourth, name="b")
        bus.subscribe("n", len, name="c", batch=2)
        for number in range(10):
            bus.publish("n", number)
        (ear,) = parts_of(bus).settlement.listeners.settled
        tracing = getattr(ear.hear, "__self__", None)
        assert [vars(tracing)[name] for name in ("_events", "_planned", "_calls")] == [{}, {}, {}]


def test_import_without_opentelemetry_says_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "procbus.otel")
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(ImportError, match=r"pip install 'procbus\[otel\]'"):
        importlib.import_module("procbus.otel")


def test_names_of_attributes_are_as_in_the_semantic_conventions():
    names = pytest.importorskip("opentelemetry.semconv._incubating.attributes.messaging_attributes")
    source = (Path(__file__).parents[2] / "procbus" / "otel.py").read_text(encoding="utf-8")
    used = ("SYSTEM", "DESTINATION_NAME", "MESSAGE_ID", "OPERATION_NAME", "OPERATION_TYPE")
    for name in (*used, "BATCH_MESSAGE_COUNT"):
        assert f'"{getattr(names, f"MESSAGING_{name}")}"' in source
    assert f'"{names.MESSAGING_CONSUMER_GROUP_NAME}"' in source
    kinds = {kind.value for kind in names.MessagingOperationTypeValues}
    assert kinds >= {"send", "process"}
