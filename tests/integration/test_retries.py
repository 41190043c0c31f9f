"""Deliveries that are tried again, on real workers and threads."""

import asyncio
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from textwrap import dedent
from typing import Any, Literal

import pytest

from procbus import (
    DeliveryState,
    EventBus,
    HandlerTimeout,
    MemoryLimitExceeded,
    Outcome,
    OutcomeKind,
    Receipt,
    WorkerDied,
    current,
)
from procbus.assembly import Makers
from procbus.supervision.supervisor import Supervisor
from tests.integration.conftest import Run, Start
from tests.integration.helpers import PATIENCE_S, WAKING, Bell, Door, Listener, Tally, wait_gone
from tests.matrix import quick_first
from tests.parts import BusWith, ClockAhead
from tests.waits import eventually

Kind = Literal["io", "cpu"]
MIB = 1 << 20


class NotYet(Exception):
    pass


@dataclass(frozen=True)
class Job:
    number: int
    tally: Tally
    #: The behaviour of each attempt, one letter each; the last is repeated.
    plan: str = "s"
    key: int = 0
    door: Door | None = None
    bell: Bell | None = None


def leak_for_ever() -> None:
    kept = []
    while True:
        kept.append(bytearray(b"x") * (4 * MIB))
        time.sleep(0.002)


ACTS: dict[str, Callable[[], object]] = {
    "s": lambda: None,  # succeeds
    "r": lambda: (_ for _ in ()).throw(NotYet("not yet")),
    "v": lambda: int("not a number"),
    "k": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "x": lambda: os._exit(3),
    "h": lambda: time.sleep(1000),
    "m": leak_for_ever,
}


def attempt(job: Job) -> tuple[int, int]:
    number = current().attempt
    act = job.plan[min(number, len(job.plan)) - 1]
    job.tally.note(f"{job.key} {job.number} {number} {act}")
    if job.bell is not None:
        job.bell.ring(number)
    if job.door is not None:
        job.door.go_through()
    ACTS[act]()
    return job.number, number


async def attempt_async(job: Job) -> tuple[int, int]:
    number = current().attempt
    act = job.plan[min(number, len(job.plan)) - 1]
    job.tally.note(f"{job.key} {job.number} {number} {act}")
    if act == "h":
        await asyncio.sleep(1000)
    ACTS[act]()
    return job.number, number


def kinds_of(receipt: Receipt) -> list[OutcomeKind]:
    """How each attempt ended."""
    (delivery,) = receipt.deliveries
    assert delivery.outcome is not None
    return [outcome.kind for outcome in (*delivery.earlier, delivery.outcome)]


def run(kind: Kind, plan: str, tally: Tally, **options: Any) -> tuple[Receipt, EventBus]:
    """Run one delivery to its end."""
    options = {"retries": len(plan) - 1, "backoff": 0.0, **options}
    with EventBus([], cpu_workers=1, io_workers=2) as bus:
        bus.subscribe("job", attempt, kind=kind, name="job", **options)
        receipt = bus.publish("job", Job(0, tally, plan))
        assert receipt.wait(PATIENCE_S)
    return receipt, bus


def all_settled_so_far(bus: EventBus) -> None:
    """Wait for the one worker's thread, which may lag behind the result that is seen."""
    bus.publish("job", Job(-1, Tally(os.devnull))).result(PATIENCE_S)


RAISED, DIED = OutcomeKind.RAISED, OutcomeKind.WORKER_DIED
TIMED_OUT, OVER_MEMORY = OutcomeKind.TIMED_OUT, OutcomeKind.OVER_MEMORY
SUCCEEDED = OutcomeKind.SUCCEEDED


# Deliveries that are retried.


@pytest.mark.parametrize("kind", ["io", "cpu"])
def test_delivery_is_retried_until_it_succeeds(kind: Kind, tally: Tally) -> None:
    receipt, bus = run(kind, "rrrs", tally, retries=5)
    assert receipt.result() == (0, 4)
    assert kinds_of(receipt) == [RAISED, RAISED, RAISED, SUCCEEDED]
    assert tally.lines() == ["0 0 1 r", "0 0 2 r", "0 0 3 r", "0 0 4 s"]
    assert receipt.deliveries[0].attempts == 4
    stats = bus.stats().handlers["job"]
    assert (stats.published, stats.succeeded, stats.failed, stats.retried) == (1, 1, 0, 3)
    assert bus.dead_letters == ()


@pytest.mark.parametrize("kind", ["io", "cpu"])
def test_delivery_fails_for_good_after_the_last_attempt(kind: Kind, tally: Tally) -> None:
    receipt, bus = run(kind, "r", tally, retries=2)
    with pytest.raises(NotYet):
        receipt.result()
    assert kinds_of(receipt) == [RAISED] * 3
    assert len(tally.lines()) == 3
    stats = bus.stats().handlers["job"]
    assert (stats.succeeded, stats.failed, stats.retried) == (0, 1, 2)
    (letter,) = bus.dead_letters
    assert (letter.attempts, letter.quarantined) == (3, False)


def test_an_async_handler_is_tried_again_after_errors_and_time_outs(tally: Tally) -> None:
    with EventBus([]) as bus:
        bus.subscribe("job", attempt_async, retries=3, backoff=0.0, timeout=1.0)
        receipt = bus.publish("job", Job(0, tally, "rhs"))
        assert receipt.result(PATIENCE_S) == (0, 3)
    assert kinds_of(receipt) == [RAISED, TIMED_OUT, SUCCEEDED]


def test_every_kind_of_failure_counts_as_an_attempt(tally: Tally) -> None:
    clock = ClockAhead()
    make = Makers(supervisor=partial(Supervisor, clock=clock))
    with BusWith(make, cpu_workers=1) as bus:
        bus.subscribe(
            "job",
            attempt,
            kind="cpu",
            name="job",
            retries=3,
            backoff=0.0,
            timeout=600,
            max_memory="160 MiB",
            max_crashes=2,
        )
        receipt = bus.publish("job", Job(0, tally, "rkmh"))
        eventually(lambda: "0 0 4 h" in tally.lines())
        clock.ahead_s = 600.0
        assert receipt.wait(PATIENCE_S)
    assert kinds_of(receipt) == [RAISED, DIED, OVER_MEMORY, TIMED_OUT]
    assert tally.lines() == ["0 0 1 r", "0 0 2 k", "0 0 3 m", "0 0 4 h"]
    stats = bus.stats().handlers["job"]
    assert (stats.retried, stats.crashed, stats.timed_out, stats.over_memory) == (3, 1, 1, 1)
    assert stats.failed == 1


@pytest.mark.parametrize(("max_crashes", "died"), quick_first([(1, 2), (0, 1), (3, 4)]))
def test_delivery_that_kills_its_workers_is_quarantined(
    tally: Tally, max_crashes: int, died: int
) -> None:
    receipt, bus = run("cpu", "x", tally, retries=10, max_crashes=max_crashes)
    with pytest.raises(WorkerDied):
        receipt.result()
    assert kinds_of(receipt) == [DIED] * died
    assert len(tally.lines()) == died
    (letter,) = bus.dead_letters
    assert (letter.attempts, letter.quarantined) == (died, True)


def test_retries_bound_crashes_too(tally: Tally) -> None:
    receipt, _ = run("cpu", "k", tally, retries=2, max_crashes=10)
    assert kinds_of(receipt) == [DIED] * 3


def test_only_errors_named_by_retry_on_are_retried(tally: Tally) -> None:
    receipt, _ = run("cpu", "rv", tally, retries=5, retry_on=NotYet)
    with pytest.raises(ValueError, match="not a number"):
        receipt.result()
    assert kinds_of(receipt) == [RAISED, RAISED]

    receipt, _ = run("cpu", "k", tally, retries=5, retry_on=(NotYet, HandlerTimeout))
    assert kinds_of(receipt) == [DIED]

    receipt, _ = run("cpu", "hs", tally, retry_on=HandlerTimeout, timeout=0.5)
    assert kinds_of(receipt) == [TIMED_OUT, SUCCEEDED]

    receipt, _ = run("cpu", "ms", tally, retry_on=MemoryLimitExceeded, max_memory="160 MiB")
    assert kinds_of(receipt) == [OVER_MEMORY, SUCCEEDED]


def test_backoff_gets_the_attempt_and_its_outcome(tally: Tally) -> None:
    told: list[tuple[int, OutcomeKind]] = []

    def backoff(attempt: int, outcome: Outcome) -> float:
        told.append((attempt, outcome.kind))
        return 0.0

    with EventBus([], cpu_workers=1) as bus:
        bus.subscribe("job", attempt, kind="cpu", retries=3, backoff=backoff, max_crashes=2)
        told.clear()  # it was tried out when the handler was subscribed
        receipt = bus.publish("job", Job(0, tally, "rks"))
        assert receipt.result(PATIENCE_S) == (0, 3)
    assert told == [(1, RAISED), (2, DIED)]


def test_events_of_a_failed_attempt_are_dropped(tally: Tally) -> None:
    def publish_and_fail(job: Job) -> None:
        current().publish("child", Job(current().attempt, job.tally))
        if current().attempt < 3:
            raise NotYet

    with EventBus([], cpu_workers=1) as bus:
        bus.subscribe("parent", publish_and_fail, kind="cpu", retries=5, backoff=0.0)
        bus.subscribe("child", attempt, kind="cpu")
        bus.publish("parent", Job(0, tally))
    assert tally.lines() == ["0 3 1 s"]


# Work that goes on meanwhile.


@pytest.mark.parametrize("kind", ["io", "cpu"])
def test_a_worker_is_free_while_a_retry_waits(kind: Kind, tally: Tally) -> None:
    with EventBus([], cpu_workers=1, io_workers=1) as bus:
        bus.subscribe("job", attempt, kind=kind, retries=1, backoff=600.0)
        waiting = [bus.publish("job", Job(n, tally, "rs")) for n in range(20)]
        others = [bus.publish("job", Job(n, tally)) for n in range(20, 40)]
        assert [r.result(PATIENCE_S) for r in others] == [(n, 1) for n in range(20, 40)]
        all_settled_so_far(bus)
        assert not any(r.done for r in waiting)
        stats = bus.stats()
        assert stats.retrying == stats.pending == 20
        assert {r.deliveries[0].state for r in waiting} == {DeliveryState.PENDING}
        bus.close(cancel=True)


@pytest.mark.parametrize("kind", ["io", "cpu"])
def test_concurrency_is_free_while_a_retry_waits(kind: Kind, tally: Tally) -> None:
    with EventBus([], cpu_workers=2, io_workers=4) as bus:
        bus.subscribe("job", attempt, kind=kind, retries=1, backoff=600.0, concurrency=1)
        bus.publish("job", Job(0, tally, "rs"))
        others = [bus.publish("job", Job(n, tally)) for n in range(1, 20)]
        assert [r.result(PATIENCE_S) for r in others] == [(n, 1) for n in range(1, 20)]
        bus.close(cancel=True)


@pytest.mark.parametrize("kind", quick_first(["io", "cpu"]))
def test_deliveries_of_the_same_key_wait_in_order(kind: Kind, tally: Tally) -> None:
    choose = random.Random(5)
    plans = ["s", "s", "s", "rs", "rrs"] + (["ks"] if kind == "cpu" else [])
    jobs = [Job(n, tally, choose.choice(plans), choose.randrange(5)) for n in range(120)]
    with EventBus([], cpu_workers=2, io_workers=4) as bus:
        bus.subscribe("job", attempt, kind=kind, retries=3, backoff=0.01, key=lambda job: job.key)
        receipts = [bus.publish("job", job) for job in jobs]
        assert bus.drain(150)
    assert [r.result() for r in receipts] == [(job.number, len(job.plan)) for job in jobs]
    ran = [tuple(map(int, line.split()[:3])) for line in tally.lines()]
    for key, of_key in groupby(sorted(jobs, key=lambda job: job.key), lambda job: job.key):
        expected = [(key, j.number, a) for j in of_key for a in range(1, len(j.plan) + 1)]
        assert [each for each in ran if each[0] == key] == expected


# The end.


@pytest.mark.parametrize(
    ("kind", "is_async", "options"),
    [
        ("io", False, {"io_workers": 1}),
        ("io", True, {}),
        ("cpu", False, {"cpu_workers": 1}),
        ("cpu", False, {"cpu_workers": 1, "cpu": "threads"}),
    ],
)
def test_second_attempts_come_in_the_order_in_which_the_first_ones_failed(
    kind: Kind, is_async: bool, options: dict[str, Any], tmp_path: Path
) -> None:
    log = tmp_path / "log"

    def attempt(number: int) -> None:
        with log.open("a") as file:
            print(number, current().attempt, file=file)
        if current().attempt == 1:
            raise NotYet(number)

    async def attempt_async(number: int) -> None:
        attempt(number)

    handler = attempt_async if is_async else attempt
    with EventBus(handlers=[], **options) as bus:
        bus.subscribe("n", handler, kind=kind, retries=1, backoff=0, concurrency=None)
        receipts = [bus.publish("n", number) for number in range(60)]
        bus.drain(PATIENCE_S)
    assert not any(receipt.has_failure for receipt in receipts)

    attempts = [line.split() for line in log.read_text().splitlines()]
    assert [int(number) for number, which in attempts if which == "2"] == list(range(60))


@pytest.mark.parametrize("kind", ["io", "cpu"])
def test_close_waits_for_retries(kind: Kind, tally: Tally) -> None:
    with EventBus([], cpu_workers=1, io_workers=1) as bus:
        bus.subscribe("job", attempt, kind=kind, retries=3, backoff=[0.1, 0.2])
        receipts = [bus.publish("job", Job(n, tally, "rrs")) for n in range(10)]
    assert [r.result(0) for r in receipts] == [(n, 3) for n in range(10)]
    assert len(tally.lines()) == 30


@pytest.mark.parametrize("kind", ["io", "cpu"])
def test_close_cancels_retries_on_request(kind: Kind, tally: Tally) -> None:
    with EventBus([], cpu_workers=1, io_workers=1) as bus:
        bus.subscribe("job", attempt, kind=kind, name="job", retries=3, backoff=600.0)
        receipts = [bus.publish("job", Job(n, tally, "rs")) for n in range(10)]
        assert bus.publish("job", Job(10, tally)).result(PATIENCE_S) == (10, 1)
        all_settled_so_far(bus)
        assert bus.stats().retrying == 10
        bus.close(cancel=True)
    assert {r.deliveries[0].state for r in receipts} == {DeliveryState.CANCELLED}
    assert len(tally.lines()) == 11
    stats = bus.stats()
    assert (stats.handlers["job"].cancelled, stats.handlers["job"].retried) == (10, 10)
    assert (stats.pending, stats.retrying) == (0, 0)


def test_close_with_a_timeout_cancels_waiting_deliveries(tally: Tally) -> None:
    with EventBus([], cpu_workers=1) as bus:
        bus.subscribe("job", attempt, kind="cpu", retries=1, backoff=600.0)
        receipt = bus.publish("job", Job(0, tally, "rs"))
        assert bus.publish("job", Job(1, tally)).result(PATIENCE_S) == (1, 1)
        bus.close(timeout=0.1)
    assert receipt.deliveries[0].state is DeliveryState.CANCELLED


def test_delivery_that_fails_while_the_bus_is_cancelled_is_not_retried(
    tally: Tally, door: Door, bell: Bell, heard: Listener
) -> None:
    with EventBus([], cpu_workers=1) as bus:
        bus.subscribe("job", attempt, kind="cpu", retries=5, backoff=0.0)
        with door.shut():
            receipt = bus.publish("job", Job(0, tally, "r", door=door, bell=bell))
            heard.wait()
            behind = bus.publish("job", Job(1, tally))
            closing = threading.Thread(target=bus.close, kwargs={"cancel": True})
            closing.start()
            assert behind.wait(PATIENCE_S)  # it is cancelled
        closing.join(PATIENCE_S)
        assert not closing.is_alive()
    assert receipt.deliveries[0].state is DeliveryState.CANCELLED
    assert tally.lines() == ["0 0 1 r"]


@pytest.mark.parametrize("kind", ["io", "cpu"])
@pytest.mark.parametrize("inside", quick_first(["bus.drain()", "receipt.result()", "pass"]))
def test_ctrl_c_while_a_retry_waits_ends_the_script(start: Start, kind: str, inside: str) -> None:
    script = dedent(f"""
        import logging, sys, threading
        from procbus import EventBus

        class Waiting(logging.Handler):
            def emit(self, record):
                if "the next one in" in record.getMessage():
                    print("waiting", flush=True)

        logging.getLogger("procbus").addHandler(Waiting())
        logging.getLogger("procbus").addHandler(logging.StreamHandler())

        def fail(n):
            raise ValueError(n)

        with EventBus([], cpu_workers=1) as bus:
            bus.subscribe("n", fail, kind={kind!r}, retries=3, backoff=600)
            receipt = bus.publish("n", 1)
            {inside}
    """)
    program = start(WAKING + script)
    assert program.read_line() == "waiting"
    workers = program.descendants()
    program.interrupt_group()
    ended = program.finish()
    wait_gone(workers)
    assert ended.code == -signal.SIGINT, ended.err
    assert "KeyboardInterrupt" in ended.err
    assert ended.err.count("bus closed with deliveries cancelled: 1 not run (__main__.fail 1)") == 1


def test_a_script_that_ends_waits_for_retries(run: Run) -> None:
    ended = run(
        """
        import logging
        from procbus import EventBus, current
        logging.getLogger("procbus").setLevel(logging.CRITICAL)

        def work(n):
            if current().attempt < 3:
                raise ValueError(n)
            print(n, current().attempt, flush=True)

        bus = EventBus([], cpu_workers=1)
        bus.subscribe("n", work, kind="cpu", retries=3, backoff=0.1)
        bus.subscribe("n", work, name="here", kind="io", retries=3, backoff=0.1)
        bus.publish("n", 7)
        """
    )
    assert ended.check() == "7 3\n7 3\n"
