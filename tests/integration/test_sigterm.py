"""SIGTERM: a script finishes or puts away the deliveries of its buses, and ends with 143."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests.integration.conftest import Run, Start
from tests.integration.helpers import (
    PATIENCE_S,
    ROOT,
    WAKING,
    Door,
    Ended,
    Program,
    Tally,
    semaphores_of,
    wait_gone,
)
from tests.integration.test_frozen import NAMESPACE, namespaces
from tests.waits import eventually

pytestmark = pytest.mark.slow

SETUP = (
    WAKING
    + """
import asyncio, os, signal, sys, threading, time
sys.path.insert(0, {root!r})

from procbus import BusClosed, EventBus
from tests.integration.helpers import Door, Tally

door, tally = Door({door!r}), Tally({tally!r})

def work(n):
    door.go_through()
    tally.note(n)

async def quick(n):
    tally.note(n)

def hang(n):
    threading.Event().wait()

bus = EventBus([], cpu_workers=2, {options})
bus.subscribe("cpu", work, kind="cpu")
bus.subscribe("io", work)
bus.subscribe("async", quick)
bus.subscribe("hang", hang, kind="cpu")
bus.subscribe("hang", hang, name="hang here")

def rest():
    while True:
        time.sleep(1000)

def tell_closing():
    while not bus._lifecycle.closing:
        time.sleep(0.01)
    print("closing", flush=True)

def ready():
    print("ready", flush=True)

def accept(count=6):
    for n in range(count):
        bus.publish("cpu", n), bus.publish("io", n), bus.publish("async", n)
    ready()

async def serve(body):
    async with bus:
        accept()
        await body()

async def astream():
    async for receipt in bus.astream(iter(int, 1), topic="async"):
        pass
"""
)

INSIDE = {
    "the block": "with bus:\n    accept(); rest()",
    "a script without a block": "accept(); rest()",
    "its end": "accept()",
    "drain": "accept(); bus.drain(); rest()",
    "close": "accept(); bus.close(); rest()",
    "result": "with bus:\n    accept(); bus.publish('cpu', 6).result(); rest()",
    "publish": "with bus:\n    accept()\n    while True: bus.publish('async', 9)",
    "stream": "with bus:\n    accept()\n    for _ in bus.stream(iter(int, 1), topic='async'): pass",
    "another thread's block": (
        "def main():\n    with bus:\n        accept(); threading.Event().wait()\n"
        "thread = threading.Thread(target=main, daemon=True); thread.start(); thread.join()"
    ),
    "a thread that goes on": (
        "accept()\nthread = threading.Thread(target=threading.Event().wait); thread.start()"
    ),
    "an event loop": "asyncio.run(serve(lambda: asyncio.sleep(1000)))",
    "the end of an event loop": "asyncio.run(serve(lambda: asyncio.sleep(0)))",
    "astream": "asyncio.run(serve(astream))",
}
FINISHING = "SIGTERM: pending deliveries have"


@pytest.fixture
def begin(start: Start, door: Door, tally: Tally):
    """Start a script, and wait until it is in the middle of things."""

    def begin_one(body: str, options: str = 'on_sigterm="finish"', **environment: str) -> Program:
        head = SETUP.format(root=str(ROOT), door=door.path, tally=tally.path, options=options)
        program = start(head + body + "\n", **environment)
        assert program.read_line() == "ready"
        return program

    return begin_one


def end(program: Program, *, group: bool = False) -> Ended:
    """Send SIGTERM, wait for the end, and check that nothing is left."""
    processes = program.descendants()
    (os.killpg if group else os.kill)(program.pid, signal.SIGTERM)
    return ended_of(program, processes)


def ended_of(program: Program, processes: list[psutil.Process]) -> Ended:
    ended = program.finish()
    wait_gone(processes)
    eventually(lambda: not semaphores_of(program.pid))  # a tracker may remove the last one
    assert "semlock" not in ended.err
    # The door may be shut for so long that a worker counts as stalled.
    said = [line for line in ended.err.splitlines(keepends=True) if " is stalled: " not in line]
    return replace(ended, err="".join(said))


@pytest.mark.parametrize("inside", INSIDE)
def test_accepted_deliveries_finish_wherever_the_script_is(
    begin, door: Door, tally: Tally, inside: str
) -> None:
    grace = 3 if inside == "a thread that goes on" else 25
    with door.shut():
        program = begin(INSIDE[inside], f'on_sigterm="finish", grace={grace}')
        processes = program.descendants()
        os.kill(program.pid, signal.SIGTERM)
    ended = ended_of(program, processes)
    assert ended.code == 143, ended.err
    counts = tally.counts()
    assert {str(n): counts[str(n)] for n in range(6)} == {str(n): 3 for n in range(6)} or (
        inside in ("stream", "astream")  # which publish zeros
        and all(counts[str(n)] == 3 for n in range(1, 6))
    )
    if inside not in ("publish", "stream", "astream"):
        assert ended.err.count("\n") == 1, ended.err
    assert ended.err.startswith(FINISHING)


@pytest.mark.parametrize("inside", ["the block", "its end", "an event loop"])
def test_handler_that_outlasts_the_grace_is_stopped(begin, inside: str) -> None:
    body = "def hung(): [bus.publish('hang', n) for n in range(4)]; ready()\n"
    body += "async def serve_hung(body):\n    async with bus: hung(); await body()\n"
    body += INSIDE[inside].replace("accept", "hung").replace("serve(", "serve_hung(")
    ended = end(begin(body, 'on_sigterm="finish", grace=0.5'))
    assert ended.code == 143, ended.err
    assert "bus closed with deliveries cancelled" in ended.err
    assert "stopped in their handlers" in ended.err


@pytest.mark.parametrize("inside", ["the block", "its end", "an event loop"])
def test_a_second_sigterm_ends_the_script_at_once(begin, door: Door, inside: str) -> None:
    with door.shut():
        # Before that, the second one would be raised into asyncio's own end, which logs it.
        tell = "threading.Thread(target=tell_closing, daemon=True).start()\n"
        program = begin(tell + INSIDE[inside], 'on_sigterm="finish", grace=1000')
        processes = program.descendants()
        os.kill(program.pid, signal.SIGTERM)
        wait_for_word(program)
        assert program.read_line() == "closing"
        os.kill(program.pid, signal.SIGTERM)
        ended = ended_of(program, processes)
    assert ended.code == 143, ended.err
    assert "deliveries cancelled" in ended.err
    assert "Traceback" not in ended.err
    assert "Task was destroyed" not in ended.err


def wait_for_word(program: Program) -> None:
    """Wait until the script has logged its reaction to SIGTERM; drop that line."""
    for _ in range(3):  # on a busy machine it may say first that a worker is stalled
        if program.read_error_line().startswith("SIGTERM: pending deliveries"):
            return
    pytest.fail("it said nothing of SIGTERM")


@pytest.mark.parametrize("inside", ["the block", "its end", "an event loop", "drain"])
def test_put_away_cancels_deliveries_that_have_not_begun(begin, door: Door, inside: str) -> None:
    with door.shut():
        program = begin(INSIDE[inside], 'on_sigterm="put_away"')
        ended = end(program)
    assert ended.code == 143, ended.err
    # Two threads say that, in any order.
    assert "SIGTERM: pending deliveries are put away\n" in ended.err
    assert "bus closed with deliveries cancelled" in ended.err


def test_deliveries_put_away_are_kept_by_the_journal(
    begin, run: Run, door: Door, tally: Tally, tmp_path: Path
) -> None:
    journal = f", journal={str(tmp_path / 'journal.db')!r}"
    with door.shut():
        program = begin("with bus:\n    accept(); rest()", 'on_sigterm="put_away"' + journal)
        ended = end(program)
    assert ended.code == 143
    assert "They are in the journal, and run at the next start" in ended.err
    begun = tally.counts()
    head = SETUP.format(root=str(ROOT), door=door.path, tally=tally.path, options=journal[2:])
    run(head + "with bus: pass\n").check()
    counts = tally.counts()
    assert all(counts[str(n)] >= 3 for n in range(6)), (begun, counts)


def test_sigterm_to_all_processes_of_a_service_leaves_workers_to_the_script(
    begin, door: Door, tally: Tally
) -> None:
    with door.shut():
        program = begin(INSIDE["the block"])
        processes = program.descendants()
        os.killpg(program.pid, signal.SIGTERM)
        wait_for_word(program)
    ended = ended_of(program, processes)
    assert (ended.code, ended.err) == (143, "")
    assert sum(tally.counts().values()) == 18


@pytest.mark.parametrize("group", [False, True])
def test_without_the_option_sigterm_ends_the_script_and_leaves_nothing(
    begin, door: Door, group: bool
) -> None:
    with door.shut():
        ended = end(begin(INSIDE["the block"], "on_sigterm=None"), group=group)
    assert (ended.code, ended.err) == (-signal.SIGTERM, "")


def test_a_handler_of_the_users_own_is_left_alone(begin) -> None:
    body = "with bus:\n    ready(); rest()"
    before = 'on_sigterm=signal.signal(signal.SIGTERM, lambda *_: sys.exit(3)) or "finish"'
    ended = end(begin(body, before))
    assert ended.code == 3
    assert "on_sigterm='finish' has no effect: the script has a handler of its own" in ended.err


def test_a_bus_of_another_thread_cannot_have_the_signal(run: Run) -> None:
    ended = run(
        """
        import signal, threading
        from procbus import EventBus
        thread = threading.Thread(target=lambda: EventBus([], on_sigterm="finish").close())
        thread.start(); thread.join()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        """
    )
    assert ended.code == 0
    assert "on_sigterm='finish' has no effect: this bus was made in another thread" in ended.err


def test_the_signal_has_its_default_again_once_the_last_bus_is_closed(run: Run) -> None:
    run(
        """
        import asyncio, os, signal
        from procbus import EventBus

        def default():
            return signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

        first, second = (EventBus([], on_sigterm="finish") for _ in range(2))
        assert not default()
        first.close()
        assert not default()
        second.close()
        assert default()

        async def main():
            async with EventBus([], on_sigterm="put_away"):
                assert not default()
            assert default()

        asyncio.run(main())
        EventBus([])
        assert default()
        """
    ).check()


def test_a_forked_child_dies_of_sigterm_as_ever(run: Run) -> None:
    run(
        """
        import os, signal, time, warnings
        from procbus import EventBus
        warnings.simplefilter("ignore")
        with EventBus([], on_sigterm="finish") as bus:
            bus.subscribe("n", abs)
            bus.publish("n", 1).result()
            reading, writing = os.pipe()
            child = os.fork()
            if child == 0:
                os.write(writing, b"here")
                while True:
                    time.sleep(0.05)
            os.read(reading, 4)
            os.kill(child, signal.SIGTERM)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
        """
    ).check()


def test_systemd_learns_that_the_service_stops(begin, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.settimeout(PATIENCE_S)
        systemd.bind(str(tmp_path / "notify"))
        program = begin(INSIDE["the block"], NOTIFY_SOCKET=str(tmp_path / "notify"))
        assert end(program).code == 143
        assert systemd.recv(100) == b"STOPPING=1"


@pytest.mark.skipif(not namespaces(), reason="needs a namespace of processes")
def test_process_1_of_a_container_ends_too(door: Door, tally: Tally, tmp_path: Path) -> None:
    script = tmp_path / "job.py"
    options = 'on_sigterm="finish"'
    head = SETUP.format(root=str(ROOT), door=door.path, tally=tally.path, options=options)
    script.write_text(head + "print('pid', os.getpid(), flush=True)\n" + INSIDE["the block"])
    container = subprocess.Popen(
        [*NAMESPACE, sys.executable, str(script)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert container.stdout is not None
        with door.shut():
            assert container.stdout.readline() == "pid 1\n"
            assert container.stdout.readline() == "ready\n"
            [first] = psutil.Process(container.pid).children()
            first.send_signal(signal.SIGTERM)
        assert container.wait(PATIENCE_S) == 143
        assert sum(tally.counts().values()) == 18
    finally:
        container.kill()
        container.communicate()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"on_sigterm": "stop"}, 'on_sigterm must be "finish", "put_away" or None'),
        ({"grace": -1}, "grace must be a number of seconds from 0"),
        ({"grace": "long"}, "grace must be a number of seconds from 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, object], says: str) -> None:
    from procbus import EventBus, OptionError

    with pytest.raises(OptionError, match=says):
        EventBus([], **options)  # type: ignore[arg-type] # refusing them is the point
