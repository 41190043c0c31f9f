# SPDX-License-Identifier: MIT
"""How each worker is: it is measured, and nothing is changed by looking."""

import asyncio
import os

from procbus import EventBus
from tests.parts import BOUND_S, Held, double


def test_a_new_bus_has_no_workers():
    with EventBus([]) as bus:
        assert bus.health() == ()


def test_threads_show_what_they_run():
    held = Held()
    with EventBus([], io_workers=1) as bus:
        bus.subscribe(int, held, name="held")
        receipt = bus.publish(1)
        held.wait_begun()
        (busy,) = bus.health()
        held.go.set()
        bus.drain()
    assert (busy.kind, busy.pid, busy.state) == ("io", os.getpid(), "busy")
    assert (busy.handler, busy.event_id) == ("held", receipt.id)
    assert busy.name.startswith("procbus-io-")
    assert busy.running_s is not None
    assert busy.running_s >= 0
    assert busy.events_done == 0


def test_an_idle_thread_counts_what_it_has_done():
    with EventBus([], io_workers=1) as bus:
        bus.subscribe(int, double)
        for number in range(3):
            bus.publish(number)
        bus.drain()
        (idle,) = bus.health()
    assert (idle.state, idle.handler, idle.event_id, idle.running_s) == ("idle", None, None, None)
    assert idle.events_done == 3
    assert (idle.restarts, idle.last_exit) == (0, "")


def test_the_event_loop_shows_each_handler_on_it():
    with EventBus([]) as bus:

        async def look(event: int) -> int:
            await asyncio.sleep(0)
            return sum(w.state == "busy" and w.name == "procbus-loop" for w in bus.health())

        bus.subscribe(int, look)
        assert bus.publish(1).result(BOUND_S) == 1
        bus.drain()
        (idle,) = bus.health()
    assert (idle.name, idle.state, idle.events_done) == ("procbus-loop", "idle", 1)


def test_a_worker_process_shows_its_memory_and_cpu():
    with EventBus([], cpu_workers=1) as bus:
        bus.subscribe(int, double, kind="cpu", name="double")
        receipt = bus.publish(21)
        assert receipt.result(60) == 42
        bus.drain()
        (worker,) = bus.health()
    assert (worker.kind, worker.state, worker.events_done) == ("cpu", "idle", 1)
    assert worker.pid == receipt.deliveries[0].worker_pid != os.getpid()
    assert worker.memory_bytes is not None
    assert worker.memory_bytes > 1_000_000
    assert worker.cpu_s is not None
    assert worker.cpu_s > 0
