# SPDX-License-Identifier: MIT
"""Context variables that a bus takes along to its worker processes."""

import threading
from contextvars import Context, ContextVar
from typing import Any

import pytest

from procbus import EventBus, SerializationError, current
from procbus.testing import InlineBus
from tests.conformance.handlers import amount, who
from tests.integration.conftest import Run
from tests.parts import BOUND_S, in_thread


def look(event: Any) -> Any:
    found = who.get()
    who.set("left behind")
    return found


def fail_once(event: Any) -> Any:
    if current().attempt == 1:
        who.set("an attempt that failed")
        raise ValueError
    return who.get()


def parent(event: Any) -> None:
    current().publish("iochild", event)
    current().publish("child", event)


def publish_as(bus: EventBus, name: str, *about: Any) -> Any:
    def publish() -> Any:
        who.set(name)
        return bus.publish(*about)

    return Context().run(publish)


def bus_for(how: str) -> EventBus:
    if how == "processes":
        return EventBus([], cpu_workers=2, carry=[who, amount])
    return InlineBus([], carry=[who, amount], pickling=how == "pickling")


HOW = pytest.mark.parametrize("how", ["processes", "inline", "pickling"])


@HOW
def test_each_event_has_the_values_of_its_publisher(how):
    with bus_for(how) as bus:
        bus.subscribe("n", look, kind="cpu")
        seen: dict[str, set[Any]] = {}

        def publish(name: str) -> None:
            receipts = [publish_as(bus, f"{name} {n % 3}", "n", n) for n in range(100)]
            results = [receipt.result(BOUND_S) for receipt in receipts]
            assert results == [f"{name} {n % 3}" for n in range(100)]
            seen[name] = set(results)

        threads = [in_thread(lambda name=name: publish(name)) for name in "abc"]
        for thread in threads:
            thread.join(BOUND_S)
        assert sorted(seen) == ["a", "b", "c"]
        assert Context().run(bus.publish, "n", 1).result(BOUND_S) == "nobody"


@HOW
def test_retries_and_events_of_a_handler_have_the_values_too(how):
    seen: list[str] = []
    children = threading.Semaphore(0)

    def child(event: Any) -> None:
        seen.append(who.get())
        children.release()

    with bus_for(how) as bus:
        bus.subscribe("retried", fail_once, kind="cpu", retries=1, backoff=0)
        bus.subscribe("parent", parent, kind="cpu")
        bus.subscribe("child", look, kind="cpu", name="cpu child")
        bus.subscribe("iochild", child)
        assert publish_as(bus, "somebody", "retried", 1).result(BOUND_S) == "somebody"
        assert publish_as(bus, "somebody", "parent", 1).wait(BOUND_S)
        assert children.acquire(timeout=BOUND_S)
        assert bus.drain(BOUND_S)
        assert bus.stats().handlers["cpu child"].succeeded == 1
    assert seen == ["somebody"]


@HOW
def test_call_of_an_executor_has_the_values_of_its_submitter(how):
    with bus_for(how) as bus:
        executor = bus.executor("cpu")

        def submit() -> Any:
            who.set("somebody")
            return executor.submit(look, 1)

        assert Context().run(submit).result(BOUND_S) == "somebody"
        assert Context().run(executor.submit, look, 1).result(BOUND_S) == "nobody"


def test_a_value_that_cannot_travel_fails_its_delivery_and_names_the_variable():
    with bus_for("processes") as bus:
        bus.subscribe("n", look, kind="cpu")

        def publish() -> Any:
            amount.set({"lock": threading.Lock()})
            return bus.publish("n", 1)

        with pytest.raises(SerializationError, match=r"amount\.get\(\)\['lock'\].*carry="):
            Context().run(publish).result(BOUND_S)
        assert publish_as(bus, "fine", "n", 1).result(BOUND_S) == "fine"


def test_a_default_that_cannot_travel_is_refused_when_the_bus_is_made():
    cannot: Any = (each for each in [1])
    held: ContextVar[Any] = ContextVar("held", default=cannot)
    with pytest.raises(SerializationError, match="default of the context variable 'held'"):
        EventBus([], carry=[held])


def test_settled_delivery_keeps_nothing_of_its_publishers_context():
    with bus_for("processes") as bus:
        bus.subscribe("n", look, kind="cpu")
        receipts = [publish_as(bus, "somebody", "n", n) for n in range(20)]
        bus.subscribe("parent", parent, kind="cpu")
        receipts.append(publish_as(bus, "somebody", "parent", 1))
        assert all(receipt.wait(BOUND_S) for receipt in receipts)
        assert [receipt.deliveries[0].context for receipt in receipts] == [None] * 21


def test_variables_of_the_script_are_taken_along(run: Run) -> None:
    ended = run(
        """
        import contextvars
        from dataclasses import dataclass
        from procbus import EventBus

        trace = contextvars.ContextVar("trace", default=None)
        request = contextvars.ContextVar("request")

        @dataclass(frozen=True)
        class Trace:
            id: int

        def helper():
            return trace.get()

        def work(event):
            return helper(), request.get("none")

        with EventBus([], cpu_workers=2, carry=[trace, request]) as bus:
            bus.subscribe("n", work, kind="cpu")
            assert bus.publish("n", 1).result() == (None, "none")
            receipts = []
            for number in range(100):
                trace.set(Trace(number))
                if number == 50:
                    request.set("late")
                receipts.append(bus.publish("n", number))
            for number, receipt in enumerate(receipts):
                assert receipt.result() == (Trace(number), "late" if number >= 50 else "none")
        print("all right")
        """
    )
    assert "all right" in ended.check()
