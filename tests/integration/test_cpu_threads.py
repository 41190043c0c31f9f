# SPDX-License-Identifier: MIT
"""A bus whose cpu handlers run on threads of the script."""

from __future__ import annotations

import functools
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest

from procbus import EventBus, HandlerTimeout, ProcbusError, SubscriptionError, current, subscribe
from procbus.core.errors import OptionError
from procbus.routing.registry import default_registry
from tests.waits import BOUND_S, eventually

who: ContextVar[str] = ContextVar("who", default="nobody")


@pytest.fixture
def bus() -> Iterator[EventBus]:
    with EventBus([], cpu="threads", cpu_workers=2) as bus:
        yield bus


class Hung:
    """A handler that the test holds until its end, and that counts its calls."""

    def __init__(self) -> None:
        self.begun, self.over = threading.Semaphore(0), threading.Event()

    def __call__(self, event: object) -> str:
        self.begun.release()
        self.over.wait(BOUND_S)
        return "over"

    def wait_begun(self) -> None:
        assert self.begun.acquire(timeout=BOUND_S)


@pytest.fixture
def hung() -> Iterator[Hung]:
    made = Hung()
    yield made
    made.over.set()


def test_handlers_run_on_threads_with_the_object_itself(bus: EventBus) -> None:
    event = [threading.Lock()]
    bus.subscribe("t", lambda e: (e, threading.current_thread().name), kind="cpu")

    found, thread = bus.publish("t", event).result()

    assert found is event
    assert thread.startswith("procbus-cpu-")


def test_many_events_come_back_in_the_order_of_a_stream(bus: EventBus) -> None:
    bus.subscribe("t", lambda n: n * 2, kind="cpu")

    found = [r.result() for r in bus.stream(range(5_000), topic="t", ordered=True)]

    assert found == [n * 2 for n in range(5_000)]


def test_retries_keys_and_children_work_as_with_processes(bus: EventBus) -> None:
    order: list[int] = []
    bus.subscribe("child", order.append)

    def work(n: int) -> int:
        current().publish("child", n)
        if current().attempt == 1:
            raise ValueError(n)
        return n

    bus.subscribe("t", work, kind="cpu", retries=1, backoff=0.001, key=lambda n: 0)
    receipts = [bus.publish("t", n) for n in range(20)]

    assert [receipt.result(BOUND_S) for receipt in receipts] == list(range(20))
    assert {receipt.deliveries[0].attempts for receipt in receipts} == {2}
    assert bus.drain(BOUND_S)
    assert sorted(order) == list(range(20)), "children of failed attempts are dropped"


def test_carried_variables_reach_the_handler() -> None:
    with EventBus([], cpu="threads", cpu_workers=1, carry=[who]) as bus:
        bus.subscribe("t", lambda _: who.get(), kind="cpu")
        token = who.set("me")
        first = bus.publish("t", 1)
        who.reset(token)
        assert (first.result(), bus.publish("t", 2).result()) == ("me", "nobody")


def test_each_thread_is_set_up_once_before_its_first_event() -> None:
    seen: list[str] = []
    init = functools.partial(seen.append, "set up")
    with EventBus([], cpu="threads", cpu_workers=1, worker_init=init) as bus:
        bus.subscribe("t", seen.append, kind="cpu")
        for _ in range(3):
            bus.publish("t", "event").result()

    assert seen == ["set up", "event", "event", "event"]


def test_failed_set_up_fails_the_deliveries_with_its_error() -> None:
    def init() -> None:
        raise LookupError("no model")

    with EventBus([], cpu="threads", cpu_workers=1, worker_init=init) as bus:
        bus.subscribe("t", len, kind="cpu")
        error = bus.publish("t", "event").deliveries[0]
        assert bus.drain(BOUND_S)
        assert "worker_init failed: LookupError: no model" in str(error.exception())


def test_handler_that_runs_out_of_time_is_left_behind_and_replaced(
    bus: EventBus, hung: Hung, caplog: pytest.LogCaptureFixture
) -> None:
    bus.subscribe("hang", hung, kind="cpu", timeout=0.05)
    bus.subscribe("t", len, kind="cpu")

    receipt = bus.publish("hang", 1)
    with pytest.raises(HandlerTimeout, match="its thread was left behind") as caught:
        receipt.result(BOUND_S)

    assert "in __call__" in caught.value.stack
    assert bus.publish("t", "four").result(BOUND_S) == 4
    lane = bus.stats().lanes["cpu"]
    assert (lane.restarts, lane.abandoned) == (1, 1)
    eventually(lambda: "procbus-cpu-1 is left behind" in caplog.text)
    [stalled] = [each for each in bus.health() if each.state == "stalled"]
    assert (stalled.kind, stalled.name) == ("cpu", "procbus-cpu-1")
    assert (stalled.handler, stalled.event_id) == (receipt.deliveries[0].handler.name, receipt.id)
    hung.over.set()
    eventually(lambda: bus.stats().lanes["cpu"].abandoned == 0)
    assert receipt.deliveries[0].exception() is caught.value, "its late result changes nothing"


def test_deliveries_behind_a_hung_one_run_elsewhere(hung: Hung) -> None:
    with EventBus([], cpu="threads", cpu_workers=2) as bus:
        bus.subscribe("hang", hung, kind="cpu")
        bus.subscribe("t", lambda n: n, kind="cpu")
        for n in range(100):
            bus.publish("t", n)
        held = bus.publish("hang", 1)
        others = [bus.publish("t", n) for n in range(100)]
        hung.wait_begun()
        assert [receipt.result(BOUND_S) for receipt in others] == list(range(100))
        assert not held.done
        hung.over.set()


def test_close_with_a_limit_leaves_a_hung_handler_behind(hung: Hung) -> None:
    bus = EventBus([], cpu="threads", cpu_workers=1)
    bus.subscribe("hang", hung, kind="cpu")
    running, waiting = bus.publish("hang", 1), bus.publish("hang", 2)
    hung.wait_begun()

    bus.close(timeout=0.05)

    for receipt in (running, waiting):
        with pytest.raises(ProcbusError, match="cancelled"):
            receipt.result(BOUND_S)
    assert not hung.over.is_set()


@pytest.mark.parametrize(
    ("name", "value"), [("max_memory", "1 GiB"), ("max_crashes", 3), ("writable", True)]
)
def test_promise_that_needs_a_process_is_refused_at_subscription(
    bus: EventBus, name: str, value: Any
) -> None:
    with pytest.raises(SubscriptionError) as caught:
        bus.subscribe("t", len, kind="cpu", **{name: value})

    assert f"{name} needs a process" in str(caught.value)
    assert 'cpu="processes"' in str(caught.value)
    assert bus.handlers() == ()


def test_promise_of_a_handler_of_the_default_registry_is_refused_by_the_bus() -> None:
    def work(event: str) -> None: ...

    subscribe("only.here", kind="cpu", max_memory="1 GiB")(work)
    try:
        with pytest.raises(SubscriptionError, match="max_memory needs a process"):
            EventBus(cpu="threads")
    finally:
        [made] = default_registry.of_function(work)
        default_registry.remove(made)


def test_calls_of_an_executor_run_on_threads_and_refuse_limits_of_memory(bus: EventBus) -> None:
    lock = threading.Lock()

    assert bus.executor().submit(lambda: lock).result(BOUND_S) is lock
    with pytest.raises(OptionError, match="executor: max_memory needs a process"):
        bus.executor(max_memory="1 GiB")


def test_handlers_wait_for_handlers_on_one_worker() -> None:
    with EventBus([], cpu="threads", cpu_workers=1) as bus:

        def add_up(n: int) -> int:
            return 0 if n == 0 else n + bus.publish("t", n - 1).result(BOUND_S)

        bus.subscribe("t", add_up, kind="cpu")

        assert bus.publish("t", 6).result(BOUND_S) == 21


def test_handler_waits_for_a_delivery_behind_it_in_its_batch() -> None:
    with EventBus([], cpu="threads", cpu_workers=1) as bus:
        receipts: list[Any] = []
        known, all_there = Hung(), threading.Event()

        def work(n: int) -> int:
            if n != 0:
                return n
            all_there.wait(BOUND_S)
            return sum(receipt.result(BOUND_S) for receipt in receipts[1:])

        bus.subscribe("t", work, kind="cpu")
        bus.subscribe("hold", known, kind="cpu")
        for _ in range(20):
            bus.publish("t", 1).result(BOUND_S)  # so that the next ones share a batch
        held = bus.publish("hold", 1)
        known.wait_begun()
        receipts += [bus.publish("t", n) for n in range(50)]
        all_there.set()
        known.over.set()

        assert receipts[0].result(BOUND_S) == sum(range(50))
        assert held.result(BOUND_S) == "over"


def test_wait_for_its_own_gate_is_refused(bus: EventBus) -> None:
    def wait(n: int) -> int:
        return 0 if n == 0 else int(bus.publish("t", n - 1).result(BOUND_S))

    bus.subscribe("t", wait, kind="cpu", concurrency=1)

    with pytest.raises(ProcbusError, match="which would never begin"):
        bus.publish("t", 1).result(BOUND_S)


def test_no_more_threads_are_left_behind_than_there_are_workers() -> None:
    hung = Hung()
    with EventBus([], cpu="threads", cpu_workers=1) as bus:
        bus.subscribe("hang", hung, kind="cpu", timeout=0.05)
        bus.subscribe("t", len, kind="cpu")
        for _ in range(2):  # the first is replaced
            with pytest.raises(HandlerTimeout):
                bus.publish("hang", 1).result(BOUND_S)
        late = bus.publish("t", "four")
        eventually(lambda: "2 threads are left behind" in bus.stats().lanes["cpu"].paused)
        assert not late.done
        hung.over.set()
        assert late.result(BOUND_S) == 4


def test_handler_that_cannot_travel_is_welcome(bus: EventBus) -> None:
    lock = threading.Lock()

    def locked(n: int) -> int:
        with lock:
            return n

    bus.subscribe("t", locked, kind="cpu")

    assert bus.publish("t", 3).result(BOUND_S) == 3


def test_health_names_the_handler_of_each_worker(bus: EventBus, hung: Hung) -> None:
    bus.subscribe("hang", hung, kind="cpu")
    bus.publish("hang", 1)
    hung.wait_begun()

    def busy() -> list[str | None]:
        return [each.handler for each in bus.health() if each.state == "busy"]

    eventually(lambda: len(busy()) == 1)
    hung.over.set()


def run_script(path: Path, body: str, **options: Any) -> subprocess.CompletedProcess[str]:
    script = path / "job.py"
    script.write_text(body)
    return subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=150, **options
    )


def test_script_ends_by_itself_with_a_hung_thread(tmp_path: Path) -> None:
    body = """
import time
from procbus import EventBus, HandlerTimeout

bus = EventBus([], cpu="threads", cpu_workers=1)
bus.subscribe("t", time.sleep, kind="cpu", timeout=0.05)
try:
    bus.publish("t", 1000).result()
except HandlerTimeout:
    print("timed out")
bus.subscribe("u", len, kind="cpu")
print(bus.publish("u", "four").result())
late = bus.publish("u", "not waited for")
late.when_done(lambda receipt: print("done", receipt.result()))
"""
    ran = run_script(tmp_path, body)

    assert (ran.returncode, ran.stdout.split()) == (0, ["timed", "out", "4", "done", "14"])


def test_ctrl_c_ends_a_script_whose_handler_hangs(tmp_path: Path) -> None:
    body = """
import os, signal, threading, time
from procbus import EventBus

def hang(event):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(1000)

with EventBus([], cpu="threads", cpu_workers=1) as bus:
    bus.subscribe("t", hang, kind="cpu")
    bus.publish("t", 1)
    bus.publish("t", 2)
"""
    ran = run_script(tmp_path, body)

    assert "KeyboardInterrupt" in ran.stderr
    assert ran.returncode == -2


def test_child_forked_by_a_handler_that_comes_back_is_ended(
    bus: EventBus, caplog: pytest.LogCaptureFixture
) -> None:
    if not hasattr(__import__("os"), "fork"):
        pytest.skip("this system cannot fork")
    import os

    def fork(event: object) -> int:
        child = os.fork()
        return os.waitpid(child, 0)[1] if child else -1

    bus.subscribe("t", fork, kind="cpu")

    assert bus.publish("t", 1).result(BOUND_S) == 0


def test_warning_of_turns_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    from procbus.core.gil import gil_is_on

    with caplog.at_level(logging.WARNING), EventBus([], cpu="threads", cpu_workers=2) as bus:
        bus.subscribe("t", len, kind="cpu")
        bus.publish("t", "four").result()

    assert caplog.text.count("handlers take turns") == gil_is_on()
