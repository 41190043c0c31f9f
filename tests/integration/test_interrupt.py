"""Ctrl-C in a script: it ends with an interrupt's exit code and lists unfinished work."""

import psutil
import pytest

from tests.integration.conftest import Run, Start
from tests.integration.helpers import WAKING, wait_gone
from tests.matrix import quick_first

SETUP = (
    WAKING
    + """
import signal, sys, time
from procbus import EventBus

def work(n):
    if n == 0:
        print("started", flush=True)
    while True:  # the signal ends a pause, not the handler
        signal.pause() if {busy!r} == "waiting" else None

def wait(n):
    if n == 0:
        print("started", flush=True)
    import threading
    threading.Event().wait()

async def await_(n):
    if n == 0:
        print("started", flush=True)
    import asyncio
    await asyncio.Event().wait()

bus = EventBus([], cpu_workers=2, max_pending=50)
bus.subscribe("cpu", work, kind="cpu")
bus.subscribe("io", wait)
bus.subscribe("async", await_)
"""
)

INSIDE = {
    "publish": "for n in range(10**6): bus.publish(topic, n)",
    "drain": "[bus.publish(topic, n) for n in range(40)]; bus.drain()",
    "result": "[bus.publish(topic, n) for n in range(40)][-1].result()",
    "stream": "[None for _ in bus.stream(range(10**6), topic=topic)]",
    "sleep": "[bus.publish(topic, n) for n in range(40)]; time.sleep(1000)",
}


def interrupted(start: Start, script: str) -> tuple[int, str]:
    program = start(script)
    assert program.read_line() == "started"
    workers = program.descendants()
    program.interrupt_group()
    ended = program.finish()
    wait_gone(workers)
    return ended.code, ended.err


@pytest.mark.parametrize("inside", quick_first(INSIDE, 2))
@pytest.mark.parametrize("block", quick_first(["with", "without"]))
def test_ctrl_c_ends_the_script_and_accounts_for_unfinished_work(
    start: Start, inside: str, block: str
) -> None:
    body = f"topic = 'cpu'\n{INSIDE[inside]}\n"
    if block == "with":
        body = "with bus:\n    " + body.replace("\n", "\n    ")
    code, err = interrupted(start, SETUP.replace("{busy!r}", "'waiting'") + body)
    assert code == -2, err
    assert "KeyboardInterrupt" in err
    assert err.count("bus closed with deliveries cancelled") == 1, err
    assert "stopped in their handlers" in err
    assert "__main__.work" in err


@pytest.mark.parametrize("topic", ["cpu", "io", "async"])
def test_ctrl_c_ends_the_script_with_any_running_handler(start: Start, topic: str) -> None:
    body = f"topic = {topic!r}\nwith bus:\n    {INSIDE['drain']}\n"
    code, err = interrupted(start, SETUP.replace("{busy!r}", "'looping'") + body)
    assert code == -2, err
    assert err.count("bus closed with deliveries cancelled") == 1, err
    assert "stopped in their handlers" in err


@pytest.mark.parametrize("topic", quick_first(["cpu", "io", "async"], 2))
def test_ctrl_c_ends_an_interpreter_that_waits_for_published_events(
    start: Start, topic: str
) -> None:
    body = f"for n in range(5): bus.publish({topic!r}, n)\n"
    code, err = interrupted(start, SETUP.replace("{busy!r}", "'waiting'") + body)
    assert "KeyboardInterrupt" in err
    assert err.count("bus closed with deliveries cancelled") == 1, err
    assert code in (0, 1, 130, -2)


def test_a_caught_ctrl_c_leaves_the_bus_usable(start: Start) -> None:
    program = start(
        """
        import os, signal
        from procbus import EventBus
        with EventBus([], cpu_workers=2) as bus:
            bus.subscribe("n", abs, kind="cpu")
            bus.start()
            pids = {bus.publish("n", -n).deliveries[0].worker_pid for n in range(5)}
            try:
                print("ready", flush=True)
                while True:
                    assert bus.publish("n", -1).result() == 1
            except KeyboardInterrupt:
                print(sum(bus.publish("n", -n).result() for n in range(100)))
            print([h.last_exit for h in bus.health() if h.kind == "cpu"])
        """
    )
    assert program.read_line() == "ready"
    program.interrupt_group()
    assert program.finish().check() == "4950\n['', '']\n"


def test_sys_exit_in_a_with_block_cancels_and_keeps_its_code(run: Run) -> None:
    ended = run(
        SETUP.replace("{busy!r}", "'waiting'")
        + "with bus:\n    [bus.publish('cpu', n) for n in range(9)]\n    sys.exit(5)\n"
    )
    assert ended.code == 5
    assert "bus closed with deliveries cancelled" in ended.err
    assert "KeyboardInterrupt" not in ended.err


def test_ctrl_c_in_asyncio_run_ends_the_script(start: Start) -> None:
    code, err = interrupted(
        start,
        SETUP.replace("{busy!r}", "'waiting'")
        + """
import asyncio
async def main():
    async with bus:
        receipts = [await bus.apublish("cpu", n) for n in range(10)]
        await receipts[0]
asyncio.run(main())
""",
    )
    assert code == -2, err
    assert err.count("bus closed with deliveries cancelled") == 1, err


def test_sigterm_ends_the_script_and_its_workers_go_with_it(start: Start) -> None:
    program = start(
        SETUP.replace("{busy!r}", "'waiting'")
        + "with bus:\n    [bus.publish('cpu', n) for n in range(9)]\n    bus.drain()\n"
    )
    assert program.read_line() == "started"
    workers = program.descendants()
    psutil.Process(program.pid).terminate()
    assert program.finish().code == -15
    wait_gone(workers)
