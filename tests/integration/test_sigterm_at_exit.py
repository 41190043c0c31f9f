"""SIGTERM once the script has ended, while the exit hooks of procbus and of other libraries run."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from tests.integration.conftest import Run, Start
from tests.integration.helpers import ROOT, WAKING, Door, Program, Tally
from tests.integration.test_sigterm import ended_of, wait_for_word

HEAD = (
    WAKING
    + """
import os, signal, sys, threading, time
sys.path.insert(0, {root!r})

from procbus import EventBus
from tests.integration.helpers import Door, Tally

door, tally = Door({door!r}), Tally({tally!r})

def work(n):
    door.go_through()
    tally.note(n)

def ready():
    print("ready", flush=True)

bus = EventBus([], cpu_workers=1, on_sigterm="finish", grace={grace})
bus.subscribe("cpu", work, kind="cpu")
bus.subscribe("io", work)
receipts = [bus.publish(topic, n) for n in range(4) for topic in ("cpu", "io")]
"""
)
AT_EXIT = """
def last():
    ready()
    {wait}

threading._register_atexit(last)
"""
FOR_EVER = "threading.Event().wait()"
FAILING = "[receipt.result() for receipt in receipts[:1]]; raise SystemExit(7)"


@pytest.fixture
def begin(start: Start, door: Door, tally: Tally):
    """Start a script, and wait until it has ended but for an exit hook."""

    def begin_one(body: str, grace: float = 25) -> Program:
        head = HEAD.format(root=str(ROOT), door=door.path, tally=tally.path, grace=grace)
        program = start(head + body)
        assert program.read_line() == "ready"
        return program

    return begin_one


@pytest.mark.parametrize(
    "wait",
    ["[receipt.result() for receipt in receipts]", FOR_EVER, FAILING],
    ids=["a hook that ends", "a hook that never ends", "a hook that fails"],
)
def test_sigterm_in_an_exit_hook_of_another_library_finishes_accepted_events(
    begin, door: Door, tally: Tally, wait: str
) -> None:
    """That hook runs before procbus's own, and an exception would end both."""
    with door.shut():
        program = begin(AT_EXIT.format(wait=wait), grace=3 if wait == FOR_EVER else 25)
        processes = program.descendants()
        os.kill(program.pid, signal.SIGTERM)
        wait_for_word(program)
    ended = ended_of(program, processes)

    assert ended.code == 143
    assert ended.err == "" or wait == FAILING  # whose error Python prints
    assert tally.counts() == {str(n): 2 for n in range(4)}


def test_sigterm_in_the_script_ends_it_in_spite_of_an_exit_hook_that_never_ends(
    begin, door: Door, tally: Tally
) -> None:
    body = AT_EXIT.format(wait=FOR_EVER).replace("ready()", "") + "ready()\n"
    body += "while True: time.sleep(1000)\n"
    with door.shut():
        program = begin(body, grace=3)
        processes = program.descendants()
        os.kill(program.pid, signal.SIGTERM)
        wait_for_word(program)
    ended = ended_of(program, processes)

    assert (ended.code, ended.err) == (143, "")
    assert tally.counts() == {str(n): 2 for n in range(4)}


def test_second_sigterm_in_the_exit_hook_of_another_library_ends_it_at_once(
    begin, door: Door
) -> None:
    with door.shut():
        program = begin(AT_EXIT.format(wait=FOR_EVER), grace=1000)
        processes = program.descendants()
        os.kill(program.pid, signal.SIGTERM)
        wait_for_word(program)
        os.kill(program.pid, signal.SIGTERM)
        ended = ended_of(program, processes)

    assert ended.code == 143
    assert "deliveries cancelled" in ended.err


def test_sigterm_in_the_first_step_of_the_interpreters_end_finishes_accepted_events(
    begin, door: Door, tally: Tally
) -> None:
    """The main thread is in `threading._shutdown` then, and no exit hook has begun."""
    body = """
def send(frame, event, argument):
    if event == "call" and frame.f_code.co_name == "_shutdown":
        sys.setprofile(None)
        os.kill(os.getpid(), signal.SIGTERM)

sys.setprofile(send)
ready()
"""
    with door.shut():
        program = begin(body)
        processes = program.descendants()
        wait_for_word(program)
    ended = ended_of(program, processes)

    assert (ended.code, ended.err) == (143, "")
    assert tally.counts() == {str(n): 2 for n in range(4)}


def test_sigterm_after_the_buses_are_closed_has_its_default(start: Start) -> None:
    program = start(
        """
        import atexit, threading, time
        from procbus import EventBus

        def late():
            print("ready", flush=True)
            while True:
                time.sleep(0.05)

        atexit.register(late)  # before the hook of `on_sigterm`, so it runs after that one
        bus = EventBus([], on_sigterm="finish")
        """
    )
    assert program.read_line() == "ready"
    os.kill(program.pid, signal.SIGTERM)
    assert program.finish().code == -signal.SIGTERM


@pytest.mark.skipif(sys.version_info[:2] == (3, 12), reason="publishing waits for all starts there")
def test_script_that_ends_while_a_worker_is_being_started_is_finished(run: Run) -> None:
    """loky registers its exit hook then, and that would wait for the worker of an open bus."""
    ended = run(
        """
        import sys, threading, time
        import loky
        from procbus import EventBus

        submit = loky.ProcessPoolExecutor.submit
        submitted = []
        begun = threading.Event()

        def submit_slowly(*arguments):
            future = submit(*arguments)
            submitted.append(future)
            if len(submitted) > 1:  # publishing waits for the first
                begun.set()
                while not threading._SHUTTING_DOWN:
                    time.sleep(0.001)
            return future

        loky.ProcessPoolExecutor.submit = submit_slowly

        def work(n):
            print(n, flush=True)

        bus = EventBus([], cpu_workers=2)
        bus.subscribe("cpu", work, kind="cpu")
        for n in range(2):
            bus.publish("cpu", n)
        begun.wait()
        """
    )
    assert sorted(ended.check().split()) == ["0", "1"]
