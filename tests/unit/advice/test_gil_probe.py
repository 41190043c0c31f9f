"""The GIL probe: conclusions from a look, and looks at real threads."""

import os
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procbus.advice.gil_probe import GilProbe, doing, is_available
from procbus.core.meter import Doing
from tests.matrix import quick_first
from tests.parts import BOUND_S

pytestmark = pytest.mark.skipif(not is_available(), reason="needs the clocks of other threads")

DATA = bytes(4_000_000)


def likeliest(*args: object) -> Doing:
    found = doing(*args)  # type: ignore[arg-type] # as the tests below give them
    return max(found, key=lambda each: found[each])


def test_thread_that_ran_while_the_gil_was_held_held_it():
    assert likeliest(0.005, 0.005, 0.005, False, "futex_wait_queue") is Doing.HOLDS


def test_thread_that_did_not_run_meanwhile_waits_for_the_gil():
    assert likeliest(0.005, 0.0, 0.005, False, "futex_wait_queue") is Doing.QUEUES


def test_thread_that_waits_for_something_else_waits():
    assert likeliest(0.005, 0.0, 0.005, False, "hrtimer_nanosleep") is Doing.WAITS
    assert likeliest(0.0, 0.0, 0.001, False, "sk_wait_data") is Doing.WAITS


def test_thread_that_goes_on_without_the_gil_needs_none():
    assert likeliest(0.0, 0.0, 0.0, True, "0") is Doing.FREE
    assert likeliest(0.005, 0.005, 0.02, True, "0") is Doing.FREE


def test_two_threads_that_ran_all_the_time_cannot_both_have_held_the_gil():
    found = doing(0.0095, 0.01, 0.02, False, "futex_wait_queue")
    assert found[Doing.FREE] == pytest.approx(0.5)
    assert found[Doing.HOLDS] == pytest.approx(0.5)


def test_lock_is_distinguished_from_the_gil_by_an_idle_process():
    assert doing(0.0, 0.0, 0.0, False, "futex_wait_queue", True) == {Doing.WAITS: 1.0}
    assert doing(0.0, 0.0, 0.0, False, "futex_wait_queue", False) == {}


@given(
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0, 64),
    st.booleans(),
    st.sampled_from(["", "0", "futex_wait_queue", "hrtimer_nanosleep"]),
)
def test_likelihoods_never_add_up_to_more_than_one(
    late_s: float, ran_s: float, others_s: float, went_on: bool, blocked_in: str
):
    found = doing(late_s, ran_s, ran_s + others_s, went_on, blocked_in)
    assert all(each >= -1e-9 for each in found.values())
    assert sum(found.values()) <= 1 + 1e-9


@given(
    st.floats(0, 1),
    st.floats(-10, 10),
    st.floats(-10, 10),
    st.booleans(),
    st.sampled_from(["", "0", "futex_wait_queue", "hrtimer_nanosleep"]),
)
def test_clocks_that_do_not_agree_make_nothing_likelier_than_certain(
    late_s: float, ran_s: float, ran_all_s: float, went_on: bool, blocked_in: str
):
    """A thread that has ended has no clock; and no two clocks are read at one moment."""
    found = doing(late_s, ran_s, ran_all_s, went_on, blocked_in)
    assert all(-1e-9 <= each <= 1 + 1e-9 for each in found.values())
    assert sum(found.values()) <= 1 + 1e-9


class Asleep:
    """A thread that the kernel knows nothing of, so that its clock stands still."""

    def __init__(self, native_id: int) -> None:
        self.native_id = native_id

    def subject(self) -> str:
        return "it"

    def finished(self, since: float) -> None:
        return None


class Told(GilProbe):
    """A probe that is told where each thread waits."""

    def __init__(self, blocked_in: dict[int, str]) -> None:
        super().__init__()
        self._told = blocked_in

    def _blocked_in(self, thread: int) -> str:
        return self._told.get(thread, "hrtimer_nanosleep")


def test_thread_in_a_futex_may_want_the_gil_while_another_thread_has_no_core():
    lock, other, main = 2**23, 2**23 + 1, os.getpid()  # above every real id
    looked_at = [Asleep(lock), Asleep(other)]
    at_rest = Told({lock: "futex_wait"})
    starved = Told({lock: "futex_wait", other: "0"})
    main_starved = Told({lock: "futex_wait", main: "0"})
    seen: dict[GilProbe, float] = dict.fromkeys((at_rest, starved, main_starved), 0.0)
    deadline, pause = time.monotonic() + BOUND_S, threading.Event()
    while seen[at_rest] < 3 and time.monotonic() < deadline:
        pause.wait(0.02)  # so that the process hardly ran
        for probe in seen:
            for _, found in probe.look(looked_at)[:1]:
                seen[probe] += found.get(Doing.WAITS, 0.0)
    assert seen[at_rest] >= 3
    assert seen[starved] == seen[main_starved] == 0


class Subject(threading.Thread):
    """A thread that does the same again and again."""

    def __init__(self, what: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self.what = what
        self.began = threading.Event()
        self.ended = False

    def run(self) -> None:
        self.began.set()
        while not self.ended:
            self.what()

    def subject(self) -> str:
        return "it"

    def finished(self, since: float) -> None:
        return None


@contextmanager
def threads(what: Callable[[], object], count: int) -> Iterator[list[Subject]]:
    started = [Subject(what) for _ in range(count)]
    for thread in started:
        thread.start()
    try:
        assert all(thread.began.wait(BOUND_S) for thread in started)
        yield started
    finally:
        for thread in started:
            thread.ended = True
        for thread in started:
            thread.join(BOUND_S)


def looked(what: Callable[[], object], count: int, until: Doing) -> Counter[Doing]:
    """Look until that was seen ten times, or for as long as a test may take."""
    probe, found = GilProbe(), Counter[Doing]()
    deadline = time.monotonic() + BOUND_S
    with threads(what, count) as started:
        while found[until] < 10 and time.monotonic() < deadline:
            for _, seen in probe.look(started):
                found.update(seen)
    assert found[until], "it was never seen"
    return found


def spin() -> None:
    for _ in range(20_000):
        pass


@pytest.mark.skipif(
    "PROCBUS_TEST_SWITCH_S" in os.environ, reason="no thread keeps the GIL long enough to be seen"
)
@pytest.mark.parametrize("count", quick_first([4, 1]))
def test_python_code_is_seen_to_hold_the_gil(count: int):
    found = looked(spin, count, Doing.HOLDS)
    assert found[Doing.HOLDS] > found[Doing.FREE]
    assert found[Doing.HOLDS] > found[Doing.WAITS]


def test_code_that_releases_the_gil_is_seen_to():
    found = looked(lambda: zlib.crc32(DATA), 2, Doing.FREE)
    assert found[Doing.FREE] > found[Doing.HOLDS]


def test_sleep_is_seen_as_waiting():
    found = looked(lambda: time.sleep(0.01), 4, Doing.WAITS)
    assert found[Doing.WAITS] > found[Doing.HOLDS] + found[Doing.FREE]


def test_a_thread_that_has_ended_is_seen_to_do_nothing():
    with threads(spin, 1) as [thread]:
        pass
    for _, seen in GilProbe().look([thread]):
        assert not any(seen.values())
