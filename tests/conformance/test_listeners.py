"""Listeners are told the same of a delivery wherever its handler runs."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from procbus import EventBus, OutcomeKind, current
from procbus.core.listeners import MOMENTS
from procbus.testing import InlineBus
from tests.clusters import HAS_DASK, NO_DASK
from tests.parts import BOUND_S
from tests.waits import eventually

#: Moments of a delivery, in the order in which they come.
OF_A_DELIVERY = ("accepted", "started", "retried", "settled")


def double(number: int) -> int:
    return 2 * number


def fail_once(number: int) -> int:
    if current().attempt == 1:
        raise ValueError(number)
    return number


def fail(number: int) -> None:
    raise KeyError(number)


def publish_two(number: int) -> None:
    current().publish("child", number + 1)
    current().publish("child", number + 2)


def wait_for_file(path: str) -> None:
    """Return once a file is gone."""
    eventually(lambda: not Path(path).exists())


class Told:
    """Notes all moments, in order, and the thread that told each."""

    def __init__(self) -> None:
        self.moments: list[tuple[str, Any]] = []
        self.threads: dict[str, set[str]] = {}
        for moment in MOMENTS:
            setattr(self, moment, lambda record, moment=moment: self.note(moment, record))

    def note(self, moment: str, record: Any) -> None:
        self.moments.append((moment, record))
        self.threads.setdefault(moment, set()).add(threading.current_thread().name)

    def of(self, moment: str) -> list[Any]:
        return [record for name, record in self.moments if name == moment]

    def about(self, delivery: Any) -> list[str]:
        """Names of the moments of one delivery."""
        return [
            name
            for name, record in self.moments
            if name in OF_A_DELIVERY and record.delivery == delivery
        ]


def awaiting(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    async def call(number: Any) -> Any:
        return function(number)

    return call


class Place:
    """A bus, and the way to subscribe a handler to it so that it runs at this place."""

    def __init__(self, bus: EventBus, kind: Literal["io", "cpu"], *, awaits: bool = False) -> None:
        self.bus = bus
        self._kind = kind
        self._awaits = awaits

    def run(self, topic: str, function: Callable[[Any], Any], **options: Any) -> None:
        made = awaiting(function) if self._awaits else function
        self.bus.subscribe(topic, made, name=function.__name__, kind=self._kind, **options)


@contextmanager
def at(how: str, address: str, journal: Path) -> Iterator[Place]:
    bus: EventBus
    if how == "inline":
        bus = InlineBus([], pickling=True)
    elif how in ("threads", "auto"):
        bus = EventBus([], cpu="auto" if how == "auto" else "threads", cpu_workers=2)
    elif how == "dask":
        from procbus import DaskPool

        bus = EventBus([], cpu=DaskPool(address))
    elif how == "journal":
        bus = EventBus([], cpu_workers=1, journal=journal)
    else:
        bus = EventBus([], cpu_workers=1)
    with bus:
        yield Place(bus, "io" if how in ("io", "async") else "cpu", awaits=how == "async")


HOW = [
    *("io", "async", "processes", "threads", "inline", "journal", "auto"),
    pytest.param("dask", marks=pytest.mark.skipif(not HAS_DASK, reason=NO_DASK)),
]


@pytest.fixture(params=HOW)
def how(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def place(
    how: str, dask_cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Place]:
    if how == "auto":  # chooses threads, as it does without a GIL
        monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)
    with at(how, dask_cluster, tmp_path / "run.db") as place:
        yield place


def test_listener_is_told_each_moment_of_each_delivery_once_and_in_order(place: Place) -> None:
    bus = place.bus
    place.run("double", double)
    place.run("fail_once", fail_once, retries=1, backoff=0.001)
    place.run("fail", fail)
    told = Told()
    with bus.listen(told):
        twins = [bus.publish("double", number) for number in range(20)]
        again, bad = bus.publish("fail_once", 5), bus.publish("fail", 7)
        assert bus.drain(BOUND_S)
    bus.publish("double", 1).result(BOUND_S)
    for receipt in twins:
        assert told.about(receipt.deliveries[0]) == ["accepted", "started", "settled"]
    steps = ["accepted", "started", "retried", "started", "settled"]
    assert told.about(again.deliveries[0]) == steps
    assert told.about(bad.deliveries[0]) == ["accepted", "started", "settled"]
    assert len(told.of("settled")) == 22
    (retried,) = told.of("retried")
    assert (retried.attempt, retried.outcome.kind) == (1, OutcomeKind.RAISED)
    assert [each.attempt for each in told.of("started") if each.receipt is again] == [1, 2]
    (letter,) = (each.letter for each in told.of("settled") if each.letter is not None)
    assert letter.event == 7
    assert isinstance(bad.deliveries[0].exception(), KeyError)


def test_times_of_an_attempt_lie_between_its_publishing_and_its_end(place: Place, how: str) -> None:
    place.run("double", double)
    told = Told()
    with place.bus.listen(told):
        assert place.bus.publish("double", 1).result(BOUND_S) == 2
        place.bus.drain(BOUND_S)
    (accepted,), (started,), (settled,) = map(told.of, ("accepted", "started", "settled"))
    if how != "dask":  # whose clock is known only to some milliseconds
        assert accepted.at <= started.at <= settled.outcome.started_at <= settled.outcome.ended_at
    assert started.pid == settled.outcome.worker_pid
    assert started.delivery == settled.delivery == settled.receipt.deliveries[0]


def test_listener_is_told_which_handler_published_an_event(place: Place) -> None:
    bus = place.bus
    place.run("parent", publish_two)
    bus.subscribe("child", double, kind="io")
    bus.subscribe("child", lambda number: number, kind="io", name="same")
    told = Told()
    with bus.listen(told):
        first = bus.publish("parent", 10)
        assert bus.drain(BOUND_S)
    published = told.of("published")
    assert [(each.handler, each.parent_id, each.attempt) for each in published] == [
        ("publish_two", first.id, 1)
    ] * 2
    assert [each.receipt.event for each in published] == [11, 12]
    assert len(told.of("accepted")) == 5


def test_start_is_told_while_the_handler_runs(place: Place, how: str, tmp_path: Path) -> None:
    if how in ("inline", "async"):
        pytest.skip("the handler holds up the thread of the test, or the event loop")
    flag = tmp_path / "running"
    flag.touch()
    place.run("wait", wait_for_file)
    told = Told()
    place.bus.listen(told)
    receipt = place.bus.publish("wait", str(flag))
    try:
        eventually(lambda: told.of("started"))
        assert not receipt.done
    finally:
        flag.unlink()
    assert receipt.wait(BOUND_S)
    place.bus.drain(BOUND_S)
    assert told.about(receipt.deliveries[0]) == ["accepted", "started", "settled"]


def test_listener_that_raises_harms_no_delivery_and_is_logged_once(place: Place, caplog) -> None:
    def broken(_: object) -> None:
        raise RuntimeError("a listener")

    place.run("fail_once", fail_once, retries=1, backoff=0.001)
    told = Told()
    moments = ("accepted", "started", "retried", "settled")
    place.bus.listen(SimpleNamespace(**dict.fromkeys(moments, broken)))
    place.bus.listen(told)
    receipts = [place.bus.publish("fail_once", number) for number in range(3)]
    assert [receipt.result(BOUND_S) for receipt in receipts] == [0, 1, 2]
    assert place.bus.drain(BOUND_S)
    assert len(told.of("settled")) == 3
    lines = [record.getMessage() for record in caplog.records if "the listener" in record.message]
    assert sorted(line.split()[2] for line in lines) == sorted(
        f"SimpleNamespace.{moment}" for moment in moments
    )


def test_events_that_a_listener_publishes_never_wait_for_room(how: str) -> None:
    if how != "processes":
        pytest.skip("one place is enough")
    heard: list[int] = []
    with EventBus([], cpu_workers=1, max_pending=1) as bus:
        bus.subscribe("double", double, kind="cpu")
        bus.subscribe("log", heard.append)

        def settled(moment: Any) -> None:
            if moment.receipt.topic == "double":
                bus.publish("log", moment.receipt.event)

        bus.listen(SimpleNamespace(settled=settled))
        for number in range(50):
            bus.publish("double", number)
    assert sorted(heard) == list(range(50))


_who = ContextVar("_who", default="nobody")


@pytest.mark.parametrize("how", ["io", "async"], indirect=True)
def test_variable_that_a_listener_sets_on_acceptance_reaches_that_handler_alone(
    place: Place,
) -> None:
    place.run("who", lambda _: _who.get())

    def accepted(moment: Any) -> None:
        _who.set(f"listener {moment.receipt.event}")

    with place.bus.listen(SimpleNamespace(accepted=accepted)):
        receipts = [place.bus.publish("who", number) for number in range(3)]
        found = [receipt.result(BOUND_S) for receipt in receipts]
    assert found == ["listener 0", "listener 1", "listener 2"]
    assert _who.get() == "nobody"


# Workers.


def exit_hard(_: int) -> None:
    os._exit(3)


def test_listener_is_told_of_workers_that_start_die_and_end() -> None:
    told = Told()
    with EventBus([], cpu_workers=1) as bus:
        bus.listen(told)
        bus.subscribe("exit", exit_hard, kind="cpu")
        bus.subscribe("double", double, kind="cpu")
        died = bus.publish("exit", 1)
        assert died.wait(BOUND_S)
        assert bus.publish("double", 1).result(BOUND_S) == 2
    first, second = told.of("worker_started")
    dead, ended = told.of("worker_ended")
    assert first.worker == second.worker == dead.worker == ended.worker
    assert (dead.pid, dead.died, dead.exit_code) == (first.pid, True, 3)
    assert (ended.pid, ended.died, ended.exit_code) == (second.pid, False, None)
    assert first.start_s > 0
    assert told.about(died.deliveries[0]) == ["accepted", "started", "settled"]
