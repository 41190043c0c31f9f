"""os.fork in a script with an open bus: the bus stays the parent's."""

from tests.integration.conftest import Run

SCRIPT = """
import os, sys, threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # fork in a process with threads
from procbus import BusClosed, EventBus

bus = EventBus([], cpu_workers=1)
bus.subscribe("cpu", abs, kind="cpu")
bus.subscribe("io", abs)
assert bus.publish("cpu", -1).result() == 1
assert bus.publish("io", -1).result() == 1

def in_child():
    for topic in ("cpu", "io", "nobody"):
        try:
            bus.publish(topic, -2)
        except BusClosed as error:
            assert "forked child" in str(error), error
        else:
            os._exit(40)
    for method in (bus.drain, bus.start):
        try:
            method()
        except BusClosed:
            pass
        else:
            os._exit(41)
    bus.close()

def wait_for(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""


def test_a_forked_child_is_refused_and_ends_and_the_parent_goes_on(run: Run) -> None:
    ended = run(
        SCRIPT
        + """
for leave in (os._exit, sys.exit):
    pid = os.fork()
    if not pid:
        in_child()
        leave(7)
    print(wait_for(pid), bus.publish("cpu", -3).result(), bus.publish("io", -4).result())
bus.close()
print(bus.stats().lanes["cpu"].restarts)
"""
    )
    assert (ended.code, ended.out) == (0, "7 3 4\n7 3 4\n0\n")
    # multiprocessing complains when a forked child of a process with children leaves by sys.exit.
    assert set(ended.err.splitlines()[-1:]) <= {"AssertionError: can only join a child process"}


def test_a_child_forked_while_the_bus_is_busy_is_refused_and_ends(run: Run) -> None:
    """Locks may be held by other threads at that moment: the child must take none of them."""
    ended = run(
        SCRIPT
        + """
stop = threading.Event()
def keep_busy():
    while not stop.is_set():
        bus.publish("cpu", -1)
        bus.publish("io", -1)
busy = threading.Thread(target=keep_busy)
busy.start()
codes = []
for _ in range(20):
    pid = os.fork()
    if not pid:
        in_child()
        os._exit(7)
    codes.append(wait_for(pid))
stop.set()
busy.join()
bus.close()
print(set(codes), {h.failed for h in bus.stats().handlers.values()})
"""
    )
    assert ended.check() == "{7} {0}\n"


def test_a_forked_child_can_have_a_bus_of_its_own(run: Run) -> None:
    ended = run(
        SCRIPT
        + """
pid = os.fork()
if not pid:
    own = EventBus([], cpu_workers=1)
    own.subscribe("cpu", abs, kind="cpu")
    own.subscribe("io", abs)
    ok = own.publish("io", -5).result() == 5 and own.publish("cpu", -6).result() == 6
    own.close()
    os._exit(0 if ok else 1)
print(wait_for(pid), bus.publish("cpu", -3).result())
bus.close()
"""
    )
    assert ended.check() == "0 3\n"
