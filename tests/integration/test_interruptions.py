"""Signal handlers and `__del__` that use the bus wherever they interrupt it, and Ctrl-C anywhere.

Each script runs in a process of its own, which ends with the stacks of its threads if it hangs.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.integration.helpers import ROOT

pytestmark = pytest.mark.slow

#: Maximum duration of a script, in seconds; because a script that hangs must end.
BOUND_S = 100

START = f"""
import faulthandler, gc, random, signal, sys, threading, time
faulthandler.dump_traceback_later({BOUND_S}, exit=True)
from procbus import EventBus

LANE, HOW, PENDING, WAY, SECONDS = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], 1.5


def returns(n):
    return n


bus = EventBus(handlers=[], max_pending=PENDING, cpu_workers=2, io_workers=2)
NAMES = ("plain", "keyed", "limited", "picky")
bus.subscribe("plain", returns, name="plain", kind=LANE)
bus.subscribe("keyed", returns, name="keyed", kind=LANE, key=lambda n: n % 7)
bus.subscribe("limited", returns, name="limited", kind=LANE, concurrency=2)
bus.subscribe("picky", returns, name="picky", kind=LANE, where=lambda n: True)
for name in NAMES:
    bus.publish(name, 0).result()
receipts = []
published = 0


def publish_some(count):
    global published
    if WAY == "stream":
        name = NAMES[published % 4]
        published += count
        for receipt in bus.stream(list(range(count)), topic=name):
            receipts.append(receipt)
    else:
        for _ in range(count):
            published += 1
            receipts.append(bus.publish(NAMES[published % 4], published))


def finish():
    assert bus.drain({BOUND_S}), bus
    stats = bus.stats()
    assert stats.pending == 0, stats
    assert all(receipt.done for receipt in receipts), [r for r in receipts if not r.done][:3]
    for handler in stats.handlers.values():
        ended = handler.succeeded + handler.failed + handler.cancelled
        assert handler.published == ended, handler
    bus.close()
    print("well", sum(handler.succeeded for handler in stats.handlers.values()))
"""

SIGNALS = (
    START
    + """
calls = 0
told = []


def use_bus(*_):
    global calls
    calls += 1
    if HOW == "publish":
        receipts.append(bus.publish(NAMES[calls % 4], calls))
    elif HOW == "look":
        bus.stats(), repr(bus), bus.dead_letters
        if not calls % 10:
            bus.health()
    elif HOW == "receipts" and receipts:
        receipt = receipts[-1]
        receipt.when_done(told.append)
        receipt.wait(0.0), receipt.deliveries[0].state, repr(receipt)
    elif HOW == "subscribe":
        def passing(n): pass
        bus.subscribe("other", passing)
        bus.unsubscribe(passing)
        receipts.append(bus.publish(NAMES[calls % 4], calls))
    # Never nested: it is armed again at the end.
    signal.setitimer(signal.ITIMER_REAL, random.choice((1e-4, 1e-3)))


signal.signal(signal.SIGALRM, use_bus)
signal.setitimer(signal.ITIMER_REAL, 1e-3)
end = time.monotonic() + SECONDS
while time.monotonic() < end or calls < 20:
    publish_some(100)
signal.signal(signal.SIGALRM, signal.SIG_IGN)
finish()
"""
)

ENDINGS = (
    START
    + """
made = []


class Ending:
    def __init__(self):
        self.me = self  # only the collector ends it

    def __del__(self):
        made.append(bus.publish(random.choice(NAMES), 1))


def publish():
    end = time.monotonic() + SECONDS
    n = 0
    while time.monotonic() < end:
        n += 1
        Ending()
        bus.publish(NAMES[n % 4], n)
        if not n % 50:
            bus.stats()
            gc.collect(0)  # without a GIL it comes seldom by itself


gc.set_threshold(20)
threads = [threading.Thread(target=publish) for _ in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
gc.disable()
receipts = made
assert len(made) > 50, made
finish()
"""
)

CTRL_C = (
    START
    + """
interrupts = 0


def interrupt(*_):
    raise KeyboardInterrupt


signal.signal(signal.SIGALRM, interrupt)
end = time.monotonic() + SECONDS
while time.monotonic() < end or interrupts < 20:
    try:
        signal.setitimer(signal.ITIMER_REAL, random.choice((1e-4, 5e-4, 1e-3)))
        publish_some(200)
        signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        interrupts += 1
signal.signal(signal.SIGALRM, signal.SIG_IGN)
finish()
"""
)


def ends_well(script: str, *arguments: object, way: str = "publish") -> None:
    ran = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments), way],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=BOUND_S + 20,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-6_000:]
    assert ran.stdout.startswith("well"), ran.stdout


@pytest.mark.parametrize("lane", ["io", "cpu"])
@pytest.mark.parametrize("how", ["publish", "look", "receipts", "subscribe"])
def test_a_signal_handler_uses_the_bus_wherever_it_interrupts_it(lane, how):
    ends_well(SIGNALS, lane, how, 10_000)


@pytest.mark.parametrize("lane", ["io", "cpu"])
@pytest.mark.parametrize("pending", [50, 10_000])
def test_a_signal_handler_publishes_in_the_midst_of_a_stream(lane, pending):
    ends_well(SIGNALS, lane, "publish", pending, way="stream")


@pytest.mark.parametrize("lane", ["io", "cpu"])
@pytest.mark.parametrize("pending", [50, 10_000])
def test_ctrl_c_in_the_midst_of_a_stream_loses_no_room_and_no_order(lane, pending):
    ends_well(CTRL_C, lane, "interrupt", pending, way="stream")


@pytest.mark.parametrize("lane", ["io", "cpu"])
def test_a_signal_handler_publishes_into_a_bus_that_is_full(lane):
    ends_well(SIGNALS, lane, "publish", 50)


@pytest.mark.parametrize("lane", ["io", "cpu"])
@pytest.mark.parametrize("pending", [50, 10_000])
def test_objects_publish_from_del_in_any_thread(lane, pending):
    ends_well(ENDINGS, lane, "publish", pending)


@pytest.mark.parametrize("lane", ["io", "cpu"])
@pytest.mark.parametrize("pending", [50, 10_000])
def test_ctrl_c_in_the_midst_of_publishing_loses_no_room_and_no_order(lane, pending):
    ends_well(CTRL_C, lane, "interrupt", pending)
