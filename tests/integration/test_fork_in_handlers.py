"""os.fork in user code, with a child that returns into procbus: the child is ended.

`run` waits until no process has the script's stdout any more: so no child is left.
"""

import pytest

from tests.integration.conftest import Run
from tests.matrix import quick_first

SCRIPT = """
import asyncio, logging, os, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # fork in a process with threads
logging.basicConfig(format="%(levelname)s %(message)s")
from procbus import EventBus

ENDS = {
    "return": lambda: -1,
    "raise": lambda: 1 / 0,
    "exit": lambda: sys.exit(3),
    "fork again": lambda: os.fork() * 0 - 1,
}

def come_back(how):
    '''Fork; the child ends the user's code in this way, and nothing goes on until it has.'''
    child = os.fork()
    if child == 0:
        return ENDS[how]()
    os.waitpid(child, 0)
    return None

def note(n):
    with open("ran", "a") as file:
        print(n, file=file)

class Forks:
    '''An event that forks where it is pickled, read or deleted.'''
    def __init__(self, n, place, how):
        self.n, self.place, self.how = n, place, how
    def __reduce__(self):
        if self.place == "pickled":
            come_back(self.how)
        return Forks.read, (self.n, self.place, self.how)
    @staticmethod
    def read(n, place, how):
        if place == "read":
            come_back(how)
        return Forks(n, place, how)
    def __del__(self):
        if self.place == "deleted":
            come_back(self.how)

def check(receipts, wanted):
    for receipt, value in zip(receipts, wanted, strict=True):
        assert receipt.result(55) == value, (receipt, value)

def check_ran(count):
    ran = sorted(map(int, open("ran").read().split()))
    assert ran == list(range(count)), ran
"""

HOW = ["return", "raise", "exit", "fork again"]


@pytest.mark.parametrize("how", quick_first(HOW))
@pytest.mark.parametrize("kind", ["cpu", "io"])
def test_a_child_that_a_handler_forks_ends_where_the_handler_does(
    run: Run, kind: str, how: str
) -> None:
    ended = run(
        SCRIPT
        + f"""
def handler(n):
    note(n)
    if n == 5:
        if (value := come_back({how!r})) is not None:
            return value
    return n

with EventBus([], cpu_workers=2, io_workers=2) as bus:
    bus.subscribe("n", handler, kind={kind!r})
    check([bus.publish("n", n) for n in range(60)], range(60))
check_ran(60)
print("end")
"""
    )
    assert (ended.code, ended.out) == (0, "end\n"), ended.err
    assert "end such a child with os._exit()" in ended.err
    assert ("ZeroDivisionError" in ended.err) == (how == "raise")


@pytest.mark.parametrize("how", quick_first(["return", "raise", "await", "exit"], 2))
def test_a_child_that_an_async_handler_forks_ends_where_it_gives_control_back(
    run: Run, how: str
) -> None:
    ended = run(
        SCRIPT
        + f"""
async def handler(n):
    note(n)
    if n == 5 and os.fork() == 0:
        if {how!r} == "await":
            await asyncio.sleep(0)
            note(1000)
        return ENDS[{how!r}]()
    await asyncio.sleep(0)
    return n

with EventBus([]) as bus:
    bus.subscribe("n", handler)
    check([bus.publish("n", n) for n in range(60)], range(60))
check_ran(60)
print("end")
"""
    )
    assert (ended.code, ended.out) == (0, "end\n"), ended.err
    assert "end such a child with os._exit()" in ended.err


@pytest.mark.parametrize("how", quick_first(["return", "raise", "exit"]))
@pytest.mark.parametrize("place", quick_first(["pickled", "read", "deleted"], 2))
def test_a_child_forked_where_an_event_travels_ends_there(run: Run, place: str, how: str) -> None:
    ended = run(
        SCRIPT
        + f"""
def handler(event):
    if isinstance(event, Forks):
        return event.n
    note(event)
    return event

with EventBus([], cpu_workers=2) as bus:
    bus.subscribe("n", handler, kind="cpu")
    check([bus.publish("n", n) for n in range(30)], range(30))
    event = Forks(7, {place!r}, {how!r})
    receipt = bus.publish("n", event)
    event.place = "" if {place!r} == "deleted" else event.place
    receipt.wait(55)
    event.place = ""
    check([bus.publish("n", n) for n in range(30, 60)], range(30, 60))
    del event, receipt
check_ran(60)
print("end")
"""
    )
    assert (ended.code, ended.out) == (0, "end\n"), ended.err


@pytest.mark.parametrize("how", quick_first(HOW))
def test_a_child_that_worker_init_forks_is_no_worker(run: Run, how: str) -> None:
    ended = run(
        SCRIPT
        + f"""
def set_up():
    come_back({how!r})

def handler(n):
    note(n)
    return n

with EventBus([], cpu_workers=2, worker_init=set_up) as bus:
    bus.subscribe("n", handler, kind="cpu")
    check([bus.publish("n", n) for n in range(60)], range(60))
check_ran(60)
print("end")
"""
    )
    assert (ended.code, ended.out) == (0, "end\n"), ended.err


def test_a_child_with_work_of_its_own_goes_on_and_logs_to_stderr(run: Run) -> None:
    ended = run(
        SCRIPT
        + """
import multiprocessing

def work(queue):
    logging.warning("said by a child")
    with EventBus([], cpu_workers=1) as own:
        own.subscribe("n", abs, kind="cpu")
        own.subscribe("m", abs)
        queue.put(own.publish("n", -4).result(55) + own.publish("m", -3).result(55))

def handler(n):
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=work, args=(queue,))
    child.start()
    value = queue.get()
    child.join()
    return value + n

with EventBus([], cpu_workers=1, io_workers=1) as bus:
    bus.subscribe("cpu", handler, kind="cpu")
    bus.subscribe("io", handler)
    check([bus.publish("cpu", n) for n in range(2)], [7, 8])
    check([bus.publish("io", n) for n in range(2)], [7, 8])
print("end")
"""
    )
    assert (ended.code, ended.out) == (0, "end\n"), ended.err
    assert ended.err.count("said by a child") == 4
    assert "os._exit" not in ended.err
