# SPDX-License-Identifier: MIT
"""Full shared memory, with real workers: each event that waits for room gets it in its turn."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from procbus import EventBus, current
from tests.integration.conftest import Run
from tests.integration.helpers import PATIENCE_S, Bell, Door, Listener
from tests.matrix import quick_first
from tests.waits import eventually

MIB = 1 << 20
LIMIT = 4 * MIB


def array(mib: float, value: float = 1.0) -> Any:
    return np.full(int(mib * MIB) // 8, value)


def first(a: Any) -> float:
    return float(a[0])


def at_second_attempt(a: Any) -> float:
    if current().attempt == 1:
        raise ValueError("not yet")
    return float(a[0])


@contextmanager
def bus_of(workers: int, **options: Any) -> Iterator[EventBus]:
    options = {"shared_memory_limit": LIMIT, **options}
    with EventBus([], cpu_workers=workers, **options) as bus:
        yield bus


@contextmanager
def watched(bus: EventBus) -> Iterator[Callable[[], int]]:
    """Look again and again how much is taken; gives the most of it."""
    most, done = 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.0005):
            stats = bus.stats().shared_memory
            most = max(most, stats.in_flight + stats.idle + stats.kept)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield lambda: most
    finally:
        done.set()
        watcher.join()


def test_waiting_events_give_their_memory_to_the_one_before_them(
    bell: Bell, heard: Listener, door: Door
) -> None:
    # "late" may run only after the events at the door. All others have run for "early" and keep
    # their memory for "late", where they wait behind an event without room.
    def late(event: Any) -> float:
        if isinstance(event, tuple):
            bell, door = event
            bell.ring()
            door.go_through()
            return 0.0
        return float(event[0])

    def early(a: Any) -> float:
        bell.ring()
        return float(a[0])

    with bus_of(2) as bus:
        bus.subscribe("both", early, kind="cpu", name="early")
        bus.subscribe("#", late, kind="cpu", concurrency=1, name="late")
        with door.shut():
            held = bus.publish("held", (bell, door))
            heard.wait()
            without_room = bus.publish("one", array(1, 9.0))
            others = [bus.publish("both", array(1, float(n))) for n in range(6)]
            heard.wait(4)  # as many as fill the memory
        assert held.result(PATIENCE_S) == 0.0
        assert without_room.result(PATIENCE_S) == 9.0
        assert [r.results(PATIENCE_S) for r in others] == [[float(n)] * 2 for n in range(6)]


@pytest.mark.parametrize("workers", quick_first([2, 6]))
def test_several_companions_that_wait_for_room_all_get_it(workers: int) -> None:
    sizes = [0.5, 3.9, 1.0, 2.0, 3.0, 0.2]
    with bus_of(workers) as bus, watched(bus) as most:
        bus.subscribe("once", first, kind="cpu")
        bus.subscribe("twice", at_second_attempt, kind="cpu", retries=1, backoff=0.001)
        bus.subscribe("fan", first, kind="cpu", name="fan", concurrency=1)
        bus.subscribe("fan", first, kind="cpu", name="preferred", priority=1)
        bus.subscribe("key", first, kind="cpu", name="by key", key=lambda a: int(a[0]) % 3)
        receipts = []
        for number in range(72):
            topic = ("once", "twice", "fan", "key")[number % 4]
            receipts.append(bus.publish(topic, array(sizes[number % 6], float(number))))
        for number, receipt in enumerate(receipts):
            assert set(receipt.results(PATIENCE_S)) == {float(number)}
        assert bus.drain(PATIENCE_S)
        stats = bus.stats().shared_memory
    assert stats.in_flight == stats.kept == 0
    assert 0 < most() <= LIMIT


def test_large_event_is_not_overtaken_for_ever_by_smaller_ones() -> None:
    with bus_of(4) as bus:
        bus.subscribe("a", first, kind="cpu")
        stop = threading.Event()

        def stream_small() -> None:
            while not stop.is_set():
                bus.publish("a", array(0.5)).wait(PATIENCE_S)

        small = [threading.Thread(target=stream_small) for _ in range(6)]
        for thread in small:
            thread.start()
        try:
            for _ in range(5):
                assert bus.publish("a", array(3.9, 2.0)).result(PATIENCE_S) == 2.0
        finally:
            stop.set()
            for thread in small:
                thread.join()


def test_a_bus_that_is_cancelled_while_events_wait_for_room_ends(
    bell: Bell, heard: Listener, door: Door
) -> None:
    def hold(event: tuple[Bell, Door, Any]) -> None:
        event[0].ring()
        event[1].go_through()

    with bus_of(3) as bus:
        bus.subscribe("a", hold, kind="cpu")
        with door.shut():
            running = bus.publish("a", (bell, door, array(3)))
            heard.wait()
            waiting = [bus.publish("a", (bell, door, array(3))) for _ in range(4)]
            bus.close(timeout=0, cancel=True)
        assert all(receipt.done for receipt in [running, *waiting])
        eventually(lambda: bus.stats().shared_memory.in_flight == 0)


class Cycle:
    """Refers to itself, and to an array."""

    def __init__(self, a: Any) -> None:
        self.a = a
        self.me = self


def leave_a_cycle(a: Any) -> None:
    Cycle(a)


def leave_an_exception(a: Any) -> None:
    try:
        raise ValueError("inside")
    except ValueError as error:
        kept_by_its_own_frame = error
        raise TypeError("outside") from kept_by_its_own_frame


@pytest.mark.parametrize("handler", [leave_a_cycle, leave_an_exception])
def test_garbage_that_a_handler_leaves_keeps_no_memory(handler: Callable[[Any], None]) -> None:
    # Only one fits at a time: with the last one kept the next would fail.
    with bus_of(1, on_oversize="fail") as bus:
        bus.subscribe("a", handler, kind="cpu", name="a")
        for _ in range(5):
            bus.publish("a", array(3)).wait(PATIENCE_S)
            assert bus.drain(PATIENCE_S)
            assert bus.stats().shared_memory.kept == 0
        failed = {type(letter.error) for letter in bus.dead_letters}
    assert failed <= {TypeError}


FORK = """
    import os
    import numpy as np
    from procbus import EventBus

    with EventBus([], cpu_workers=1) as bus:
        bus.subscribe("a", lambda a: 2 * a, kind="cpu")
        result = bus.publish("a", np.ones(100_000)).result()
        wait, go = os.pipe()
        pid = os.fork()
        if not pid:
            os.read(wait, 1)
            os._exit(0 if (result == 2).all() else 1)
        del result
        for n in range(5):
            bus.publish("a", np.full(100_000, float(n))).result()
        os.write(go, b"x")
        assert os.waitpid(pid, 0)[1] == 0, "the child saw another result in place of its own"
    print("done")
    """


def test_forked_child_keeps_the_results_it_inherited(run: Run) -> None:
    # From 3.12 on Python warns of forking beside threads.
    assert run(FORK, PYTHONWARNINGS="ignore").check() == "done\n"


NO_FILES = """
    import os, resource
    import numpy as np
    from procbus import EventBus

    with EventBus([], cpu_workers=1, shared_memory_limit="64 MiB") as bus:
        bus.subscribe("a", lambda a: 2 * a, kind="cpu")
        bus.publish("a", np.ones(3)).result()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        taken = []
        try:
            while True:
                taken.append(os.dup(0))
        except OSError:
            pass
        sent = bus.stats().shared_memory.sent
        for n in range(5):
            result = bus.publish("a", np.full(100_000, float(n))).result()
            assert (result == 2 * n).all()
        assert bus.stats().shared_memory.sent == sent
        for fd in taken:
            os.close(fd)
        assert (bus.publish("a", np.ones(100_000)).result() == 2).all()
        assert bus.stats().shared_memory.sent > sent
    print("done")
    """


def test_a_script_that_has_used_up_its_files_still_gets_large_events_through(run: Run) -> None:
    ended = run(NO_FILES)
    # On stderr the supervisor may say that it cannot look at its workers.
    assert (ended.code, ended.out) == (0, "done\n"), ended.err


LIMITED_FILES = """
    import resource
    import numpy as np
    from procbus import EventBus

    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (8 << 20, hard))
    with EventBus([], cpu_workers=1) as bus:
        bus.subscribe("a", lambda a: 2 * a, kind="cpu")
        for n in range(40):
            result = bus.publish("a", np.full(20_000 * (n % 7 + 1), float(n))).result()
            assert (result == 2 * n).all()
    print("done")
    """


def test_a_limit_for_the_size_of_files_does_not_lose_large_events(run: Run) -> None:
    assert run(LIMITED_FILES).check() == "done\n"
