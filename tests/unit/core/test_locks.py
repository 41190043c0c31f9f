# SPDX-License-Identifier: MIT
"""Locks that a thread may take again, and two threads that are tangled up."""

import threading
from collections.abc import Callable
from typing import Any

import pytest

from procbus import EventBus
from procbus.core.errors import ProcbusError
from procbus.core.locks import (
    Bell,
    Lock,
    Tangled,
    acquire,
    catch_up,
    check_may_wait,
    holding,
    later,
)
from tests.parts import BOUND_S, in_thread
from tests.waits import eventually


class Holder:
    """A thread that has a lock for a while."""

    def __init__(self, lock: Lock) -> None:
        self._has = threading.Event()
        self._go = threading.Event()
        self._lock = lock

    def _hold(self) -> None:
        with self._lock:
            self._has.set()
            self._go.wait(BOUND_S)

    def __enter__(self) -> None:
        self._thread = in_thread(self._hold)
        assert self._has.wait(BOUND_S)

    def __exit__(self, *_: object) -> None:
        self._go.set()
        self._thread.join(BOUND_S)


def test_a_thread_takes_its_lock_again():
    lock = Lock()
    assert not lock.owned()
    with lock:
        with lock:
            assert lock.owned()
        assert lock.owned()
        assert holding()
    assert not lock.owned()
    assert not holding()


def test_a_lock_of_another_thread_is_not_owned():
    lock = Lock()
    with Holder(lock):
        assert not lock.owned()
        assert not holding()


def test_thread_without_a_lock_waits_for_one():
    lock = Lock()
    taken = threading.Event()

    def take() -> None:
        with lock:
            taken.set()

    with Holder(lock):
        thread = in_thread(take)
        assert not taken.is_set()
    thread.join(BOUND_S)
    assert taken.is_set()


def test_a_thread_that_has_a_lock_gives_up_waiting_for_another():
    mine, other = Lock(), Lock()
    with Holder(other), mine:
        with pytest.raises(Tangled, match="signal handler"):
            acquire(other)
        with pytest.raises(Tangled), other:
            pass
        assert not other.owned()
        assert mine.owned()


def test_a_thread_that_has_a_lock_must_not_wait():
    check_may_wait()
    with Lock(), pytest.raises(ProcbusError, match="wait in ordinary code"):
        check_may_wait()


def test_a_bell_that_was_rung_before_wakes_at_once():
    bell = Bell()
    bell.ring()
    bell.ring()
    assert bell.wait(BOUND_S)
    assert not bell.wait(0.0)


def test_deferred_calls_run_in_order_even_if_some_fail():
    done: list[int] = []

    def do(number: int) -> None:
        done.append(number)
        if number == 1:
            raise ValueError(number)

    for number in range(4):
        later(do, number)
    catch_up()
    eventually(lambda: len(done) == 4)
    assert done == [0, 1, 2, 3]


LOCKS: list[Callable[[EventBus], Any]] = [
    lambda bus: bus._parts.admission._lock,  # noqa: SLF001 - no other way to be tangled up
    lambda bus: bus._parts.lanes.io.queue.lock,  # noqa: SLF001
]


@pytest.mark.parametrize("name", ["plain", "keyed", "picky"])
@pytest.mark.parametrize("lock_of", LOCKS)
def test_an_event_that_is_published_while_two_threads_are_tangled_up_runs_later(lock_of, name):
    with EventBus(handlers=[]) as bus:
        bus.subscribe("plain", abs)
        bus.subscribe("keyed", abs, key=abs)
        bus.subscribe("picky", abs, where=bool)
        assert bus.publish(name, -1).result() == 1
        with Holder(lock_of(bus)), Lock():
            receipt = bus.publish(name, -2)
            assert not receipt.done
        assert receipt.result(BOUND_S) == 2
        assert bus.drain(BOUND_S)


def test_a_call_that_is_submitted_while_two_threads_are_tangled_up_runs_later():
    with EventBus(handlers=[]) as bus, bus.executor("io") as executor:
        assert executor.submit(abs, -1).result() == 1
        with Holder(LOCKS[0](bus)), Lock():
            future = executor.submit(abs, -2)
        assert future.result(BOUND_S) == 2


def test_waiting_where_it_might_last_for_ever_is_refused():
    gate = threading.Event()
    with EventBus(handlers=[]) as bus:
        bus.subscribe(int, lambda _: gate.wait(BOUND_S))
        receipt = bus.publish(1)
        with Lock():
            with pytest.raises(ProcbusError, match="wait in ordinary code"):
                bus.drain()
            with pytest.raises(ProcbusError, match="wait in ordinary code"):
                receipt.wait()
            assert not receipt.wait(0.01)
        gate.set()
        assert receipt.wait(BOUND_S)
