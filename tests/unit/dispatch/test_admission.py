# SPDX-License-Identifier: MIT
"""The bound on pending deliveries, and publishers that wait for room, never in vain."""

import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from procbus.core.errors import BusClosed, QueueFull
from procbus.dispatch.admission import AVALANCHE, Admission, Disturbed
from tests.parts import BOUND_S, in_thread
from tests.waits import eventually


def never() -> None:
    raise AssertionError("called back although there was room")


@pytest.mark.parametrize("nested", [False, True])
def test_delivery_is_pending_until_it_leaves(nested):
    admission = Admission(3, "block")
    admission.enter(2, nested)
    assert admission.pending == 2
    admission.leave(1)
    assert admission.pending == 1


def test_error_of_a_full_bus_names_the_remedy():
    admission = Admission(2, "raise")
    admission.enter(2, False)
    with pytest.raises(QueueFull, match=r"2 deliveries are pending \(max_pending=2\).*raise max_p"):
        admission.enter(1, False)
    assert admission.pending == 2


def test_event_without_handlers_enters_a_full_bus():
    admission = Admission(1, "raise")
    admission.enter(1, False)
    admission.enter(0, False)
    assert admission.pending == 1


def test_an_event_with_more_deliveries_than_the_limit_enters_when_there_is_room():
    admission = Admission(2, "raise")
    admission.enter(5, False)
    assert admission.pending == 5


def test_a_handler_publishes_into_a_full_bus_without_waiting():
    admission = Admission(1, "block")
    for _ in range(AVALANCHE):
        admission.enter(1, True)
    assert admission.pending == AVALANCHE


def test_an_avalanche_from_handlers_is_stopped():
    admission = Admission(2, "block")
    admission.enter(AVALANCHE * 2, True)
    with pytest.raises(
        QueueFull, match=r"never waits.* 10 times max_pending\. In an io .*bus\.stream"
    ):
        admission.enter(1, True)


def test_a_handler_too_is_refused_by_a_full_bus_that_raises():
    admission = Admission(1, "raise")
    admission.enter(1, True)
    with pytest.raises(QueueFull, match='up to max_pending, because of on_full="raise"'):
        admission.enter(1, True)


@pytest.mark.parametrize("max_pending", [1, 2, 63, 64, 1000])
def test_a_publisher_waits_until_enough_has_left(max_pending):
    admission = Admission(max_pending, "block")
    admission.enter(max_pending, False)
    entered = threading.Event()

    def publisher() -> None:
        admission.enter(1, False)
        entered.set()

    thread = in_thread(publisher)
    assert not entered.is_set()
    for _ in range(max_pending):
        admission.leave(1)
    thread.join(BOUND_S)
    assert entered.is_set()
    assert admission.pending == 1


@pytest.mark.parametrize("max_pending", [1, 7, 64])
def test_publishers_from_many_threads_never_pass_the_limit_and_all_get_in(max_pending):
    admission = Admission(max_pending, "block")
    inside: list[int] = []
    room = threading.Semaphore(0)

    def publish(count: int) -> None:
        for _ in range(count):
            admission.enter(1, False)
            inside.append(admission.pending)
            room.release()

    def settle(count: int) -> None:
        for _ in range(count):
            assert room.acquire(timeout=BOUND_S)
            admission.leave(1)

    with ThreadPoolExecutor(12) as pool:
        for future in [pool.submit(publish, 200) for _ in range(6)] + [
            pool.submit(settle, 200) for _ in range(6)
        ]:
            future.result(BOUND_S)
    assert admission.pending == 0
    assert len(inside) == 1200
    assert max(inside) <= max_pending


def test_without_room_the_callback_comes_once_there_may_be():
    admission = Admission(1, "block")
    called: list[str] = []
    assert admission.ask(1, never) is None
    assert admission.ask(1, lambda: called.append("room"))
    assert called == []
    admission.leave(1)
    assert called == ["room"]
    assert admission.pending == 1  # the room is taken for it already
    admission.leave(0)
    assert called == ["room"]


def test_a_callback_may_enter_again():
    admission = Admission(2, "block")
    admission.enter(2, False)
    entered: list[bool] = []
    admission.ask(1, lambda: entered.append(admission.ask(1, never) is None))
    admission.leave(2)
    assert entered == [True]
    assert admission.pending == 2


def test_waiters_are_called_in_order_while_there_is_room():
    admission = Admission(4, "block")
    admission.enter(4, False)
    called: list[int] = []
    places = [admission.ask(1, partial(called.append, n)) for n in range(10)]
    admission.leave(1)
    assert called == [0]
    admission.leave(2)
    assert called == [0, 1, 2]
    assert [place is not None and place.granted for place in places] == [True] * 3 + [False] * 7
    assert admission.pending == 4


@pytest.mark.parametrize("granted", [False, True])
def test_room_that_is_given_up_goes_to_the_next_in_line(granted):
    admission = Admission(1, "block")
    admission.enter(1, False)
    called: list[int] = []
    first = admission.ask(1, partial(called.append, 1))
    admission.ask(1, partial(called.append, 2))
    assert first is not None
    if granted:
        admission.leave(1)
    admission.give_up(first)
    admission.give_up(first)
    if not granted:
        admission.leave(1)
    assert called == ([1, 2] if granted else [2])
    assert admission.pending == 1


def test_threads_are_called_in_the_order_in_which_they_began_to_wait():
    admission = Admission(1, "block")
    admission.enter(1, False)
    entered: list[int] = []
    came = threading.Semaphore(0)

    def publisher(n: int) -> None:
        admission.enter(1, False)
        entered.append(n)
        came.release()

    def is_blocked(count: int) -> bool:
        return admission.blocked == count

    threads = []
    for n in range(8):
        threads.append(in_thread(partial(publisher, n)))
        eventually(partial(is_blocked, n + 1))
    for _ in threads:
        admission.leave(1)
        assert came.acquire(timeout=BOUND_S)
    assert entered == list(range(8))


def test_a_waiting_publisher_that_is_interrupted_leaves_the_room_to_the_next():
    admission = Admission(1, "block")
    admission.enter(1, False)
    entered = threading.Event()

    def publisher() -> None:
        admission.enter(1, False)
        entered.set()

    def interrupt(*_: object) -> None:
        in_thread(publisher)
        eventually(lambda: admission.blocked == 2)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(KeyboardInterrupt):
            admission.enter(1, False)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert admission.blocked == 1
    admission.leave(1)
    assert entered.wait(BOUND_S)
    assert admission.pending == 1


def test_trying_to_enter_a_full_bus_that_raises_is_refused():
    admission = Admission(1, "raise")
    admission.enter(1, False)
    with pytest.raises(QueueFull):
        admission.ask(1, never)


@pytest.mark.parametrize("count", [0, 1])
def test_a_bus_that_refuses_takes_nothing_from_outside(count):
    admission = Admission(5, "block")
    admission.refuse()
    admission.refuse()
    with pytest.raises(BusClosed, match="make a new bus"):
        admission.enter(count, False)
    with pytest.raises(BusClosed):
        admission.ask(count, never)
    assert admission.pending == 0


def test_handlers_that_are_still_running_may_publish_into_a_bus_that_refuses():
    admission = Admission(5, "block")
    admission.enter(1, False)
    admission.refuse()
    admission.enter(1, True)
    assert admission.pending == 2


def test_once_everything_is_settled_a_closed_bus_refuses_handlers_as_well():
    # A thread that a handler started and left behind still counts as being inside it.
    admission = Admission(5, "block")
    admission.enter(1, False)
    admission.refuse()
    admission.leave(1)
    with pytest.raises(BusClosed):
        admission.enter(1, True)


def test_publishers_that_wait_get_the_error_of_a_closed_bus():
    admission = Admission(1, "block")
    admission.enter(1, False)
    refused: list[type] = []
    woken: list[str] = []
    admission.ask(1, lambda: woken.append("closed"))

    def publisher() -> None:
        try:
            admission.enter(1, False)
        except BusClosed as error:
            refused.append(type(error))

    threads = [in_thread(publisher) for _ in range(3)]
    admission.refuse()
    for thread in threads:
        thread.join(BOUND_S)
    assert refused == [BusClosed] * 3
    assert woken == ["closed"]


def test_waiting_for_empty_gives_up_after_its_timeout():
    admission = Admission(1, "block")
    assert admission.wait_empty(0)
    admission.enter(1, False)
    assert not admission.wait_empty(0)
    assert not admission.wait_empty(0.01)


def test_waiting_for_empty_ends_when_the_last_one_leaves():
    admission = Admission(5, "block")
    admission.enter(3, False)
    answers: list[bool] = []
    threads = [in_thread(lambda: answers.append(admission.wait_empty(None))) for _ in range(3)]
    admission.leave(2)
    assert answers == []
    admission.leave(1)
    for thread in threads:
        thread.join(BOUND_S)
    assert answers == [True] * 3


@pytest.mark.parametrize("how", ["thread", "callback"])
def test_a_publisher_gets_in_though_the_rest_never_leaves(how):
    admission = Admission(64, "block")
    admission.enter(64, False)
    entered = threading.Event()
    if how == "callback":
        admission.ask(1, entered.set)
    else:
        blocked = threading.Event()

        def publisher() -> None:
            blocked.set()
            admission.enter(1, False)
            entered.set()

        in_thread(publisher)
        blocked.wait(BOUND_S)
        eventually(lambda: admission.blocked)
    admission.leave(1)
    try:
        assert entered.wait(BOUND_S)
    finally:
        admission.leave(63)
        assert entered.wait(BOUND_S)


class Entrances(RuleBasedStateMachine):
    """Against a plain count, from one thread."""

    def __init__(self) -> None:
        super().__init__()
        self.admission = Admission(4, "block")
        self.pending = 0
        self.refused = False
        self.waiting: list[int] = []
        self.called = 0
        self.woken = 0

    @rule(count=st.integers(0, 3))
    def publish(self, count: int) -> None:
        def wake() -> None:
            self.woken += 1

        full = count > 0 and self.pending >= 4
        if self.refused:
            with pytest.raises(BusClosed):
                self.admission.ask(count, wake)
        elif self.admission.ask(count, wake) is None:
            assert not full
            self.pending += count
        else:
            assert full
            self.waiting.append(count)

    @precondition(lambda self: 0 < self.pending < 30)
    @rule(count=st.integers(0, 3))
    def publish_in_a_handler(self, count: int) -> None:
        self.admission.enter(count, True)
        self.pending += count

    @precondition(lambda self: self.pending)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(1, self.pending))
        self.admission.leave(count)
        self.pending -= count
        while self.pending < 4 and self.called < len(self.waiting) and not self.refused:
            self.pending += self.waiting[self.called]
            self.called += 1

    @rule()
    def close(self) -> None:
        self.admission.refuse()
        self.refused = True
        self.called = len(self.waiting)

    @invariant()
    def counts_agree(self) -> None:
        assert self.admission.pending == self.pending
        assert self.admission.wait_empty(0) == (self.pending == 0)

    @invariant()
    def nobody_waits_while_there_is_room(self) -> None:
        if self.pending < 4 or self.refused:
            assert self.woken == len(self.waiting)
        assert self.woken == self.called


TestEntrances = Entrances.TestCase


@given(st.integers(1, 100_000))
def test_waiter_is_woken_at_the_latest_when_the_bus_is_empty(max_pending):
    admission = Admission(max_pending, "block")
    admission.enter(max_pending, False)
    woken: list[bool] = []
    assert admission.ask(1, lambda: woken.append(True))
    admission.leave(max_pending)
    assert woken == [True]


def test_disturbed_waiter_looks_again():
    admission = Admission(1, "block")
    admission.enter(1, False)
    told = threading.Event()
    called: list[int] = []

    def publisher() -> None:
        with pytest.raises(Disturbed):
            admission.enter(1, False)
        told.set()

    thread = in_thread(publisher)
    assert admission.ask(1, lambda: called.append(1))
    while not told.is_set():
        admission.disturb()
        assert thread.is_alive() or told.is_set()
    thread.join(BOUND_S)
    assert called == [1]
    assert admission.pending == 1


def test_waiter_that_missed_a_disturbance_looks_again():
    admission = Admission(1, "block")
    admission.enter(1, False)
    seen = admission.disturbed
    admission.disturb()
    with pytest.raises(Disturbed):
        admission.enter(1, False, seen)
    assert admission.pending == 1


def test_disturbance_keeps_no_publisher_from_free_room():
    admission = Admission(1, "block")
    admission.disturb()
    admission.enter(1, False)
    assert admission.pending == 1


def test_a_full_bus_that_raises_does_so_after_a_disturbance_too():
    admission = Admission(1, "raise")
    admission.enter(1, False)
    admission.disturb()
    with pytest.raises(QueueFull):
        admission.enter(1, False, admission.disturbed)


@pytest.mark.parametrize("name", ["procbus-companion-1", "procbus-io-3", "procbus-loop"])
def test_thread_that_makes_the_room_never_waits_for_it(name: str) -> None:
    admission = Admission(1, "block")
    admission.enter(1, nested=False)
    thread = threading.Thread(target=admission.enter, args=(1, False), name=name, daemon=True)
    thread.start()
    thread.join(BOUND_S)

    assert not thread.is_alive()
    assert admission.pending == 2
    admission.leave(2)
