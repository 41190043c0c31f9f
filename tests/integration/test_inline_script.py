# SPDX-License-Identifier: MIT
"""`PROCBUS_INLINE=1` runs a script's handlers in the thread that publishes."""

import os
import subprocess
import sys

import pytest

from tests.integration.conftest import Run
from tests.integration.helpers import PATIENCE_S

WHOLE = """
import asyncio, os, threading
from procbus import EventBus, current, executor, subscribe

here, pid, loops, tries = threading.get_ident(), os.getpid(), set(), []

@subscribe("n", kind="cpu", timeout=0.000001, max_memory="1 GiB", key=lambda n: n)
def square(n):
    assert (threading.get_ident(), os.getpid()) == (here, pid)
    current().publish("squared", n * n)
    return n * n

@subscribe("squared")
async def note(n):
    await asyncio.sleep(0)
    loops.add(asyncio.get_running_loop())

@subscribe("again", retries=2, backoff=[0, 0.01])
def fail_twice(_):
    tries.append(1)
    if len(tries) < 3:
        raise ValueError("not yet")
    return len(tries)

@subscribe("rows", kind="cpu", batch=4)
def add(rows: list):
    return [row + 1 for row in rows]

with EventBus(JOURNAL) as bus:
    receipt = bus.publish("n", 3)
    print(receipt.done, receipt.result(), bus.publish("again", 0).result())
    print([each.result() for each in bus.stream(range(4), topic="n", ordered=True)])
    print([each.result() for each in bus.stream(range(6), topic="rows", ordered=True)])
    print(list(bus.map(square, range(3))), bus.drain(5))
    with bus.executor("cpu") as pool:
        print(list(pool.map(abs, range(-3, 0))))
    print(len(loops), bus.stats().handlers["__main__.square"].failed)

async def main():
    async with EventBus() as bus:
        receipt = await bus.apublish("n", 5)
        print(receipt.done, await receipt)

asyncio.run(main())
with executor("cpu", max_workers=2) as pool:
    print(pool.submit(threading.get_ident).result() == here)
"""


@pytest.mark.parametrize("journal", ["", 'journal="journal.db"'])
def test_whole_script_runs_in_its_own_thread(run: Run, tmp_path, journal: str) -> None:
    text = WHOLE.replace("JOURNAL", journal.replace("journal.db", str(tmp_path / "journal.db")))
    ended = run(text, PROCBUS_INLINE="1")

    assert ended.code == 0, ended.err
    assert ended.out.splitlines() == [
        "True 9 3",
        "[0, 1, 4, 9]",
        "[1, 2, 3, 4, 5, 6]",
        "[0, 1, 4] True",
        "[3, 2, 1]",
        "1 0",
        "True 25",
        "True",
    ]
    assert ended.err.count("PROCBUS_INLINE is set") == 1


DEBUGGED = """
from procbus import EventBus, subscribe

@subscribe("n", kind="cpu", timeout=5)
def add_one(n):
    more = n + 1
    breakpoint()
    return more

with EventBus() as bus:
    print("result", bus.publish("n", 41).result())
"""


@pytest.mark.parametrize(
    ("typed", "code", "shown"), [("p more\nc\n", 0, "result 42"), ("q\n", 1, "")]
)
def test_debugger_in_a_cpu_handler_has_the_terminal(tmp_path, typed, code, shown) -> None:
    script = tmp_path / "job.py"
    script.write_text(DEBUGGED)
    ended = subprocess.run(
        [sys.executable, str(script)],
        input=typed,
        env={**os.environ, "PROCBUS_INLINE": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )

    assert ended.returncode == code, ended.stderr
    assert shown in ended.stdout
    assert "HandlerExited" not in ended.stderr
    if sys.version_info < (
        3,
        14,
    ):  # since then it raises SystemExit, which shows nothing
        assert ("BdbQuit" in ended.stderr) == (code == 1)


ASKING = """
import pdb, sys
from procbus import EventBus, ProcbusError, subscribe

@subscribe("hook", kind="cpu")
def at_hook(_):
    breakpoint()

@subscribe("trace", kind="cpu")
def at_trace(_):
    pdb.set_trace()
    return 1

@subscribe("input", kind="cpu")
def at_input(_):
    return input("name? ")

with EventBus(cpu_workers=1) as bus:
    for topic in "hook", "trace", "input":
        try:
            print(bus.publish(topic, 1).result(60))
        except ProcbusError as error:
            print("error:", topic, error)
"""


def test_debugger_in_a_worker_process_says_that_there_is_no_terminal(run: Run) -> None:
    ended = run(ASKING)

    assert ended.code == 0, ended.err
    for topic in "hook", "trace", "input":
        [line] = [each for each in ended.out.splitlines() if f"error: {topic}" in each]
        assert "a worker process has no terminal; run the script with PROCBUS_INLINE=1" in line
